"""The spoken sentences of a book, each one in a file: speak the missing ones, verify, measure and level them.

`narrator` calls this.
"""

from __future__ import annotations

import json
import re
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from textwrap import shorten
from threading import Event
from typing import Final, NamedTuple

import numpy as np
from pydantic import ValidationError

from afterwords import __version__, disk, local
from afterwords.audio.effects import fade_from, resample
from afterwords.audio.loudness import LoudnessMeter, limit_peaks
from afterwords.audio.subtitles import Cue, cues
from afterwords.audio.wav import Samples, read_wav
from afterwords.backends import registry
from afterwords.backends.base import Progress, timbre_only, unspoken
from afterwords.errors import FileError, MalformedWavError, SynthesisError, TextError, TextWarning
from afterwords.models import Alignment, SentenceVerification, SpeechOptions, Verification, WordTiming
from afterwords.narration.book import Book
from afterwords.narration.script import NARRATOR, PARAGRAPH_PAUSE_S, Sentence, Speaker
from afterwords.speech import Speech
from afterwords.text import describe_left_out, max_speech_s

PEAK_DBTP: Final = -2.0
"""Limit of true peaks before encoding: lossy formats add up to 1 dB, so that files stay below -1 dBTP."""
ATTEMPTS: Final = 3
"""How often a sentence is tried, each time with another seed, before it is left out."""
MAX_FAILED_IN_A_ROW: Final = 5
_PART: Final = re.compile(r"[0-9a-f]{64}\.(?:wav|json)(?:\.part)?")


def _gain(meter: LoudnessMeter, loudness: float) -> float:
    """Return the factor that brings what was measured to a loudness in LUFS; 1 for silence."""
    measured = meter.integrated()
    return 1.0 if measured is None else float(10 ** ((loudness - measured) / 20))


class Part(NamedTuple):
    """A spoken sentence: its file, and where it is in the book, in frames."""

    sentence: Sentence
    path: Path
    voice_id: str
    start: int
    end: int


class SpokenBook:
    """The spoken sentences of a book."""

    def __init__(
        self, folder: Path, speakers: Mapping[Speaker, Speech], options: SpeechOptions, *, verify: bool
    ) -> None:
        self._folder, self._speakers, self._options, self._verify = folder, speakers, options, verify
        self._engines = {name: registry.engine_for(registry.choose(s.backend)) for name, s in speakers.items()}
        self._rate = speakers[NARRATOR].sample_rate
        self._meters = {speaker.voice.voice_id: LoudnessMeter(self._rate) for speaker in speakers.values()}
        self._words: dict[str, list[str]] = {}
        self.parts: list[Part] = []
        self.left_out: list[str] = []
        self.checked: list[SentenceVerification] = []
        self._new: set[Path] = set()
        self._is_stopped = Event()

    @property
    def n_new(self) -> int:
        """Number of sentences that were spoken now."""
        return len(self._new)

    @property
    def duration_s(self) -> float:
        """Length of the book in seconds."""
        return self.parts[-1].end / self._rate

    def speak(self, sentences: Sequence[Sentence], book: Book, progress: Progress) -> None:
        """Speak the sentences that are not there yet, and measure the loudness of each voice.

        Raises:
            SynthesisError, TextError: Several sentences in a row could not be spoken.
        """
        n_chars = sum(len(sentence.text) for sentence in sentences)
        n_done = n_failed = 0
        with closing(self._make_ahead(sentences)) as made:
            for sentence, path, making in made:
                progress(n_done / n_chars, f"chapter {sentence.chapter + 1} of {len(book.chapters)}")
                n_done += len(sentence.text)
                speaker = self._speakers[sentence.speaker]
                try:
                    words = unspoken(self._engines[sentence.speaker], sentence.text)
                    self._words.setdefault(speaker.backend, []).extend(words)
                    samples, verification = self._result(sentence, path, making)
                except (SynthesisError, TextError) as error:
                    n_failed += 1
                    if n_failed == MAX_FAILED_IN_A_ROW:
                        raise
                    begin = shorten(sentence.text, 60, placeholder="…")
                    self.left_out.append(f"{book.chapters[sentence.chapter].title}: “{begin}”: {error.message}")
                    continue
                n_failed = 0
                pause = round(sentence.pause_s / self._options.speed * self._rate) if self.parts else 0
                start = (self.parts[-1].end if self.parts else 0) + pause
                self.parts.append(Part(sentence, path, speaker.voice.voice_id, start, start + len(samples)))
                for checked in verification.sentences:
                    start_s, end_s = (start / self._rate + time_s for time_s in (checked.start_s, checked.end_s))
                    self.checked.append(checked.model_copy(update={"start_s": start_s, "end_s": end_s}))
                meter = self._meters[speaker.voice.voice_id]
                meter.add(np.zeros(pause, np.float32))
                meter.add(samples)
        if not self.parts:
            raise TextError(code="empty_text")

    def _make_ahead(
        self, sentences: Sequence[Sentence]
    ) -> Generator[tuple[Sentence, Path, Future[None] | None], None, None]:
        """Yield each sentence with its file, while as many as each engine speaks at once are spoken ahead.

        The future ends when the file is there; it is None if the file was there before. When this is closed, the
        sentences that are being spoken end at their next chunk.
        """
        limits = {engine.name: engine.max_concurrent for engine in self._engines.values()}
        pools = {name: ThreadPoolExecutor(limit, "narrate") for name, limit in limits.items()}
        waiting: deque[tuple[Sentence, Path, Future[None] | None]] = deque()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TextWarning)  # words that are left out are counted
            try:
                for sentence in sentences:
                    path = self._folder / f"{self._key(sentence)}.wav"
                    making = next((making for _, other, making in waiting if other == path), None)
                    if making is None and not path.exists():
                        making = pools[self._engines[sentence.speaker].name].submit(self._make, sentence, path)
                    waiting.append((sentence, path, making))
                    if len(waiting) > sum(limits.values()):
                        yield waiting.popleft()
                yield from waiting
            finally:
                self._is_stopped.set()
                for pool in pools.values():
                    pool.shutdown(cancel_futures=True)

    def _result(self, sentence: Sentence, path: Path, making: Future[None] | None) -> tuple[Samples, Verification]:
        """Return the speech of a sentence, once its file is there; speak it again if the file is damaged."""
        if making:
            making.result()
        samples, verification = self._read(path), self._read_verification(path)
        if samples is None or verification is None:
            self._make(sentence, path)
            samples, verification = self._read(path), self._read_verification(path)
        assert samples is not None, "it was just written"
        assert verification is not None, "likewise"
        return samples, verification

    def _check_running(self, fraction: float, step: str) -> None:  # noqa: ARG002 - called as a Progress
        if self._is_stopped.is_set():
            raise CancelledError

    def _key(self, sentence: Sentence) -> str:
        """Return what identifies the speech of a sentence: all that it depends on."""
        speaker = self._speakers[sentence.speaker]
        engine = self._engines[sentence.speaker]
        voice = speaker.voice
        facts = {
            "version": [__version__, speaker.backend, engine.prompt_version],
            "voice": [voice.voice_id, voice.provenance.seal if voice.provenance else voice.ref_sha256],
            "options": [
                *(self._options.lang, self._options.speed, self._options.seed),
                *(["verify"] if self._verify else []),
            ],
            "text": sentence.text,
            "lexicon": [entry.model_dump() for entry in voice.lexicon],
        }
        return sha256(json.dumps(facts).encode()).hexdigest()

    def _make(self, sentence: Sentence, path: Path) -> None:
        """Speak a sentence into its file.

        Raises:
            SynthesisError: The engine failed with each seed.
        """
        backend = self._speakers[sentence.speaker].backend
        longest_s = max_speech_s(sentence.text, speed=self._options.speed)
        for attempt in range(ATTEMPTS):
            seed = ((self._options.seed or 0) + attempt) % 2**31
            options = self._options.model_copy(update={"seed": seed, "backend": backend})
            try:
                audio = local.stream(
                    sentence.text,
                    voice=sentence.voice or self._speakers[NARRATOR].voice,
                    emotion=sentence.emotion,
                    **options.model_dump(),
                    verify=self._verify,
                    progress=self._check_running,
                ).audio()
                if audio.duration_s > longest_s:
                    raise SynthesisError.runaway(duration_s=audio.duration_s, maximum_s=longest_s)
                if not len(audio.samples):
                    raise SynthesisError.for_backend(backend, "it returned no audio")
            except SynthesisError:
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                if audio.verification:
                    disk.write(path.with_suffix(".json"), [audio.verification.model_dump_json().encode()])
                disk.write(path, [audio.to_bytes()])
                self._new.add(path)
                return

    def _read(self, path: Path) -> Samples | None:
        """Read a sentence at the rate of the book, with a fade at its end; None if it is missing or damaged."""
        try:
            samples, rate = read_wav(disk.read(path))
        except (FileNotFoundError, MalformedWavError):
            return None
        except OSError as error:
            raise FileError.unreadable(path, why=(error.strerror or str(error)).lower()) from error
        samples = resample(samples, rate, self._rate)
        return np.concatenate([samples, fade_from(float(samples[-1]), self._rate)]) if len(samples) else None

    def _read_verification(self, path: Path) -> Verification | None:
        """Read the verification of a sentence; an empty one if none was requested, None if it is missing or damaged."""
        if not self._verify:
            return Verification.of([])
        try:
            return Verification.model_validate_json(disk.read(path.with_suffix(".json")))
        except (FileNotFoundError, ValidationError):
            return None
        except OSError as error:
            raise FileError.unreadable(path, why=(error.strerror or str(error)).lower()) from error

    def mastered(self, loudness: float) -> Iterator[Samples]:
        """Yield the samples of the book, each voice at a loudness in LUFS.

        The gain is corrected once, because a voice whose peaks were limited is quieter.
        """
        gains = {voice_id: _gain(meter, loudness) for voice_id, meter in self._meters.items()}
        limited = {voice_id: LoudnessMeter(self._rate) for voice_id in gains}
        for voice_id, samples in self._limited(gains):
            limited[voice_id].add(samples)
        gains = {voice_id: gain * _gain(limited[voice_id], loudness) for voice_id, gain in gains.items()}
        for _, samples in self._limited(gains):
            yield samples

    def _limited(self, gains: Mapping[str, float]) -> Iterator[tuple[str, Samples]]:
        """Yield each sentence after the pause before it, with the gain of its voice, and the ID of the voice."""
        end = 0
        for part in self.parts:
            samples = self._read(part.path)
            if samples is None or len(samples) != part.end - part.start:
                raise FileError.unreadable(part.path, "it was changed", hint="start the narration again.")
            scaled = (samples * gains[part.voice_id]).astype(np.float32)
            limited = limit_peaks(scaled, self._rate, 10 ** (PEAK_DBTP / 20))
            yield part.voice_id, np.concatenate([np.zeros(part.start - end, np.float32), limited])
            end = part.end

    def chapters(self, book: Book) -> tuple[tuple[str, float], ...]:
        """Return titles and starts of the chapters, in seconds."""
        firsts = [next(parts) for _, parts in groupby(self.parts, key=lambda part: part.sentence.chapter)]
        return tuple((book.chapters[first.sentence.chapter].title, first.start / self._rate) for first in firsts)

    def cues(self) -> list[Cue]:
        """Return the subtitles of the book. Within a sentence, the times of words are estimated."""
        found: list[Cue] = []
        for _, group in groupby(self.parts, key=lambda part: part.sentence.paragraph):
            words: list[WordTiming] = []
            start = 0
            for part in group:
                text = part.sentence.text
                times = {"start_s": part.start / self._rate, "end_s": part.end / self._rate}
                words.append(WordTiming(text=text, start=start, **times))
                start += len(text) + 1
            text = " ".join(word.text for word in words)
            found += cues(Alignment.from_words(text, words, words[-1].end_s + PARAGRAPH_PAUSE_S))
        return found

    def notices(self) -> list[str]:
        """Return notices about words that backends left out, and emotions that they don't keep."""
        left_out = [f"{describe_left_out(backend, words)}." for backend, words in self._words.items() if words]
        speakers = self._speakers.values()
        return left_out + sorted({timbre_only(s.backend) for s in speakers if timbre_only(s.backend) in s.notices})

    def remove(self) -> None:
        """Remove the files of all sentences."""
        with disk.translate_errors(self._folder):
            for path in self._folder.iterdir():
                if _PART.fullmatch(path.name):
                    path.unlink()
