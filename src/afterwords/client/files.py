"""Arguments and files of the caller: what is uploaded, and where downloads go."""

from __future__ import annotations

import warnings
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, TypeVar

from afterwords import disk
from afterwords.audio.output import write_atomically
from afterwords.errors import InvalidOptionError, RecordingWarning

E = TypeVar("E", bound=StrEnum)


def read_source(source: Path | str | bytes | BinaryIO) -> bytes:
    """Return the bytes of a file. An open file that is at its end is read from its beginning.

    Raises:
        FileError: The file can't be read.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, Path | str):
        return b"".join(disk.read_pieces(Path(source)))
    return disk.read_stream(source)


def read_recording(recording: Path | str | bytes | BinaryIO) -> bytes:
    """Return a recording as a WAV file. A WAV file is returned as it is, for the server to check.

    Raises:
        RecordingError: No decoder can read the recording.
    """
    data = read_source(recording)
    if data[:4] == b"RIFF":
        return data
    from afterwords.audio.audio import decode
    from afterwords.audio.wav import canonical_wav

    audio = decode(data, name=str(recording) if isinstance(recording, Path | str) else "the recording")
    for notice in audio.notices:
        warnings.warn(notice, RecordingWarning, stacklevel=2)
    return canonical_wav(audio.samples, audio.sample_rate)


def parse_option(kind: type[E], value: str, *, name: str) -> E:
    """Return a member of an enum, or raise InvalidOptionError with the allowed values."""
    if value not in set(kind):
        raise InvalidOptionError.for_option(name, value=str(value)[:40], allowed=", ".join(kind))
    return kind(value)


def write_file(data: bytes, path: Path | str) -> Path:
    """Write a file completely or not at all, and return its path."""
    write_atomically(Path(path), data)
    return Path(path)
