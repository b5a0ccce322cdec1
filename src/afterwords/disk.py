"""Private files on this disk: readable only by their owner, and written completely or not at all.

Every change to a library, a weights folder or a server's files goes through here, to survive crashes and full disks.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from afterwords.errors import AfterwordsError, FileError, StorageFullError

BLOCK_BYTES = 1 << 20
_LATEST_S = 253_402_300_799  # 9999-12-31T23:59:59Z, after which Python has no dates
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


_HOME_HINT = (
    "check that the folder can be created and written to, or set AFTERWORDS_HOME (for weights AFTERWORDS_MODELS) to "
    "another folder."
)


@contextmanager
def translate_errors(path: Path, *, hint: str | None = None) -> Iterator[None]:
    """Translate errors of the operating system in writing to a path.

    Args:
        path: Path for the message.
        hint: Fix for errors other than a full disk; None suggests another path.

    Raises:
        StorageFullError: The disk, the quota or the file size limit is full.
        FileError: The write failed for another reason.
    """
    try:
        yield
    except OSError as error:
        raise write_error(error, path, why=error.strerror or str(error), hint=hint) from error


def write_error(error: OSError, path: Path | str, *, why: str, hint: str | None = None) -> StorageFullError | FileError:
    """Return the error for a failed write: StorageFullError for a full disk, else FileError with `why`."""
    if error.errno in _FULL:
        return StorageFullError.for_path(path)
    return FileError.unwritable(path, why, hint=hint or "")


def make_folder(path: Path) -> None:
    """Create a folder and its parents with mode 0700; an existing one is left as it is."""
    with translate_errors(path, hint=_HOME_HINT):
        for folder in [*reversed(path.parents), path]:  # `mkdir(parents=True)` sets the mode only of the last one
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)


def write(path: Path, pieces: Iterable[bytes], *, part: Path | None = None, is_durable: bool = True) -> None:
    """Write a file with mode 0600: to a temporary file next to it, which then replaces it.

    Args:
        path: File to create or replace.
        pieces: Content, in order.
        part: Temporary file; a unique name lets several processes write the same file at once.
        is_durable: Sync to disk, so that the file survives a power cut once this returns.

    Raises:
        StorageFullError, FileError: The write failed; an existing file is unchanged.
    """
    part = part or path.with_name(f"{path.name}.part")
    with translate_errors(path, hint=_HOME_HINT):
        try:
            part.unlink(missing_ok=True)
            # Set the mode on creation: between open and a later chmod, others could read the file.
            with open(part, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                if is_durable:
                    os.fsync(file.fileno())
            part.replace(path)
            if is_durable:
                sync_folder(path.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


@contextmanager
def lock(
    path: Path, *, timeout_s: float, busy: AfterwordsError, waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold a lock that excludes other processes. The lock file remains.

    Args:
        path: The lock file, in an existing folder.
        timeout_s: Seconds to wait for another process.
        busy: Error to raise after that time, unless `waiting` is given.
        waiting: Called after that time; the wait then continues without a limit.

    Raises:
        StorageFullError, FileError: The lock file can't be created.
    """
    from filelock import FileLock, Timeout

    file_lock = FileLock(path, timeout=timeout_s, mode=0o600)
    with translate_errors(path.parent, hint=_HOME_HINT):
        try:
            file_lock.acquire()
        except Timeout as error:
            if waiting is None:
                raise busy from error
            waiting()
            file_lock.acquire(timeout=-1)
    try:
        yield
    finally:
        file_lock.release()


def open_plain(path: Path | str, *, buffering: int = -1) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: The file can't be read, or is not a regular file: a FIFO could block, and a device has no end.
    """

    def opener(name: str, flags: int) -> int:
        descriptor = os.open(
            name, flags | getattr(os, "O_NONBLOCK", 0)
        )  # without it, open waits for the writer of a FIFO
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # open itself rejects a folder
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is not a file", name)
        return descriptor

    return open(path, "rb", buffering=buffering, opener=opener)


def read(path: Path) -> bytes:
    """Read a regular file; raise OSError as `open_plain` does."""
    with open_plain(path) as file:
        return file.read()


def modified_at(status: os.stat_result) -> datetime:
    """Return the modification time of a file in UTC, clamped to what a datetime can represent."""
    return datetime.fromtimestamp(min(max(status.st_mtime, 0), _LATEST_S), UTC)


def read_pieces(path: Path) -> Iterator[bytes]:
    """Read a file block by block.

    Raises:
        FileError: The file is missing, is not a file, or can't be read.
    """
    if not path.is_file():
        raise FileError.unreadable(path, why="it is not a file" if path.exists() else "there is no such file")
    try:
        with open_plain(path) as file:
            while piece := file.read(BLOCK_BYTES):
                yield piece
    except OSError as error:
        raise FileError.unreadable(path, why=error.strerror or str(error)) from error


def read_stream(file: BinaryIO, max_bytes: int = -1, *, name: str = "The file object") -> bytes:
    """Read an open file from its position; if that is the end of a file, as after writing, from the beginning.

    Args:
        file: File that is open for reading bytes.
        max_bytes: Bytes to read at most; -1 reads all.
        name: Name of the file in messages.

    Raises:
        FileError: The file is open as text or not for reading, or reading fails.
    """
    try:
        content = file.read(max_bytes)
        if not content and file.seekable() and file.tell():
            file.seek(0)
            content = file.read(max_bytes)
    except (OSError, ValueError) as error:  # ValueError: it is closed
        raise FileError.unreadable(name, why=str(error).rstrip(".").lower()) from error
    if not isinstance(content, bytes):
        hint = "open it with mode 'rb', or give its path."
        raise FileError.unreadable(name, why="it is open as text, not as bytes", hint=hint)
    return content


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: The file is missing.
        FileError: The file can't be read.
        ValueError: The file is not JSON.
    """
    try:
        return json.loads(read(path))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileError.unreadable(path, why=error.strerror or str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder recursively with private modes; links to folders stay links."""
    make_folder(target)
    for entry in sorted(source.iterdir()):
        copy = target / entry.name
        if entry.is_file():
            write(copy, read_pieces(entry))
        elif entry.is_symlink():
            with translate_errors(copy):
                copy.symlink_to(entry.readlink())
        elif entry.is_dir():
            copy_folder(entry, copy)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder on the same disk, durably."""
    with translate_errors(target):
        source.rename(target)
        sync_folder(target.parent)
        if source.parent != target.parent:
            sync_folder(source.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder: rename it first, so that it disappears at once, then delete its files."""
    trash = path.with_name(f".trash-{uuid4()}")
    move(path, trash)
    with translate_errors(trash):
        shutil.rmtree(trash)


def sync_folder(path: Path) -> None:
    """Make renames in a folder survive a power cut; Windows has no such call and journals instead."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems, such as SMB, can't sync a folder
            raise
    finally:
        os.close(descriptor)
