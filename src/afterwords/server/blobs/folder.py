"""Blobs as private files in a folder of this disk.

obstore's folders are not used: other users can read them, writes are not synced, unfinished files are not listed, and a
read takes 460 us instead of 11. Writes run in threads, since they wait for the disk; small reads run on the event loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from errno import EEXIST, ENOTEMPTY
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Final
from uuid import uuid4
from weakref import WeakValueDictionary

from cachetools import LRUCache

from afterwords import disk
from afterwords.errors import FileError, StorageFullError, StorageUnavailableError
from afterwords.server.blobs.paths import INLINE_MAX_BYTES, check_path, check_prefix, has_digest, is_path
from afterwords.server.concurrency import in_thread
from afterwords.server.ports import BlobReader, BlobSource
from afterwords.server.records import BlobInfo
from afterwords.server.spool import MemoryReader

_BATCH: Final = 500
_CHUNK_BYTES: Final = 64 * 1024
_DIGESTS_MAX: Final = 1024
_DIGEST_CHUNK_BYTES: Final = 1 << 20
_DIGEST_STEP_BYTES: Final = 4 << 20
_TRIES: Final = 20
"""How often a write creates its folder again after a deletion has removed the empty folder."""

_NO_FILE: Final = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


def open_folder(root: Path) -> Folder:
    """Open a folder, and create it if it is missing.

    Raises:
        StorageFullError, StorageUnavailableError: It can't be created.
    """
    with _translate_errors():
        disk.make_folder(root)
    return Folder(root)


class Folder:
    """The port `Blobs` on a folder. If the folder vanishes, the storage is unavailable: it is not created again."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._base = str(root)
        self._making = threading.Lock()
        self._digests: LRUCache[str, tuple[tuple[int, ...], str]] = LRUCache(_DIGESTS_MAX)
        """Digests of large files, with the version of the file that they belong to."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def put(self, path: str, data: bytes | BlobSource, *, is_durable: bool = True) -> None:
        """Write a temporary file and rename it."""
        await asyncio.to_thread(self._put, check_path(path), data, is_durable)

    async def get(self, path: str, *, sha256: str | None = None) -> bytes | None:
        """Read a file: on the event loop if it is small, in a thread if it is large."""
        file = f"{self._base}/{check_path(path)}"
        try:
            if os.stat(file).st_size > INLINE_MAX_BYTES:  # noqa: PTH116 - a Path takes as long as the read
                return await asyncio.to_thread(_read, file, sha256)
            return _read(file, sha256)
        except _NO_FILE:
            self._check_root()
            return None
        except OSError as error:
            raise _storage_error(error) from error

    async def open(self, path: str, *, sha256: str) -> BlobReader | None:
        """Open a file after checking its digest, which is remembered until a large file changes."""
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
            raise _storage_error(error) from error
        is_intact = False
        try:
            async with self._locks.setdefault(file, asyncio.Lock()):
                version, digest = self._digests.get(file) or (None, None)
                if version != reader.version:
                    digest = await reader.sha256()
                    self._digests[file] = reader.version, digest
            is_intact = digest == sha256
        finally:
            if not is_intact:
                reader.close()
        return reader if is_intact else None

    async def exists(self, path: str) -> bool:
        """Return whether the file exists."""
        if os.path.isfile(f"{self._base}/{check_path(path)}"):  # noqa: PTH113 - likewise
            return True
        self._check_root()
        return False

    async def signed_url(self, path: str) -> str | None:  # noqa: ARG002 - a folder has no URLs
        """Return None."""
        return None

    async def delete(self, *paths: str) -> None:
        """Remove files and empty folders."""
        await asyncio.to_thread(self._delete, [check_path(path) for path in paths])

    async def delete_all(self, prefix: str) -> None:
        """Remove a folder. Links in it are removed, but not their targets."""
        await asyncio.to_thread(self._delete_all, check_prefix(prefix))

    async def listing(self, prefix: str = "") -> AsyncIterator[list[BlobInfo]]:
        """Walk a folder. The names of unfinished files end in `.part`."""
        files = self._walk(f"{self._base}/{check_prefix(prefix)}" if prefix else self._base)
        self._check_root()
        with _translate_errors():
            while batch := await asyncio.to_thread(lambda: list(islice(files, _BATCH))):
                yield batch

    async def check(self) -> None:
        """Write and sync a small file, and remove it."""
        probe = f"probe-{uuid4()}"
        await self.put(probe, b"probe")
        await self.delete(probe)

    # -- in threads ------------------------------------------------------------------------------------------

    def _put(self, path: str, data: bytes | BlobSource, is_durable: bool) -> None:
        target = self._root / path
        part = target.with_name(f"{target.name}.{uuid4().hex}.part")
        for tries_left in reversed(range(_TRIES)):
            try:
                with _translate_errors():
                    self._check_inside(target.parent)
                    if not target.parent.is_dir():
                        self._make_folder(target.parent)
                    disk.write(target, [data] if isinstance(data, bytes) else data, part=part, is_durable=is_durable)
            except StorageUnavailableError as error:
                if not tries_left or not isinstance(error.__cause__, FileNotFoundError) or not self._root.is_dir():
                    raise
            else:
                return

    def _make_folder(self, folder: Path) -> None:
        with self._making:  # otherwise another thread could use a folder that is not synced yet
            for new in [*reversed(folder.relative_to(self._root).parents), folder.relative_to(self._root)]:
                path = self._root / new
                if path != self._root and not path.is_dir():
                    path.mkdir(mode=0o700, exist_ok=True)
                    disk.sync_folder(path.parent)

    def _delete(self, paths: list[str]) -> None:
        with _translate_errors():
            self._check_root()
            for path in paths:
                target = self._root / path
                self._check_inside(target.parent)
                with suppress(*_NO_FILE):
                    target.unlink()
                self._prune(target.parent)

    def _delete_all(self, prefix: str) -> None:
        top = self._root / prefix

        def raise_unless_missing(error: OSError) -> None:
            if not isinstance(error, _NO_FILE):
                raise error

        with _translate_errors():
            self._check_root()
            self._check_inside(top.parent)
            if top.is_symlink():
                top.unlink(missing_ok=True)
            for folder, folders, files in os.walk(top, topdown=False, onerror=raise_unless_missing):
                for name in files:
                    Path(folder, name).unlink(missing_ok=True)
                for name in folders:
                    _remove_folder(Path(folder, name))
            self._prune(top)

    def _prune(self, folder: Path) -> None:
        """Remove a folder and its parents while they are empty, but not the root."""
        while folder != self._root and _remove_folder(folder):
            folder = folder.parent

    def _walk(self, folder: str) -> Iterator[BlobInfo]:
        """Yield the files below a folder one by one, since there may be millions.

        Files that vanish in the meantime, links to folders, and names that are invalid paths are skipped.
        """
        with suppress(*_NO_FILE), os.scandir(folder) as entries:
            for entry in entries:
                if not is_path(entry.name):
                    continue
                if entry.is_dir():
                    yield from () if entry.is_symlink() else self._walk(entry.path)
                else:
                    with suppress(FileNotFoundError):
                        stat = entry.stat(follow_symlinks=False)
                        path = Path(entry.path).relative_to(self._root).as_posix()
                        yield BlobInfo(path, stat.st_size, disk.modified_at(stat))

    def _check_inside(self, folder: Path) -> None:
        if not folder.resolve().is_relative_to(self._root.resolve()):
            raise ValueError("a link in the storage leads out of it")

    def _check_root(self) -> None:
        if not self._root.is_dir():
            raise StorageUnavailableError


class _FileReader:
    """The port `BlobReader` on a file, which remains readable if it is removed."""

    chunk_bytes = _CHUNK_BYTES

    def __init__(self, file: str) -> None:
        self._file = open(file, "rb", buffering=0)  # noqa: PTH123, SIM115 - a Path is slow; `close` closes it
        stat = os.fstat(self._file.fileno())
        self.size_bytes = stat.st_size
        self.version = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    async def read(self, start: int, n_bytes: int) -> bytes:
        """Read on the event loop: computing the digest has filled the cache of the system."""
        try:
            return self._read(start, n_bytes)
        except OSError as error:
            raise _storage_error(error) from error

    def close(self) -> None:
        self._file.close()

    async def sha256(self) -> str:
        """Return the SHA-256 of the whole file."""
        digest = sha256()

        def step(start: int) -> None:
            for place in range(start, min(start + _DIGEST_STEP_BYTES, self.size_bytes), _DIGEST_CHUNK_BYTES):
                digest.update(self._read(place, _DIGEST_CHUNK_BYTES))

        for start in range(0, self.size_bytes, _DIGEST_STEP_BYTES):
            try:
                await in_thread(step, start)
            except OSError as error:
                raise _storage_error(error) from error
        return digest.hexdigest()

    def _read(self, start: int, n_bytes: int) -> bytes:
        self._file.seek(start)
        return self._file.read(n_bytes) or b""


def _read(file: str, digest: str | None) -> bytes | None:
    with disk.open_plain(file, buffering=0) as opened:
        data = opened.read()
    return data if has_digest(data, digest) else None


def _remove_folder(folder: Path) -> bool:
    """Remove an empty folder, or a link to a folder. Return False if it is not empty."""
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


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Translate errors of the system into errors of the API, which contain no path."""
    try:
        yield
    except (StorageFullError, FileError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        raise _storage_error(cause) from cause


def _storage_error(cause: BaseException | None) -> StorageFullError | StorageUnavailableError:
    storage = "the storage"
    is_full = isinstance(cause, OSError) and isinstance(disk.write_error(cause, storage, why=""), StorageFullError)
    return StorageFullError.for_path(storage) if is_full else StorageUnavailableError()
