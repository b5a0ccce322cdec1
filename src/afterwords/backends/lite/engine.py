"""The plug-in: `LiteEngine` implements the Engine protocol."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from afterwords.backends.base import (
    Available,
    Chunk,
    InvalidPromptError,
    Progress,
    Reference,
    SaveCheckpoint,
    Unavailable,
    ignore_progress,
    not_installed,
)
from afterwords.backends.lite import PROMPT_VERSION
from afterwords.config import load_config
from afterwords.errors import SynthesisError, TextError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from afterwords.backends.lite.enroll import SpeakTokens
    from afterwords.backends.lite.kokoro import Kokoro, KokoroOutput, PitchTarget
    from afterwords.backends.lite.profile import LiteProfile
    from afterwords.models import SpeechTask

PIECE_CHARS: Final = 100
"""Longest piece synthesized at once, about 7 s. Memory grows by 30 MB per second of speech."""
FIRST_PIECE_CHARS: Final = 60
SENTENCE_PAUSE_S: Final = 0.22
CLAUSE_PAUSE_S: Final = 0.06


class LiteEngine:
    """Kokoro-82M with a style found for the speaker. English only; resembles a voice without its identity."""

    name = "lite"
    backends: tuple[str, ...] = ("lite",)
    sample_rate = 24_000
    max_concurrent = 1
    prompt_version = PROMPT_VERSION
    has_timing = True
    reads_ipa = True

    def __init__(self) -> None:
        self._kokoro: Kokoro | None = None
        self._lock = threading.Lock()

    def languages(self, backend: str) -> frozenset[str]:  # noqa: ARG002 - one backend
        return frozenset({"en"})

    def availability(self) -> Available | Unavailable:
        from afterwords.backends.lite.kokoro import missing_parts

        if missing := missing_parts():
            return not_installed(missing[:1], extra="lite")
        return Available("CPU, 24 kHz, English; resembles the speaker, not their identity")

    def forget_voices(self) -> None:
        _profile.cache_clear()

    def load(self, backend: str, progress: Progress = ignore_progress) -> None:  # noqa: ARG002 - one backend
        progress(0.0, "loading the network")
        with self._lock:
            self._loaded(progress)
        progress(1.0, "done")

    def prepare(self, reference: Reference, progress: Progress = ignore_progress, *, fast: bool = False) -> bytes:
        from afterwords.backends.lite.enroll import enroll

        return enroll(reference, self._speaker(), progress, fast=fast).to_bytes()

    def resume(
        self,
        reference: Reference,
        progress: Progress = ignore_progress,
        *,
        checkpoint: bytes | None,
        save: SaveCheckpoint,
    ) -> bytes:
        from afterwords.backends.lite.enroll import enroll

        return enroll(reference, self._speaker(), progress, checkpoint=checkpoint, save=save).to_bytes()

    def describe(self, prompt: bytes) -> dict[str, float | str]:
        profile = _profile(prompt)
        return {name: getattr(profile, name) for name in ("similarity", "baseline", "nearest_stock")}

    def synthesize(self, task: SpeechTask) -> Generator[Chunk, None, None]:
        import numpy as np

        from afterwords.backends.lite.g2p import add_words, has_sound, lines, plain_words, pronounce
        from afterwords.backends.lite.search import speech_range
        from afterwords.backends.lite.shaping import equalize, limit
        from afterwords.backends.lite.timing import WrittenWords, token_times
        from afterwords.text import split_chunks

        try:
            profile = _profile(task.prompt)
        except InvalidPromptError as error:
            raise SynthesisError.for_backend("lite", why=f"its prompt is {error}") from error
        with self._lock:
            kokoro = self._loaded()  # with the dictionaries, which the next lines would load alone
        add_words(task.pronunciations)
        plain = plain_words(task.text)
        written = WrittenWords(task.text, plain)
        n_samples = 0
        for piece in split_chunks(plain, max_chars=PIECE_CHARS, first_max_chars=FIRST_PIECE_CHARS):
            phonemes = pronounce(piece)
            ids = [token for token, _ in phonemes]
            if not has_sound(ids):
                continue
            with self._lock:
                outputs = [kokoro.speak(line, profile.style[len(line) - 1], profile.pitch) for line in lines(ids)]
                ranges = [speech_range(output.samples) for output in outputs]
                samples = np.concatenate(
                    [_fade(output.samples[slice(*part)]) for output, part in zip(outputs, ranges, strict=True)]
                )
                if not np.isfinite(samples).all():
                    raise SynthesisError.for_backend("lite", why="the network returned samples that are not finite")
                samples = profile.cepstra.apply(equalize(samples, profile.equalizer_db))
                samples = limit(samples * np.float32(profile.gain))
            pause_s = SENTENCE_PAUSE_S if piece.rstrip("\"')]”’ ").endswith((".", "!", "?", "…")) else CLAUSE_PAUSE_S
            times = n_samples / self.sample_rate + token_times(outputs, ranges)
            samples = np.concatenate([_fade(samples), np.zeros(round(pause_s * self.sample_rate), np.float32)])
            n_samples += len(samples)
            yield Chunk(samples, tuple(written.timed(piece, phonemes, times)))
        if not n_samples:
            self.unspoken(task.text)
            raise TextError(code="empty_text")

    def unspoken(self, text: str) -> list[str]:
        """Return the skipped words of a text: those in a script other than Latin.

        Raises:
            TextError: All words are skipped.
        """
        from afterwords.normalization.english import has_words, unspoken

        words = unspoken(text)
        if words and not has_words(text):
            why = "The backend lite can't read the script that the text is written in."
            raise TextError(why, code="unspeakable_text")
        return words

    def close(self) -> None:
        with self._lock:
            self._kokoro = None

    def _speaker(self) -> SpeakTokens:
        """Return the network for enrollment, which releases the lock after each sentence for other callers."""
        with self._lock:
            kokoro = self._loaded()

        def speak(tokens: Sequence[int], style: NDArray[np.float32], pitch: PitchTarget | None = None) -> KokoroOutput:
            with self._lock:
                return kokoro.speak(tokens, style, pitch)

        return speak

    def _loaded(self, progress: Progress = ignore_progress) -> Kokoro:
        """Return the network. On first use, load it, and the dictionaries at the same time."""
        if self._kokoro is None:
            from afterwords.backends.lite.dictionary import pronunciation
            from afterwords.backends.lite.kokoro import Kokoro

            config = load_config()
            with ThreadPoolExecutor(1) as pool:
                dictionaries = pool.submit(pronunciation)
                kokoro = Kokoro.load(config.home / "models", config.kokoro_onnx, progress)
                dictionaries.result()
            self._kokoro = kokoro
        return self._kokoro


def _fade(samples: NDArray[np.float32], ramp: int = 120) -> NDArray[np.float32]:
    """Fade in and out over 5 ms to join pieces without clicks."""
    import numpy as np

    ramp = min(ramp, len(samples) // 2)
    rise = np.linspace(0, 1, ramp, dtype=np.float32)
    samples = samples.copy()
    samples[:ramp] *= rise
    samples[len(samples) - ramp :] *= rise[::-1]
    return samples


@lru_cache(maxsize=8)
def _profile(prompt: bytes) -> LiteProfile:
    from afterwords.backends.lite.profile import LiteProfile

    return LiteProfile.from_bytes(prompt)
