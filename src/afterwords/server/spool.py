"""Bytes on their way in or out: an upload while it is received, speech while it is made, audio that is sent."""

from __future__ import annotations

import os
from io import SEEK_CUR, SEEK_END, SEEK_SET, BytesIO, RawIOBase
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Final, cast

from afterwords import disk
from afterwords.errors import StorageFullError, StorageUnavailableError

MEMORY_MAX_BYTES: Final = 256 * 1024
"""Up to this size it stays in memory."""


def open_spool(folder: Path | None) -> BinaryIO:
    """Open a file that is in memory while it is small, then without a name in a folder; closing it removes it.

    Args:
        folder: None stands for the system's folder for temporary files.
    """
    return cast("BinaryIO", Spool(folder))


class Spool(RawIOBase):
    """The file of `open_spool`. What is written is added at its end, whole or not at all.

    Raises:
        StorageFullError, StorageUnavailableError: on writing, where the folder's disk is full or away; it may be tried
            again.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory = BytesIO()
        self._file: BinaryIO | None = None
        self._place = 0
        self.size_bytes = 0

    def write(self, data: Any, /) -> int:
        """Add bytes at the end."""
        try:
            if self._file is None and self.size_bytes + len(data) > MEMORY_MAX_BYTES:
                if self._folder is not None:
                    self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                file = cast("BinaryIO", TemporaryFile(dir=self._folder, buffering=0))  # noqa: SIM115 - closed below
                try:
                    _write_all(file, self._memory.getvalue())
                except BaseException:
                    file.close()
                    raise
                self._memory, self._file = BytesIO(), file
            file = self._file or self._memory
            try:
                file.seek(self.size_bytes)
                _write_all(file, data)
            except BaseException:
                file.truncate(self.size_bytes)
                raise
        except OSError as error:
            is_full = isinstance(disk.refusal(error, "the server", why=""), StorageFullError)
            raise StorageFullError.for_path("the server") if is_full else StorageUnavailableError() from error
        self.size_bytes += len(data)
        return len(data)

    def read(self, size: int = -1, /) -> bytes:
        """Read from where it stands."""
        data = self.read_at(self._place, self.size_bytes - self._place if size < 0 else size)
        self._place += len(data)
        return data

    def read_at(self, place: int, size: int) -> bytes:
        """Read from a place, wherever it stands; other threads may read meanwhile."""
        size = max(0, min(size, self.size_bytes - place))
        if self._file is None:
            return bytes(self._memory.getbuffer()[place : place + size])
        return _read_at(self._file, place, size)

    def replace_head(self, head: bytes) -> None:
        """Write other bytes over the first ones."""
        file = self._file or self._memory
        file.seek(0)
        _write_all(file, head)

    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        """Stand at a place for `read`."""
        self._place = offset + {SEEK_SET: 0, SEEK_CUR: self._place, SEEK_END: self.size_bytes}[whence]
        return self._place

    def tell(self) -> int:
        return self._place

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Remove it."""
        if self._file is not None:
            self._file.close()
        self._memory.close()
        super().close()


def _write_all(file: BinaryIO, data: Any) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _read_at(file: BinaryIO, place: int, size: int) -> bytes:
    if not hasattr(os, "pread"):  # Windows
        file.seek(place)
        return file.read(size)
    pieces = []
    while size and (piece := os.pread(file.fileno(), size, place)):
        pieces.append(piece)
        place, size = place + len(piece), size - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class MemoryReader:
    """The port `BlobReader` on bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size_bytes = self.chunk_bytes = len(data)

    async def read(self, start: int, n_bytes: int) -> bytes:
        """Return a part of them."""
        return self.data[start : start + n_bytes]

    def close(self) -> None:
        """Do nothing: nothing is held open."""
