"""Where sound is written to: a file that appears only when it is whole, or a pipe that gets everything at once.

Apart from `writer`, which turns samples into bytes and needs numpy: what comes from a server as bytes goes to the same
places without it. Callers find `check_output` and the formats in `audio`.
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

from afterwords.disk import refusal
from afterwords.errors import UnmarkableFormatError, UnwritableOutputError
from afterwords.models import SpeechFormat

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
    if path is not None:
        check_place(path)


def check_place(path: Path) -> None:
    """Refuse, before any work, a place that nothing can be written to.

    Raises:
        UnwritableOutputError, StorageFullError: as `check_output`.
    """
    if _is_file(path):
        _PartFile(path).discard()


# -- where it goes --------------------------------------------------------------------------------------------


class Destination(Protocol):
    """A place that bytes go to."""

    file: BinaryIO

    def send(self) -> None:
        """Let a reader have what was written so far."""

    def commit(self) -> None:
        """Make all that was written last."""

    def discard(self) -> None:
        """Let go of what was not committed. Never raises OSError."""


class _PartFile:
    """A file that takes its name only when it is whole, and until then can be read by its owner alone.

    It then keeps the permissions of the file that it replaces; a new file gets those that the umask leaves, unless it
    is private.
    """

    def __init__(self, path: Path, *, is_private: bool = False) -> None:
        try:
            self._path = path.resolve()  # a link stays a link, and what it points to is replaced
            if self._path.exists() and not os.access(self._path, os.W_OK):
                raise UnwritableOutputError(path, why="it is read-only")
            self._mode = 0o600 if is_private else _mode_of_new_files(self._path.parent)
            self._keeps_mode = not is_private
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
        if self._keeps_mode and self._path.exists():
            self._mode = _mode_of(self._path.stat())
        if _mode_of(self._part.stat()) != self._mode:  # a file system without permissions refuses every change
            self._part.chmod(self._mode)
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


def open_destination(target: Path | BinaryIO, *, is_private: bool = False) -> Destination:
    """Open a place by its path, or take a stream, which stays open.

    Args:
        target: where to write.
        is_private: whether the owner alone may read a file, whatever the umask says.

    Raises:
        UnwritableOutputError: nothing can be written there.
    """
    if isinstance(target, Path) and _is_file(target):
        return _PartFile(target, is_private=is_private)
    return _Stream(target)


@contextmanager
def storing_at(target: Path | BinaryIO) -> Iterator[None]:
    """Give a failed write its name; a reader that has gone stays BrokenPipeError.

    Raises:
        StorageFullError, UnwritableOutputError: the system refused.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        shown = target if isinstance(target, Path) else str(getattr(target, "name", "the output"))
        raise refusal(error, shown, why=_reason(error)) from error


def write_whole(target: Path | BinaryIO, data: bytes, *, is_private: bool = False) -> None:
    """Write bytes to a place: a file whole or not at all.

    Args:
        target: where to write.
        data: what to write.
        is_private: whether the owner alone may read a file, whatever the umask says.

    Raises:
        StorageFullError, UnwritableOutputError: what stood there before still stands there.
        BrokenPipeError: the reader of a pipe has gone.
    """
    with writing(target, is_private=is_private) as file:
        file.write(data)


@contextmanager
def writing(target: Path | BinaryIO, *, is_private: bool = False) -> Iterator[BinaryIO]:
    """Open a place to write to: a file appears whole when the block ends well, or not at all.

    Raises:
        StorageFullError, UnwritableOutputError, BrokenPipeError: as `write_whole`.
    """
    destination = open_destination(target, is_private=is_private)
    try:
        with storing_at(target):
            yield destination.file
            destination.commit()
    finally:  # after a commit there is nothing left to take back
        destination.discard()


def _mode_of(status: os.stat_result) -> int:
    return status.st_mode & 0o777


def _mode_of_new_files(folder: Path) -> int:
    """Return the permissions that a new file gets in a folder.

    An empty file is made to see them: the umask can only be read by changing it, for all threads of the program.
    """
    probe = folder / f".{uuid4().hex}.part"
    handle = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return _mode_of(os.fstat(handle))
    finally:
        os.close(handle)
        probe.unlink()


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
