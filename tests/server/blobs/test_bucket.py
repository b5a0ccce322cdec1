"""Tests of blobs in a bucket, against moto's S3 server and servers that fail."""

from __future__ import annotations

import asyncio
import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import uuid4

import pytest

from afterwords.errors import StorageFullError, StorageUnavailableError
from afterwords.models import new_id
from afterwords.server import load_settings
from afterwords.server.backup import back_up, restore
from afterwords.server.blobs import open_blobs
from afterwords.server.cache_key import reference_path
from afterwords.server.ports import Blobs
from afterwords.server.store import SqlStore
from tests.contracts.blobs_contract import AUDIO, BlobsContract, everything
from tests.contracts.ownership_contract import OwnershipContract
from tests.contracts.store_world import ManualClock, World

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def request(port: int, method: str, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.fixture(scope="module")
def s3() -> Iterator[int]:
    """Return the port of an S3 server."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 30
            while True:
                try:
                    request(port, "GET", "/moto-api/")
                    break
                except OSError:
                    assert server.poll() is None
                    assert time.monotonic() < deadline
            yield port
        finally:
            server.kill()


@pytest.fixture
def bucket(s3: int) -> str:
    """Return the URL of a new bucket."""
    name = f"b-{uuid4()}"
    assert request(s3, "PUT", f"/{name}") == 200
    return f"s3://{name}/pre/fix?endpoint=http://127.0.0.1:{s3}&region=auto"


@pytest.fixture
def blobs(bucket: str) -> Blobs:
    return open_blobs(bucket)


class TestBucket(BlobsContract, OwnershipContract):
    pass


async def test_prefixes_of_a_bucket_are_separate_storages(blobs: Blobs, bucket: str) -> None:
    other = open_blobs(bucket.replace("pre/fix", "pre/fix-2"))
    await other.put("jobs/1.wav", b"x")
    assert await everything(blobs) == {}
    assert await blobs.get("jobs/1.wav") is None


async def assert_raises(blobs: Blobs, error: type[Exception]) -> None:
    for step in (
        blobs.get("jobs/1.wav"),
        blobs.exists("jobs/1.wav"),
        blobs.put("jobs/1.wav", b"x"),
        blobs.delete("jobs/1.wav"),
        blobs.delete_all("jobs/"),
        everything(blobs),
        blobs.check(),
    ):
        with pytest.raises(error) as refused:
            await step
        assert "127.0.0.1" not in str(refused.value)


async def test_missing_bucket_is_unavailable(s3: int) -> None:
    await assert_raises(open_blobs(f"s3://none?endpoint=http://127.0.0.1:{s3}&region=auto"), StorageUnavailableError)


async def test_server_that_is_down_is_unavailable() -> None:
    blobs = open_blobs(f"s3://bucket?endpoint=http://127.0.0.1:{free_port()}&region=auto")
    async with asyncio.timeout(60):
        await assert_raises(blobs, StorageUnavailableError)


async def test_server_that_never_answers_times_out() -> None:
    with socket.create_server(
        ("127.0.0.1", 0)
    ) as listening:  # the system accepts the connection, but nothing reads the request
        blobs = open_blobs(f"s3://bucket?endpoint=http://127.0.0.1:{listening.getsockname()[1]}&region=auto")
        async with asyncio.timeout(60):
            with pytest.raises(StorageUnavailableError):
                await blobs.check()


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Run a server with the same answer to every request. Yield the URL of a bucket on it."""

    class Handler(BaseHTTPRequestHandler):
        def __getattr__(self, name: str) -> object:
            if name.startswith("do_"):
                return lambda: answer(self)
            raise AttributeError(name)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"s3://bucket?endpoint=http://127.0.0.1:{server.server_port}&region=auto"
        finally:
            server.shutdown()
            thread.join()


def status(code: int, body: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        handler.send_response(code)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(b"" if handler.command == "HEAD" else body)

    return answer


@pytest.mark.parametrize("code", [301, 400, 401, 403, 500])
async def test_any_other_status_is_unavailable(code: int) -> None:
    with answering(status(code, b"<Error><Code>Other</Code></Error>")) as url:
        blobs = open_blobs(url)
        for step in (blobs.get("jobs/1.wav"), blobs.put("jobs/1.wav", b"x"), blobs.check()):
            with pytest.raises(StorageUnavailableError):
                await step


@pytest.mark.parametrize(
    ("code", "body"),
    [(507, b""), (403, b"<Error><Code>QuotaExceeded</Code></Error>"), (507, b"<Code>XMinioStorageFull")],
)
async def test_full_server_raises_storage_full(code: int, body: bytes) -> None:
    with answering(status(code, body)) as url, pytest.raises(StorageFullError, match="holds the storage"):
        await open_blobs(url).put("jobs/1.wav", b"x")


async def test_interrupted_download_is_unavailable() -> None:
    def cut(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in (
            ("Content-Length", "100"),
            ("ETag", '"1"'),
            ("Last-Modified", "Sun, 22 Nov 2026 12:00:00 GMT"),
        ):
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(b"x" * 50)
        handler.close_connection = True

    with answering(cut) as url, pytest.raises(StorageUnavailableError):
        await open_blobs(url).get("jobs/1.wav")


def test_process_that_used_a_bucket_exits_cleanly() -> None:
    code = (
        "import asyncio, sys\n"
        "from afterwords.errors import StorageUnavailableError\n"
        "from afterwords.server.blobs import open_blobs\n"
        "try: asyncio.run(open_blobs(sys.argv[1]).get('jobs/1.wav'))\n"
        "except StorageUnavailableError: print('raised')\n"
    )
    url = f"s3://bucket?endpoint=http://127.0.0.1:{free_port()}&region=auto"
    command = [sys.executable, "-W", "error", "-c", code, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "raised\n"), done.stderr


async def test_backup_of_a_bucket_is_restored_into_a_folder(bucket: str, blobs: Blobs, tmp_path: Path) -> None:
    here = load_settings(home=tmp_path / "here", storage_url=bucket)
    store = SqlStore(f"sqlite:///{here.folder / 'afterwords.db'}", clock=ManualClock(), folder=here.folder)
    await store.open()
    voice = await World(store, ManualClock()).add_voice(ref_sha256=sha256(AUDIO).hexdigest())
    await blobs.put(voice.ref_audio_key, AUDIO)
    await blobs.put(reference_path(new_id()), b"stray")
    there = load_settings(home=tmp_path / "there", storage_url=str(tmp_path / "audio"))

    made = await back_up(here, tmp_path / "server.tar")
    restored = await restore(there, tmp_path / "server.tar")
    await store.close()

    assert (made.n_voices, made.n_files, made.lost) == (1, 1, ())
    assert (restored.n_voices, restored.n_files) == (1, 1)
    assert await open_blobs(str(tmp_path / "audio")).get(voice.ref_audio_key) == AUDIO
