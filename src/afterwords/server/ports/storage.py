"""The storage of audio and recordings. Adapters live in `blobs/`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from afterwords.server.records import (
    BlobInfo,
)


class BlobSource(Protocol):
    """Content that is written in chunks. It may be iterated several times."""

    @property
    def size_bytes(self) -> int: ...

    def __iter__(self) -> Iterator[bytes]: ...


class BlobReader(Protocol):
    """An open blob, read in chunks.

    Attributes:
        size_bytes: Size of the whole blob.
        chunk_bytes: Preferred size of one read.
    """

    @property
    def size_bytes(self) -> int: ...

    @property
    def chunk_bytes(self) -> int: ...

    async def read(self, start: int, n_bytes: int) -> bytes:
        """Read up to `n_bytes` bytes at `start`.

        Raises:
            StorageUnavailableError: The blob was removed or replaced.
        """

    def close(self) -> None: ...


class Blobs(Protocol):
    """Audio bytes by path. Paths consist of `[a-z0-9/.-]` and never leave the root.

    All methods raise StorageUnavailableError if the storage does not answer, and StorageFullError if it is full.
    """

    async def put(self, path: str, data: bytes | BlobSource, *, is_durable: bool = True) -> None:
        """Write a blob completely or not at all. A durable blob survives a power cut after this returns."""

    async def get(self, path: str, *, sha256: str | None = None) -> bytes | None:
        """Read a blob. Return None if it is missing or does not match the digest."""

    async def open(self, path: str, *, sha256: str) -> BlobReader | None:
        """Open a blob to read it in chunks. Return None if it is missing or does not match the digest."""

    async def exists(self, path: str) -> bool:
        """Return whether a blob exists, intact or not."""

    async def signed_url(self, path: str) -> str | None:
        """Return a URL from which anyone can read a blob for a few minutes.

        None: the blob is missing, or the storage is not a bucket.
        """

    async def delete(self, *paths: str) -> None:
        """Remove blobs. Missing ones are ignored."""

    async def delete_all(self, prefix: str) -> None:
        """Remove a folder (`voices/…/`) and everything in it."""

    def listing(self, prefix: str = "") -> AsyncIterator[list[BlobInfo]]:
        """List everything below a folder in batches, unfinished writes included."""

    async def check(self) -> None:
        """Check that the storage can be written.

        Raises:
            ServerSetupError: It refuses, and will until an operator corrects a setting.
        """
