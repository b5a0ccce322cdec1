"""Speak a sentence once to warm up and a few times to measure, here or on a server. Runs in a process of its own."""

from __future__ import annotations

import secrets
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from afterwords import local
from afterwords.audio.wav import Samples, read_wav
from afterwords.backends import registry
from afterwords.backends.base import Progress
from afterwords.backends.memory import peak_bytes
from afterwords.bench.measurement import N_RUNS, BenchResult
from afterwords.errors import (
    AfterwordsError,
    InvalidResponseError,
    SynthesisError,
    UnsupportedByServerError,
    VoiceNotFoundError,
)

if TYPE_CHECKING:
    from afterwords.client import Client
    from afterwords.models import Voice

ENCODER: Final = "GE2E"
"""The speaker encoder that ships with the engine `lite`: numpy alone, the same for every backend."""
MIB: Final = 2**20
_TUNED_BY_ENCODER: Final = frozenset({"lite"})
"""Backends that choose how to speak by this very encoder; source: backends/lite/enrol.py."""
_TRIES: Final = 5
_N_BLANKS: Final = 8


class Utterance(NamedTuple):
    """The sentence, spoken once.

    Attributes:
        first_s: Time to the first audio, in seconds; `work_s` to the last.
        samples: Shape (n_samples,), float32 in [-1, 1].
    """

    backend: str | None
    first_s: float
    work_s: float
    samples: Samples
    sample_rate: int

    @property
    def audio_s(self) -> float:
        return len(self.samples) / self.sample_rate


# -- here -----------------------------------------------------------------------------------------------------


def prepare_voice(*, voice_id: str, lang: str, backend: str, progress: Progress) -> BenchResult:
    """Make the prompt of a voice if there is none; return the time that it took, 0 if it was there."""
    voice = local.library().get(voice_id)
    if local.has_prompt(voice, backend):
        return BenchResult(prepare_s=0.0)
    engine = registry.engine_for(registry.choose(backend, lang=lang))
    engine.load(backend, lambda done, step: progress(done / 2, step))
    started = time.perf_counter()
    local.make_prompt(voice, backend, progress=lambda done, step: progress((1 + done) / 2, step))
    return BenchResult(prepare_s=time.perf_counter() - started)


def speak_here(
    text: str, *, voice_id: str, lang: str, backend: str, prepare_s: float | None, progress: Progress
) -> BenchResult:
    """Load a backend and speak with a prepared voice.

    Raises:
        AfterwordsError: As for `local.say`.
    """
    library = local.library()
    voice = library.get(voice_id)
    engine = registry.engine_for(registry.choose(backend, lang=lang))
    started = time.perf_counter()
    engine.load(backend, lambda done, step: progress(0.2 * done, step))
    load_s = time.perf_counter() - started

    def speak() -> Utterance:
        speech = local.stream(text, voice=voice, lang=lang, backend=backend)
        audio = speech.audio()
        result = speech.result
        assert result is not None, "all was read"
        return Utterance(
            speech.backend,
            (result.first_audio_ms or 0) / 1000,
            result.synth_ms / 1000,
            audio.samples,
            audio.sample_rate,
        )

    utterances = _repeat(speak, lambda done, step: progress(0.2 + 0.7 * done, step), backend)
    peak, device_memory = peak_bytes(), device_peak_mib()  # before the encoder takes any
    return _summarize(
        utterances,
        library.reference(voice),
        progress,
        memory_mib=None if peak is None else round(peak / MIB, 1),
        device_memory_mib=device_memory,
        load_s=round(load_s, 2),
        prepare_s=round(prepare_s or 0.0, 2),
    )


def device_peak_mib() -> float | None:
    """Return the peak memory that torch or MLX held on a GPU, in MiB; None if no engine uses one.

    A library that no engine has imported is not imported for this. On a Mac, part of it may be in the resident memory,
    too, since its GPU has no memory of its own.
    """
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return round(float(torch.cuda.max_memory_reserved()) / MIB, 1)
    mlx: Any = sys.modules.get("mlx.core")
    if mlx is not None and mlx.default_device().type == mlx.gpu:
        return round(float(mlx.get_peak_memory()) / MIB, 1)
    return None


# -- on a server ----------------------------------------------------------------------------------------------


def speak_on_server(text: str, *, voice_id: str, lang: str, profile: str | None, progress: Progress) -> BenchResult:
    """Have a server speak with the voice that was pushed to it. Times include the network.

    Raises:
        VoiceNotFoundError: The voice was never pushed.
        ServiceError, RemoteError: As for `Client.stream`.
    """
    from afterwords.client import Client
    from afterwords.transfer import find_remote

    library = local.library()
    voice = library.get(voice_id)
    progress(0.0, "asking the server")
    with Client(profile=profile) as client:
        remote = find_remote(voice, client=client)
        if remote is None:
            missing = VoiceNotFoundError.for_name(voice.name)
            missing.hint = f"push it there: afterwords push {shlex.quote(voice.name)}"
            raise missing
        utterances = _repeat(lambda: _request(client, text, lang, remote), progress, client.base_url)
    return _summarize(utterances, library.reference(voice), progress)


def _request(client: Client, text: str, lang: str, voice: Voice) -> Utterance:
    for _ in range(_TRIES):
        started = time.perf_counter()
        try:  # with a random seed, so that no cache has the answer
            stream = client.stream(text, voice=voice, lang=lang, seed=secrets.randbits(53))
        except UnsupportedByServerError:  # the hosted service takes no seeds and caches by the exact text
            blanks = "".join(secrets.choice(" \n") for _ in range(_N_BLANKS))
            stream = client.stream(f"{text}{blanks}", voice=voice, lang=lang)
        with stream as speech:
            if speech.is_cached:
                continue
            first_s, parts = 0.0, []
            for chunk in speech:
                first_s = first_s or time.perf_counter() - started
                parts.append(chunk.samples)
            work_s = time.perf_counter() - started
        samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        return Utterance(speech.backend, first_s, work_s, samples, speech.sample_rate)
    raise InvalidResponseError.for_reason("it comes from a cache, although each request differs")


# -- both -----------------------------------------------------------------------------------------------------


def _repeat(speak: Callable[[], Utterance], progress: Progress, name: str) -> list[Utterance]:
    """Speak once to warm up, then `N_RUNS` times.

    Raises:
        SynthesisError: There was no audio.
    """
    utterances = []
    for number in range(1 + N_RUNS):
        progress(number / (1 + N_RUNS), f"speaking, {number} of {N_RUNS}" if number else "warming up")
        utterance = speak()
        if not len(utterance.samples):
            raise SynthesisError.for_backend(name, why="it made no sound")
        utterances.append(utterance)
    return utterances[1:]


def _summarize(utterances: Sequence[Utterance], reference: bytes, progress: Progress, **figures: Any) -> BenchResult:
    progress(0.95, "comparing")
    return BenchResult(
        backend=utterances[0].backend,
        first_audio_ms=round(1000 * statistics.median(each.first_s for each in utterances), 1),
        real_time_factor=round(statistics.median(each.work_s / each.audio_s for each in utterances), 3),
        audio_s=round(statistics.median(each.audio_s for each in utterances), 2),
        **compare(utterances, reference),
        **figures,
    )


def compare(utterances: Sequence[Utterance], reference: bytes) -> dict[str, Any]:
    """Return the fields `similarity…` of a measurement: the median over utterances to the reference, a WAV."""
    from afterwords.backends.lite.speaker import embed

    try:
        recording, rate = read_wav(reference, source="the reference")
        speaker = embed(recording, rate)
        similarity = statistics.median(float(embed(each.samples, each.sample_rate) @ speaker) for each in utterances)
    except AfterwordsError as error:
        return {"similarity_note": error.message}
    fields = {"similarity": round(similarity, 3), "similarity_by": ENCODER}
    if utterances[0].backend in _TUNED_BY_ENCODER:
        fields["similarity_note"] = "its engine chooses how to speak by this very encoder, which flatters it"
    return fields
