"""Speech while it is generated: the chunks of one task at a speed, and their timing.

`local` decides what is spoken and returns a Speech; reading it runs the engine.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from afterwords.audio.audio import Audio
from afterwords.audio.effects import change_speed, fade_from
from afterwords.audio.wav import Samples
from afterwords.audio.writer import AudioWriter
from afterwords.backends.base import Chunk, Engine, Progress, has_timing, ignore_progress, reads_ipa
from afterwords.backends.speech_check import SpeechChecker
from afterwords.errors import AfterwordsError, StreamConsumedError, SynthesisError, TextError
from afterwords.markup import Script, parse
from afterwords.models import (
    SPEED_MAX,
    SPEED_MIN,
    Alignment,
    FormatName,
    SpeechFormat,
    SpeechResult,
    SpeechTask,
    Verification,
    Voice,
    WordTiming,
)
from afterwords.reference.transcription import align, check_aligner
from afterwords.text import pause_after_s, split_live

_TAG = re.compile("<[^>]*>")


class Aligner:
    """Finds the alignment of speech: from the words of its chunks, else by speech recognition of all samples.

    Attributes:
        is_timed: The engine reports words.

    Args:
        engine: The engine that speaks.
        task: What it speaks.
        text: The text as the user gave it, before it was validated.
        script: The markup of the text; None reads it.

    Raises:
        UnavailableError: The engine reports no times, and faster-whisper is not installed.
    """

    def __init__(self, engine: Engine, task: SpeechTask, text: str, script: Script | None = None) -> None:
        self.is_timed = has_timing(engine)
        if not self.is_timed:
            check_aligner(f"The backend {task.backend} reports")
        self._sample_rate, self._task, self._text = engine.sample_rate, task, text
        self._script = script or _read(engine, task)
        self._words: list[WordTiming] = []
        self._samples: list[Samples] = []
        self._n_samples = 0

    def add(self, chunk: Chunk) -> None:
        """Add the next chunk."""
        self._n_samples += len(chunk.samples)
        if self.is_timed:
            self._words += chunk.words
        else:
            self._samples.append(chunk.samples)

    def alignment(self, progress: Progress) -> Alignment:
        """Return the alignment of the text with the chunks, once all were added.

        Raises:
            UnavailableError: As for `align`.
        """
        if self.is_timed:
            words = in_given_text(self._words, self._task.text, self._text)
            return Alignment.from_words(self._text, words, self._n_samples / self._sample_rate)
        import numpy as np

        audio = Audio(np.concatenate([np.zeros(0, np.float32), *self._samples]), self._sample_rate)
        script = self._script
        if script.text == self._task.text:
            return align(audio, self._text, lang=self._task.lang, progress=progress)
        found = align(audio, script.text, lang=self._task.lang, progress=progress)
        words = in_given_text(script.words_in_source(found.words), self._task.text, self._text)
        return Alignment.from_words(self._text, words, audio.duration_s, confidence=found.confidence)


def _read(engine: Engine, task: SpeechTask) -> Script:
    return parse(task.text, emotions=task.emotions, lexicon=task.lexicon, reads_ipa=reads_ipa(engine))


def in_given_text(words: list[WordTiming], validated: str, given: str) -> list[WordTiming]:
    """Return words with their positions in the text before its validation, which changed only spaces and line ends."""
    if validated == given:
        return words
    first = len(given) - len(given.lstrip("\ufeff"))
    places = [[at for at, c in enumerate(text) if not c.isspace()] for text in (validated, given[first:])]
    moved = dict(zip(*places, strict=True))
    return [word.model_copy(update={"start": first + moved[word.start]}) for word in words]


def without_markup(alignment: Alignment, script: Script) -> Alignment:
    """Return the alignment of the characters that are spoken, for subtitles."""
    places = {place for segment in script.segments for place in zip(segment.starts, segment.ends, strict=True)}
    spoken = set(chain(*(range(start, end) for start, end in places)))
    for start, end in places:
        if end - start > 1:  # what an alias replaces, with the tags of SSML around it
            spoken.difference_update(*(range(*tag.span()) for tag in _TAG.finditer(script.source, start, end)))
    is_spoken = iter([at in spoken for at, c in enumerate(script.source) if not (c.isspace() or c == "\ufeff")])
    rows = zip(alignment.characters, alignment.start_s, alignment.end_s, strict=True)
    kept = [row for row in rows if row[0].isspace() or row[0] == "\ufeff" or next(is_spoken)]
    characters, start_s, end_s = (tuple(row[column] for row in kept) for column in range(3))
    return alignment.model_copy(update={"characters": characters, "start_s": start_s, "end_s": end_s})


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
        notices: Sentences about markup of the text that is spoken as text or ignored.
        script: The text with its markup read; None if it is still being written.
        alignment: When each character is spoken, once everything was read, if timestamps were requested.
        verification: How the speech compares with the text, once everything was read, if that was requested.
    """

    voice: Voice
    backend: str
    reason: str
    sample_rate: int
    tags: dict[str, str]
    _chunks: Generator[Chunk, None, None] = field(repr=False)
    result: SpeechResult | None = None
    left_out: tuple[str, ...] = field(default=(), repr=False)
    notices: tuple[str, ...] = ()
    script: Script | None = field(default=None, repr=False)
    alignment: Alignment | None = field(default=None, init=False, repr=False)
    verification: Verification | None = field(default=None, init=False, repr=False)
    _aligner: Aligner | None = field(default=None, repr=False)
    _progress: Progress = field(default=ignore_progress, repr=False)
    _checker: SpeechChecker | None = field(default=None, repr=False)
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
        samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        return Audio(samples, self.sample_rate, self.tags, alignment=self.alignment, verification=self.verification)

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
                if self._checker and not len(chunk.samples):
                    continue
                ready = time.perf_counter()
                if first_ms is None:
                    first_ms = round((ready - started) * 1000)
                n_samples += len(chunk.samples)
                if self._aligner:
                    self._aligner.add(chunk)
                yield chunk
                waited_s += time.perf_counter() - ready
        finally:
            self._chunks.close()
        self.verification = self._checker.verification if self._checker else None
        if self._aligner:
            self.alignment = self._aligner.alignment(self._progress)
        self.result = SpeechResult(
            backend=self.backend,
            sample_rate=self.sample_rate,
            duration_s=n_samples / self.sample_rate,
            synth_ms=round((time.perf_counter() - started - waited_s) * 1000),
            first_audio_ms=first_ms,
        )


def speak(
    engine: Engine,
    task: SpeechTask,
    speed: float,
    progress: Progress,
    *,
    script: Script | None = None,
    takes: Mapping[str, SpeechTask] | None = None,
    checker: SpeechChecker | None = None,
) -> Generator[Chunk, None, None]:
    """Generate the chunks of a task, whose text may have markup, at a speed.

    Words of the chunks have their positions in the text with markup. An unexpected error of an engine becomes a
    SynthesisError.

    Args:
        engine: The engine that speaks.
        task: What it speaks.
        speed: Speaking rate.
        progress: Called with the progress.
        script: The markup of the text; None reads it.
        takes: The same task with the prompt of another take of the voice, by emotion.
        checker: Verifies each sentence; there are empty chunks while it works.

    Raises:
        TextError: As for `parse`.
    """
    import numpy as np

    script = script or _read(engine, task)
    expected_s = script.expected_s(speed=speed)
    n_samples = 0
    last = 0.0
    for segment in script.segments:
        if n_samples:
            fade = fade_from(last, engine.sample_rate)
            n_samples += len(fade)
            yield Chunk(fade)
        if segment.pause_s:
            n_samples += (n_silent := round(segment.pause_s / speed * engine.sample_rate))
            yield Chunk(np.zeros(n_silent, np.float32))
        if not segment.text:
            continue
        part = (
            (takes or {})
            .get(segment.emotion or "", task)
            .model_copy(
                update={"text": segment.text, "pronunciations": segment.pronunciations, "lexicon": (), "emotions": ()}
            )
        )
        rate = min(SPEED_MAX, max(SPEED_MIN, speed * segment.rate))
        with closing(_speak_segment(engine, part, rate, n_samples / engine.sample_rate, checker)) as chunks:
            for chunk in chunks:
                n_samples += len(chunk.samples)
                last = float(chunk.samples[-1]) if len(chunk.samples) else last
                progress(min(0.99, n_samples / engine.sample_rate / expected_s), "speaking")
                yield Chunk(chunk.samples, tuple(script.words_in_source(chunk.words, segment)))
    progress(1.0, "done")


def _speak_segment(
    engine: Engine, task: SpeechTask, speed: float, start_s: float, checker: SpeechChecker | None
) -> Generator[Chunk, None, None]:
    """Generate the chunks of a text without markup that begins at a time."""
    chunks = checker.synthesize(engine, task, start_s=start_s, speed=speed) if checker else engine.synthesize(task)
    words: list[WordTiming] = []  # of the chunks that were read, with times at the engine's speed

    def samples_of_chunks() -> Iterator[Samples]:
        while True:
            try:
                chunk = next(chunks, None)
            except AfterwordsError:
                raise
            except Exception as error:  # its message may contain the text, so only its class is named
                raise SynthesisError.for_backend(task.backend, why=f"it raised {type(error).__name__}") from error
            if chunk is None:
                return
            words.extend(chunk.words)
            yield chunk.samples

    try:
        for samples in change_speed(samples_of_chunks(), engine.sample_rate, speed):
            times = [{"start_s": start_s + w.start_s / speed, "end_s": start_s + w.end_s / speed} for w in words]
            yield Chunk(samples, tuple(word.model_copy(update=at) for word, at in zip(words, times, strict=True)))
            words.clear()
    finally:
        chunks.close()


def speak_live(
    engine: Engine, pieces: Iterable[str], make_task: Callable[[str], SpeechTask | None], speed: float
) -> Generator[Chunk, None, None]:
    """Generate the chunks of a text that is still being written, unit by unit.

    Args:
        engine: The engine that speaks.
        pieces: The text, cut anywhere.
        make_task: Makes the task of a unit; None leaves the unit out.
        speed: As for `speak`.

    Raises:
        TextError: No unit could be spoken.
    """
    import numpy as np

    pause_s: float | None = None
    for unit in split_live(pieces):
        if (task := make_task(unit)) is None:
            continue
        if pause_s is not None:
            yield Chunk(np.zeros(round(pause_s * engine.sample_rate), np.float32))
        last = 0.0
        for chunk in speak(engine, task, speed, ignore_progress):
            yield chunk
            last = float(chunk.samples[-1]) if len(chunk.samples) else last
        yield Chunk(fade_from(last, engine.sample_rate))
        pause_s = pause_after_s(unit) / speed
    if pause_s is None:
        raise TextError(code="empty_text")
