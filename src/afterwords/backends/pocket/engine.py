"""The plug-in: `PocketEngine` implements the Engine protocol.

Listing engines imports this module, so torch is imported in functions only.
"""

from __future__ import annotations

import atexit
import os
import random
import threading
from collections.abc import Generator, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from afterwords.backends.base import (
    Available,
    Chunk,
    InvalidPromptError,
    Progress,
    Reference,
    Unavailable,
    ignore_progress,
    not_installed,
)
from afterwords.backends.memory import memory_bytes
from afterwords.errors import (
    AfterwordsError,
    BackendUnavailableError,
    RecordingError,
    SynthesisError,
    UnsupportedLangError,
    pip_install,
)
from afterwords.weights import catalog

if TYPE_CHECKING:
    from afterwords.audio.wav import Samples
    from afterwords.backends.pocket.model import PocketModel, State
    from afterwords.backends.pocket.prompt import PocketPrompt
    from afterwords.backends.pocket.text import Sentence
    from afterwords.backends.pocket.utterance import PocketUtterance
    from afterwords.models import SpeechTask

ENCODER_VERSION: Final = "1"
"""Goes up whenever a change in how recordings are encoded makes older prompts worth making again."""
PACKAGE_VERSION: Final = "4.0"
"""Each major version renames parameters and changes states."""
NEEDS: Final = ("pocket_tts", "torch", "safetensors", "num2words")
NEEDED_BYTES: Final = 1_500_000_000
"""1.2 GB at most, measured with one utterance, and another one."""
MAX_CONCURRENT: Final = 4
VOICES: Final = 8
"""Voices whose state is kept: 6 MB for 10 s of a recording."""
LIMIT_S, PAUSE_WITHIN_S = 20, 5
"""Length of the recording that is used, and how far before its end a pause is looked for."""
MIN_SPEECH_S: Final = 1.0
CALIBRATION: Final = "The boy was there when the sun rose, and a rod is used to catch pink salmon."
"""A Harvard sentence (IEEE, 1969)."""


class PocketEngine:
    """Pocket TTS in English."""

    name = "pocket"
    backends: tuple[str, ...] = ("pocket",)
    sample_rate = 24_000

    def __init__(self) -> None:
        self.max_concurrent = min(MAX_CONCURRENT, os.cpu_count() or 1)  # each takes half a core to a whole one
        self.prompt_version = _prompt_version()
        self._lock, self._slots = threading.Lock(), threading.Semaphore(self.max_concurrent)
        self._model: PocketModel | None = None
        self._speaking: set[PocketUtterance] = set()
        self.forget_voices()

    def languages(self, backend: str) -> frozenset[str]:  # noqa: ARG002 - one backend
        return frozenset({"en"})

    def availability(self) -> Available | Unavailable:
        """Return whether it can run here; nothing is imported, since the package sets torch to one thread."""
        if missing := [name for name in NEEDS if find_spec(name) is None]:
            return not_installed(missing[:1], extra="pocket")
        if (found := _package_version()) != PACKAGE_VERSION:
            reason = f"pocket-tts {found} is installed, and afterwords needs {PACKAGE_VERSION}"
            return Unavailable(reason, pip_install("pocket"))
        if (memory := memory_bytes()) < NEEDED_BYTES:
            reason = f"it needs {NEEDED_BYTES / 1e9:.1f} GB of memory, and this machine has {memory / 1e9:.1f} GB"
            return Unavailable(reason, "use the backend lite, which needs 1 GB")
        try:
            catalog.locate("pocket")
        except AfterwordsError as error:
            return Unavailable(error.message.rstrip("."), error.hint.rstrip("."))
        if self._model is None:  # the weights may have been downloaded since
            self.prompt_version = _prompt_version()
        return Available("CPU, 24 kHz, English; clones the voice")

    def unspoken(self, text: str) -> list[str]:
        """Return the words of a text that are left out; see `afterwords.backends.base.unspoken`."""
        from afterwords.backends.pocket.text import check_script

        return check_script(text)

    def load(self, backend: str, progress: Progress = ignore_progress) -> None:  # noqa: ARG002 - one backend
        progress(0.0, "loading the model")
        self._ensure_loaded()
        progress(1.0, "done")

    def prepare(self, reference: Reference, progress: Progress = ignore_progress, *, fast: bool = False) -> bytes:
        """See `Engine.prepare`. `fast` leaves out the measurement of the similarity."""
        import numpy as np

        from afterwords.audio.effects import resample
        from afterwords.backends.pocket.prompt import PocketPrompt

        progress(0.0, "loading the model")
        model = self._ensure_loaded()
        progress(0.3, "encoding the voice")
        samples = _shortened(resample(reference.samples, reference.sample_rate, self.sample_rate), self.sample_rate)
        prompt = PocketPrompt(model.encode(samples).astype(np.float16))
        if not fast:
            progress(0.7, "measuring the likeness")
            prompt = PocketPrompt(prompt.latents, self._similarity(model, prompt, samples))
        progress(1.0, "done")
        return prompt.to_bytes(self.prompt_version)

    def describe(self, prompt: bytes) -> dict[str, float | str]:
        from afterwords.backends.pocket.prompt import PocketPrompt

        similarity = PocketPrompt.from_bytes(prompt, self.prompt_version).similarity
        return {} if similarity is None else {"similarity": similarity}

    def synthesize(self, task: SpeechTask) -> Generator[Chunk, None, None]:
        from afterwords.backends.pocket.text import split

        if task.lang != "en":
            raise UnsupportedLangError.for_lang(task.lang, supported=["en"], backend=task.backend)
        model = self._ensure_loaded()
        sentences = split(task.text, model.n_tokens)
        try:
            voice = self._voice(task.prompt)
        except InvalidPromptError as error:
            raise SynthesisError.for_backend(task.backend, why=f"its prompt is {error}") from error
        seed = random.getrandbits(63) if task.seed is None else task.seed
        for samples in self._speak(model, voice, sentences, seed):
            yield Chunk(samples)

    def forget_voices(self) -> None:
        """See `CachingEngine.forget_voices`. A voice that is being made enters the old cache, which is gone then."""
        self._voice = lru_cache(VOICES)(self._make_voice)

    def close(self) -> None:
        """See `Engine.close`. Utterances in progress end with an error."""
        with self._lock:
            model, self._model = self._model, None
            speaking = list(self._speaking)
        if model is None:
            return
        atexit.unregister(self.close)
        for utterance in speaking:
            utterance.stop()
        self.forget_voices()
        from afterwords.backends.pocket.model import restore_threads

        restore_threads()

    def _ensure_loaded(self) -> PocketModel:
        with self._lock:
            if self._model is None:
                if isinstance(state := self.availability(), Unavailable):
                    raise BackendUnavailableError(f"The backend pocket can't run here: {state.reason}.", hint=state.fix)
                from afterwords.backends.pocket.model import PocketModel

                folder = catalog.locate("pocket")
                weights, tokenizer = (folder / source.required[0] for source in catalog.CHECKPOINTS["pocket"].sources)
                self._model = PocketModel(weights, tokenizer)
                atexit.register(self.close)  # a thread that runs torch while Python exits crashes the process
            return self._model

    def _make_voice(self, prompt: bytes) -> State:
        from afterwords.backends.pocket.prompt import PocketPrompt

        return self._ensure_loaded().voice(PocketPrompt.from_bytes(prompt, self.prompt_version).latents)

    def _speak(
        self, model: PocketModel, voice: State, sentences: Sequence[Sentence], seed: int
    ) -> Generator[Samples, None, None]:
        from afterwords.backends.pocket.utterance import PocketUtterance

        utterance = PocketUtterance(model, voice, sentences, seed=seed, slots=self._slots)
        with self._lock:
            self._speaking.add(utterance)
        try:
            yield from utterance.sound()
        finally:
            with self._lock:
                self._speaking.discard(utterance)

    def _similarity(self, model: PocketModel, prompt: PocketPrompt, samples: Samples) -> float:
        """Return how alike a spoken sentence is to the recording, by the speaker encoder that ships with `lite`."""
        import numpy as np

        from afterwords.backends.lite.speaker import embed
        from afterwords.backends.pocket.text import Sentence

        said = np.concatenate(list(self._speak(model, model.voice(prompt.latents), [Sentence(CALIBRATION, 0)], 0)))
        return float(embed(said, self.sample_rate) @ embed(samples, self.sample_rate))


def _package_version() -> str:
    """Return major and minor version of the installed package; "none" without it."""
    try:
        return ".".join(version("pocket-tts").split(".")[:2])
    except PackageNotFoundError:
        return "none"


def _prompt_version() -> str:
    """Return what prompts depend on: the encoding, the package, and the revision of the weights."""
    return f"{ENCODER_VERSION}-{_package_version()}-{catalog.find_revision('pocket')}"


def _shortened(samples: Samples, sample_rate: int) -> Samples:
    """Return at most LIMIT_S of a recording, cut in the quietest moment of the last PAUSE_WITHIN_S.

    A cut in a word costs 1.3 points of word error rate, and dense attention makes a minute take 1.2 GB more memory.
    Source: kyutai-labs/pocket-tts, issue 311.

    Raises:
        RecordingError: It has less than a second of speech.
    """
    import numpy as np

    from afterwords.audio.analysis import HOP_S, levels_db, speech_mask

    if len(samples) > LIMIT_S * sample_rate:
        last = samples[(LIMIT_S - PAUSE_WITHIN_S) * sample_rate : LIMIT_S * sample_rate]
        level = np.convolve(levels_db(last, sample_rate), np.ones(9) / 9, "same")  # over 90 ms
        end = (LIMIT_S - PAUSE_WITHIN_S) * sample_rate + int(np.argmin(level) * HOP_S * sample_rate)
        samples = samples[:end]
    if (speech_s := float(speech_mask(samples, sample_rate).sum() * HOP_S)) < MIN_SPEECH_S:
        why = f"The reference contains {speech_s:.1f} s of speech, but {MIN_SPEECH_S:g} s are needed."
        raise RecordingError(why, code="no_voice")
    return samples
