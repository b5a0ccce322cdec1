"""Speech while it is generated: the chunks of one task at a speed, and their timing.

`local` decides what is spoken and returns a Speech; reading it runs the engine.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from afterwords.audio.audio import Audio
from afterwords.audio.effects import change_speed
from afterwords.audio.wav import Samples
from afterwords.audio.writer import AudioWriter
from afterwords.backends.base import Chunk, Engine, Progress
from afterwords.errors import AfterwordsError, StreamConsumedError, SynthesisError
from afterwords.models import FormatName, SpeechFormat, SpeechResult, SpeechTask, Voice
from afterwords.text import expected_speech_s


@dataclass(slots=True, eq=False)
class Speech:
    """Speech that is generated while it is read: iterate over it once to get its chunks.

    Reading it a second time raises StreamConsumedError, since its audio is not kept.

    Attributes:
        voice: Voice that speaks.
        backend: Backend that speaks.
        reason: Why this backend was chosen.
        sample_rate: Sample rate of the chunks in Hz.
        tags: Tags that mark files of this speech as synthetic.
        result: Duration and timing, once everything was read.
        left_out: Words of the text that the backend can't speak.
    """

    voice: Voice
    backend: str
    reason: str
    sample_rate: int
    tags: dict[str, str]
    _chunks: Generator[Chunk, None, None] = field(repr=False)
    result: SpeechResult | None = None
    left_out: tuple[str, ...] = field(default=(), repr=False)
    _is_started: bool = field(default=False, init=False, repr=False)

    def __iter__(self) -> Iterator[Chunk]:
        if self._is_started:
            raise StreamConsumedError
        self._is_started = True
        return self._measure()

    def audio(self) -> Audio:
        """Read everything and return it."""
        import numpy as np

        parts = [chunk.samples for chunk in self]
        return Audio(np.concatenate(parts) if parts else np.zeros(0, np.float32), self.sample_rate, self.tags)

    def save(self, path: Path | str, *, format: SpeechFormat | FormatName | None = None) -> Path:
        """Write the speech to a file while it is generated, and return the path. The file appears when it is complete.

        Args:
            path: Path of the file. An existing file is replaced, or kept if anything fails.
            format: Audio format; None takes it from the extension of the path.

        Raises:
            InvalidInputError, FileError, StorageFullError: As for `Audio.save`.
        """
        with AudioWriter(Path(path), format=format, sample_rate=self.sample_rate, tags=self.tags) as writer:
            for chunk in self:
                writer.write(chunk.samples)
        return Path(path)

    def _measure(self) -> Iterator[Chunk]:
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
    """Generate the chunks of a task at a speed; an unexpected error of an engine becomes a SynthesisError."""
    expected_s = expected_speech_s(task.text)
    spoken_s = 0.0
    chunks = engine.synthesize(task)

    def samples_of_chunks() -> Iterator[Samples]:
        nonlocal spoken_s
        while True:
            try:
                chunk = next(chunks, None)
            except AfterwordsError:
                raise
            except Exception as error:  # its message may contain the text, so only its class is named
                raise SynthesisError.for_backend(task.backend, why=f"it raised {type(error).__name__}") from error
            if chunk is None:
                return
            spoken_s += len(chunk.samples) / engine.sample_rate
            progress(min(0.99, spoken_s / expected_s), "speaking")
            yield chunk.samples

    try:
        for samples in change_speed(samples_of_chunks(), engine.sample_rate, speed):
            yield Chunk(samples)
    finally:
        chunks.close()
    progress(1.0, "done")
