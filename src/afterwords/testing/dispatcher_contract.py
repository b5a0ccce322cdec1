"""The contract of every dispatcher, as tests to inherit: they run over HTTP, against a real server.

from afterwords.testing import DispatcherContract

class TestMyDispatcher(DispatcherContract):
    settings = {"dispatcher": "mine"}

    def kill_worker(self, server):
        os.kill(..., signal.SIGKILL)
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Final

import httpx
import pytest

from afterwords.audio.wav import read_wav
from afterwords.backends.tone import SAMPLE_RATE, SECONDS_PER_CHARACTER
from afterwords.models import Alignment
from afterwords.testing.running import RunningServer

DEADLINE_S: Final = 120.0
LEASE_S: Final = 2.0
"""Short, since a worker reports the step of a job at each renewal, and the shortest job takes a second."""
SLOW: Final = "fault-slow, four characters take 50 ms, so that this takes about a second to say: and on and on"
ENDLESS: Final = SLOW + 40 * " and so on, and so on, and so on, and so on"


class DispatcherContract:
    """Inherit it, and name the dispatcher in `settings`; override `kill_worker` and `drain_worker` if it has workers.

    Attributes:
        settings: Settings of the server.
    """

    settings: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
        """Run a server with the dispatcher, and whatever speaks for it. Override it to start workers."""
        with cls.new_server(tmp_path_factory.mktemp("server") / "home") as server:
            yield server

    @classmethod
    def new_server(cls, home: Path) -> RunningServer:
        """Return a server with the dispatcher."""
        options = {"lease_s": LEASE_S, "drain_s": DEADLINE_S, "rate_limit": 0, **cls.settings}
        return RunningServer(home, **options)

    def kill_worker(self, server: RunningServer) -> None:  # noqa: ARG002 - subclasses use it
        """Kill what speaks, without warning, and replace it."""
        pytest.skip("this dispatcher has no workers that a test can kill")

    def drain_worker(self, server: RunningServer) -> None:  # noqa: ARG002 - likewise
        """Stop what speaks in an orderly way, with no time to finish, and replace it."""
        pytest.skip("this dispatcher has no workers that a test can stop")

    @pytest.fixture
    def client(self, server: RunningServer) -> Iterator[httpx.Client]:
        """Return a client with an account of its own."""
        with _client(server, server.new_key()) as client:
            yield client

    @pytest.fixture
    def voice_id(self, client: httpx.Client) -> str:
        reference = (files("afterwords") / "data" / "reader.wav").read_bytes()
        upload = {"ref_audio": ("me.wav", reference, "audio/wav")}
        return str(_json(client.post("/v1/voices", data={"name": "me"}, files=upload))["voice_id"])

    # -- what the tests call

    def submit(self, client: httpx.Client, voice_id: str, text: str) -> str:
        """Submit a text, and return the job."""
        return str(_json(client.post("/v1/synthesize", json={"voice_id": voice_id, "text": text}))["job_id"])

    def wait_for(self, client: httpx.Client, job_id: str) -> str:
        """Wait until a job is final, and return its status or error."""
        end = time.monotonic() + DEADLINE_S
        while (job := _json(client.get(f"/v1/jobs/{job_id}", params={"wait": 5})))["status"] == "pending":
            assert time.monotonic() < end, f"the job is still {job['step']}"
        return str(job["error"] or job["status"])

    def wait_until_speaking(self, client: httpx.Client, job_id: str) -> None:
        """Wait until a job is being spoken."""
        _wait_until(lambda: _json(client.get(f"/v1/jobs/{job_id}"))["step"] == "speaking")

    def attempts(self, server: RunningServer, *job_ids: str) -> list[int]:
        """Return how often each job was claimed, and not returned."""

        async def read() -> list[int]:
            from afterwords.server.app_state import open_store

            store = open_store(server.settings)
            await store.open()
            try:
                jobs = [await store.get_job(job_id) for job_id in job_ids]
            finally:
                await store.close()
            return [job.attempt - job.returned if job else 0 for job in jobs]

        return asyncio.run(read())

    # -- the contract

    def test_job_is_spoken(self, client: httpx.Client, voice_id: str) -> None:
        text = "A text that is spoken."
        job_id = self.submit(client, voice_id, text)
        assert self.wait_for(client, job_id) == "ready"
        samples, sample_rate = read_wav(client.get(f"/v1/jobs/{job_id}/audio").content)
        assert (len(samples), sample_rate) == (round(SECONDS_PER_CHARACTER * len(text) * SAMPLE_RATE), SAMPLE_RATE)

    def test_many_jobs_are_each_spoken_once(self, server: RunningServer, client: httpx.Client, voice_id: str) -> None:
        jobs = [self.submit(client, voice_id, f"Number {number}.") for number in range(30)]
        assert {self.wait_for(client, job_id) for job_id in jobs} == {"ready"}
        assert set(self.attempts(server, *jobs)) == {1}

    def test_stream_is_the_audio_of_the_job(self, client: httpx.Client, voice_id: str) -> None:
        self.wait_for(client, self.submit(client, voice_id, "The voice is prepared."))
        body = {"voice_id": voice_id, "text": SLOW, "stream": True, "response_format": "pcm"}
        with client.stream("POST", "/v1/synthesize", json=body) as answer:
            assert answer.status_code == 200, answer.read()
            job_id = answer.headers["x-job-id"]
            chunks = list(answer.iter_raw())
        assert self.wait_for(client, job_id) == "ready"
        assert client.get(f"/v1/jobs/{job_id}/audio").content == b"".join(chunks)
        assert len(b"".join(chunks)) == 2 * round(SECONDS_PER_CHARACTER * len(SLOW) * SAMPLE_RATE)

    def test_words_are_streamed_with_the_audio(self, client: httpx.Client, voice_id: str) -> None:
        self.wait_for(client, self.submit(client, voice_id, "The voice is prepared."))
        body = {"input": SLOW, "voice": voice_id, "stream_format": "sse", "word_timestamps": True}
        with client.stream("POST", "/v1/audio/speech", json=body) as answer:
            assert answer.status_code == 200, answer.read()
            job_id = answer.headers["x-job-id"]
            events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
        assert self.wait_for(client, job_id) == "ready"
        found = [word for event in events for word in event.get("words", ())]
        times = Alignment.model_validate(_json(client.get(f"/v1/jobs/{job_id}/timestamps")))
        assert [word["word"] for word in found] == [word.text for word in times.words]

    def test_engine_failure_fails_the_job(self, client: httpx.Client, voice_id: str) -> None:
        assert self.wait_for(client, self.submit(client, voice_id, "now fault-fail")) == "synthesis_failed"
        assert self.wait_for(client, self.submit(client, voice_id, "The next one is spoken.")) == "ready"

    def test_crash_fails_only_its_own_job(self, client: httpx.Client, voice_id: str) -> None:
        poison, innocent = (self.submit(client, voice_id, text) for text in ("now fault-crash", "An innocent text."))
        assert self.wait_for(client, poison) == "worker_lost"
        assert self.wait_for(client, innocent) == "ready"

    def test_runaway_audio_fails_the_job(self, client: httpx.Client, voice_id: str) -> None:
        body = {"voice_id": voice_id, "text": "fault-runaway is longer than speech can be."}
        assert self.wait_for(client, _json(client.post("/v1/synthesize", json=body))["job_id"]) == "runaway_audio"

    def test_cancelled_job_makes_room(self, client: httpx.Client, voice_id: str) -> None:
        self.wait_for(client, self.submit(client, voice_id, "The voice is prepared."))
        endless = [self.submit(client, voice_id, f"{ENDLESS} {number}") for number in range(16)]
        self.wait_until_speaking(client, endless[0])
        for job_id in endless:
            assert _json(client.delete(f"/v1/jobs/{job_id}"))["status"] == "cancelled"
        assert self.wait_for(client, self.submit(client, voice_id, "There is room for this one.")) == "ready"

    def test_job_of_killed_worker_is_spoken_by_another(
        self, server: RunningServer, client: httpx.Client, voice_id: str
    ) -> None:
        job_id = self.submit(client, voice_id, SLOW)
        self.wait_until_speaking(client, job_id)
        self.kill_worker(server)
        assert self.wait_for(client, job_id) == "ready"
        assert self.attempts(server, job_id) == [2]

    def test_job_of_stopped_worker_uses_no_attempt(
        self, server: RunningServer, client: httpx.Client, voice_id: str
    ) -> None:
        job_id = self.submit(client, voice_id, SLOW)
        self.wait_until_speaking(client, job_id)
        self.drain_worker(server)
        assert self.wait_for(client, job_id) == "ready"
        assert self.attempts(server, job_id) == [1]

    def test_two_servers_speak_no_job_twice(self, server: RunningServer, client: httpx.Client, voice_id: str) -> None:
        key = client.headers["Authorization"].removeprefix("Bearer ")
        with self.new_server(server.settings.home) as other, _client(other, key) as second:
            jobs = [
                self.submit(each, voice_id, f"Number {number} for server {place}.")  # an equal text may be cached
                for number in range(8)
                for place, each in enumerate((client, second))
            ]
            assert {self.wait_for(client, job_id) for job_id in jobs} == {"ready"}
            assert set(self.attempts(server, *jobs)) == {1}


def _client(server: RunningServer, key: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=DEADLINE_S, trust_env=False)


def _json(answer: httpx.Response) -> dict[str, Any]:
    assert answer.is_success, answer.text
    return dict(answer.json())


def _wait_until(predicate: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not predicate():
        assert time.monotonic() < end
        time.sleep(0.02)
