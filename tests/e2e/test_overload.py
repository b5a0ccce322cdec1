"""Large uploads must cost little memory, leave no temporary file, and delay no other client."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from afterwords.server.app_state import MAX_UPLOADS_PER_ACCOUNT
from tests.e2e.flood import MIB, flood, watched
from tests.e2e.served import DEADLINE_S, Served, register, serving, submit_text, wait_for_job
from tests.e2e.wire import ask, connected, head, read
from tests.server.services.test_decoding import hour_of_flac

HUGE = 200_000_000
BOUNDARY = b'--b\r\nContent-Disposition: form-data; name="ref_audio"; filename="x"\r\n\r\n'
FORM = ("Content-Type", "multipart/form-data; boundary=b")


@pytest.fixture(scope="module")
def temp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("temp")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, temp: Path) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("overload") / "home", {"TMPDIR": str(temp)}) as running:
        with running.client() as client:
            register(client)  # the first upload loads what the others need
        yield running


@pytest.mark.parametrize("is_announced", [True, False])
@pytest.mark.parametrize(("has_key", "status", "code"), [(False, 401, "unauthorized"), (True, 422, "file_too_large")])
def test_200_mb_upload_is_refused_and_not_stored(
    served: Served, temp: Path, is_announced: bool, has_key: bool, status: int, code: str
) -> None:
    body = BOUNDARY + bytes(HUGE)
    headers = [FORM, ("Authorization", f"Bearer {served.key}" if has_key else "Bearer aw_unknown")]
    headers += [("Content-Length", str(len(body)))] if is_announced else [("Transfer-Encoding", "chunked")]
    if not is_announced:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    seen: set[Path] = set()

    with watched(served, look=lambda: seen.update(temp.iterdir())) as memory:
        answer = ask(served, "POST", "/v1/voices", headers, body, deadline_s=30)

    assert (answer.status, answer.code) == (status, code)
    assert memory.growth_bytes < 64 * MIB
    assert not seen


def test_hour_of_flac_is_refused_with_bounded_memory(served: Served) -> None:
    with watched(served) as memory, served.client() as client:
        files = {"ref_audio": ("me.wav", hour_of_flac(), "audio/wav")}
        answer = client.post("/v1/voices", data={"name": "me"}, files=files)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "too_long")
    assert memory.growth_bytes < 64 * MIB


def test_concurrent_uploads_leave_the_server_responsive(served: Served, temp: Path) -> None:
    seen: set[Path] = set()

    with watched(served, look=lambda: seen.update(temp.iterdir())):
        done = flood(served, 16)

    assert set(done.statuses) == {201}
    assert done.memory.growth_bytes < 300 * MIB
    assert max(done.healthz_s) < DEADLINE_S
    assert not seen


def test_long_speech_uses_little_memory(served: Served) -> None:
    with served.client() as client:
        voice_id = register(client)
        wait_for_job(client, submit_text(client, voice_id, "The first job loads what every job needs."))
        with watched(served) as memory:
            job_id = submit_text(client, voice_id, "x" * 5000, speed=0.25)  # 20 minutes, 58 MB
            assert wait_for_job(client, job_id, deadline_s=120)["status"] == "ready"
    assert memory.growth_bytes < 64 * MIB


def test_slow_uploads_delay_no_other_account(served: Served, temp: Path) -> None:
    headers = [FORM, ("Authorization", f"Bearer {served.key}"), ("Content-Length", str(20 * MIB))]
    with ExitStack() as stack:
        for _ in range(8):
            wire = stack.enter_context(connected(served))
            wire.sendall(head("POST", "/v1/voices", headers) + BOUNDARY + bytes(100_000))
        with served.client(served.new_key(), Connection="close") as other:
            other.timeout = 10
            assert register(other)
            bundle = other.get(f"/v1/voices/{register(other)}/export").content
            assert other.post("/v1/voices/import", content=bundle).status_code == 201
        assert not list(temp.iterdir())


def test_concurrent_uploads_of_one_key_are_limited(served: Served) -> None:
    headers = [FORM, ("Authorization", f"Bearer {served.new_key()}"), ("Content-Length", str(20 * MIB))]
    with ExitStack() as stack:
        wires = []
        for _ in range(MAX_UPLOADS_PER_ACCOUNT + 1):
            wires.append(stack.enter_context(connected(served)))
            wires[-1].sendall(head("POST", "/v1/voices", headers) + BOUNDARY)
        refused, _, _ = select.select(wires, [], [], 10)
        answer = read(refused[0])
        assert len(refused) == 1
        assert (answer.status, answer.code) == (429, "too_many_concurrent_requests")
        with served.client() as client:
            assert register(client)


def test_aborted_upload_is_discarded(served: Served) -> None:
    with served.client() as client:
        before = [voice["voice_id"] for voice in client.get("/v1/voices").json()]
        for _ in range(20):
            with pytest.raises(httpx.HTTPError):
                client.post("/v1/voices", content=aborting(), headers=dict([FORM]))
        assert [voice["voice_id"] for voice in client.get("/v1/voices").json()] == before
        assert register(client)


def aborting() -> Iterator[bytes]:
    """Send the start of an upload and disconnect."""
    yield BOUNDARY + bytes(MIB)
    raise httpx.WriteError("gone")


@pytest.mark.parametrize(("path", "scope", "status"), [
    ("/v1/voices", None, 401), ("/v1/voices", "synthesize", 403), ("/v1/synthesize", "synthesize", 413),
])  # fmt: skip
def test_refusal_reaches_client_that_sends_everything(
    served: Served, path: str, scope: str | None, status: int
) -> None:
    """http.client, like many clients, sends the whole body before it reads a response."""
    key = served.new_key(scopes=[scope]) if scope else "aw_unknown"
    headers = {"Authorization": f"Bearer {key}", "Content-Type": FORM[1]}
    address = served.url.removeprefix("http://")
    for _ in range(10):
        connection = HTTPConnection(address, timeout=120)
        with contextlib.closing(connection):
            connection.request("POST", path, body=bytes(12 * MIB), headers=headers)
            answer = connection.getresponse()
            assert (answer.status, answer.headers["connection"]) == (status, "close")
            assert json.loads(answer.read())["error"]["request_id"]


def test_refusal_reaches_curl(served: Served, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(12 * MIB))
    command = ["curl", "-sS", "-o", "answer", "-w", "%{http_code} ", "-H", "Expect:", "--data-binary", "@large"]
    done = subprocess.run([*command, *[f"{served.url}/v1/voices?[1-10]"]], cwd=tmp_path, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (["401"] * 10, "")
