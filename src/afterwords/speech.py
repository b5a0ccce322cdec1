"""Speech while it is made: the chunks of one task at a speed, their timing, and what came of it.

Apart from the studio, which decides what is said by whom; a Speech only carries it out, once, as it is read.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Final

from afterwords.audio import Audio, change_speed
from afterwords.backends.base import Chunk, Engine, Progress
from afterwords.errors import AfterwordsError, SynthesisError
from afterwords.models import SpeechResult, SpeechTask, Voice

EXPECTED_SECONDS_PER_CHARACTER: Final = 0.068
"""How long speech lasts, for progress alone; English read aloud."""


@dataclass(slots=True, eq=False)
class Speech:
    """Speech that is made while it is read: iterate over it once to get its chunks.

    Attributes:
        voice: who speaks.
        backend: the backend that speaks, and `reason`, why it is this one.
        sample_rate: of the chunks, in Hz.
        tags: the mark that files of this speech carry.
        result: what came of it, once all was read.
    """

    voice: Voice
    backend: str
    reason: str
    sample_rate: int
    tags: dict[str, str]
    _chunks: Generator[Chunk, None, None] = field(repr=False)
    result: SpeechResult | None = None

    def __iter__(self) -> Iterator[Chunk]:
        return self._timed()

    def audio(self) -> Audio:
        """Read all of it."""
        import numpy as np

        parts = [chunk.samples for chunk in self]
        return Audio(np.concatenate(parts) if parts else np.zeros(0, np.float32), self.sample_rate, self.tags)

    def _timed(self) -> Iterator[Chunk]:
        started = time.perf_counter()
        first_ms: int | None = None
        n_samples = 0
        waited_s = 0.0
        try:
            for chunk in self._chunks:
                ready = time.perf_counter()
                if first_ms is None:
                    first_ms = round((ready - started) * 1000)
                n_samples += len(chunk.samples)
                yield chunk
                waited_s += time.perf_counter() - ready
        finally:
            self._chunks.close()
        self.result = SpeechResult(
            backend=self.backend,
            sample_rate=self.sample_rate,
            duration_s=n_samples / self.sample_rate,
            synth_ms=round((time.perf_counter() - started - waited_s) * 1000),
            first_audio_ms=first_ms,
        )


def speak(engine: Engine, task: SpeechTask, speed: float, progress: Progress) -> Generator[Chunk, None, None]:
    """The chunks of a task at a speed; whatever an engine raises unforeseen becomes a SynthesisError."""
    expected_s = len(task.text) * EXPECTED_SECONDS_PER_CHARACTER
    spoken_s = 0.0
    chunks = engine.synthesize(task)

    def as_spoken() -> Iterator[Chunk]:
        nonlocal spoken_s
        for chunk in chunks:
            spoken_s += len(chunk.samples) / engine.sample_rate
            progress(min(0.99, spoken_s / expected_s), "speaking")
            yield chunk

    try:
        samples = (chunk.samples for chunk in as_spoken())
        for piece in change_speed(samples, engine.sample_rate, speed):
            yield Chunk(piece)
    except (AfterwordsError, OSError):
        raise
    except Exception as error:
        raise SynthesisError(task.backend, why=f"{type(error).__name__}: {error}") from error
    finally:
        chunks.close()
    progress(1.0, "done")
