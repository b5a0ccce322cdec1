"""Blobs in an S3 bucket (Amazon, Cloudflare R2, MinIO) or in memory, through obstore.

Its blocking calls run in threads of this module. Its asynchronous calls complete in Rust threads that enter the
interpreter, which aborts a process that is about to exit. Long audio is written with httpx, to a signed URL: obstore
would hold it in memory, or write parts, which a killed server leaves in the bucket, unlisted.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Final, TypeVar
from uuid import uuid4

import httpx
import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import MemoryStore, S3Store

from afterwords.errors import ServerSetupError, StorageFullError, StorageUnavailableError
from afterwords.server.blobs.paths import INLINE_MAX_BYTES, check_path, check_prefix, has_digest, is_path
from afterwords.server.ports import BlobReader, BlobSource
from afterwords.server.records import BlobInfo
from afterwords.server.spool import MemoryReader

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta
    from obstore.store import ClientConfig, ObjectStore, RetryConfig, S3Config

_THREADS: Final = 32  # concurrent calls, which wait for the network
_BATCH: Final = 500
IN_MEMORY_MAX_BYTES: Final = 16 << 20
_CHUNK_BYTES: Final = 256 * 1024

_READ_TIMEOUT: Final = "3s"
_READ_TIMEOUT_LARGE: Final = "15s"
"""The read timeout includes the time to send: this is enough for the longest audio at 1 MB/s."""

_UPLOAD_TIMEOUT: Final = httpx.Timeout(15, connect=2, read=60)
_UPLOAD_VALID: Final = timedelta(minutes=15)
_DOWNLOAD_VALID: Final = timedelta(minutes=5)
"""How long a download may start; it may take longer."""

_AUDIO_ATTRIBUTES: Final = {"Content-Type": "audio/wav", "Cache-Control": "private, no-store"}
"""Headers with which the storage answers a signed URL."""

_RETRY: Final[RetryConfig] = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=2.5),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(milliseconds=500), "base": 2},
}
_NO_BUCKET: Final = "NoSuchBucket"
_METADATA_SERVICE: Final = "169.254.169.254"
_CODE: Final = re.compile(r"(?:<Code>|\(code: )([A-Za-z0-9]{1,60})")
_KEY: Final = "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
_REGION: Final = "correct the region or endpoint in AFTERWORDS_STORAGE_URL."
_FIXES: Final = {
    _NO_BUCKET: "create the bucket, or correct its name in AFTERWORDS_STORAGE_URL.",
    "AccessDenied": "allow the key to list, read, write and delete the objects of this bucket.",
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "Unauthorized", "InvalidToken", "ExpiredToken"), _KEY
    ),
    **dict.fromkeys(("AuthorizationHeaderMalformed", "PermanentRedirect", "InvalidRegionName"), _REGION),
    "RequestTimeTooSkewed": "set the clock of this machine.",
}
"""How to fix what an S3 storage refuses, by its error code."""
_FULL: Final = re.compile("507 Insufficient Storage|StorageFull|QuotaExceeded")

T = TypeVar("T")


def open_memory() -> Bucket:
    """Open storage in memory. It is lost with the object."""
    store = MemoryStore()
    return Bucket("memory", store, store)


def open_bucket(bucket: str, *, prefix: str = "", endpoint: str | None = None, region: str | None = None) -> Bucket:
    """Open a bucket without contacting it.

    Raises:
        ValueError: The settings are invalid.
    """
    if endpoint is not None and not endpoint.startswith(("https://", "http://")):
        raise ValueError("an endpoint begins with https://")
    config: S3Config = {}
    if endpoint:
        config["endpoint"] = endpoint
    if region:
        config["region"] = region

    def store(read_timeout: str) -> S3Store:
        client: ClientConfig = {
            "allow_http": endpoint is not None and endpoint.startswith("http://"),
            "connect_timeout": "2s",
            "read_timeout": read_timeout,
            "timeout": "60s",
        }
        return S3Store(bucket, prefix=prefix or None, config=config, client_options=client, retry_config=_RETRY)

    try:
        return Bucket(bucket, store(_READ_TIMEOUT), store(_READ_TIMEOUT_LARGE))
    except BaseError as error:
        raise ValueError(str(error)) from error


class Bucket:
    """The port `Blobs` on an object store. All writes are atomic and durable, and there are no folders."""

    def __init__(self, name: str, store: ObjectStore, large_store: ObjectStore) -> None:
        self._name = name
        self._store = store
        self._large_store = large_store  # the same store with a longer timeout, for large objects
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="storage")

    async def put(self, path: str, data: bytes | BlobSource, *, is_durable: bool = True) -> None:  # noqa: ARG002 - always durable
        """Write an object in one request."""
        await self.call(partial(self._put, check_path(path), data))

    async def get(self, path: str, *, sha256: str | None = None) -> bytes | None:
        """Read an object."""
        return await self.call(partial(self._get, check_path(path), sha256))

    async def open(self, path: str, *, sha256: str) -> BlobReader | None:
        """Open an object. It is read once for its digest, and a large one again in chunks with the same ETag."""
        return await self.call(partial(self._open, check_path(path), sha256))

    async def exists(self, path: str) -> bool:
        """Request the head of an object."""
        check_path(path)

        def head() -> bool:
            try:
                obstore.head(self._store, path)
            except (NotFoundError, FileNotFoundError):  # the answer to HEAD doesn't show whether the bucket exists
                return self._get(path, None) is not None
            return True

        return await self.call(head)

    async def signed_url(self, path: str) -> str | None:
        """Sign a GET request, after requesting the head."""
        if not isinstance(self._store, S3Store) or not await self.exists(path):
            return None
        return await self.call(partial(obstore.sign, self._store, "GET", path, _DOWNLOAD_VALID))

    async def delete(self, *paths: str) -> None:
        """Remove objects."""
        await self.call(partial(obstore.delete, self._store, [check_path(path) for path in paths]))

    async def delete_all(self, prefix: str) -> None:
        """Remove all objects with a prefix."""
        async for batch in self.listing(check_prefix(prefix)):
            await self.delete(*(blob.path for blob in batch))

    async def listing(self, prefix: str = "") -> AsyncIterator[list[BlobInfo]]:
        """List the objects whose names are valid paths."""
        below = check_prefix(prefix) if prefix else None
        found = iter(obstore.list(self._store, below, chunk_size=_BATCH))
        while (batch := await self.call(lambda: next(found, None))) is not None:
            if blobs := [BlobInfo(o["path"], o["size"], o["last_modified"]) for o in batch if is_path(o["path"])]:
                yield blobs

    async def check(self) -> None:
        """Write a small object and remove it; before, read it, which needs the permission to list if it is missing."""
        probe = f"probe-{uuid4()}"
        try:
            doing = "listed and read"
            await self.get(probe)
            doing = "written"
            await self.put(probe, b"probe")
            doing = "deleted from"
            await self.delete(probe)
        except StorageUnavailableError as error:
            why = str(error.__cause__)
            if code := _CODE.search(why):
                fix = _FIXES.get(code[1], "correct AFTERWORDS_STORAGE_URL or the bucket.")
                message = f"The bucket {self._name} can't be {doing}: the storage answers {code[1]}."
                raise ServerSetupError(message, code="storage_refused", hint=fix) from error
            if _METADATA_SERVICE in why:  # the last place where credentials are looked for
                message = f"There are no credentials for the bucket {self._name}."
                fix = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
                raise ServerSetupError(message, code="storage_refused", hint=fix) from error
            raise

    # -- in threads ------------------------------------------------------------------------------------------

    def _put(self, path: str, data: bytes | BlobSource) -> None:
        size_bytes = len(data) if isinstance(data, bytes) else data.size_bytes
        attributes = _AUDIO_ATTRIBUTES if path.endswith(".wav") else {}
        if isinstance(data, bytes) or size_bytes <= IN_MEMORY_MAX_BYTES or not isinstance(self._store, S3Store):
            store = self._large_store if size_bytes > INLINE_MAX_BYTES else self._store
            whole = data if isinstance(data, bytes) else b"".join(data)
            obstore.put(store, path, whole, use_multipart=False, attributes=attributes)
            return
        url = obstore.sign(self._store, "PUT", path, _UPLOAD_VALID)
        headers = {"Content-Length": str(size_bytes), **attributes}
        response = httpx.put(url, content=iter(data), headers=headers, timeout=_UPLOAD_TIMEOUT)
        if not response.is_success:
            raise OSError(f"{response.status_code} {response.reason_phrase}: {response.text[:1000]}")

    def _get(self, path: str, digest: str | None) -> bytes | None:
        if (found := self._found(path)) is None:
            return None
        data = found.bytes().to_bytes()
        return data if has_digest(data, digest) else None

    def _open(self, path: str, digest: str) -> BlobReader | None:
        found = self._found(path)
        if found is None:
            return None
        if found.meta["size"] <= INLINE_MAX_BYTES:
            data = found.bytes().to_bytes()
            return MemoryReader(data) if has_digest(data, digest) else None
        hashed = sha256()
        for chunk in found.stream(min_chunk_size=_CHUNK_BYTES):
            hashed.update(memoryview(chunk))
        return _ObjectReader(self, path, found.meta) if hashed.hexdigest() == digest else None

    def read(self, path: str, start: int, n_bytes: int, e_tag: str | None) -> bytes:
        """Read a part of an object that still has this ETag. This call blocks."""
        options: GetOptions = {"range": (start, start + n_bytes)}
        if e_tag is not None:
            options["if_match"] = e_tag
        return obstore.get(self._store, path, options=options).bytes().to_bytes()

    def _found(self, path: str) -> GetResult | None:
        try:
            return obstore.get(self._store, path)
        except (NotFoundError, FileNotFoundError) as error:
            if _NO_BUCKET in str(error):
                raise
            return None

    async def call(self, function: Callable[[], T]) -> T:
        """Run a blocking call in a thread of this storage, and translate its errors.

        The message of the store, which contains its address, remains in the cause.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, function)
        except (BaseError, OSError, httpx.HTTPError) as error:
            raise (
                StorageFullError.for_path("the storage") if _FULL.search(str(error)) else StorageUnavailableError()
            ) from error


class _ObjectReader:
    """The port `BlobReader` on a large object."""

    chunk_bytes = _CHUNK_BYTES

    def __init__(self, bucket: Bucket, path: str, meta: ObjectMeta) -> None:
        self._bucket = bucket
        self._path = path
        self._e_tag = meta["e_tag"]
        self.size_bytes = meta["size"]

    async def read(self, start: int, n_bytes: int) -> bytes:
        n_bytes = min(n_bytes, self.size_bytes - start)
        if n_bytes <= 0:
            return b""
        return await self._bucket.call(partial(self._bucket.read, self._path, start, n_bytes, self._e_tag))

    def close(self) -> None:
        """Do nothing: no connection is open."""
