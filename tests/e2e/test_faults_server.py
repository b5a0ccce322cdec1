"""Tests of faults of the server: killed at every failpoint, stopped, started several times."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from afterwords.server import failpoints
from tests.e2e.invariants import (
    SWEEPING,
    check_invariants,
    count_attempts,
    is_speech_of,
    list_blobs,
    query,
    query_one,
    wait_until_gone,
    worker_processes,
)
from tests.e2e.served import RECORDING, Served, register, serving, submit_text, wait_for_job, wait_until

SETTINGS = {**SWEEPING, "AFTERWORDS_LEASE_S": "1", "AFTERWORDS_REAP_INTERVAL_S": "0.2", "AFTERWORDS_RATE_LIMIT": "0"}
TEXT = "Accepted before the server died."
IN_SOAK = ("voice-committed", "job-claimed", "job-finished")
"""Places next to others that `make test` has, too."""
LONG = f"fault-slow, {'so that it lasts a second, ' * 3}"
ONCE = {"Idempotency-Key": "asked-once"}
IN_UPLOADS = ("reference-stored", "voice-committed")
IN_PREPARATIONS = ("preparation-claimed",)
IN_JOBS = ("job-committed", "job-claimed", "audio-stored", "job-finished")
IN_DELETIONS = ("voice-tombstoned",)


def upload(client: httpx.Client) -> httpx.Response:
    audio = {"ref_audio": ("me.wav", RECORDING, "audio/wav")}
    return client.post("/v1/voices", data={"name": "me"}, files=audio, headers=ONCE)


def synthesize(client: httpx.Client, voice_id: str) -> httpx.Response:
    return client.post("/v1/synthesize", json={"voice_id": voice_id, "text": TEXT}, headers=ONCE)


def _places(names: tuple[str, ...]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.soak] if name in IN_SOAK else []) for name in names]


@contextmanager
def serving_with_failpoint(place: str, home: Path) -> Iterator[Served]:
    """Run a server that dies at a failpoint. A restart removes the failpoint."""
    served = Served(home, SETTINGS)
    try:
        yield served.start(AFTERWORDS_FAILPOINT=place).ready()
    finally:
        end(served)


def end(served: Served) -> None:
    if served.is_running:
        served.kill()


def die(served: Served, send: Callable[[httpx.Client], object]) -> None:
    """Send the request that kills the server. It may still answer, and all its child processes must end."""
    children = worker_processes(served)
    with served.client() as client, suppress(httpx.TransportError):
        send(client)
    assert served.died() == -signal.SIGKILL
    wait_until_gone(*children)


def references(served: Served) -> list[str]:
    return [path for path in list_blobs(served) if path.endswith("ref.wav")]


class TestKilled:
    def test_every_failpoint_is_tested(self) -> None:
        assert {*IN_UPLOADS, *IN_PREPARATIONS, *IN_JOBS, *IN_DELETIONS} == set(failpoints.PLACES)

    @pytest.mark.parametrize("place", _places(IN_UPLOADS))
    def test_kill_during_an_upload_leaves_one_voice_and_recording(self, place: str, tmp_path: Path) -> None:
        with serving_with_failpoint(place, tmp_path / "home") as served:
            die(served, upload)
            assert len(references(served)) == 1
            served.start()
            with served.client() as client:
                listed = [voice["voice_id"] for voice in client.get("/v1/voices").json()]
                assert len(listed) == (1 if place == "voice-committed" else 0)
                check_invariants(served)
                assert len(references(served)) == len(listed)
                made = {upload(client).json()["voice_id"] for _ in range(2)}
                assert len(made) == 1
                assert set(listed) <= made
                assert len(client.get("/v1/voices").json()) == 1
            check_invariants(served)

    @pytest.mark.parametrize("place", IN_PREPARATIONS)
    def test_kill_during_a_preparation_is_recovered(self, place: str, tmp_path: Path) -> None:
        with serving_with_failpoint(place, tmp_path / "home") as served:
            die(served, upload)
            [(voice_id, attempt)] = query(served, "SELECT voice_id, attempt FROM preparations")
            assert attempt == 1
            served.start()
            with served.client() as client:
                wait_until(
                    lambda: client.get(f"/v1/voices/{voice_id}").json()["status"] == "ready", what="a prepared voice"
                )
            assert [path for path in list_blobs(served) if path.startswith(f"voices/{voice_id}/prompts/")]
            assert query(served, "SELECT voice_id FROM preparations") == []
            check_invariants(served)

    @pytest.mark.parametrize("place", _places(IN_JOBS))
    def test_kill_during_a_job_is_recovered_and_charged_once(self, place: str, tmp_path: Path) -> None:
        with serving_with_failpoint(place, tmp_path / "home") as served:
            with served.client() as client:
                voice_id = register(client)
            die(served, lambda client: synthesize(client, voice_id))
            [(job_id, status)] = query(served, "SELECT job_id, status FROM jobs")
            assert status == ("ready" if place == "job-finished" else "pending")
            served.start()
            wait_until(
                lambda: query(served, "SELECT job_id FROM jobs WHERE status = 'ready'"),
                what="the end of a job that was accepted",
            )
            with served.client() as client:
                assert synthesize(client, voice_id).json()["job_id"] == job_id
                assert is_speech_of(client.get(f"/v1/jobs/{job_id}/audio").content, TEXT)
                assert client.get("/v1/usage").json()["characters"] == len(TEXT)
            assert count_attempts(served, job_id) == (2 if place in ("job-claimed", "audio-stored") else 1)
            assert query_one(served, "SELECT count(*) FROM jobs") == 1
            check_invariants(served)

    @pytest.mark.parametrize("place", IN_DELETIONS)
    def test_kill_during_a_deletion_deletes_the_blobs_later(self, place: str, tmp_path: Path) -> None:
        with serving_with_failpoint(place, tmp_path / "home") as served:
            with served.client() as client:
                voice_id = register(client)
                job_id = submit_text(client, voice_id, TEXT)
                wait_for_job(client, job_id)
            die(served, lambda client: client.delete(f"/v1/voices/{voice_id}"))
            assert references(served)
            served.start()
            with served.client() as client:
                assert client.get(f"/v1/voices/{voice_id}").status_code == 404
                assert client.get(f"/v1/jobs/{job_id}").status_code == 404
            wait_until(lambda: not list_blobs(served), what="the end of the blobs")
            check_invariants(served, is_deleted_counted=True)

    def test_kill_during_synthesis_is_recovered_by_a_restart(self, tmp_path: Path) -> None:
        with serving_with_failpoint("", tmp_path / "home") as served:
            with served.client() as client:
                voice_id = register(client)
                jobs = [submit_text(client, voice_id, f"{LONG} {number}") for number in range(3)]
            wait_until(lambda: query_one(served, "SELECT sum(attempt) FROM jobs"), what="the first attempts")
            children = worker_processes(served)
            served.kill()
            wait_until_gone(*children)
            served.start()
            with served.client() as client:
                assert {wait_for_job(client, job_id)["status"] for job_id in jobs} == {"ready"}
            check_invariants(served)


class TestStopped:
    def test_stop_finishes_running_jobs_and_all_processes(self, tmp_path: Path) -> None:
        with serving(tmp_path / "home", SETTINGS) as served:
            with served.client() as client:
                job_id = submit_text(client, register(client), LONG)
            wait_until(lambda: count_attempts(served, job_id), what="the first attempt")
            children = worker_processes(served)
            assert served.stop() == 0
            wait_until_gone(*children)
            assert query(served, "SELECT status, attempt FROM jobs") == [("ready", 1)]
            served.start()
            check_invariants(served)

    def test_stop_releases_jobs_for_the_next_start(self, tmp_path: Path) -> None:
        settings = {**SETTINGS, "AFTERWORDS_LEASE_S": "60", "AFTERWORDS_DRAIN_S": "0.2"}
        with serving(tmp_path / "home", settings) as served:
            with served.client() as client:
                voice_id = register(client)
                jobs = [submit_text(client, voice_id, f"{LONG} {number}") for number in range(2)]
            wait_until(lambda: query_one(served, "SELECT min(attempt) FROM jobs"), what="the first attempts")
            children = worker_processes(served)
            assert served.stop() == 0
            wait_until_gone(*children)
            assert query(served, "SELECT DISTINCT status, lease_expires, returned FROM jobs") == [("pending", None, 1)]
            served.start()
            with served.client() as client:
                assert {wait_for_job(client, job_id)["status"] for job_id in jobs} == {"ready"}
            check_invariants(served)

    def test_stop_answers_long_polls(self, tmp_path: Path) -> None:
        with serving(tmp_path / "home", {**SETTINGS, "AFTERWORDS_DRAIN_S": "0.2"}) as served, served.client() as client:
            job_id = submit_text(client, register(client), LONG * 4)
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(client.get, f"/v1/jobs/{job_id}", params={"wait": 50})
                wait_until(lambda: count_attempts(served, job_id), what="the first attempt")
                assert served.stop() == 0
                assert waiting.result().json()["status"] == "pending"


class TestSeveral:
    def test_two_servers_run_every_job_once(self, tmp_path: Path) -> None:
        with serving(tmp_path / "home", SETTINGS) as first:
            second = Served(first.home, SETTINGS)
            with serving_second(second), first.client() as client, second.client(first.key) as other:
                voice_id = register(client)
                asked = [(client, other)[number % 2] for number in range(60)]
                jobs = [submit_text(ask, voice_id, f"fault-slow, {number}") for number, ask in enumerate(asked)]
                assert {wait_for_job(ask, job_id)["status"] for ask, job_id in zip(asked[::-1], jobs, strict=True)} == {
                    "ready"
                }
                assert client.get("/v1/usage").json() == other.get("/v1/usage").json()
                workers = {worker for (worker,) in query(first, "SELECT DISTINCT worker FROM jobs")}
                assert workers == {f"local-{served.process.pid}" for served in (first, second) if served.process}
                assert query(first, "SELECT DISTINCT attempt FROM jobs") == [(1,)]
            check_invariants(first)

    @pytest.mark.soak  # four processes open one new database in tests/server/store/test_opening.py
    def test_four_servers_start_at_once_on_a_new_database(self, tmp_path: Path) -> None:
        many = [Served(tmp_path / "home", {**SETTINGS, "AFTERWORDS_WORKERS": "0"}) for _ in range(4)]
        for number, served in enumerate(many):
            served.log = tmp_path / f"{number}.log"
        with ExitStack() as stack, ThreadPoolExecutor(4) as pool:
            for served in many:
                stack.callback(end, served)
            list(pool.map(Served.start, many))
            [key] = [served.key for served in many if served.key]
            assert {httpx.get(f"{served.url}/readyz").status_code for served in many} == {200}
            voice_id = ""
            for served in many:
                with served.client(key) as client:
                    voice_id = voice_id or register(client)
                    assert client.get(f"/v1/voices/{voice_id}").status_code == 200
            assert query_one(many[0], "PRAGMA integrity_check") == "ok"


@contextmanager
def serving_second(served: Served) -> Iterator[Served]:
    """Run a second server on the same home folder."""
    served.log = served.home.parent / "second.log"
    try:
        yield served.start().ready()
    finally:
        if served.is_running:
            served.stop()
