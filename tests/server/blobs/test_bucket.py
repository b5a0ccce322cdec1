"""Tests of blobs in a bucket, against moto's S3 server and servers that fail."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from afterwords.errors import ServerSetupError, StorageFullError, StorageUnavailableError
from afterwords.models import new_id
from afterwords.server import load_settings
from afterwords.server.backup import back_up, restore
from afterwords.server.blobs import open_blobs
from afterwords.server.cache_key import reference_path
from afterwords.server.ports import Blobs
from afterwords.server.store import SqlStore
from tests.contracts.blobs_contract import AUDIO, BlobsContract, Chunks, everything
from tests.contracts.ownership_contract import OwnershipContract
from tests.contracts.store_world import ManualClock, World
from tests.s3 import S3, free_port, running_s3

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as server:
        yield server


@pytest.fixture
def bucket(s3: S3) -> str:
    """Return the URL of a new bucket."""
    return s3.new_bucket()


@pytest.fixture
def blobs(bucket: str) -> Blobs:
    return open_blobs(bucket)


class TestBucket(BlobsContract, OwnershipContract):
    signs_urls = True


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
    ):
        with pytest.raises(error) as refused:
            await step
        assert "127.0.0.1" not in str(refused.value)


async def test_missing_bucket_is_unavailable(s3: S3) -> None:
    await assert_raises(open_blobs(s3.storage_url("none")), StorageUnavailableError)


async def test_server_that_is_down_is_unavailable() -> None:
    blobs = open_blobs(f"s3://bucket?endpoint=http://127.0.0.1:{free_port()}&region=auto")
    async with asyncio.timeout(60):
        await assert_raises(blobs, StorageUnavailableError)
        with pytest.raises(StorageUnavailableError):
            await blobs.check()


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
        for step in (blobs.get("jobs/1.wav"), blobs.put("jobs/1.wav", b"x"), blobs.put("jobs/1.wav", Chunks(9))):
            with pytest.raises(StorageUnavailableError):
                await step


@pytest.mark.parametrize(
    ("code", "body"),
    [(507, b""), (403, b"<Error><Code>QuotaExceeded</Code></Error>"), (507, b"<Code>XMinioStorageFull")],
)
async def test_full_server_raises_storage_full(code: int, body: bytes) -> None:
    for audio in (b"x", Chunks(9)):
        with answering(status(code, body)) as url, pytest.raises(StorageFullError, match="holds the storage"):
            await open_blobs(url).put("jobs/1.wav", audio)


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


# -- long audio -----------------------------------------------------------------------------------------------


async def test_upload_of_a_killed_process_leaves_nothing(s3: S3, bucket: str, blobs: Blobs) -> None:
    code = (
        "import asyncio, os, signal, sys\n"
        "from afterwords.server.blobs import open_blobs\n"
        "class Dying:\n"
        "    size_bytes = 64 << 20\n"
        "    def __iter__(self):\n"
        "        yield from [bytes(1 << 20)] * 40\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(open_blobs(sys.argv[1]).put('jobs/1.wav', Dying()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, bucket], capture_output=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    await blobs.put("jobs/2.wav", Chunks(9))
    assert list(await everything(blobs)) == ["jobs/2.wav"]
    assert s3.unfinished_uploads(bucket) == 0


# -- check ----------------------------------------------------------------------------------------------------


async def refusal(storage_url: str) -> ServerSetupError:
    with pytest.raises(ServerSetupError) as refused:
        await open_blobs(storage_url).check()
    assert (refused.value.code, refused.value.exit_code) == ("storage_refused", 2)
    return refused.value


async def test_check_names_a_missing_bucket(s3: S3) -> None:
    error = await refusal(s3.storage_url("no-such-bucket"))
    assert str(error).startswith(
        "The bucket no-such-bucket can't be listed and read: the storage answers NoSuchBucket."
    )
    assert error.hint.startswith("create the bucket")


async def test_check_names_wrong_credentials(s3: S3, bucket: str) -> None:
    with s3.refusing_others():
        error = await refusal(bucket)
    assert "InvalidAccessKeyId" in str(error)
    assert "correct AWS_ACCESS_KEY_ID" in error.hint


@pytest.mark.parametrize(
    ("allowed", "doing"),
    [
        (["s3:GetObject", "s3:ListBucket"], "written"),
        (["s3:GetObject", "s3:ListBucket", "s3:PutObject"], "deleted from"),
        (["s3:PutObject", "s3:DeleteObject"], "listed and read"),
    ],
)
async def test_check_names_a_missing_permission(
    s3: S3, bucket: str, allowed: list[str], doing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id, secret = s3.new_key(*allowed)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with s3.refusing_others():
        error = await refusal(bucket)
    assert f"can't be {doing}: the storage answers AccessDenied" in str(error)
    assert secret not in str(error)


async def test_key_with_all_permissions_passes_the_check(s3: S3, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key_id, secret = s3.new_key("s3:GetObject", "s3:ListBucket", "s3:PutObject", "s3:DeleteObject")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with s3.refusing_others():
        await open_blobs(bucket).check()


# -- signed URLs ----------------------------------------------------------------------------------------------


async def test_signed_url_reads_one_blob_without_a_key(blobs: Blobs) -> None:
    await blobs.put("jobs/1.wav", AUDIO)
    url = await blobs.signed_url("jobs/1.wav")
    assert url is not None
    answer = httpx.get(url)
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, AUDIO, "audio/wav")


async def test_signature_is_the_one_that_aws_computes(blobs: Blobs) -> None:
    """Compare with the signature of botocore, because moto checks none."""
    await blobs.put("jobs/1.wav", b"x")
    url = await blobs.signed_url("jobs/1.wav")
    assert url is not None
    signed = httpx.URL(url)
    date, expires = signed.params["X-Amz-Date"], int(signed.params["X-Amz-Expires"])
    request = AWSRequest("GET", url.partition("?")[0])
    request.context["timestamp"] = date
    signer = S3SigV4QueryAuth(Credentials("test", "test"), "s3", "auto", expires=expires)
    signer._modify_request_before_signing(request)
    signature = signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)
    assert signed.params["X-Amz-Signature"] == signature
    assert expires == 300
