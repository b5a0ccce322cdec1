"""Blobs as files below one folder of this disk, for their owner alone.

obstore's folders are not used: they can be read by others, are not written through to the disk, hide their unfinished
files from a listing, and cost 460 us for a read that takes 11 here. Changes run in threads, since they wait for the
disk; small reads don't leave the event loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from errno import EEXIST, ENOTEMPTY
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Final
from uuid import uuid4
from weakref import WeakValueDictionary

from afterwords import disk
from afterwords.errors import FileError, StorageFullError, StorageUnavailableError
from afterwords.server.blobs.paths import INLINE_MAX_BYTES, check_path, check_prefix, is_path, is_what_it_was
from afterwords.server.ports import BlobReader, BlobSource
from afterwords.server.records import BlobInfo
from afterwords.server.spool import MemoryReader
from afterwords.server.threads import in_thread

_BATCH: Final = 500
_PIECE_BYTES: Final = 64 * 1024
_DIGESTS_MAX: Final = 1024
_DIGEST_PIECE_BYTES: Final = 1 << 20
_DIGEST_STEP_BYTES: Final = 4 << 20
_TRIES: Final = 20
"""How often a write makes its folder again that a deletion, which found it empty, has just removed."""

_NO_FILE: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def open_folder(root: Path) -> Folder:
    """Use a folder, which is made if it is not there.

    Raises:
        StorageFullError, StorageUnavailableError: it can't be made.
    """
    with _named():
        disk.make_folder(root)
    return Folder(root)


class Folder:
    """The port `Blobs` on a folder. One that vanishes is a fault of the storage, not an empty one: it is not remade."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._base = str(root)
        self._making = threading.Lock()
        self._digests = _Digests()
        self._digesting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def put(self, path: str, data: bytes | BlobSource, *, is_durable: bool = True) -> None:
        """Write a file aside and rename it into place."""
        await asyncio.to_thread(self._put, check_path(path), data, is_durable)

    async def get(self, path: str, *, sha256: str | None = None) -> bytes | None:
        """Read a file: here if it is small, in a thread if it is large."""
        file = f"{self._base}/{check_path(path)}"
        try:
            if os.stat(file).st_size > INLINE_MAX_BYTES:  # noqa: PTH116 - a Path costs as much as the read
                return await asyncio.to_thread(_read, file, sha256)
            return _read(file, sha256)
        except _NO_FILE:
            self._check_root()
            return None
        except OSError as error:
            raise _refusal(error) from error

    async def open(self, path: str, *, sha256: str) -> BlobReader | None:
        """Open a file; what it holds is compared with the digest first, a piece at a time in a thread."""
        file = f"{self._base}/{check_path(path)}"
        try:
            if os.stat(file).st_size <= INLINE_MAX_BYTES:  # noqa: PTH116 - likewise
                data = _read(file, sha256)
                return None if data is None else MemoryReader(data)
            reader = _FileReader(file)
        except _NO_FILE:
            self._check_root()
            return None
        except OSError as error:
            raise _refusal(error) from error
        is_whole = False
        try:
            async with self._digesting.setdefault(file, asyncio.Lock()):
                is_whole = await self._digests.has(file, reader, sha256)
        finally:
            if not is_whole:
                reader.close()
        return reader if is_whole else None

    async def exists(self, path: str) -> bool:
        """Ask whether the file is there."""
        if os.path.isfile(f"{self._base}/{check_path(path)}"):  # noqa: PTH113 - likewise
            return True
        self._check_root()
        return False

    async def delete(self, *paths: str) -> None:
        """Remove files, and the folders that they leave empty."""
        await asyncio.to_thread(self._delete, [check_path(path) for path in paths])

    async def delete_all(self, prefix: str) -> None:
        """Remove a folder. A link in it is removed, and where it leads is left alone."""
        await asyncio.to_thread(self._delete_all, check_prefix(prefix))

    async def listing(self, prefix: str = "") -> AsyncIterator[list[BlobInfo]]:
        """Walk a folder; the names of unfinished files end in `.part`."""
        files = self._walk(f"{self._base}/{check_prefix(prefix)}" if prefix else self._base)
        self._check_root()
        with _named():
            while batch := await asyncio.to_thread(lambda: list(islice(files, _BATCH))):
                yield batch

    async def check(self) -> None:
        """Write a small file through to the disk, and remove it."""
        probe = f"probe-{uuid4()}"
        await self.put(probe, b"probe")
        await self.delete(probe)

    # -- in a thread -----------------------------------------------------------------------------------------

    def _put(self, path: str, data: bytes | BlobSource, is_durable: bool) -> None:
        target = self._root / path
        part = target.with_name(f"{target.name}.{uuid4().hex}.part")
        for tries_left in reversed(range(_TRIES)):
            try:
                with _named():
                    self._check_inside(target.parent)
                    self._make_folder(target.parent)
                    disk.write(target, [data] if isinstance(data, bytes) else data, part=part, is_durable=is_durable)
            except StorageUnavailableError as error:
                if not tries_left or not isinstance(error.__cause__, FileNotFoundError) or not self._root.is_dir():
                    raise
            else:
                return

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        with self._making:  # else another thread could trust a folder whose name is not on the disk yet
            for new in [*reversed(folder.relative_to(self._root).parents), folder.relative_to(self._root)]:
                path = self._root / new
                if path != self._root and not path.is_dir():
                    path.mkdir(mode=0o700, exist_ok=True)
                    disk.sync_folder(path.parent)

    def _delete(self, paths: list[str]) -> None:
        with _named():
            self._check_root()
            for path in paths:
                target = self._root / path
                self._check_inside(target.parent)
                with suppress(*_NO_FILE):
                    target.unlink()
                self._prune(target.parent)

    def _delete_all(self, prefix: str) -> None:
        top = self._root / prefix
        with _named():
            self._check_root()
            self._check_inside(top.parent)
            if top.is_symlink():
                top.unlink(missing_ok=True)
            for folder, folders, files in os.walk(top, topdown=False, onerror=_raise_unless_gone):
                for name in files:
                    Path(folder, name).unlink(missing_ok=True)
                for name in folders:
                    _remove_folder(Path(folder, name))
            self._prune(top)

    def _prune(self, folder: Path) -> None:
        """Remove a folder and those above it as long as they are empty; the root stays."""
        while folder != self._root and _remove_folder(folder):
            folder = folder.parent

    def _walk(self, folder: str) -> Iterator[BlobInfo]:
        """What lies below a folder, entry by entry, for there may be millions; what vanishes meanwhile, is a link to a
        folder, or is no blob by its name, is left out."""
        with suppress(*_NO_FILE), os.scandir(folder) as entries:
            for entry in entries:
                if not is_path(entry.name):
                    continue
                if entry.is_dir():
                    yield from () if entry.is_symlink() else self._walk(entry.path)
                elif stat := _stat(entry):
                    path = Path(entry.path).relative_to(self._root).as_posix()
                    yield BlobInfo(path, stat.st_size, disk.modified_at(stat))

    def _check_inside(self, folder: Path) -> None:
        if not folder.resolve().is_relative_to(self._root.resolve()):
            raise ValueError("a link in the storage leads out of it")

    def _check_root(self) -> None:
        if not self._root.is_dir():
            raise StorageUnavailableError


class _FileReader:
    """The port `BlobReader` on a file, which stays readable when it is removed meanwhile."""

    chunk_bytes = _PIECE_BYTES

    def __init__(self, file: str) -> None:
        self._file = open(file, "rb", buffering=0)  # noqa: PTH123, SIM115 - a Path costs; `close` closes it
        stat = os.fstat(self._file.fileno())
        self.size_bytes = stat.st_size
        self.version = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    async def read(self, start: int, n_bytes: int) -> bytes:
        """Read a piece here: the digest has just brought it into the system's cache."""
        try:
            return self._read(start, n_bytes)
        except OSError as error:
            raise _refusal(error) from error

    def close(self) -> None:
        self._file.close()

    async def sha256(self) -> str:
        """Return the SHA-256 of the whole file, in hex."""
        digest = sha256()

        def step(start: int) -> None:
            for place in range(start, min(start + _DIGEST_STEP_BYTES, self.size_bytes), _DIGEST_PIECE_BYTES):
                digest.update(self._read(place, _DIGEST_PIECE_BYTES))

        for start in range(0, self.size_bytes, _DIGEST_STEP_BYTES):
            try:
                await in_thread(step, start)
            except OSError as error:
                raise _refusal(error) from error
        return digest.hexdigest()

    def _read(self, start: int, n_bytes: int) -> bytes:
        self._file.seek(start)
        return self._file.read(n_bytes) or b""


class _Digests:
    """The digests of large files that were read lately: a file that did not change since is not read again for it."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[tuple[int, ...], str]] = OrderedDict()

    async def has(self, file: str, reader: _FileReader, digest: str) -> bool:
        known = self._known.get(file)
        if known is None or known[0] != reader.version:
            known = self._known[file] = reader.version, await reader.sha256()
        self._known.move_to_end(file)
        if len(self._known) > _DIGESTS_MAX:
            self._known.popitem(last=False)
        return known[1] == digest


def _read(file: str, digest: str | None) -> bytes | None:
    with disk.open_plain(file, buffering=0) as opened:
        data = opened.read()
    return data if is_what_it_was(data, digest) else None


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Of a file, or of a link itself; None if it is gone."""
    with suppress(FileNotFoundError):
        return entry.stat(follow_symlinks=False)
    return None


def _remove_folder(folder: Path) -> bool:
    """Remove an empty folder, or a link to any; False if it is not empty."""
    try:
        if folder.is_symlink():
            folder.unlink()
        else:
            folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (ENOTEMPTY, EEXIST):
            raise
        return False
    return True


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, _NO_FILE):
        raise error


@contextmanager
def _named() -> Iterator[None]:
    """Give what the system refused its name in the API, which shows nobody a path of this machine."""
    try:
        yield
    except (StorageFullError, FileError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        raise _refusal(cause) from cause


def _refusal(cause: BaseException | None) -> StorageFullError | StorageUnavailableError:
    storage = "the storage"
    is_full = isinstance(cause, OSError) and isinstance(disk.refusal(cause, storage, why=""), StorageFullError)
    return StorageFullError.for_path(storage) if is_full else StorageUnavailableError()
