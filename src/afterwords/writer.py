"""Writing sound while it arrives: to a file that appears only when it is whole, or straight into a pipe.

Every format and every way to save goes through `AudioWriter`; `encoders` knows the formats. Callers find all of
this in `audio`.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import numpy as np

from afterwords.disk import refusal
from afterwords.encoders import make_encoder
from afterwords.errors import (
    InvalidOptionError,
    NonFiniteAudioError,
    UnmarkableFormatError,
    UnwritableOutputError,
)
from afterwords.models import SpeechFormat
from afterwords.riff import INFO_IDS, Samples

_ENDINGS = {f".{format}": format for format in SpeechFormat} | {
    ".wave": SpeechFormat.WAV,
    ".ogg": SpeechFormat.OPUS,
    ".raw": SpeechFormat.PCM,
}


def format_of(path: Path) -> SpeechFormat:
    """Tell the format of a file that shall be written by the ending of its name.

    Raises:
        UnmarkableFormatError: no format has that ending.
    """
    try:
        return _ENDINGS[path.suffix.lower()]
    except KeyError:
        raise UnmarkableFormatError(path.suffix or path.name, formats=SpeechFormat) from None


def parse_format(name: str) -> SpeechFormat:
    """Tell the format by its name.

    Raises:
        UnmarkableFormatError: there is none of that name.
    """
    try:
        return SpeechFormat(name.lower())
    except ValueError:
        raise UnmarkableFormatError(name, formats=SpeechFormat) from None


def check_output(path: Path | None, *, format: SpeechFormat | str | None = None) -> None:
    """Refuse, before any work, what `AudioWriter` would refuse on entering; None is a stream.

    Raises:
        UnmarkableFormatError: the format is not known.
        UnwritableOutputError: the folder is missing or closed to writing, or the path is a folder.
        StorageFullError: the disk is full.
    """
    if format is not None:
        parse_format(format)
    elif path is not None:
        format_of(path)
    if path is not None and _is_file(path):
        _PartFile(path).discard()


class AudioWriter:
    """Write mono sound chunk by chunk; use it in a `with` block.

    A file is written under another name beside its own (`….part`), readable by its owner alone, and takes its name
    when the block ends well; otherwise it is removed, and a file that was there before is kept. A pipe or a device
    gets each chunk at once; what was sent can't be taken back.

    Args:
        target: a path, or an open binary stream, which stays open.
        format: one of `SpeechFormat`; None takes it from the ending of the path.
        sample_rate: of the samples, in Hz. An encoder that does not take that rate gets the next higher one.
        tags: texts under the names of `riff.INFO_IDS`; pcm carries none.

    Raises:
        UnmarkableFormatError: the format is not known.
        InvalidOptionError: a tag or the sample rate can't be written.
        UnwritableOutputError: on entering, before any work: the folder is missing or closed to writing; later: the
            write failed.
        StorageFullError: the disk is full.
        NonFiniteAudioError: samples that are NaN or infinite.
        BrokenPipeError: the reader of a pipe has gone.
    """

    def __init__(
        self,
        target: Path | BinaryIO,
        *,
        format: SpeechFormat | str | None = None,
        sample_rate: int,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        if format is None:
            self.format = format_of(target) if isinstance(target, Path) else SpeechFormat.WAV
        else:
            self.format = parse_format(format)
        if not 0 < sample_rate < 2**31:
            raise InvalidOptionError("sample_rate", value=sample_rate, allowed="a positive number of Hz")
        self._tags = _clean_tags(tags or {})
        self._target = target
        self._sample_rate = sample_rate
        self._n_frames = 0

    @property
    def duration_s(self) -> float:
        """Seconds of sound written so far."""
        return self._n_frames / self._sample_rate

    def __enter__(self) -> Self:
        self._output = _open_output(self._target)
        try:
            with self._storage_errors():
                self._encoder = make_encoder(
                    self._output.file, format=self.format, sample_rate=self._sample_rate, tags=self._tags
                )
        except BaseException:
            self._output.discard()
            raise
        return self

    def write(self, samples: Samples) -> None:
        """Add samples of shape (n_samples,), float32 in [-1, 1]."""
        if not np.isfinite(samples).all():
            raise NonFiniteAudioError("the audio")
        with self._storage_errors():
            self._encoder.write(samples)
            self._output.send()
        self._n_frames += len(samples)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with self._storage_errors():
                    self._encoder.finish()
                    self._output.commit()
        finally:  # after a commit there is nothing left to take back
            self._encoder.abandon()
            self._output.discard()

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            shown = self._target if isinstance(self._target, Path) else str(getattr(self._target, "name", "the output"))
            raise refusal(error, shown, why=_reason(error)) from error


def _clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags without what no container can hold: NUL, and halves of characters."""
    for name in tags:
        if name not in INFO_IDS:
            raise InvalidOptionError("tags", value=name, allowed="named " + ", ".join(INFO_IDS))
    clean = {name: text.replace("\0", "").encode("utf-8", "replace").decode() for name, text in tags.items()}
    return {name: text for name, text in clean.items() if text}


# -- where it goes --------------------------------------------------------------------------------------------


class _Output(Protocol):
    """A place that bytes go to."""

    file: BinaryIO

    def send(self) -> None:
        """Let a reader have what was written so far."""

    def commit(self) -> None:
        """Make all that was written last."""

    def discard(self) -> None:
        """Let go of what was not committed. Never raises OSError."""


class _PartFile:
    """A file that takes its name only when it is whole."""

    def __init__(self, path: Path) -> None:
        try:
            self._path = path.resolve()  # a link stays a link, and what it points to is replaced
            if self._path.exists() and not os.access(self._path, os.W_OK):
                raise UnwritableOutputError(path, why="it is read-only")
            # 60 characters leave room for the rest of the name whatever the alphabet
            handle, part = tempfile.mkstemp(dir=self._path.parent, prefix=f"{path.name[:60]}.", suffix=".part")
        except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links, before Python 3.13
            raise UnwritableOutputError(path, why=_reason(error, path.parent)) from error
        self._part = Path(part)
        self.file: BinaryIO = os.fdopen(handle, "wb")

    def send(self) -> None:
        """Nobody reads it yet."""

    def commit(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self._part.replace(self._path)

    def discard(self) -> None:
        with suppress(OSError):
            self.file.close()
        with suppress(OSError):
            self._part.unlink(missing_ok=True)


class _Stream:
    """A stream of the caller's, or a pipe or device by its path."""

    def __init__(self, target: Path | BinaryIO) -> None:
        self._is_ours = isinstance(target, Path)
        try:
            self.file = target.open("wb") if isinstance(target, Path) else target
        except OSError as error:
            raise UnwritableOutputError(str(target), why=_reason(error)) from error

    def send(self) -> None:
        self.file.flush()

    def commit(self) -> None:
        self.file.flush()

    def discard(self) -> None:
        if self._is_ours:
            with suppress(OSError):
                self.file.close()


def _open_output(target: Path | BinaryIO) -> _Output:
    return _PartFile(target) if isinstance(target, Path) and _is_file(target) else _Stream(target)


def _is_file(path: Path) -> bool:
    """Whether it is a file or can become one; else it is a pipe or a device."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return True
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UnwritableOutputError(path, why=_reason(error, path.parent)) from error
    if stat.S_ISDIR(mode):
        raise UnwritableOutputError(path, why="it is a folder")
    return stat.S_ISREG(mode)


def _reason(error: Exception, folder: Path | None = None) -> str:
    """Why a place can't be written to, in plain words."""
    if folder is not None and isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"there is no folder {folder}"
    if isinstance(error, PermissionError):
        return "you are not allowed to write there"
    return (getattr(error, "strerror", None) or str(error)).lower()
