"""Tests of faults of workers and clients: every job ends, and is charged once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.e2e.invariants import (
    SWEEPING,
    check_invariants,
    count_attempts,
    is_speech_of,
    list_blobs,
    query,
    query_one,
    worker_process,
    worker_processes,
)
from tests.e2e.served import Served, register, serving, submit_text, wait_for_job, wait_until

SLOW = "fault-slow, four characters every 50 ms, so that this lasts about two seconds: " + "and on " * 12


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = {**SWEEPING, "AFTERWORDS_STALL_S": "1", "AFTERWORDS_LEASE_S": "3", "AFTERWORDS_RATE_LIMIT": "0"}
    with serving(tmp_path_factory.mktemp("worker") / "home", settings) as running:
        yield running
        check_invariants(running, is_deleted_counted=True)


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    """Return a client with a new account."""
    with served.client(served.new_key()) as client:
        yield client


@pytest.fixture
def voice_id(client: httpx.Client) -> str:
    return register(client)


def wait_for_claim(served: Served, job_id: str) -> None:
    """Wait until a job is claimed."""
    wait_until(lambda: count_attempts(served, job_id), what="the first attempt")


def kill_worker(served: Served) -> None:
    """Kill the worker process, and wait for a new one."""
    before = worker_process(served)
    before.kill()
    wait_until(
        lambda: [new for new in worker_processes(served) if new.pid != before.pid], what="another worker process"
    )


def characters_used(client: httpx.Client) -> int:
    return int(client.get("/v1/usage").json()["characters"])


class TestKilled:
    def test_kill_before_synthesis_uses_no_attempt(self, served: Served, client: httpx.Client, voice_id: str) -> None:
        kill_worker(served)
        job_id = submit_text(client, voice_id, "The kill has no effect.")
        assert wait_for_job(client, job_id)["status"] == "ready"
        assert count_attempts(served, job_id) == 1

    def test_kill_during_synthesis_uses_only_an_attempt(
        self, served: Served, client: httpx.Client, voice_id: str
    ) -> None:
        job_id = submit_text(client, voice_id, SLOW)
        wait_for_claim(served, job_id)
        kill_worker(served)
        assert wait_for_job(client, job_id)["status"] == "ready"
        assert count_attempts(served, job_id) == 2
        assert is_speech_of(client.get(f"/v1/jobs/{job_id}/audio").content, SLOW)
        assert characters_used(client) == len(SLOW)

    def test_kill_after_synthesis_loses_nothing(self, served: Served, client: httpx.Client, voice_id: str) -> None:
        job_id = submit_text(client, voice_id, "Spoken and kept.")
        wait_for_job(client, job_id)
        kill_worker(served)
        assert is_speech_of(client.get(f"/v1/jobs/{job_id}/audio").content, "Spoken and kept.")

    def test_three_kills_fail_and_refund_the_job(self, served: Served, client: httpx.Client, voice_id: str) -> None:
        job_id = submit_text(client, voice_id, SLOW)
        for attempt in (1, 2, 3):
            wait_until(lambda attempt=attempt: count_attempts(served, job_id) == attempt, what="the next attempt")  # type: ignore[misc]
            kill_worker(served)
        job = wait_for_job(client, job_id)
        assert (job["status"], job["error"]) == ("failed", "worker_lost")
        assert (count_attempts(served, job_id), characters_used(client)) == (3, 0)


class TestEngineFaults:
    def test_poison_job_fails_and_its_neighbors_are_ready(
        self, client: httpx.Client, served: Served, voice_id: str
    ) -> None:
        innocents = [submit_text(client, voice_id, f"fault-slow, innocent {number}") for number in range(5)]
        poison = submit_text(client, voice_id, "now fault-crash")
        job = wait_for_job(client, poison)
        assert (job["status"], job["error"], count_attempts(served, poison)) == ("failed", "worker_lost", 3)
        assert {wait_for_job(client, job_id)["status"] for job_id in innocents} == {"ready"}
        assert characters_used(client) == 5 * len("fault-slow, innocent 0")

    def test_hanging_engine_is_killed_and_replaced(self, served: Served, client: httpx.Client, voice_id: str) -> None:
        first = worker_process(served)
        hanging = submit_text(client, voice_id, "now fault-hang")
        others = [submit_text(client, voice_id, f"Not harmed {number}.") for number in range(3)]
        job = wait_for_job(client, hanging)
        assert (job["status"], job["error"], count_attempts(served, hanging)) == ("failed", "speaking_timed_out", 3)
        assert {wait_for_job(client, job_id)["status"] for job_id in others} == {"ready"}
        assert first not in worker_processes(served)

    def test_out_of_memory_is_retried_once_in_a_new_process(
        self, served: Served, client: httpx.Client, voice_id: str
    ) -> None:
        first = worker_process(served)
        greedy = submit_text(client, voice_id, "now fault-memory")
        job = wait_for_job(client, greedy)
        assert (job["status"], job["error"], count_attempts(served, greedy)) == ("failed", "out_of_memory", 2)
        assert wait_for_job(client, submit_text(client, voice_id, "The next one."))["status"] == "ready"
        assert first not in worker_processes(served)

    def test_unexpected_error_fails_only_its_job(self, client: httpx.Client, voice_id: str) -> None:
        failing, other = submit_text(client, voice_id, "now fault-error"), submit_text(client, voice_id, "Next to it.")
        assert wait_for_job(client, failing)["error"] == "synthesis_failed"
        assert wait_for_job(client, other)["status"] == "ready"


class TestRepeatedRequests:
    def test_twenty_equal_requests_share_one_job(self, served: Served, client: httpx.Client, voice_id: str) -> None:
        ask = {"voice_id": voice_id, "text": f"All at once. {SLOW}"}
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: client.post("/v1/synthesize", json=ask), range(20)))
        [job_id] = {answer.json()["job_id"] for answer in answers}
        assert wait_for_job(client, job_id)["status"] == "ready"
        assert query_one(served, "SELECT count(*) FROM jobs WHERE voice_id = ?", voice_id) == 1
        assert (count_attempts(served, job_id), characters_used(client)) == (1, len(ask["text"]))

    def test_repeated_request_after_a_timeout_returns_the_job(
        self, served: Served, client: httpx.Client, voice_id: str
    ) -> None:
        ask = {"voice_id": voice_id, "text": SLOW}
        headers = {"Idempotency-Key": str(uuid4()), "Prefer": "wait=30"}
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/synthesize", json=ask, headers=headers, timeout=0.5)
        answer = client.post("/v1/synthesize", json=ask, headers=headers)
        assert answer.status_code == 200
        assert is_speech_of(answer.content, SLOW)
        assert query(served, "SELECT job_id, attempt FROM jobs WHERE voice_id = ?", voice_id) == [
            (answer.headers["x-job-id"], 1)
        ]

    def test_disconnected_stream_cancels_its_job(self, client: httpx.Client, voice_id: str) -> None:
        ask = {"voice_id": voice_id, "text": SLOW, "stream": True}
        with client.stream("POST", "/v1/synthesize", json=ask) as answer:
            job_id = answer.headers["x-job-id"]
            next(answer.iter_raw())
        assert wait_for_job(client, job_id)["status"] == "cancelled"
        assert characters_used(client) == 0


class TestDeleted:
    @pytest.mark.parametrize("text", ["Raced by a deletion.", f"fault-slow, {'raced while it is spoken' * 4}"])
    def test_deletion_during_synthesis_leaves_nothing(self, served: Served, client: httpx.Client, text: str) -> None:
        with ThreadPoolExecutor(2) as pool, served.client(str(client.headers["authorization"]).split()[1]) as other:
            for number in range(12):
                voice_id = register(client)
                ask = {"voice_id": voice_id, "text": f"{text} {number}"}
                if number % 2:  # the job is running or ready when the voice is deleted
                    wait_for_claim(served, submit_text(client, voice_id, ask["text"]))
                asked = pool.submit(other.post, "/v1/synthesize", json=ask)
                assert client.delete(f"/v1/voices/{voice_id}").status_code == 204
                assert asked.result().status_code in (200, 202, 404)
                assert client.get(f"/v1/voices/{voice_id}").status_code == 404
                assert other.post("/v1/synthesize", json=ask).status_code == 404
                if job_id := asked.result().headers.get("x-cache") == "MISS" and asked.result().json()["job_id"]:
                    assert client.get(f"/v1/jobs/{job_id}").status_code == 404
        wait_until(lambda: not find_unowned(served), what="removal of all blobs")
        assert query(served, "SELECT job_id FROM jobs WHERE voice_id NOT IN (SELECT voice_id FROM voices)") == []


def find_unowned(served: Served) -> set[str]:
    """Return blobs whose voice or job does not exist."""
    known = {f"voices/{voice_id}" for (voice_id,) in query(served, "SELECT voice_id FROM voices")}
    jobs = {job_id for (job_id,) in query(served, "SELECT job_id FROM jobs")}
    return {
        path
        for path in list_blobs(served)
        if (path[:43] if path.startswith("voices/") else path[5:41]) not in known | jobs
    }


class TestBacklog:
    def test_backlog_of_one_account_does_not_delay_another(self, served: Served) -> None:
        with served.client(served.new_key()) as first, served.client(served.new_key()) as second:
            voice, other = register(first), register(second)
            many = [submit_text(first, voice, f"fault-slow, a backlog that lasts {number}") for number in range(150)]
            alone = submit_text(second, other, "fault-slow, one job that comes last")
            assert wait_for_job(second, alone)["status"] == "ready"
            assert {wait_for_job(first, job_id)["status"] for job_id in many} == {"ready"}
        between = (
            "SELECT count(*) FROM jobs, jobs AS alone WHERE jobs.voice_id = ? AND alone.job_id = ?"
            " AND jobs.completed_at > alone.created_at AND jobs.completed_at < alone.completed_at"
        )
        n_served_before = query_one(served, between, voice, alone)
        assert n_served_before <= 3 * 16, "16 jobs run at once: the running ones, and those of two job times"


def test_jobs_over_the_limits_return_429_with_retry_after(tmp_path: Path) -> None:
    settings = {
        "AFTERWORDS_WORKERS": "0",
        "AFTERWORDS_MAX_PENDING_JOBS": "5",
        "AFTERWORDS_MAX_PENDING_JOBS_PER_ACCOUNT": "3",
    }
    with serving(tmp_path / "home", settings) as served, served.client() as one, served.client(served.new_key()) as two:
        voices = {one: register(one), two: register(two)}
        for client, n_accepted, code in ((one, 3, "too_many_concurrent_requests"), (two, 2, "queue_full")):
            jobs = [submit_text(client, voices[client], f"Job {number}.") for number in range(n_accepted)]
            answer = client.post("/v1/synthesize", json={"voice_id": voices[client], "text": "One too many."})
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, code)
            assert int(answer.headers["retry-after"]) >= 1
            assert characters_used(client) == len("Job 0.") * n_accepted
        client.delete(f"/v1/jobs/{jobs[0]}")
        submit_text(two, voices[two], "There is room again.")
