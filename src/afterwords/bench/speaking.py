"""Measuring itself: one utterance to warm up, a few that count, here or on a server. Runs in a process of its own."""

from __future__ import annotations

import secrets
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from afterwords import local
from afterwords.audio.wav import Samples
from afterwords.backends import registry
from afterwords.backends.base import Progress
from afterwords.bench.judge import device_peak_mib, likeness, peak_mib
from afterwords.bench.report import N_RUNS, Figures, Order
from afterwords.errors import InvalidResponseError, SynthesisError, UnsupportedByServerError, VoiceNotFoundError

if TYPE_CHECKING:
    from afterwords.client import Client, RemoteSpeech
    from afterwords.models import Voice

_LOADED, _PREPARED, _LOADED_AGAIN, _SPOKEN = 0.2, 0.4, 0.5, 0.95
"""How far it is, for progress alone."""
_TRIES: Final = 5
_BLANKS: Final = 8


class Utterance(NamedTuple):
    """One time that the sentence was spoken.

    Attributes:
        first_s: from the asking to the first audio, in seconds; `work_s` to the last.
        samples: shape (n_samples,), float32 in [-1, 1].
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


def prepare_voice(order: Order, progress: Progress) -> float | None:
    """Make what the backend needs to speak with the voice; returns the seconds, None where it was kept from before.

    A process that did it is not measured: preparing may take more memory than speaking, and leaves some behind.
    """
    voice = local.library().get(order.voice_id)
    if local.has_prompt(voice, order.name):
        return None
    registry.engine_for(registry.choose(order.name, lang=order.lang)).load(order.name, _part(progress, 0.0, _LOADED))
    began = time.perf_counter()
    local.make_prompt(voice, order.name, progress=_part(progress, _LOADED, _PREPARED))
    return time.perf_counter() - began


def measure_backend(order: Order, progress: Progress) -> Figures:
    """Load a backend, and speak with a voice that is prepared.

    Raises:
        AfterwordsError: as for `studio.say`.
    """
    shelf = local.library()
    voice = shelf.get(order.voice_id)
    engine = registry.engine_for(registry.choose(order.name, lang=order.lang))
    began = time.perf_counter()
    engine.load(order.name, _part(progress, _PREPARED, _LOADED_AGAIN))
    load_s = time.perf_counter() - began
    spoken = _rounds(lambda: _say(order, voice), progress, order.name)
    memory, device_memory = peak_mib(), device_peak_mib()  # before the judge takes any
    return _figures(
        spoken,
        shelf.reference(voice),
        progress,
        memory_mib=memory,
        device_memory_mib=device_memory,
        load_s=round(load_s, 2),
        prepare_s=round(order.prepare_s or 0.0, 2),
    )


def _say(order: Order, voice: Voice) -> Utterance:
    speech = local.stream(order.text, voice=voice, lang=order.lang, backend=order.backend)
    audio = speech.audio()
    done = speech.result
    assert done is not None, "it was read to its end"
    return Utterance(
        speech.backend, (done.first_audio_ms or 0) / 1000, done.synth_ms / 1000, audio.samples, audio.sample_rate
    )


# -- on a server ----------------------------------------------------------------------------------------------


def measure_server(order: Order, progress: Progress) -> Figures:
    """Have a server speak, with the voice that it has already. Times are those of who waits here, network included.

    Raises:
        VoiceNotFoundError: the voice was never brought there.
        ServiceError, RemoteError: as for `Client.stream`.
    """
    from afterwords.client import Client
    from afterwords.transfer import find_remote

    shelf = local.library()
    voice = shelf.get(order.voice_id)
    progress(0.0, "asking the server")
    with Client(profile=order.profile) as client:
        there = find_remote(voice, client=client)
        if there is None:
            missing = VoiceNotFoundError.for_name(voice.name)
            missing.hint = f"bring it there: afterwords push {shlex.quote(voice.name)}"
            raise missing
        spoken = _rounds(lambda: _ask(client, order, there), progress, client.base_url)
    return _figures(spoken, shelf.reference(voice), progress)


def _ask(client: Client, order: Order, voice: Voice) -> Utterance:
    for _ in range(_TRIES):
        began = time.perf_counter()
        with _fresh(client, order, voice) as speech:
            if speech.is_cached:
                continue
            first_s, parts = 0.0, []
            for chunk in speech:
                first_s = first_s or time.perf_counter() - began
                parts.append(chunk.samples)
            work_s = time.perf_counter() - began
        samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        return Utterance(speech.backend, first_s, work_s, samples, speech.sample_rate)
    raise InvalidResponseError.for_reason("it comes from a cache, whatever is asked")


def _fresh(client: Client, order: Order, voice: Voice) -> RemoteSpeech:
    """Ask for the sentence so that no cache can answer: with a seed of its own, for the very same words.

    The hosted service knows no seeds, but caches by the exact text: there, blanks that nobody hears follow it.
    """
    try:
        return client.stream(order.text, voice=voice, lang=order.lang, seed=secrets.randbits(53))
    except UnsupportedByServerError:
        blanks = "".join(secrets.choice(" \n") for _ in range(_BLANKS))
        return client.stream(f"{order.text}{blanks}", voice=voice, lang=order.lang)


# -- what they share ------------------------------------------------------------------------------------------


def _rounds(speak: Callable[[], Utterance], progress: Progress, name: str) -> list[Utterance]:
    """Speak once to warm up, then as often as it counts.

    Raises:
        SynthesisError: there was nothing to hear.
    """
    spoken = []
    for number in range(1 + N_RUNS):
        done = _LOADED_AGAIN + (_SPOKEN - _LOADED_AGAIN) * number / (1 + N_RUNS)
        progress(done, f"speaking, {number} of {N_RUNS}" if number else "warming up")
        utterance = speak()
        if not len(utterance.samples):
            raise SynthesisError.for_backend(name, why="it made no sound")
        spoken.append(utterance)
    return spoken[1:]


def _figures(spoken: Sequence[Utterance], reference: bytes, progress: Progress, **more: Any) -> Figures:
    """The medians of utterances, and how alike they are to the recording, a WAV."""
    progress(_SPOKEN, "comparing")
    backend, sample_rate = spoken[0].backend, spoken[0].sample_rate
    alike = likeness([one.samples for one in spoken], sample_rate, reference, backend=backend)
    return Figures(
        backend=backend,
        first_audio_ms=round(1000 * statistics.median(one.first_s for one in spoken), 1),
        real_time_factor=round(statistics.median(one.work_s / one.audio_s for one in spoken), 3),
        audio_s=round(statistics.median(one.audio_s for one in spoken), 2),
        **alike._asdict(),
        **more,
    )


def _part(progress: Progress, start: float, end: float) -> Progress:
    """The progress of a part of the work."""
    return lambda fraction, step: progress(start + (end - start) * fraction, step)
