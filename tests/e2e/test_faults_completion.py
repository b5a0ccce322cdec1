"""Tests of results from remote workers: repeated, late, or for the wrong job."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from uuid import uuid4

import httpx
import numpy as np
import pytest

from afterwords.audio.wav import canonical_wav, read_wav
from afterwords.server.clock import SystemClock
from afterwords.server.services.signing import worker_token
from afterwords.server.store import SqlStore
from tests.e2e.invariants import SWEEPING, blob_folder, check_invariants, count_attempts, list_blobs, query, query_one
from tests.e2e.served import Served, register, serving, submit_text, wait_for_job, wait_until

CALLBACK_SECRET = "a-callback-secret-that-workers-share"
SAMPLE_RATE = 24_000
TEXT = "Spoken by a remote worker."
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = {
        **SWEEPING,
        "AFTERWORDS_CALLBACK_SECRET": CALLBACK_SECRET,
        "AFTERWORDS_WORKERS": "0",
        "AFTERWORDS_RATE_LIMIT": "0",
        "AFTERWORDS_REAP_INTERVAL_S": "0.1",
    }
    with serving(tmp_path_factory.mktemp("completion") / "home", settings) as running:
        yield running
        with running.client() as client:
            for job in client.get("/v1/jobs", params={"status": "pending"}).json():
                client.delete(f"/v1/jobs/{job['job_id']}")
        check_invariants(running, is_deleted_counted=True)


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as client:
        yield client


@pytest.fixture(scope="module")
def voice_id(served: Served) -> str:
    with served.client() as client:
        return register(client)


@pytest.fixture
def job_id(client: httpx.Client, voice_id: str) -> Iterator[str]:
    job_id = submit_text(client, voice_id, f"{TEXT} {uuid4()}")
    yield job_id
    client.delete(f"/v1/jobs/{job_id}")  # the next test claims the next job


def make_wav(frequency: float = 440) -> bytes:
    time_s = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    return canonical_wav((0.2 * np.sin(2 * np.pi * frequency * time_s)).astype(np.float32), SAMPLE_RATE)


def deliver(served: Served, job_id: str, token: str, wav: bytes) -> httpx.Response:
    """Deliver the audio of a job as a worker with this token."""
    with served.client(token) as worker:
        return worker.put(
            f"/v1/jobs/{job_id}/audio", content=wav, headers={"X-Content-SHA256": sha256(wav).hexdigest()}
        )


def token_for(served: Served, job_id: str, attempt: int) -> str:
    """Return the token of an attempt."""
    return worker_token(query_one(served, "SELECT secret FROM server"), job_id, attempt)


def claim(served: Served, *, lease_s: float) -> str:
    """Claim the next job like another dispatcher on the same database. Return its id."""

    async def run() -> str:
        store = SqlStore("sqlite:///afterwords.db", clock=SystemClock(), folder=served.home / "server")
        await store.open()
        claim = await store.claim(backends=["tone"], lease_s=lease_s, worker="elsewhere")
        await store.close()
        assert claim is not None
        return claim.job.job_id

    return asyncio.run(run())


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


class TestConcurrent:
    @pytest.mark.parametrize("differ", [False, True], ids=["equal", "different"])
    def test_concurrent_deliveries_change_and_charge_once(self, served: Served, differ: bool) -> None:
        with served.client(served.new_key()) as user, ThreadPoolExecutor(50) as pool:
            job_id = submit_text(user, register(user), TEXT)
            sounds = [make_wav(300 + 10 * number * differ) for number in range(50)]
            answers = list(pool.map(lambda wav: deliver(served, job_id, CALLBACK_SECRET, wav), sounds))
            served_audio = user.get(f"/v1/jobs/{job_id}/audio")
            again = user.get(f"/v1/jobs/{job_id}/audio")
            hit = user.post(
                "/v1/synthesize", json={"voice_id": user.get("/v1/voices").json()[0]["voice_id"], "text": TEXT}
            )
            assert {answer.status_code for answer in answers} == {200}
            assert read_wav(served_audio.content)[0].tobytes() in {read_wav(wav)[0].tobytes() for wav in sounds}
            assert served_audio.content == again.content == hit.content
            assert user.get("/v1/usage").json()["characters"] == len(TEXT)

    def test_concurrent_failure_and_audio_end_the_job_once(self, served: Served) -> None:
        with served.client(served.new_key()) as user, served.client(CALLBACK_SECRET) as worker:
            voice_id = register(user)
            for number in range(10):
                job_id = submit_text(user, voice_id, f"{TEXT} {number}")
                failure = {"job_id": job_id, "wav_b64": None, "error": "it failed"}
                with ThreadPoolExecutor(2) as pool:
                    failing = pool.submit(worker.post, f"/v1/jobs/{job_id}/complete", json=failure)
                    bringing = pool.submit(deliver, served, job_id, CALLBACK_SECRET, make_wav())
                assert {failing.result().status_code, bringing.result().status_code} <= {200, 409}
                status = wait_for_job(user, job_id)["status"]
                assert user.get(f"/v1/jobs/{job_id}/audio").status_code == (200 if status == "ready" else 404)


class TestAttempts:
    def test_token_of_an_attempt_delivers_its_audio(self, served: Served, client: httpx.Client, job_id: str) -> None:
        assert claim(served, lease_s=60) == job_id
        assert deliver(served, job_id, token_for(served, job_id, 1), make_wav()).status_code == 200
        assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "ready"

    def test_attempt_with_an_expired_lease_returns_409(self, served: Served, client: httpx.Client, job_id: str) -> None:
        claim(served, lease_s=0.1)
        wait_until(
            lambda: query(served, "SELECT 1 FROM jobs WHERE job_id = ? AND worker IS NULL", job_id), what="the reaper"
        )
        for secret in (token_for(served, job_id, 1), CALLBACK_SECRET):
            assert code_of(deliver(served, job_id, secret, make_wav())) == (409, "stale_attempt")
            assert not [path for path in list_blobs(served) if job_id in path]
        assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "pending"

    def test_replaced_attempt_returns_409(self, served: Served, client: httpx.Client, job_id: str) -> None:
        claim(served, lease_s=0.1)
        wait_until(
            lambda: query(served, "SELECT 1 FROM jobs WHERE job_id = ? AND worker IS NULL", job_id), what="the reaper"
        )
        claim(served, lease_s=60)
        assert count_attempts(served, job_id) == 2
        assert code_of(deliver(served, job_id, token_for(served, job_id, 1), make_wav(300))) == (409, "stale_attempt")
        assert not [path for path in list_blobs(served) if job_id in path]
        assert deliver(served, job_id, token_for(served, job_id, 2), make_wav(440)).status_code == 200
        assert code_of(deliver(served, job_id, token_for(served, job_id, 1), make_wav(300))) == (409, "stale_attempt")
        served_audio = client.get(f"/v1/jobs/{job_id}/audio").content
        assert np.array_equal(read_wav(served_audio)[0], read_wav(make_wav(440))[0])

    @pytest.mark.parametrize("kind", ["another job's", "another server's", "shortened", "a user's key"])
    def test_other_tokens_return_401(self, served: Served, client: httpx.Client, job_id: str, kind: str) -> None:
        tokens = {
            "another job's": token_for(served, UNKNOWN_ID, 0),
            "another server's": worker_token(b"another server's secret", job_id, 0),
            "shortened": token_for(served, job_id, 0)[:-1],
            "a user's key": served.key,
        }
        assert code_of(deliver(served, job_id, tokens[kind], make_wav())) == (401, "unauthorized")
        assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "pending"
        assert not [path for path in list_blobs(served) if job_id in path]


class TestDeleted:
    def test_audio_for_a_deleted_voice_returns_410(self, served: Served, client: httpx.Client) -> None:
        voice_id = register(client)
        job_id = submit_text(client, voice_id, TEXT)
        token = token_for(served, job_id, 0)
        client.delete(f"/v1/voices/{voice_id}")
        for secret in (token, CALLBACK_SECRET):
            assert code_of(deliver(served, job_id, secret, make_wav())) == (410, "voice_deleted")
        assert not [path for path in list_blobs(served) if job_id in path or voice_id in path]

    def test_deletion_during_a_delivery_leaves_no_blob(self, served: Served, client: httpx.Client) -> None:
        with ThreadPoolExecutor(2) as pool:
            for _ in range(20):
                voice_id = register(client)
                job_id = submit_text(client, voice_id, TEXT)
                bringing = pool.submit(deliver, served, job_id, CALLBACK_SECRET, make_wav())
                assert client.delete(f"/v1/voices/{voice_id}").status_code == 204
                assert bringing.result().status_code in (200, 410)
                assert client.get(f"/v1/voices/{voice_id}").status_code == 404
                assert client.get(f"/v1/jobs/{job_id}").status_code == 404
                assert not [path for path in list_blobs(served) if job_id in path or voice_id in path]


class TestBadAudio:
    def test_non_finite_samples_fail_the_job(self, served: Served, client: httpx.Client, job_id: str) -> None:
        samples = np.full(SAMPLE_RATE, np.nan, np.float32).tobytes()
        chunk = struct.pack("<4sIHHIIHH", b"fmt ", 16, 3, 1, SAMPLE_RATE, 4 * SAMPLE_RATE, 4, 32)
        data = struct.pack("<4sI", b"data", len(samples)) + samples
        wav = struct.pack("<4sI4s", b"RIFF", 4 + len(chunk) + len(data), b"WAVE") + chunk + data
        assert code_of(deliver(served, job_id, CALLBACK_SECRET, wav)) == (422, "non_finite_audio")
        assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "failed"

    def test_delivery_returns_503_while_storage_is_down(
        self, served: Served, client: httpx.Client, job_id: str
    ) -> None:
        away = blob_folder(served).with_name("away")
        blob_folder(served).rename(away)
        try:
            answer = deliver(served, job_id, CALLBACK_SECRET, make_wav())
        finally:
            away.rename(blob_folder(served))
        assert code_of(answer) == (503, "storage_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert deliver(served, job_id, CALLBACK_SECRET, make_wav()).status_code == 200
        assert client.get(f"/v1/jobs/{job_id}").json()["status"] == "ready"
