"""Audio that came from a server, put where it was asked for.

Apart because most of it needs no look at the samples: what has its format and its mark is written as it came, without
loading what decodes. `say --remote` and `jobs download` call it.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from afterwords.cli import output
from afterwords.errors import TooManyChunksError
from afterwords.models import SpeechFormat

if TYPE_CHECKING:
    from afterwords.client.parsing import Sound

_BEGINNINGS: Final = {
    b"RIFF": SpeechFormat.WAV,
    b"fLaC": SpeechFormat.FLAC,
    b"OggS": SpeechFormat.OPUS,
    b"ID3": SpeechFormat.MP3,
}
_FMT: Final = struct.Struct("<HHIIHH")


@dataclass(frozen=True, slots=True)
class Place:
    """Where audio goes, and in which format: `-` is stdout."""

    out: str
    format: SpeechFormat

    @property
    def target(self) -> Path | BinaryIO:
        return sys.stdout.buffer if self.out == "-" else Path(self.out)

    @property
    def file(self) -> str | None:
        """The file, if it is one."""
        return None if self.out == "-" else self.out


def place_for(out: str, format: str | None) -> Place:
    """Check, before any work, where audio shall go.

    Raises:
        UsageError: a terminal can't take it.
        UnmarkableFormatError, UnwritableOutputError, StorageFullError: it can't be written like that.
    """
    from afterwords.audio.output import check_output, format_of, parse_format

    if out == "-" and sys.stdout.isatty():
        raise output.UsageError("A terminal can't take audio.", hint="pipe it on, or name a file: -o hello.wav.")
    check_output(None if out == "-" else Path(out), format=format)
    if format is not None:
        return Place(out, parse_format(format))
    return Place(out, SpeechFormat.WAV if out == "-" else format_of(Path(out)))


def format_in(data: bytes) -> SpeechFormat | None:
    """The format of a file, by how it begins; None where that does not tell: raw samples, and some mp3."""
    return next((found for beginning, found in _BEGINNINGS.items() if data.startswith(beginning)), None)


def deliver(sound: Sound, place: Place, *, voice: str | None = None) -> float | None:
    """Write audio, in the format that is wanted and with the mark that it is synthetic.

    Args:
        sound: the bytes of a file, as they came.
        place: where it goes.
        voice: who speaks, for a mark that has to be made.

    Returns:
        How long it lasts, in seconds; None where only decoding would tell.

    Raises:
        StrangeAnswerError: it is no audio.
        StorageFullError, UnwritableOutputError: it can't be written; a file that was there is kept.
    """
    found = format_in(sound.data)
    if found is None and place.format in (SpeechFormat.MP3, SpeechFormat.PCM):
        found = place.format
    header = wav_header(sound.data) if found is SpeechFormat.WAV else None
    is_ready = found is place.format and (found is not SpeechFormat.WAV or (header is not None and header.is_marked))
    if not is_ready:
        return _converted(sound, place, voice)
    from afterwords.audio.output import write_atomically

    write_atomically(place.target, sound.data)
    return header.duration_s if header else None


def _converted(sound: Sound, place: Place, voice: str | None) -> float:
    from afterwords.audio.writer import AudioWriter
    from afterwords.client.audio import decoded

    audio = decoded(sound, voice)
    with AudioWriter(place.target, format=place.format, sample_rate=audio.sample_rate, tags=dict(audio.tags)) as writer:
        writer.write(audio.samples)
    return audio.duration_s


@dataclass(frozen=True, slots=True)
class WavHeader:
    """What a WAV file says of itself beside its samples."""

    duration_s: float
    is_marked: bool


def wav_header(data: bytes) -> WavHeader | None:
    """Read the header of a WAV file without its samples; None where anything about it is unusual."""
    from afterwords.audio.wav_chunks import chunks, tags_in
    from afterwords.provenance import read_mark

    bytes_per_s = 0
    tags: dict[str, str] = {}
    try:
        for chunk in chunks(BytesIO(data), "the audio"):
            if chunk.id == b"fmt " and chunk.present_bytes >= _FMT.size:
                bytes_per_s = _FMT.unpack_from(data, chunk.start)[3]
            elif chunk.id == b"LIST":
                tags = tags_in(data[chunk.start : chunk.start + chunk.size_bytes]) or tags
            elif chunk.id == b"data":
                if not bytes_per_s or chunk.present_bytes < chunk.size_bytes:
                    return None
                return WavHeader(chunk.size_bytes / bytes_per_s, read_mark(tags) is not None)
    except TooManyChunksError:
        return None
    return None
