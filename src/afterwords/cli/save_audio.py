"""Where `say` and `jobs download` write audio, and how they save an audio file that came from a server.

A file in the wanted format that has the synthetic-speech mark is written unchanged, without loading a decoder.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from afterwords.audio.encoding import UNTAGGED
from afterwords.cli import output
from afterwords.errors import MalformedWavError
from afterwords.models import SpeechFormat

if TYPE_CHECKING:
    from afterwords.client.parsing import SpeechResponse

_MAGIC: Final = {
    b"RIFF": SpeechFormat.WAV,
    b"fLaC": SpeechFormat.FLAC,
    b"OggS": SpeechFormat.OPUS,
    b"ID3": SpeechFormat.MP3,
    b"\x1aE\xdf\xa3": SpeechFormat.WEBM,
}
_FMT_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class AudioOutput:
    """A file or stdout (`-`), and the format to write."""

    out: str
    format: SpeechFormat

    @property
    def target(self) -> Path | BinaryIO:
        return sys.stdout.buffer if self.out == "-" else Path(self.out)

    @property
    def file(self) -> str | None:
        """The path, or None for stdout."""
        return None if self.out == "-" else self.out

    @property
    def is_tagged(self) -> bool:
        """Whether files in the format have the mark of synthetic speech."""
        return self.format not in UNTAGGED


def parse_output(out: str, format: str | None) -> AudioOutput:
    """Check --out and --format before any work.

    Raises:
        UsageError: Audio would be printed on a terminal.
        InvalidInputError, FileError, StorageFullError: The file can't be written like that.
    """
    from afterwords.audio.output import check_output, format_of, parse_format

    if out == "-" and sys.stdout.isatty():
        raise output.UsageError("Audio can't be printed on a terminal.", hint="add -o hello.wav, or use a pipe.")
    check_output(None if out == "-" else Path(out), format=format)
    if format is not None:
        return AudioOutput(out, parse_format(format))
    return AudioOutput(out, SpeechFormat.WAV if out == "-" else format_of(Path(out)))


def detect_format(data: bytes) -> SpeechFormat | None:
    """Return the format of an audio file by its first bytes, or None for one without a header."""
    return next((format for magic, format in _MAGIC.items() if data.startswith(magic)), None)


def save_audio(sound: SpeechResponse, destination: AudioOutput, *, voice: str | None = None) -> float | None:
    """Write audio from a server, converted to the wanted format and marked as synthetic if it is not yet.

    Args:
        sound: The bytes of an audio file.
        destination: Where to write it.
        voice: Name of the voice, for a new mark.

    Returns:
        The duration in seconds, or None if only a decoder could tell.

    Raises:
        InvalidResponseError: The bytes are not audio.
        StorageFullError, FileError: The file can't be written; an existing one is kept.
    """
    format = detect_format(sound.data)
    if format is None and destination.format in (SpeechFormat.MP3, *UNTAGGED):
        format = destination.format
    header = read_wav_header(sound.data) if format is SpeechFormat.WAV else None
    if format is destination.format and (format is not SpeechFormat.WAV or (header is not None and header.is_marked)):
        from afterwords.audio.output import write_atomically

        write_atomically(destination.target, sound.data)
        return header.duration_s if header else None
    from afterwords.audio.writer import AudioWriter
    from afterwords.client.audio import decode_speech

    audio = decode_speech(sound, voice)
    with AudioWriter(
        destination.target, format=destination.format, sample_rate=audio.sample_rate, tags=dict(audio.tags)
    ) as writer:
        writer.write(audio.samples)
    return audio.duration_s


@dataclass(frozen=True, slots=True)
class WavHeader:
    """What the header of a WAV file states about its audio."""

    duration_s: float
    is_marked: bool


def read_wav_header(data: bytes) -> WavHeader | None:
    """Read the header of a WAV file without its samples, or return None if anything in it is unusual."""
    from afterwords.audio.wav_chunks import chunks, parse_fmt, tags_in
    from afterwords.provenance import read_mark

    byte_rate = 0
    tags: dict[str, str] = {}
    try:
        for chunk in chunks(BytesIO(data), "the audio"):
            if chunk.id == b"fmt " and chunk.present_bytes >= _FMT_BYTES:
                byte_rate = parse_fmt(data[chunk.start : chunk.start + _FMT_BYTES]).byte_rate
            elif chunk.id == b"LIST":
                tags = tags_in(data[chunk.start : chunk.start + chunk.size_bytes]) or tags
            elif chunk.id == b"data":
                if not byte_rate or chunk.present_bytes < chunk.size_bytes:
                    return None
                return WavHeader(chunk.size_bytes / byte_rate, read_mark(tags) is not None)
    except MalformedWavError as error:
        if error.code != "too_many_chunks":
            raise
    return None
