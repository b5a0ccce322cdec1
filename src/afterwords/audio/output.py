"""Where audio is written to: a file that appears when it is complete, or a pipe.

Apart from `writer`, which needs numpy: bytes from a server are written through this module without it.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol
from uuid import uuid4

from afterwords.disk import write_error
from afterwords.errors import FileError, InvalidInputError
from afterwords.models import SpeechFormat

_ENDINGS = {f".{format}": format for format in SpeechFormat} | {
    ".wave": SpeechFormat.WAV,
    ".ogg": SpeechFormat.OPUS,
    ".raw": SpeechFormat.PCM,
    ".ulaw": SpeechFormat.MULAW,
}


def format_of(path: Path) -> SpeechFormat:
    """Return the format of an output file by its extension.

    Raises:
        InvalidInputError: No format has that extension.
    """
    return _ENDINGS.get(path.suffix.lower()) or parse_format(path.suffix or path.name)


def parse_format(name: str) -> SpeechFormat:
    """Return the format with a name.

    Raises:
        InvalidInputError: No format has that name.
    """
    try:
        return SpeechFormat(name.lower())
    except ValueError:
        problem = f"'{name}' is not a supported audio format; supported: {', '.join(SpeechFormat)}."
        raise InvalidInputError(problem, code="invalid_format") from None


def check_output(path: Path | None, *, format: SpeechFormat | str | None = None) -> None:
    """Raise, before any work, what `AudioWriter` would raise on entering; None is a stream.

    Raises:
        InvalidInputError: The format is unknown.
        FileError: The folder is missing or not writable, or the path is a folder.
        StorageFullError: The disk is full.
    """
    if format is not None:
        parse_format(format)
    elif path is not None:
        format_of(path)
    if path is not None:
        check_writable(path)


def check_writable(path: Path) -> None:
    """Raise, before any work, if nothing can be written to a path.

    Raises:
        FileError, StorageFullError: As for `check_output`.
    """
    if _is_file(path):
        _PartFile(path).discard()


# -- destinations ---------------------------------------------------------------------------------------------


class Destination(Protocol):
    """A file or a stream that bytes are written to."""

    file: BinaryIO

    def send(self) -> None:
        """Flush to a reader, if there can be one."""

    def commit(self) -> None:
        """Make the written bytes permanent."""

    def discard(self) -> None:
        """Drop what was not committed. Never raises OSError."""


class _PartFile:
    """A file that is renamed into place when it is complete; until then only its owner can read it.

    It keeps the permissions of the file that it replaces. A new file gets those of the umask, unless it is private.
    """

    def __init__(self, path: Path, *, is_private: bool = False) -> None:
        try:
            self._path = path.resolve()  # a link stays a link; its target is replaced
            if self._path.exists() and not os.access(self._path, os.W_OK):
                raise FileError.unwritable(path, why="it is read-only")
            self._keeps_mode = not is_private
            self._mode = 0o600
            if not is_private:  # the mode of an empty file: reading the umask means changing it for all threads
                probe = self._path.with_name(f".{uuid4().hex}.part")
                handle = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
                try:
                    self._mode = _mode_of(os.fstat(handle))
                finally:
                    os.close(handle)
                    probe.unlink()
            # 60 characters leave room for the rest of the name whatever the alphabet
            handle, part = tempfile.mkstemp(dir=self._path.parent, prefix=f"{path.name[:60]}.", suffix=".part")
        except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links, before Python 3.13
            raise FileError.unwritable(path, why=_reason(error, path.parent)) from error
        self._part = Path(part)
        self.file: BinaryIO = os.fdopen(handle, "wb")

    def send(self) -> None:
        """Do nothing: the file has no reader yet."""

    def commit(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        if self._keeps_mode and self._path.exists():
            self._mode = _mode_of(self._path.stat())
        if _mode_of(self._part.stat()) != self._mode:  # some file systems have no permissions
            self._part.chmod(self._mode)
        self._part.replace(self._path)

    def discard(self) -> None:
        with suppress(OSError):
            self.file.close()
        with suppress(OSError):
            self._part.unlink(missing_ok=True)


class _Stream:
    """A stream of the caller, or a pipe or device by its path."""

    def __init__(self, target: Path | BinaryIO) -> None:
        self._is_ours = isinstance(target, Path)
        try:
            self.file = target.open("wb") if isinstance(target, Path) else target
        except OSError as error:
            raise FileError.unwritable(str(target), why=_reason(error)) from error

    def send(self) -> None:
        self.file.flush()

    def commit(self) -> None:
        self.file.flush()

    def discard(self) -> None:
        if self._is_ours:
            with suppress(OSError):
                self.file.close()


def open_destination(target: Path | BinaryIO, *, is_private: bool = False) -> Destination:
    """Open a path for writing, or wrap a stream, which stays open.

    Args:
        target: Where to write.
        is_private: Whether only the owner may read the file, regardless of the umask.

    Raises:
        FileError: The path can't be written to.
    """
    if isinstance(target, Path) and _is_file(target):
        return _PartFile(target, is_private=is_private)
    return _Stream(target)


@contextmanager
def translate_write_errors(target: Path | BinaryIO) -> Iterator[None]:
    """Translate the OSError of a failed write; BrokenPipeError passes unchanged.

    Raises:
        StorageFullError, FileError: A write failed.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        shown = target if isinstance(target, Path) else str(getattr(target, "name", "the output"))
        raise write_error(error, shown, why=_reason(error)) from error


def write_atomically(target: Path | BinaryIO, data: bytes, *, is_private: bool = False) -> None:
    """Write bytes, a file atomically.

    Args:
        target: Where to write.
        data: The bytes.
        is_private: Whether only the owner may read the file, regardless of the umask.

    Raises:
        StorageFullError, FileError: The write failed; an existing file is unchanged.
        BrokenPipeError: The reader of a pipe has closed it.
    """
    with open_atomically(target, is_private=is_private) as file:
        file.write(data)


@contextmanager
def open_atomically(target: Path | BinaryIO, *, is_private: bool = False) -> Iterator[BinaryIO]:
    """Open a target for writing; a file appears when the block succeeds.

    Raises:
        StorageFullError, FileError, BrokenPipeError: As for `write_atomically`.
    """
    destination = open_destination(target, is_private=is_private)
    try:
        with translate_write_errors(target):
            yield destination.file
            destination.commit()
    finally:  # no effect after a commit
        destination.discard()


def _mode_of(status: os.stat_result) -> int:
    return status.st_mode & 0o777


def _is_file(path: Path) -> bool:
    """Return whether a path is or can become a regular file, and not a pipe or a device."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return True
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise FileError.unwritable(path, why=_reason(error, path.parent)) from error
    if stat.S_ISDIR(mode):
        raise FileError.unwritable(path, why="it is a folder")
    return stat.S_ISREG(mode)


def _reason(error: Exception, folder: Path | None = None) -> str:
    """Return why a path can't be written to, in plain words."""
    if folder is not None and isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"there is no folder {folder}"
    if isinstance(error, PermissionError):
        return "you are not allowed to write there"
    return (getattr(error, "strerror", None) or str(error)).lower()
