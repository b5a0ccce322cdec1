"""Remote workers as real processes: jobs, faults, signals, tokens and versions."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from afterwords import __version__
from afterwords.server.dispatch.protocol import PROTOCOL
from tests.cli.program import run
from tests.e2e.invariants import count_attempts, query_one
from tests.e2e.served import ADMIN_SECRET, DEADLINE_S, RECORDING, register, submit_text, wait_until
from tests.e2e.workers import SLOW, World, claim_body, open_world, unique


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Return a server whose workers may come and go, but don't change it."""
    with open_world(tmp_path_factory.mktemp("workers")) as world:
        yield world


@pytest.fixture
def world(shared: World) -> Iterator[World]:
    yield shared
    for worker in shared.workers:
        if not worker.ended():
            worker.stop(signal.SIGKILL)
    shared.workers.clear()


# -- jobs -----------------------------------------------------------------------------------------------------


def test_stream_begins_before_the_job_is_final(world: World) -> None:
    world.start_worker()
    world.speak("The voice is prepared now.")
    body = {"voice_id": world.voice_id, "text": unique(SLOW), "stream": True, "response_format": "pcm"}
    received, statuses = bytearray(), set()
    with world.client.stream("POST", "/v1/synthesize", json=body) as answer:
        job_id = answer.headers["x-job-id"]
        for chunk in answer.iter_raw():
            if not received:
                statuses.add(query_one(world.served, "SELECT status FROM jobs WHERE job_id = ?", job_id))
            received += chunk
    assert statuses == {"pending"}
    assert world.wait_for(job_id) == "ready"
    assert world.client.get(f"/v1/jobs/{job_id}/audio").content == received


def test_jobs_wait_for_a_worker(world: World) -> None:
    job_id = world.submit("No worker is here yet.")
    assert world.client.get(f"/v1/jobs/{job_id}").json()["step"] == "waiting"
    world.start_worker()
    assert world.wait_for(job_id) == "ready"


def test_prompt_is_stored_for_the_next_worker(world: World) -> None:
    first = world.start_worker()
    world.speak("The first worker prepares the voice, if no other did.")
    first.stop()
    second = world.start_worker()
    world.speak("The second finds the prompt.")
    assert "preparing voice" not in second.log.read_text()


def test_remote_workers_report_timestamps(world: World) -> None:
    worker = world.start_worker()
    job_id = world.submit("When is it said?", timestamps=True)
    assert world.wait_for(job_id) == "ready"
    found = world.client.get(f"/v1/jobs/{job_id}/timestamps").raise_for_status().json()
    text = "".join(found["characters"])
    assert text.startswith("When is it said?")
    at = text.index("said")
    assert found["start_s"][at] == pytest.approx(0.06 * at, abs=0.02)
    assert found["end_s"][-1] == pytest.approx(0.06 * len(text), abs=0.02)
    worker.stop()
    job_id = world.submit("Its worker is older.", timestamps=True)
    with world.served.client(world.token) as older:
        claimed = older.post("/v1/workers/claim", json=claim_body(wait_s=5)).json()["job"]
        own = {"Authorization": f"Bearer {claimed['token']}"}
        wrong = {"characters": "Other words.", "start_s": [0] * 12, "end_s": [0] * 12}
        refused = older.put(f"/v1/jobs/{job_id}/timing", json=wrong, headers=own)
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "timing")
        headers = {**own, "X-Content-SHA256": sha256(RECORDING).hexdigest()}
        early = world.client.get(f"/v1/jobs/{job_id}/timestamps")
        assert (early.status_code, early.json()["error"]["code"]) == (404, "job_not_ready")
        assert older.put(f"/v1/jobs/{job_id}/audio", content=RECORDING, headers=headers).is_success
    job = world.client.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["error"]) == ("failed", "timestamps_unavailable")


def test_text_of_pauses_is_verified_without_a_sentence(world: World) -> None:
    report: dict[str, object] = {"has_passed": True, "sentences": []}
    for text, is_accepted in (("[pause 1s]", True), ("Words.", False)):
        job_id = submit_text(world.client, world.voice_id, text, verify=True)
        with world.served.client(world.token) as worker:
            claimed = worker.post("/v1/workers/claim", json=claim_body(wait_s=5)).json()["job"]
            own = {"Authorization": f"Bearer {claimed['token']}"}
            answer = worker.put(f"/v1/jobs/{job_id}/verification", json=report, headers=own)
            assert answer.is_success == is_accepted, answer.text
        world.client.delete(f"/v1/jobs/{job_id}").raise_for_status()


def test_workers_report_verified_speech(world: World) -> None:
    attempt = {"seed": 7, "faults": ["silence"], "recognized": "Is it", "word_error_rate": 0.5, "longest_error": 1}
    attempt |= {"margin": 3.0, "excess_s": 0.1, "longest_silence_s": 1.6, "s_per_character": 0.06}
    used = world.client.get("/v1/usage").json()["characters"]
    for text, error in (("Is it so?", None), ("Is it not?", "verification_unavailable")):
        job_id = submit_text(world.client, world.voice_id, text, verify=True)
        with world.served.client(world.token) as worker:
            claimed = worker.post("/v1/workers/claim", json=claim_body(wait_s=5)).json()["job"]
            assert claimed["verify"]
            own = {"Authorization": f"Bearer {claimed['token']}"}
            sentence = {"text": text, "start_s": 0, "end_s": 1, "attempts": [attempt], "kept": 1}
            report = {"has_passed": False, "sentences": [sentence]}
            refused = worker.put(f"/v1/jobs/{job_id}/verification", json=report, headers=own)
            assert (refused.status_code, refused.json()["error"]["param"]) == (422, "verification")
            early = world.client.get(f"/v1/jobs/{job_id}/verification")
            assert (early.status_code, early.json()["error"]["code"]) == (404, "job_not_ready")
            if error is None:
                sentence["kept"] = 0
                assert worker.put(f"/v1/jobs/{job_id}/verification", json=report, headers=own).is_success
            headers = {**own, "X-Content-SHA256": sha256(RECORDING).hexdigest()}
            assert worker.put(f"/v1/jobs/{job_id}/audio", content=RECORDING, headers=headers).is_success
        assert world.client.get(f"/v1/jobs/{job_id}").json().get("error") == error
        found = world.client.get(f"/v1/jobs/{job_id}/verification")
        if error:
            assert (found.status_code, found.json()["error"]["code"]) == (422, error)
        else:
            assert found.raise_for_status().json()["sentences"][0]["attempts"][0]["faults"] == ["silence"]
    charged = world.client.get("/v1/usage").json()["characters"] - used
    assert charged == len("Is it so?"), "the job that could not be verified is refunded"
    body = {"voice_id": world.voice_id, "text": "Is it so?"}
    assert not world.client.post("/v1/estimate", json=body).json()["is_cached"]


def test_other_prompt_version_prepares_again(tmp_path: Path, world: World) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "from afterwords.backends.tone import ToneEngine\nToneEngine.prompt_version = 'another'\n"
    )
    world.start_worker().wait_for_log("is ready")
    world.speak("With the first version.")
    world.workers[0].stop()
    other = world.start_worker(PYTHONPATH=str(tmp_path))
    world.speak("With another version.")
    assert "preparing voice" in other.log.read_text()


def test_engine_errors_reach_the_job(world: World) -> None:
    world.start_worker()
    assert world.wait_for(world.submit("now fault-fail")) == "synthesis_failed"
    assert world.wait_for(world.submit("now fault-crash")) == "worker_lost"
    assert world.wait_for(world.submit("And the next one.")) == "ready"


def test_cancelled_job_stops_at_the_worker(world: World) -> None:
    worker = world.start_worker()
    job_id = world.submit(SLOW + "and on " * 400)
    world.wait_for_step(job_id)
    world.client.delete(f"/v1/jobs/{job_id}").raise_for_status()
    assert world.wait_for(job_id) == "cancelled"
    world.speak("The worker goes on.")
    assert worker.stop() == 0


def test_local_and_remote_workers_share_the_jobs(tmp_path: Path) -> None:
    with open_world(tmp_path, AFTERWORDS_WORKERS="1") as world:
        world.speak("The voice is prepared now.")
        worker = world.start_worker()
        worker.wait_for_log("is ready")
        jobs = [world.submit(f"{SLOW} {number}") for number in range(40)]  # the local engine speaks 16 at once
        assert {world.wait_for(job_id) for job_id in jobs} == {"ready"}
        names = {query_one(world.served, "SELECT worker FROM jobs WHERE job_id = ?", job_id) for job_id in jobs}
        assert {name.startswith("local-") for name in names} == {True, False}
        assert {count_attempts(world.served, job_id) for job_id in jobs} == {1}


def test_backends_of_connected_workers_are_offered(tmp_path: Path) -> None:
    with open_world(tmp_path, AFTERWORDS_WORKERS="1", AFTERWORDS_BACKENDS="lite") as world:
        assert world.offered() == ["lite"]
        world.client.delete(f"/v1/voices/{world.voice_id}").raise_for_status()  # preparing it takes 10 s
        world.start_worker()
        wait_until(lambda: world.offered() == ["lite", "tone"], what="the backend of the worker")
        world.voice_id = register(world.client, backend="tone")
        assert world.wait_for(world.submit("By the worker.", backend="tone")) == "ready"


# -- faults ---------------------------------------------------------------------------------------------------


def test_job_of_killed_worker_is_retried(world: World) -> None:
    first = world.start_worker()
    world.speak("The voice is prepared now.")
    job_id = world.submit(SLOW)
    world.wait_for_step(job_id)
    first.stop(signal.SIGKILL)
    world.start_worker()
    assert world.wait_for(job_id) == "ready"
    assert count_attempts(world.served, job_id) == 2


def test_stream_of_killed_worker_ends_with_an_error(world: World) -> None:
    worker = world.start_worker()
    world.speak("The voice is prepared now.")
    body = {"voice_id": world.voice_id, "text": unique(SLOW * 8), "stream": True, "response_format": "pcm"}
    with world.client.stream("POST", "/v1/synthesize", json=body) as answer:
        chunks = answer.iter_raw()
        next(chunks)
        worker.stop(signal.SIGKILL)
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in chunks:
                pass


def test_terminated_worker_finishes_its_job(world: World) -> None:
    worker = world.start_worker()
    job_id = world.submit(SLOW)
    world.wait_for_step(job_id)
    assert worker.stop() == 0
    assert world.wait_for(job_id) == "ready"
    assert count_attempts(world.served, job_id) == 1


def test_terminated_worker_releases_long_jobs(world: World) -> None:
    worker = world.start_worker(AFTERWORDS_DRAIN_S="0")
    job_id = world.submit(SLOW + "and on " * 300)
    world.wait_for_step(job_id)
    assert worker.stop() == 0
    assert query_one(world.served, "SELECT lease_expires FROM jobs WHERE job_id = ?", job_id) is None
    assert query_one(world.served, "SELECT returned FROM jobs WHERE job_id = ?", job_id) == 1
    world.client.delete(f"/v1/jobs/{job_id}").raise_for_status()


def test_worker_waits_for_a_server_that_restarts(tmp_path: Path) -> None:
    with open_world(tmp_path) as world:
        world.served.port = int(world.served.url.rpartition(":")[2])
        worker = world.start_worker()
        world.speak("The voice is prepared now.")
        job_id = world.submit(SLOW)
        world.wait_for_step(job_id)
        world.served.stop()
        worker.wait_for_log("the server is away")
        world.client.close()
        world.served.start()
        world.client = world.served.client()
        assert world.wait_for(job_id) == "ready"
        world.speak("After the restart.")
        assert worker.log.read_text().count("the server is away") == 1


def test_cut_upload_of_audio_is_repeated(world: World) -> None:
    with CuttingProxy(world.served.url) as proxy:
        world.start_worker(url=proxy.url)
        job_id = world.submit("Speech whose upload is cut in the middle. " * 8)
        assert world.wait_for(job_id) == "ready"
        assert proxy.n_cut == 1
        assert count_attempts(world.served, job_id) == 1


def test_cut_stream_is_completed_from_the_result(world: World) -> None:
    with CuttingProxy(world.served.url, path=b"/stream?") as proxy:
        world.start_worker(url=proxy.url)
        world.speak("The voice is prepared now.")
        body = {"voice_id": world.voice_id, "text": unique(SLOW), "stream": True, "response_format": "pcm"}
        answer = world.client.post("/v1/synthesize", json=body)
        assert proxy.n_cut == 1
    assert answer.status_code == 200
    job_id = answer.headers["x-job-id"]
    assert world.wait_for(job_id) == "ready"
    assert world.client.get(f"/v1/jobs/{job_id}/audio").content == answer.content
    assert count_attempts(world.served, job_id) == 1


class CuttingProxy:
    """A TCP proxy that cuts the first request to a path after 20 kB."""

    def __init__(self, url: str, *, path: bytes = b"/audio ") -> None:
        self._path = path
        host, _, port = url.removeprefix("http://").rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.n_cut = 0

    def __enter__(self) -> CuttingProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            threading.Thread(target=self._copy, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._copy, args=(server, client, False), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, is_request: bool) -> None:
        n_left = None
        with closing(source), closing(sink), suppress(OSError):
            while data := source.recv(4096):
                if is_request and not self.n_cut and self._path in data.partition(b"\r\n")[0] + b" ":
                    n_left = 20_000
                if n_left is not None:
                    n_left -= len(data)
                    if n_left < 0:
                        self.n_cut += 1
                        source.shutdown(socket.SHUT_RDWR)
                        sink.shutdown(socket.SHUT_RDWR)
                        return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("hours", [-1, 1])
def test_clock_of_the_worker_does_not_matter(tmp_path: Path, world: World, hours: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        f"import time\nreal = time.time\ntime.time = lambda: real() + {3600 * hours}\n"
    )
    world.start_worker(PYTHONPATH=str(tmp_path))
    job_id = world.submit(SLOW)
    assert world.wait_for(job_id) == "ready"
    assert count_attempts(world.served, job_id) == 1


def test_claims_of_a_token_are_limited(tmp_path: Path) -> None:
    with open_world(tmp_path, AFTERWORDS_MAX_REQUESTS_PER_KEY="1") as world, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post_claim, world)
        wait_until(lambda: "1 remote worker" in httpx.get(f"{world.served.url}/readyz").text, what="the claim")
        worker = world.start_worker()
        worker.wait_for_log("answered 429")
        job_id = world.submit("For the claim that waits.")
        job = waiting.result(DEADLINE_S)
        assert job["job_id"] == job_id
        with world.served.client(job["token"]) as attempt:
            attempt.post(f"/v1/jobs/{job_id}/end", json={"outcome": "released"}).raise_for_status()
        assert world.wait_for(job_id) == "ready"
        assert count_attempts(world.served, job_id) == 2


def test_results_of_a_token_are_limited(tmp_path: Path) -> None:
    with open_world(tmp_path, AFTERWORDS_MAX_REQUESTS_PER_KEY="1") as world, ThreadPoolExecutor(1) as pool:
        jobs = {world.submit(f"Result {number}.") for number in range(2)}
        first, second = (post_claim(world) for _ in jobs)
        has_refused = threading.Event()

        def slowly() -> Iterator[bytes]:
            yield RECORDING[:1000]
            has_refused.wait(DEADLINE_S)
            yield RECORDING[1000:]

        def put(job: Mapping[str, Any], content: Any, digest: str) -> int:
            with world.served.client(job["token"]) as attempt:
                headers = {"X-Content-SHA256": digest}
                return attempt.put(f"/v1/jobs/{job['job_id']}/audio", content=content, headers=headers).status_code

        digest = sha256(RECORDING).hexdigest()

        def deliver() -> int:  # again, if the other one came first
            while (status := put(first, slowly(), digest)) == 429:
                pass
            return status

        delivering = pool.submit(deliver)
        wait_until(lambda: put(second, RECORDING, "not the digest") == 429, what="the refusal")
        has_refused.set()
        assert delivering.result(DEADLINE_S) == 200
        assert put(second, RECORDING, digest) == 200


def post_claim(world: World) -> dict[str, Any]:
    with world.served.client(world.token) as worker:
        return dict(worker.post("/v1/workers/claim", json=claim_body(wait_s=20)).raise_for_status().json()["job"])


# -- ending by itself -----------------------------------------------------------------------------------------


def test_worker_stops_after_max_jobs(world: World) -> None:
    worker = world.start_worker("--max-jobs", "2")
    jobs = [world.submit(f"Job number {number}.") for number in range(3)]
    assert worker.process.wait(DEADLINE_S) == 0
    final = [job for job in jobs if world.client.get(f"/v1/jobs/{job}").json()["status"] == "ready"]
    assert len(final) == 2
    world.start_worker()
    assert {world.wait_for(job_id) for job_id in jobs} == {"ready"}


def test_signal_stops_the_last_job_of_a_worker(world: World) -> None:
    worker = world.start_worker("--max-jobs", "1", AFTERWORDS_DRAIN_S="0")
    job_id = world.submit(SLOW + "and on " * 300)
    world.wait_for_step(job_id)
    assert worker.stop() == 0
    assert query_one(world.served, "SELECT returned FROM jobs WHERE job_id = ?", job_id) == 1
    world.client.delete(f"/v1/jobs/{job_id}").raise_for_status()


def test_worker_with_once_stops_when_no_job_waits(world: World) -> None:
    jobs = [world.submit(f"Waiting job number {number}.") for number in range(3)]
    worker = world.start_worker("--once")
    assert worker.process.wait(DEADLINE_S) == 0
    assert {world.client.get(f"/v1/jobs/{job}").json()["status"] for job in jobs} == {"ready"}


# -- tokens and versions --------------------------------------------------------------------------------------


def test_wrong_token_exits_with_3(world: World) -> None:
    worker = world.start_worker(token="awp_" + "a" * 43)
    assert worker.process.wait(DEADLINE_S) == 3
    assert "refuses the worker token" in worker.log.read_text()


def test_revoked_token_stops_its_workers(world: World) -> None:
    token = world.new_token()
    worker = world.start_worker(token=token)
    worker.wait_for_log("is ready")
    env = {"AFTERWORDS_HOME": str(world.served.home)}
    listed = run("workers", "token", "list", "--json", env=env).out
    token_id = re.findall(r'"token_id": ?"([0-9a-f-]{36})"', listed)[-1]
    assert run("workers", "token", "revoke", token_id, env=env).code == 0
    assert worker.process.wait(DEADLINE_S) == 3
    assert "revoked" in run("workers", "token", "list", env=env).out


def test_other_protocol_is_refused_with_the_versions(world: World) -> None:
    with world.served.client(world.token) as worker:
        answer = worker.post("/v1/workers/claim", json={"protocol": PROTOCOL + 1, "version": "9.9.9"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (426, "worker_protocol")
    assert "9.9.9" in answer.json()["error"]["message"]


def test_worker_of_another_protocol_exits_with_what_to_install(tmp_path: Path, world: World) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import afterwords.server.dispatch.protocol as protocol\nprotocol.PROTOCOL = 7\n"
    )
    worker = world.start_worker(PYTHONPATH=str(tmp_path))
    assert worker.process.wait(DEADLINE_S) == 2
    assert 'pip install "afterwords==' in worker.log.read_text()


def test_worker_of_another_package_version_works(world: World) -> None:
    job_id = world.submit("Claimed by another version.")
    with world.served.client(world.token) as worker:
        [job] = [worker.post("/v1/workers/claim", json=claim_body(wait_s=5)).json()["job"]]
    assert job["job_id"] == job_id
    with world.served.client(job["token"]) as attempt:
        attempt.post(f"/v1/jobs/{job_id}/end", json={"outcome": "failed", "error": "out_of_memory"}).raise_for_status()
    assert world.wait_for(job_id) == "out_of_memory"


def test_repeated_claim_returns_the_same_job(world: World) -> None:
    jobs = {world.submit(f"Repeated claim {number}.") for number in range(2)}
    body = claim_body(wait_s=5)
    with world.served.client(world.token) as worker:
        first, again = (worker.post("/v1/workers/claim", json={**body, "number": n}).json()["job"] for n in (1, 2))
        assert first == again
        settled = worker.post("/v1/workers/claim", json={**body, "number": 3, "backends": []}).json()["job"]
        assert settled == first
        other = worker.post("/v1/workers/claim", json=claim_body(wait_s=5)).json()["job"]
    assert {first["job_id"], other["job_id"]} == jobs
    for job in (first, other):
        with world.served.client(job["token"]) as attempt:
            attempt.post(f"/v1/jobs/{job['job_id']}/end", json={"outcome": "failed"}).raise_for_status()


def test_claim_of_a_worker_that_left_is_given_to_another(world: World) -> None:
    with world.served.client(world.token) as gone, pytest.raises(httpx.ReadTimeout):
        gone.post("/v1/workers/claim", json=claim_body(wait_s=20), timeout=0.5)
    job_id = world.submit("Not for the worker that left.")
    world.start_worker()
    assert world.wait_for(job_id) == "ready"
    assert query_one(world.served, "SELECT attempt - returned FROM jobs WHERE job_id = ?", job_id) == 1


def test_prompt_of_an_old_transcript_is_not_stored(world: World) -> None:
    voice_id = register(world.client)

    @contextmanager
    def claim() -> Iterator[tuple[str, httpx.Client, dict[str, str]]]:
        submit_text(world.client, voice_id, unique("Prepared for a transcript."))
        with world.served.client(world.token) as worker:
            job = worker.post("/v1/workers/claim", json=claim_body(wait_s=5)).json()["job"]
        parts = ["tone", "1", job["ref_sha256"], job["voice_lang"], job["ref_text"] or ""]
        params = {"version": "1", "digest": sha256("\0".join(parts).encode()).hexdigest()}
        path = f"/v1/jobs/{job['job_id']}"
        with world.served.client(job["token"]) as attempt:
            yield path, attempt, params
            attempt.post(f"{path}/end", json={"outcome": "failed"}).raise_for_status()

    with claim() as (path, attempt, params):
        world.client.patch(f"/v1/voices/{voice_id}", json={"ref_text": "Another transcript."}).raise_for_status()
        for part in ("checkpoint", "prompt"):
            assert attempt.put(f"{path}/{part}", params=params, content=b"old").status_code == 409
            assert attempt.get(f"{path}/{part}", params=params).status_code == 204
    with claim() as (path, attempt, params):
        for part in ("checkpoint", "prompt"):
            assert attempt.get(f"{path}/{part}", params=params).status_code == 204
            attempt.put(f"{path}/{part}", params=params, content=b"new").raise_for_status()
            assert attempt.get(f"{path}/{part}", params=params).content == b"new"


def test_repeated_delivery_of_long_audio_succeeds(world: World) -> None:
    job_id = world.submit("Delivered twice, since the first answer was lost.")
    with world.served.client(world.token) as worker:
        job = worker.post("/v1/workers/claim", json=claim_body(wait_s=5)).json()["job"]
    with world.served.client(job["token"]) as attempt:
        for _ in range(2):
            headers = {"X-Content-SHA256": sha256(RECORDING).hexdigest()}
            assert attempt.put(f"/v1/jobs/{job_id}/audio", content=RECORDING, headers=headers).status_code == 200
        body = {"job_id": job_id, "wav_b64": b64encode(RECORDING).decode()}
        assert attempt.post(f"/v1/jobs/{job_id}/complete", json=body).status_code == 200
    assert world.wait_for(job_id) == "ready"


def test_voices_to_skip_are_ids(world: World) -> None:
    with world.served.client(world.token) as worker:
        answer = worker.post("/v1/workers/claim", json=claim_body(skip_voices=["a\0b"]))
    assert answer.status_code == 422


def test_attempt_token_opens_only_its_job(world: World) -> None:
    jobs = [world.submit(f"Only my job {number}.") for number in range(2)]
    with world.served.client(world.token) as worker:
        job = worker.post("/v1/workers/claim", json=claim_body(wait_s=5)).json()["job"]
    [other] = [job_id for job_id in jobs if job_id != job["job_id"]]
    with world.served.client(job["token"]) as attempt:
        assert attempt.get(f"/v1/jobs/{job['job_id']}/reference").headers["content-type"] == "audio/wav"
        assert attempt.get(f"/v1/jobs/{other}/reference").status_code == 401
        assert attempt.post("/v1/workers/claim", json=claim_body()).status_code == 401
        assert attempt.get("/v1/voices").status_code == 401
        attempt.post(f"/v1/jobs/{job['job_id']}/end", json={"outcome": "failed"}).raise_for_status()
        assert attempt.get(f"/v1/jobs/{job['job_id']}/reference").status_code == 409
    world.client.delete(f"/v1/jobs/{other}").raise_for_status()


def test_worker_token_is_in_no_log_and_no_engine(world: World) -> None:
    worker = world.start_worker()
    world.speak("Where is the token?")
    [engine] = worker.engines()
    assert "AFTERWORDS_WORKER_TOKEN" not in engine.environ()
    attempt = re.compile(rb"awt_\d+\.[0-9a-f]")
    stored = [path for path in world.served.home.rglob("*") if path.is_file()]
    for path in (world.served.log, worker.log, *stored):
        content = path.read_bytes()
        assert world.token.encode() not in content, path
        assert not attempt.search(content), path


def test_connected_workers_are_listed(world: World) -> None:
    worker = world.start_worker()
    job_id = world.submit(SLOW)
    world.wait_for_step(job_id)
    admin = {"AFTERWORDS_ADMIN_SECRET": ADMIN_SECRET}
    done = run("workers", "list", "--url", world.served.url, "--json", env=admin)
    table = run("workers", "list", "--url", world.served.url, env=admin)
    refused = run("workers", "list", "--url", world.served.url, env={"AFTERWORDS_ADMIN_SECRET": "wrong"})
    [found] = [each for each in json.loads(done.out) if each["name"].endswith(f"-{worker.process.pid}")]
    assert (found["version"], found["backends"], found["running_jobs"]) == (__version__, ["tone"], 1)
    assert found["token_label"] is None
    assert found["name"] in table.out
    assert 0 <= found["seen_s"] < 60
    assert refused.code == 3
    assert world.wait_for(job_id) == "ready"
