"""Narrate a book: speak each sentence once, keep it on disk until the book is complete, and write the book.

A narration that was interrupted, even by a crash or a power cut, goes on where it was.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
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
from afterwords.audio.encoders import BookInfo
from afterwords.audio.encoding import Encoding
from afterwords.audio.loudness import LoudnessMeter, limit_peaks
from afterwords.audio.output import check_writable, write_atomically
from afterwords.audio.subtitles import Cue, cues, to_srt, to_vtt
from afterwords.audio.wav import Samples, read_wav
from afterwords.audio.writer import AudioWriter
from afterwords.backends import registry
from afterwords.backends.base import Progress, ignore_progress, timbre_only, unspoken
from afterwords.errors import (
    FileError,
    InvalidInputError,
    InvalidOptionError,
    LibraryError,
    MalformedWavError,
    SynthesisError,
    TextError,
    TextWarning,
)
from afterwords.models import (
    Alignment,
    SentenceVerification,
    SpeechFormat,
    SpeechOptions,
    Verification,
    Voice,
    WordTiming,
    now,
)
from afterwords.narration.book import Book, known_lang, read_book, read_cover
from afterwords.narration.script import NARRATOR, PARAGRAPH_PAUSE_S, Sentence, Speaker, check_cast, write_script
from afterwords.provenance import mark_tags
from afterwords.speech import Speech
from afterwords.text import describe_left_out, max_speech_s

LOUDNESS_LUFS: Final = -19.0
"""Apple asks for -16 LUFS of podcasts in stereo; one channel, which two loudspeakers play, measures 3 LU less."""
LOUDNESS_MIN, LOUDNESS_MAX = -35.0, -12.0
PEAK_DBTP: Final = -2.0
"""Limit of true peaks before encoding: lossy formats add up to 1 dB, so that files stay below -1 dBTP."""
ATTEMPTS: Final = 3
"""How often a sentence is tried, each time with another seed, before it is left out."""
MAX_FAILED_IN_A_ROW: Final = 5
ENCODINGS: Final = {
    ".m4b": SpeechFormat.AAC,
    ".m4a": SpeechFormat.AAC,
    ".mp3": SpeechFormat.MP3,
    ".opus": SpeechFormat.OPUS,
    ".flac": SpeechFormat.FLAC,
    ".wav": SpeechFormat.WAV,
}
_PART: Final = re.compile(r"[0-9a-f]{64}\.(?:wav|json)(?:\.part)?")
_WRITING: Final = 0.03
"""Share of the progress for writing the file after all was spoken."""


@dataclass(frozen=True, slots=True)
class Narration:
    """A narrated book.

    Attributes:
        path: The audio file.
        duration_s: Its length in seconds.
        chapters: Titles and starts of its chapters, in seconds.
        voices: Names of its voices, the narrator first.
        backends: Backends that spoke.
        n_sentences: Number of sentences.
        n_spoken: How many of them were spoken now; the others were kept from an interrupted narration.
        left_out: Sentences that could not be spoken, with the reason.
        notices: Sentences about what else differs from the book.
        verification: How the speech compares with the book, if that was requested.
    """

    path: Path
    duration_s: float
    chapters: tuple[tuple[str, float], ...]
    voices: tuple[str, ...]
    backends: tuple[str, ...]
    n_sentences: int
    n_spoken: int
    left_out: tuple[str, ...] = field(default=(), repr=False)
    notices: tuple[str, ...] = ()
    verification: Verification | None = field(default=None, repr=False)


def narrate(
    book: Path | str,
    out: Path | str,
    *,
    voice: Voice | str | None = None,
    cast: Mapping[str, str] | None = None,
    lang: str | None = None,
    backend: str | None = None,
    speed: float = 1.0,
    seed: int = 0,
    loudness: float = LOUDNESS_LUFS,
    cover: Path | str | None = None,
    srt: Path | str | None = None,
    vtt: Path | str | None = None,
    verify: bool = False,
    report: Path | str | None = None,
    progress: Progress = ignore_progress,
) -> Narration:
    """Speak a book into one audio file with chapters.

    Sentences are kept in a private folder next to the file, such as `book.m4b.sentences`, until the file is complete.
    If this is interrupted, call it again with the same arguments: it goes on with the first missing sentence.

    Args:
        book: An EPUB, Markdown, HTML or text file.
        out: The audio file: .m4b, .mp3, .opus, .flac or .wav. An existing one is replaced at the end.
        voice: The narrator: a Voice, its name or its id; None takes the default, or the only one.
        cast: Names of voices by the names of characters, for `[voice:NAME]` and for paragraphs such as "NAME: Hello."
        lang: Language of the book; None takes what the book states, or the voice's.
        backend: Backend to use; None takes each voice's.
        speed: Speaking rate, 0.25 to 4.
        seed: Makes a sampled result repeatable.
        loudness: Loudness of each voice, -35 to -12 LUFS.
        cover: JPEG or PNG file; None takes the cover of an EPUB.
        srt: Subtitle file to write, in SRT format.
        vtt: Subtitle file to write, in WebVTT format.
        verify: Compare each sentence with its text and speak a faulty one again, as for `say`.
        report: JSON file to write, with the result of `verify`.
        progress: Called with a fraction and a step.

    Raises:
        FileError: A file can't be read or written.
        InvalidInputError: The file is not a book, is damaged or copy-protected, or an option is invalid.
        TextError: The book has nothing to speak.
        VoiceNotFoundError: A voice of the book or its cast is unknown.
        UnsupportedLangError, UnavailableError: As for `say`.
        LibraryError: Another process narrates this book.
        SynthesisError: Several sentences in a row could not be spoken.
        StorageFullError: The disk is full. The spoken sentences are kept.
    """
    out = Path(out)
    if out.suffix.lower() not in ENCODINGS:
        raise InvalidInputError(
            f"A book can't be written as {out.name!a}; supported: {', '.join(ENCODINGS)}.",
            code="invalid_format",
            hint="end the name with one of these, for example -o book.m4b",
        )
    subtitles = {Path(path): write for path, write in ((srt, to_srt), (vtt, to_vtt)) if path is not None}
    if report is not None and not verify:
        raise InvalidOptionError.for_option("report", value=report, allowed="None without verify")
    _check_outputs([Path(path) for path in (out, srt, vtt, report) if path is not None], book, cover)
    if not LOUDNESS_MIN <= loudness <= LOUDNESS_MAX:
        allowed = f"{LOUDNESS_MIN:g} to {LOUDNESS_MAX:g} LUFS"
        raise InvalidOptionError.for_option("loudness", value=loudness, allowed=allowed)
    source = read_book(Path(book))
    image = _read_image(Path(cover)) if cover is not None else source.cover
    emotions = {each.emotion for each in local.voices() if each.emotion}
    sentences, notices = write_script(source, check_cast(cast or {}), emotions)
    options = SpeechOptions.check(lang=lang or known_lang(source.lang), backend=backend, speed=speed, seed=seed)
    speakers = _find_speakers(sentences, voice, options, progress, verify=verify)
    target = out.resolve()
    folder = target.with_name(f"{target.name}.sentences")
    disk.make_folder(folder)
    busy = LibraryError(f"Another process narrates a book into {folder}.", code="library_busy")
    with disk.lock(folder / "lock", timeout_s=0, busy=busy):
        take = _Take(folder, speakers, options, verify=verify)
        take.speak(sentences, source, progress)
        info = BookInfo(take.duration_s, take.chapters(source), image)
        rate = speakers[NARRATOR].sample_rate
        format = Encoding(ENCODINGS[out.suffix.lower()])
        with AudioWriter(out, format=format, sample_rate=rate, tags=_tags(source, speakers), book=info) as writer:
            progress(1 - _WRITING, "leveling")
            for samples in take.mastered(loudness):
                writer.write(samples)
                progress(1 - _WRITING * (1 - writer.duration_s / take.duration_s), "writing the file")
        shown = take.cues() if subtitles else []
        for path, write in subtitles.items():
            write_atomically(path, write(shown).encode())
        verification = Verification.of(take.checked) if verify else None
        if verification and report is not None:
            write_atomically(Path(report), verification.model_dump_json(indent=2).encode())
        _remove_parts(folder)
    with suppress(OSError):  # it has other files, or another process uses it
        (folder / "lock").unlink()
        folder.rmdir()
    progress(1.0, "done")
    if out.suffix.lower() == ".wav":
        notices.append("A WAV file has no chapters and no cover; use .m4b, .mp3 or .flac for them.")
    elif out.suffix.lower() == ".opus" and image:
        notices.append("The Opus file has no cover; use .m4b, .mp3 or .flac for one.")
    return Narration(
        path=out,
        duration_s=take.duration_s,
        chapters=info.chapters,
        voices=tuple(dict.fromkeys(speaker.voice.name for speaker in speakers.values())),
        backends=tuple(dict.fromkeys(speaker.backend for speaker in speakers.values())),
        n_sentences=len(take.parts),
        n_spoken=take.n_new,
        left_out=tuple(take.left_out),
        notices=(*source.notices, *notices, *take.notices()),
        verification=verification,
    )


def _check_outputs(outputs: Sequence[Path], *sources: Path | str | None) -> None:
    """Raise if an output can't be written, or would replace another one or a source."""
    taken = {os.path.realpath(source) for source in sources if source is not None}
    for path in outputs:
        check_writable(path)
        if (target := os.path.realpath(path)) in taken:
            why = "the book, the cover or another output is that file"
            raise FileError.unwritable(path, why, hint="give each file a name of its own.")
        taken.add(target)


def _remove_parts(folder: Path) -> None:
    with disk.translate_errors(folder):
        for path in folder.iterdir():
            if _PART.fullmatch(path.name):
                path.unlink()


def _read_image(path: Path) -> bytes:
    try:
        image = read_cover(disk.read(path))
    except OSError as error:
        raise FileError.unreadable(path, why=(error.strerror or str(error)).lower()) from error
    if image is None:
        raise InvalidInputError(
            f"{path} is not a cover that players show.",
            hint="use a JPEG or PNG file of at most 20 MiB and 50 megapixels.",
        )
    return image


def _find_speakers(
    sentences: Sequence[Sentence],
    narrator: Voice | str | None,
    options: SpeechOptions,
    progress: Progress,
    *,
    verify: bool,
) -> dict[Speaker, Speech]:
    """Return a speech of each voice that speaks, the narrator first. They are never read.

    All that `say` checks is checked here, before the first sentence, and the voices are prepared.
    """
    found: dict[Speaker, Speech] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextWarning)  # words that are left out are counted by `_Take`
        for speaker in dict.fromkeys([NARRATOR, *(sentence.speaker for sentence in sentences)]):
            name, emotion = speaker
            texts = [sentence.text for sentence in sentences if sentence.speaker == speaker] or [sentences[0].text]
            for text in texts:
                try:
                    found[speaker] = local.stream(
                        text,
                        voice=name or narrator,
                        emotion=emotion,
                        **options.model_dump(),
                        verify=verify,
                        progress=progress,
                    )
                except TextError:  # the backend can't speak this sentence
                    if text is texts[-1]:
                        raise
                else:
                    break
    return found


def _tags(book: Book, speakers: Mapping[Speaker, Speech]) -> dict[str, str]:
    """Return the tags of the file, with the mark of synthetic speech."""
    narrator = speakers[NARRATOR]
    marked = mark_tags(
        backend=narrator.backend,
        voice_name=", ".join(dict.fromkeys(speaker.voice.name for speaker in speakers.values())),
        voice_id=narrator.voice.voice_id,
        made_at=now(),
    )
    return marked | {"title": book.title} | ({"artist": book.author} if book.author else {})


def _gain(meter: LoudnessMeter, loudness: float) -> float:
    """Return the factor that brings what was measured to a loudness in LUFS; 1 for silence."""
    measured = meter.integrated()
    return 1.0 if measured is None else float(10 ** ((loudness - measured) / 20))


class _Part(NamedTuple):
    """A spoken sentence: its file, and where it is in the book, in frames."""

    sentence: Sentence
    path: Path
    voice_id: str
    start: int
    end: int


class _Take:
    """The spoken sentences of a book."""

    def __init__(
        self, folder: Path, speakers: Mapping[Speaker, Speech], options: SpeechOptions, *, verify: bool
    ) -> None:
        self._folder, self._speakers, self._options, self._verify = folder, speakers, options, verify
        self._engines = {name: registry.engine_for(registry.choose(s.backend)) for name, s in speakers.items()}
        self._rate = speakers[NARRATOR].sample_rate
        self._meters = {speaker.voice.voice_id: LoudnessMeter(self._rate) for speaker in speakers.values()}
        self._words: dict[str, list[str]] = {}
        self.parts: list[_Part] = []
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
                progress((1 - _WRITING) * n_done / n_chars, f"chapter {sentence.chapter + 1} of {len(book.chapters)}")
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
                self.parts.append(_Part(sentence, path, speaker.voice.voice_id, start, start + len(samples)))
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
