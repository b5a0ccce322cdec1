"""Bytes that are on their way in or out: an upload while it is received, speech while it is made."""

from __future__ import annotations

from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from afterwords import disk
from afterwords.errors import StorageFullError, StorageUnavailableError

MEMORY_MAX_BYTES: Final = 256 * 1024
"""Up to this size it stays in memory."""

if TYPE_CHECKING:
    _File = SpooledTemporaryFile[bytes]
else:
    _File = SpooledTemporaryFile


def open_spool(folder: Path | None) -> BinaryIO:
    """Open a file that is in memory while it is small, then without a name in a folder; closing it removes it.

    Args:
        folder: None stands for the system's folder for temporary files.

    Raises:
        StorageFullError, StorageUnavailableError: on writing, where the folder's disk is full or away.
    """
    return cast("BinaryIO", _Spool(max_size=MEMORY_MAX_BYTES, dir=None if folder is None else str(folder)))


class _Spool(_File):
    """Names the errors of writing."""

    def write(self, data: Any) -> int:
        try:
            n_bytes = super().write(data)
            if n_bytes and getattr(self, "_rolled", False):
                self.flush()  # so that a full disk is found out now
        except OSError as error:
            is_full = isinstance(disk.refusal(error, "the server", why=""), StorageFullError)
            raise StorageFullError("the server") if is_full else StorageUnavailableError() from error
        return n_bytes


class MemoryReader:
    """The port `BlobReader` on bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size_bytes = self.piece_bytes = len(data)

    async def read(self, start: int, n_bytes: int) -> bytes:
        """Return a part of them."""
        return self.data[start : start + n_bytes]

    def close(self) -> None:
        """Do nothing: nothing is held open."""
