"""Temporary bytes: an upload while it is received, speech while it is generated, audio while it is sent."""

from __future__ import annotations

import os
from io import SEEK_CUR, SEEK_END, SEEK_SET, BytesIO, RawIOBase
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Final, cast

from afterwords import disk
from afterwords.errors import StorageFullError, StorageUnavailableError

MEMORY_MAX_BYTES: Final = 256 * 1024
"""Content up to this size stays in memory."""


def open_spool(folder: Path | None) -> BinaryIO:
    """Open a temporary file, in memory while it is small, then without a name in a folder.

    Args:
        folder: None uses the system's folder for temporary files.
    """
    return cast("BinaryIO", Spool(folder))


class Spool(RawIOBase):
    """The file of `open_spool`. A write appends all of its data or nothing, and may be retried.

    Raises:
        StorageFullError, StorageUnavailableError: On writing, if the disk is full or unavailable.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory = BytesIO()
        self._file: BinaryIO | None = None
        self._position = 0
        self.size_bytes = 0

    def write(self, data: Any, /) -> int:
        """Append bytes."""
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
            is_full = isinstance(disk.write_error(error, "the server", why=""), StorageFullError)
            raise StorageFullError.for_path("the server") if is_full else StorageUnavailableError() from error
        self.size_bytes += len(data)
        return len(data)

    def read(self, size: int = -1, /) -> bytes:
        """Read from the current position."""
        data = self.read_at(self._position, self.size_bytes - self._position if size < 0 else size)
        self._position += len(data)
        return data

    def read_at(self, position: int, size: int) -> bytes:
        """Read from a position; safe to call from several threads."""
        size = max(0, min(size, self.size_bytes - position))
        if self._file is None:
            return bytes(self._memory.getbuffer()[position : position + size])
        if not hasattr(os, "pread"):  # Windows
            self._file.seek(position)
            return self._file.read(size)
        pieces = []
        while size and (piece := os.pread(self._file.fileno(), size, position)):
            pieces.append(piece)
            position, size = position + len(piece), size - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def replace_head(self, head: bytes) -> None:
        """Overwrite the first bytes."""
        file = self._file or self._memory
        file.seek(0)
        _write_all(file, head)

    def seek(self, offset: int, whence: int = SEEK_SET, /) -> int:
        """Set the position of `read`."""
        self._position = offset + {SEEK_SET: 0, SEEK_CUR: self._position, SEEK_END: self.size_bytes}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Close and remove the file."""
        if self._file is not None:
            self._file.close()
        self._memory.close()
        super().close()


def _write_all(file: BinaryIO, data: Any) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


class MemoryReader:
    """A `BlobReader` of bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size_bytes = self.chunk_bytes = len(data)

    async def read(self, start: int, n_bytes: int) -> bytes:
        """Return a part of the bytes."""
        return self.data[start : start + n_bytes]

    def close(self) -> None:
        """Do nothing."""
