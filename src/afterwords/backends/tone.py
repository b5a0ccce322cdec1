"""The `tone` engine, for tests: a deterministic tone with exact timing.

The hash of the text gives the pitch, its length the duration. Listed only if `AFTERWORDS_BACKENDS` names it.
With `AFTERWORDS_TESTING=1`, fault words in the text make it fail at each chunk after the first: `fault-fail` raises a
SynthesisError, `fault-error` a ValueError, `fault-memory` a MemoryError; `fault-hang` never returns; `fault-crash`
kills the process; `fault-slow` takes 50 ms; `fault-leak` takes 50 ms and leaks 16 MB. With `fault-runaway` the
audio is a hundred times as long. A word with `fault-unspoken` in it is skipped.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Final

from afterwords.backends.base import (
    Available,
    Chunk,
    InvalidPromptError,
    Progress,
    Reference,
    Unavailable,
    ignore_progress,
)
from afterwords.config import load_config
from afterwords.errors import SynthesisError, TextError
from afterwords.models import WordTiming, word_spans
from afterwords.text import LANGS

if TYPE_CHECKING:
    from afterwords.models import SpeechTask

SECONDS_PER_CHARACTER: Final = 0.06
CHUNK_S: Final = 0.24
SAMPLE_RATE: Final = 24_000
BAD_PROMPT: Final = b"fault-prompt"
"""An invalid prompt, for tests."""
SLOW_S: Final = 0.05
UNSPOKEN: Final = "fault-unspoken"
RUNAWAY: Final = "fault-runaway"
LEAK_BYTES: Final = 16 * 1024 * 1024
FAULTS: Final = (
    "fault-fail", "fault-error", "fault-memory", "fault-hang", "fault-crash", "fault-slow", "fault-leak",
)  # fmt: skip
"""The fault words; their effects follow in this order."""


class ToneEngine:
    """Speaks any language as a tone between 200 and 800 Hz, 60 ms per character."""

    name = "tone"
    backends: tuple[str, ...] = ("tone",)
    sample_rate = SAMPLE_RATE
    max_concurrent = 16
    prompt_version = "1"
    has_timing = True

    def languages(self, backend: str) -> frozenset[str]:  # noqa: ARG002 - one backend
        return frozenset(LANGS)

    def availability(self) -> Available | Unavailable:
        return Available("a tone, for tests")

    def load(self, backend: str, progress: Progress = ignore_progress) -> None:  # noqa: ARG002 - one backend
        import numpy  # noqa: F401 - nothing else to load

        progress(1.0, "done")

    def prepare(
        self,
        reference: Reference,
        progress: Progress = ignore_progress,
        *,
        fast: bool = False,  # noqa: ARG002 - it is always fast
    ) -> bytes:
        digest = hashlib.sha256(reference.samples.tobytes()).digest()
        progress(1.0, "done")
        return digest

    def describe(self, prompt: bytes) -> dict[str, float | str]:
        if prompt == BAD_PROMPT and load_config().is_testing:
            raise InvalidPromptError("the prompt is invalid for a test")
        return {}

    def synthesize(self, task: SpeechTask) -> Generator[Chunk, None, None]:
        import numpy as np

        is_testing = load_config().is_testing
        faults = [word for word in FAULTS if word in task.text] if is_testing else []
        length = round(SECONDS_PER_CHARACTER * len(task.text) * SAMPLE_RATE)
        if is_testing and RUNAWAY in task.text:
            length *= 100
        word_at = [(length * at // len(task.text), at, end) for at, end in word_spans(task.text)]
        frequency = 200 + int.from_bytes(hashlib.sha256(task.text.encode()).digest()[:2], "big") % 600
        step = round(CHUNK_S * SAMPLE_RATE)
        for start in range(0, length, step):
            for fault in faults if start else ():
                match fault:
                    case "fault-fail":
                        raise SynthesisError.for_backend("tone", why="the text asked for a failure")
                    case "fault-error":
                        raise ValueError("the text asked for an unexpected failure")
                    case "fault-memory":
                        raise MemoryError("the text asked for a memory error")
                    case "fault-hang":
                        threading.Event().wait()
                    case "fault-crash":
                        os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
                    case "fault-slow":
                        time.sleep(SLOW_S)
                    case "fault-leak":
                        time.sleep(SLOW_S)
                        _leaked.append(b"\1" * LEAK_BYTES)
            time_s = np.arange(start, min(start + step, length)) / SAMPLE_RATE
            words = tuple(
                WordTiming(
                    text=task.text[at:end],
                    start=at,
                    start_s=sample / SAMPLE_RATE,
                    end_s=length * end / len(task.text) / SAMPLE_RATE,
                )
                for sample, at, end in word_at
                if start <= sample < start + step
            )
            yield Chunk((0.2 * np.sin(2 * np.pi * frequency * time_s)).astype(np.float32), words)

    def unspoken(self, text: str) -> list[str]:
        if UNSPOKEN not in text or not load_config().is_testing:
            return []
        words = [word for word in text.split() if UNSPOKEN in word]
        if len(words) == len(text.split()):
            why = "The backend tone can't read the script that the text is written in."
            raise TextError(why, code="unspeakable_text")
        return words

    def close(self) -> None:
        pass


_leaked: list[bytes] = []
