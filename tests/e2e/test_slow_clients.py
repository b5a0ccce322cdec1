"""Clients that abandon, do not read, or wait for long audio must not slow down others."""

from __future__ import annotations

import hashlib
import json
import select
import socket
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import numpy as np
import psutil
import pytest

from afterwords.audio.wav import wav_header
from tests.e2e.flood import MIB, watched
from tests.e2e.served import Served, register, serving, submit_text, wait_for_job, wait_until
from tests.e2e.wire import connected, head, read

SECRET = "a-callback-secret-for-tests-0123456789"
RATE = 24_000
LONG_S = 600
LONG = "x" * 5000
SHORT = "This is short."
WRITE_TIMEOUT_S = 2


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return a server without workers, with 10 minutes of audio in its cache."""
    settings = {
        "AFTERWORDS_WORKERS": "0",
        "AFTERWORDS_CALLBACK_SECRET": SECRET,
        "AFTERWORDS_WRITE_TIMEOUT_S": str(WRITE_TIMEOUT_S),
        "AFTERWORDS_DRAIN_S": "1",
    }
    with serving(tmp_path_factory.mktemp("slow") / "home", settings) as running:
        yield running


@pytest.fixture(scope="module")
def voice_id(served: Served) -> str:
    """Return a voice of the first key with cached audio of LONG and SHORT."""
    with served.client() as client:
        voice_id = register(client)
        spoken(served, client, voice_id, LONG, LONG_S, speed=0.25)
        spoken(served, client, voice_id, SHORT, 1)
    return voice_id


@pytest.fixture(scope="module")
def other(served: Served) -> Iterator[httpx.Client]:
    """Another account, whose voice has cached audio of SHORT."""
    with served.client(served.new_key(), Connection="close") as client:
        client.headers["X-Voice"] = register(client)
        spoken(served, client, client.headers["X-Voice"], SHORT, 1)
        client.timeout = httpx.Timeout(15)
        yield client


def spoken(served: Served, client: httpx.Client, voice_id: str, text: str, duration_s: int, **fields: float) -> str:
    """Complete a job as a remote worker with noise, and return its ID."""
    job_id = submit_text(client, voice_id, text, **fields)
    noise = np.random.default_rng(1).integers(-3000, 3000, duration_s * RATE, np.int16)
    wav = wav_header(RATE, n_frames=len(noise)) + noise.tobytes()
    digest = hashlib.sha256(wav).hexdigest()
    with served.client(SECRET) as worker:
        worker.put(f"/v1/jobs/{job_id}/audio", content=wav, headers={"X-Content-SHA256": digest}).raise_for_status()
    assert wait_for_job(client, job_id)["status"] == "ready"
    return job_id


def asking(served: Served, voice_id: str, speech_format: str, *, key: str = "", n_read_bytes: int = 0) -> socket.socket:
    """Open a connection that requests LONG and reads a part of the response."""
    body = json.dumps({"voice_id": voice_id, "text": LONG, "speed": 0.25, "response_format": speech_format}).encode()
    headers = [("Authorization", f"Bearer {key or served.key}"), ("Content-Type", "application/json")]
    wire = socket.socket()
    wire.settimeout(30)
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)  # so that little is buffered
    url = httpx.URL(served.url)
    wire.connect((url.host, url.port))
    wire.sendall(head("POST", "/v1/synthesize", [*headers, ("Content-Length", str(len(body)))]) + body)
    while n_read_bytes > 0:
        n_read_bytes -= len(wire.recv(min(n_read_bytes, 65_536)))
    return wire


def short_mp3(client: httpx.Client) -> httpx.Response:
    ask = {"voice_id": client.headers["X-Voice"], "text": SHORT, "response_format": "mp3"}
    return client.post("/v1/synthesize", json=ask)


def test_abandoned_mp3_is_not_encoded_further(served: Served, voice_id: str, other: httpx.Client) -> None:
    for _ in range(40):
        asking(served, voice_id, "mp3").close()
    answer = short_mp3(other)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/mpeg")
    wait_until(lambda: is_idle(served), what="the end of encoding", deadline_s=20)


def test_mp3_of_another_account_is_not_delayed(served: Served, voice_id: str, other: httpx.Client) -> None:
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(asking(served, voice_id, "flac"))
        assert short_mp3(other).status_code == 200


def test_long_mp3_starts_early_and_is_cached(served: Served, voice_id: str) -> None:
    ask = {"voice_id": voice_id, "text": LONG, "speed": 0.25, "response_format": "opus"}
    assert served.process is not None
    process = psutil.Process(served.process.pid)
    with served.client() as client:
        start = sum(process.cpu_times()[:2])
        first = client.post("/v1/synthesize", json=ask).content
        middle = sum(process.cpu_times()[:2])
        again = client.post("/v1/synthesize", json=ask).content
        end = sum(process.cpu_times()[:2])
    assert first == again
    assert first[:4] == b"OggS"
    assert end - middle < (middle - start) / 2, "it was encoded again"


@pytest.mark.parametrize(("speech_format", "n_clients"), [("wav", 200), ("mp3", 8)])
def test_clients_that_read_nothing_are_disconnected(
    served: Served, voice_id: str, other: httpx.Client, speech_format: str, n_clients: int
) -> None:
    with ExitStack() as stack, watched(served) as memory:
        wires = [stack.enter_context(asking(served, voice_id, speech_format)) for _ in range(n_clients)]
        assert short_mp3(other).status_code == 200
        wait_until(lambda: n_connections(served) <= 1, what="the end of the connections", deadline_s=90)
        del wires
    assert memory.growth_bytes < 100 * MIB


def test_server_stops_in_time_while_encoding(served: Served, voice_id: str) -> None:
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(asking(served, voice_id, "flac", n_read_bytes=1))
        assert served.stop() == 0
    served.start().ready()


def is_idle(served: Served) -> bool:
    """Return whether the server uses almost no CPU time for half a second."""
    assert served.process is not None
    return psutil.Process(served.process.pid).cpu_percent(interval=0.5) < 25


def n_connections(served: Served) -> int:
    assert served.process is not None
    process = psutil.Process(served.process.pid)
    return sum(each.status == psutil.CONN_ESTABLISHED for each in process.net_connections("tcp"))


class TestWaits:
    """A server without workers, so that every job stays pending."""

    @pytest.mark.parametrize("workers", ["0", "1"])
    def test_stream_left_before_first_audio_is_cancelled(
        self, tmp_path_factory: pytest.TempPathFactory, workers: str
    ) -> None:
        settings = {"AFTERWORDS_WORKERS": workers, "AFTERWORDS_DRAIN_S": "1"}
        with serving(tmp_path_factory.mktemp("left") / "home", settings) as served, served.client() as client:
            voice_id = register(client)
            if workers == "1":  # keep its only worker process busy
                for number in range(16):
                    submit_text(client, voice_id, f"fault-hang {number:02} {'x' * 50}")
            ask = {"voice_id": voice_id, "text": "No one waits for this.", "stream": True}
            body, n_jobs = json.dumps(ask).encode(), 1 if workers == "0" else 17
            headers = [("Authorization", f"Bearer {served.key}"), ("Content-Type", "application/json")]
            with connected(served) as wire:
                wire.sendall(head("POST", "/v1/synthesize", [*headers, ("Content-Length", str(len(body)))]) + body)
                wait_until(lambda: len(client.get("/v1/jobs", params={"limit": 100}).json()) == n_jobs)
            wait_until(lambda: client.get("/v1/jobs", params={"limit": 1}).json()[0]["status"] == "cancelled")
            assert client.get("/v1/usage").json()["characters"] == (0 if workers == "0" else 16 * 64)

    def test_stream_joined_by_another_request_continues(self, served: Served) -> None:
        with served.client() as client:
            ask = {"voice_id": register(client), "text": "Two wait for this."}
            body = json.dumps({**ask, "stream": True}).encode()
            headers = [("Authorization", f"Bearer {served.key}"), ("Content-Type", "application/json")]
            n_left = served.log.read_text().count(" 499 ")
            with connected(served) as wire:
                wire.sendall(head("POST", "/v1/synthesize", [*headers, ("Content-Length", str(len(body)))]) + body)
                first = wait_until(lambda: pending(client))
                joined = client.post("/v1/synthesize", json=ask).json()["job_id"]
            wait_until(lambda: served.log.read_text().count(" 499 ") > n_left, what="the end of the stream")
            assert first == joined
            assert client.get(f"/v1/jobs/{joined}").json()["status"] == "pending"

    def test_thousand_waits_of_one_key_block_no_other(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        limited = ["sh", "-c", 'ulimit -n 512; exec "$0" "$@"']
        served = Served(tmp_path_factory.mktemp("waits") / "home", {"AFTERWORDS_WORKERS": "0"}, before=limited)
        served.start().ready()
        try:
            with served.client() as client, served.client(served.new_key()) as other, ExitStack() as stack:
                voice_id = register(client)
                job_id = submit_text(client, voice_id, "x")
                wait = head("GET", f"/v1/jobs/{job_id}?wait=60", [("Authorization", f"Bearer {served.key}")])
                wires = []
                for _ in range(400):
                    wires.append(stack.enter_context(connected(served)))
                    with suppress(ConnectionError):
                        wires[-1].sendall(wait)
                refused = wait_until(lambda: select.select(wires, [], [], 0)[0])
                assert read(refused[0]).status in (429, 503)
                wait_until(lambda: other.get("/readyz").status_code == 200)
                assert submit_text(other, register(other), "There is room for this.")
        finally:
            served.kill()

    def test_revoking_ends_waits_streams_and_jobs(self, served: Served) -> None:
        with served.admin as admin, ThreadPoolExecutor() as pool:
            made = admin.post("/v1/keys", json={}).json()
            with served.client(made["api_key"]) as thief:
                voice_id = register(thief)
                job_id = submit_text(thief, voice_id, "Never to be spoken.", webhook_url="https://example.com/hook")
                waiting = pool.submit(thief.get, f"/v1/jobs/{job_id}", params={"wait": 60})
                body = {"voice_id": voice_id, "text": "Nor this.", "stream": True}
                streaming = pool.submit(thief.post, "/v1/synthesize", json=body)
                wait_until(lambda: len(thief.get("/v1/jobs").json()) == 2)
                wait_until(lambda: n_connections(served) >= 3, what="the connections of the wait and the stream")
                admin.delete(f"/v1/keys/{made['key_id']}").raise_for_status()
                answers = [waiting.result(50), streaming.result(50)]  # the wait itself would take 60 s
        assert {answer.status_code for answer in answers} <= {200, 401, 409}  # cancelled or unauthorized
        with sqlite3.connect(served.home / "server" / "afterwords.db") as rows:
            [(status,)] = rows.execute("SELECT status FROM jobs WHERE job_id = ?", [job_id]).fetchall()
            assert status == "cancelled"
            assert rows.execute("SELECT count(*) FROM webhooks WHERE job_id = ?", [job_id]).fetchone() == (0,)

    def test_revoking_aborts_downloads(self, served: Served, voice_id: str) -> None:
        del voice_id
        with served.admin as admin:
            made = admin.post("/v1/keys", json={}).json()
            with served.client(made["api_key"]) as thief:
                own = register(thief)
                spoken(served, thief, own, LONG, 60, speed=0.25)
            with asking(served, own, "wav", key=made["api_key"], n_read_bytes=1000) as wire:
                admin.delete(f"/v1/keys/{made['key_id']}").raise_for_status()
                wait_until(lambda: n_connections(served) <= 1, what="the end of the download")  # the admin's is left
                n_bytes = 0
                with suppress(ConnectionError):
                    while piece := wire.recv(65_536):
                        n_bytes += len(piece)
        assert n_bytes < 60 * 2 * RATE - 1000


def pending(client: httpx.Client) -> str | None:
    """Return the newest job if it is pending."""
    [job] = client.get("/v1/jobs", params={"limit": 1}).json() or [{"status": ""}]
    return str(job["job_id"]) if job["status"] == "pending" else None
