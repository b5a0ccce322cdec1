"""Narrate a book: check all that it needs, let `spoken` speak its sentences, and write the audio file.

A narration that was interrupted, even by a crash or a power cut, goes on where it was.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from afterwords import disk, local
from afterwords.audio.encoders import BookInfo
from afterwords.audio.encoding import Encoding
from afterwords.audio.output import check_writable, write_atomically
from afterwords.audio.subtitles import to_srt, to_vtt
from afterwords.audio.writer import AudioWriter
from afterwords.backends.base import Progress, ignore_progress
from afterwords.errors import FileError, InvalidInputError, InvalidOptionError, LibraryError, TextError, TextWarning
from afterwords.models import SpeechFormat, SpeechOptions, Verification, Voice, now
from afterwords.narration.book import Book, known_lang, read_book, read_cover
from afterwords.narration.script import NARRATOR, Sentence, Speaker, check_cast, write_script
from afterwords.narration.spoken import SpokenBook
from afterwords.provenance import mark_tags
from afterwords.speech import Speech

LOUDNESS_LUFS: Final = -19.0
"""Apple asks for -16 LUFS of podcasts in stereo; one channel, which two loudspeakers play, measures 3 LU less."""
LOUDNESS_MIN, LOUDNESS_MAX = -35.0, -12.0
ENCODINGS: Final = {
    ".m4b": SpeechFormat.AAC,
    ".m4a": SpeechFormat.AAC,
    ".mp3": SpeechFormat.MP3,
    ".opus": SpeechFormat.OPUS,
    ".flac": SpeechFormat.FLAC,
    ".wav": SpeechFormat.WAV,
}
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
        spoken = SpokenBook(folder, speakers, options, verify=verify)
        spoken.speak(sentences, source, lambda part, step: progress((1 - _WRITING) * part, step))
        info = BookInfo(spoken.duration_s, spoken.chapters(source), image)
        rate = speakers[NARRATOR].sample_rate
        format = Encoding(ENCODINGS[out.suffix.lower()])
        with AudioWriter(out, format=format, sample_rate=rate, tags=_tags(source, speakers), book=info) as writer:
            progress(1 - _WRITING, "leveling")
            for samples in spoken.mastered(loudness):
                writer.write(samples)
                progress(1 - _WRITING * (1 - writer.duration_s / spoken.duration_s), "writing the file")
        shown = spoken.cues() if subtitles else []
        for path, write in subtitles.items():
            write_atomically(path, write(shown).encode())
        verification = Verification.of(spoken.checked) if verify else None
        if verification and report is not None:
            write_atomically(Path(report), verification.model_dump_json(indent=2).encode())
        spoken.remove()
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
        duration_s=spoken.duration_s,
        chapters=info.chapters,
        voices=tuple(dict.fromkeys(speaker.voice.name for speaker in speakers.values())),
        backends=tuple(dict.fromkeys(speaker.backend for speaker in speakers.values())),
        n_sentences=len(spoken.parts),
        n_spoken=spoken.n_new,
        left_out=tuple(spoken.left_out),
        notices=(*source.notices, *notices, *spoken.notices()),
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
        warnings.simplefilter("ignore", TextWarning)  # words that are left out are counted by `SpokenBook`
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
