"""What a caller gives, as the API takes it, and files of what comes back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

from afterwords import disk
from afterwords.audio.output import write_atomically
from afterwords.errors import InvalidOptionError, RecordingWarning
from afterwords.models import ConsentKind, JobStatus, SpeechFormat


def bytes_of(source: Path | str | bytes | BinaryIO) -> bytes:
    """All of a file, by its path, its bytes, or open; one that stands at its end is read from its beginning.

    Raises:
        UnreadableFileError: it can't be read.
    """
    if isinstance(source, bytes):
        return source
    if isinstance(source, Path | str):
        return b"".join(disk.read_pieces(Path(source)))
    return disk.read_stream(source)


def wav_of(recording: Path | str | bytes | BinaryIO) -> bytes:
    """A recording as a WAV file: one that is goes as it is, the server judges it; anything else is decoded.

    Raises:
        RecordingError: no decoder knows it.
    """
    data = bytes_of(recording)
    if data[:4] == b"RIFF":
        return data
    from afterwords.audio.audio import decode
    from afterwords.audio.wav import canonical_wav

    audio = decode(data, name=str(recording) if isinstance(recording, Path | str) else "the recording")
    for notice in audio.notices:
        warnings.warn(notice, RecordingWarning, stacklevel=2)
    return canonical_wav(audio.samples, audio.sample_rate)


def consent_of(consent: ConsentKind | str | None) -> str | None:
    """By what right, in the API's word."""
    if consent is None:
        return None
    if consent not in set(ConsentKind):
        raise InvalidOptionError("consent", value=str(consent)[:40], allowed=", ".join(ConsentKind))
    return ConsentKind(consent).value


def format_named(name: SpeechFormat | str) -> SpeechFormat:
    """A format of speech."""
    if name not in set(SpeechFormat):
        raise InvalidOptionError("format", value=str(name)[:40], allowed=", ".join(SpeechFormat))
    return SpeechFormat(name)


def status_named(name: JobStatus | str | None) -> JobStatus | None:
    """Where a job may stand."""
    if name is not None and name not in set(JobStatus):
        raise InvalidOptionError("status", value=str(name)[:40], allowed=", ".join(JobStatus))
    return None if name is None else JobStatus(name)


def written(data: bytes, path: Path | str) -> Path:
    """Write a file, whole or not at all."""
    write_atomically(Path(path), data)
    return Path(path)
