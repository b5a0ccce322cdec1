"""Private files on this disk: for their owner alone, and written whole or not at all.

Apart because every change to a library must survive a crash and a full disk in the same way. Knows nothing of voices;
the library, its folders and its migrations call it.
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
    "see that the folder can be made and written to, or set AFTERWORDS_HOME (for weights AFTERWORDS_MODELS) to another."
)


@contextmanager
def storing(path: Path, *, hint: str | None = None) -> Iterator[None]:
    """Give a failed write its name, and a fix if another than a better place for the file is right.

    Raises:
        StorageFullError: the disk, the quota or the size limit is used up.
        FileError: whatever else the system refused.
    """
    try:
        yield
    except OSError as error:
        raise refusal(error, path, why=error.strerror or str(error), hint=hint) from error


def refusal(error: OSError, path: Path | str, *, why: str, hint: str | None = None) -> StorageFullError | FileError:
    """The name of a failed write: a disk, quota or size limit used up, or `why`."""
    if error.errno in _FULL:
        return StorageFullError.for_path(path)
    return FileError.unwritable(path, why=why) if hint is None else FileError.unwritable(path, why=why, hint=hint)


def make_folder(path: Path) -> None:
    """Make a folder that only its owner may enter (0700); one that is there is left as it is."""
    with storing(path, hint=_HOME_HINT):
        for folder in [*reversed(path.parents), path]:  # `parents=True` would give the mode to the last alone
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)


def write(path: Path, pieces: Iterable[bytes], *, part: Path | None = None, is_durable: bool = True) -> None:
    """Write a file that only its owner may read (0600), beside its place and then into it.

    Args:
        path: where it shall stand.
        pieces: what it holds, in order.
        part: where it grows; a name of its own lets several write the same file at once.
        is_durable: whether it survives a power cut once this returns.

    Raises:
        StorageFullError, FileError: what stood there before still stands there.
    """
    part = part or path.with_name(f"{path.name}.part")
    with storing(path, hint=_HOME_HINT):
        try:
            part.unlink(missing_ok=True)
            # The mode is given at creation: between open and a later chmod, others could read.
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
def locked(
    path: Path, *, timeout_s: float, busy: AfterwordsError, waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold a lock that one process has at a time; its file stays, for its owner alone.

    Args:
        path: the file, in a folder that is there.
        timeout_s: how long another process is waited for.
        busy: raised if it does not let go by then, unless there is `waiting`.
        waiting: called then, and from there on waited without end.

    Raises:
        StorageFullError, FileError: there can't be such a file.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=timeout_s, mode=0o600)
    with storing(path.parent, hint=_HOME_HINT):
        try:
            lock.acquire()
        except Timeout as error:
            if waiting is None:
                raise busy from error
            waiting()
            lock.acquire(timeout=-1)
    try:
        yield
    finally:
        lock.release()


def open_plain(path: Path | str, *, buffering: int = -1) -> BinaryIO:
    """Open a plain file for reading.

    Raises:
        OSError: it can't be read, or is something else: a FIFO would block without end, a device has no end.
    """

    def opener(name: str, flags: int) -> int:
        descriptor = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))  # else it would wait for a FIFO's writer
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # open refuses a folder by itself
            os.close(descriptor)
            raise OSError(errno.EINVAL, "it is not a file", name)
        return descriptor

    return open(path, "rb", buffering=buffering, opener=opener)


def read(path: Path) -> bytes:
    """Read a plain file; raises OSError as `open_plain`."""
    with open_plain(path) as file:
        return file.read()


def modified_at(status: os.stat_result) -> datetime:
    """When a file was changed, UTC; a time that is no date (a disk can hold any) is the nearest one."""
    return datetime.fromtimestamp(min(max(status.st_mtime, 0), _LATEST_S), UTC)


def read_pieces(path: Path) -> Iterator[bytes]:
    """Read a file block by block.

    Raises:
        FileError: it is no file, or can't be read.
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
    """Read an open file from where it stands; one that was just written, and stands at its end, from its beginning.

    Args:
        file: open for reading bytes.
        max_bytes: how much to read at most; -1 reads all.
        name: what to call it in a message.

    Raises:
        FileError: it is open as text, or not for reading, or reading fails.
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
        raise FileError.unreadable(name, why="it is open as text and not as bytes", hint=hint)
    return content


def read_json(path: Path) -> Any:
    """Read a file of ours as JSON; whoever asks tells what it means if it is absent or damaged.

    Raises:
        FileNotFoundError: there is none.
        FileError: it can't be read.
        ValueError: it is no JSON.
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
    """Copy a folder with all that is in it, for its owner alone. Links to folders stay links."""
    make_folder(target)
    for entry in sorted(source.iterdir()):
        copy = target / entry.name
        if entry.is_file():
            write(copy, read_pieces(entry))
        elif entry.is_symlink():
            with storing(copy):
                copy.symlink_to(entry.readlink())
        elif entry.is_dir():
            copy_folder(entry, copy)


def move(source: Path, target: Path) -> None:
    """Rename within one disk, for good."""
    with storing(target):
        source.rename(target)
        sync_folder(target.parent)
        if source.parent != target.parent:
            sync_folder(source.parent)


def discard(path: Path) -> None:
    """Remove a folder: gone from its place at once, from the disk right after."""
    trash = path.with_name(f".trash-{uuid4()}")
    move(path, trash)
    with storing(trash):
        shutil.rmtree(trash)


def sync_folder(path: Path) -> None:
    """Make a rename in this folder survive a power cut; Windows offers no such call and journals instead."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a network disk that can't, for example SMB
            raise
    finally:
        os.close(descriptor)
