"""Remote workers of several servers: claims, streams and results at different ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from threading import Event
from typing import Any
from uuid import uuid4

import pytest

from afterwords.client.profiles import Access
from afterwords.server.dispatch.http_queue import HttpJobQueue
from tests.e2e.served import DEADLINE_S, RECORDING, Served, register
from tests.e2e.workers import SLOW, World, claim_body, open_world, unique

PCM = RECORDING[44:]
"""The audio that workers of these tests deliver."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("several"), AFTERWORDS_LEASE_S="10") as world:
        yield world


@pytest.fixture(scope="module")
def other(world: World) -> Iterator[Served]:
    """Return a second server with the same database and storage."""
    served = Served(world.served.home, world.served.settings)
    served.log = world.folder / "second.log"
    try:
        yield served.start()
    finally:
        if served.is_running:
            served.stop()


def claim(served: Served, token: str, **fields: Any) -> dict[str, Any]:
    with served.client(token) as worker:
        answer = worker.post("/v1/workers/claim", json=claim_body(wait_s=20, **fields)).raise_for_status()
    return dict(answer.json()["job"])


def deliver(served: Served, job: dict[str, Any]) -> None:
    with served.client(job["token"]) as attempt:
        headers = {"X-Content-SHA256": sha256(RECORDING).hexdigest()}
        attempt.put(f"/v1/jobs/{job['job_id']}/audio", content=RECORDING, headers=headers).raise_for_status()


class Listening:
    """A client that receives a stream in a thread."""

    def __init__(self, world: World, pool: ThreadPoolExecutor) -> None:
        self.has_begun = Event()
        self.received = pool.submit(self._receive, world)

    def _receive(self, world: World) -> bytes:
        body = {"voice_id": world.voice_id, "text": unique(SLOW), "stream": True, "response_format": "pcm"}
        received = bytearray()
        with world.served.client() as client, client.stream("POST", "/v1/synthesize", json=body) as answer:
            for chunk in answer.iter_raw():
                received += chunk
                self.has_begun.set()
        return bytes(received)


def test_stream_continues_if_another_server_gets_the_audio(world: World, other: Served) -> None:
    with ThreadPoolExecutor(2) as pool:
        client = Listening(world, pool)
        job = claim(world.served, world.token)
        assert job["is_streamed"]
        is_over = Event()

        def half() -> Iterator[bytes]:
            yield PCM[: len(PCM) // 4 * 2]
            is_over.wait(DEADLINE_S)

        def send() -> None:
            with world.served.client(job["token"]) as attempt:
                attempt.post(f"/v1/jobs/{job['job_id']}/stream", params={"sample_rate": 16_000}, content=half())

        try:
            sending = pool.submit(send)
            assert client.has_begun.wait(DEADLINE_S)
            deliver(other, job)
            assert client.received.result(DEADLINE_S) == PCM
        finally:
            is_over.set()
        sending.result(DEADLINE_S)


def test_stream_of_a_job_of_another_server_follows(world: World, other: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        client = Listening(world, pool)
        job = claim(other, world.token)
        assert not job["is_streamed"]
        deliver(other, job)
        assert client.received.result(DEADLINE_S) == PCM


def test_cancel_reaches_a_worker_that_sends_no_heartbeat(world: World, other: Served) -> None:
    async def run() -> None:
        queue, cancelled = HttpJobQueue(Access(other.url), world.token, name="test"), asyncio.Queue[str]()
        queue.cancel = cancelled.put_nowait
        job_id = world.submit(SLOW)
        try:
            claim = await queue.claim(backends=["tone"], worker="")
            assert claim is not None
            world.client.delete(f"/v1/jobs/{job_id}").raise_for_status()
            assert await asyncio.wait_for(cancelled.get(), DEADLINE_S) == job_id
        finally:
            await queue.close()

    asyncio.run(run())


def test_lost_claim_is_found_by_another_server(world: World, other: Served) -> None:
    jobs = {world.submit(f"A claim whose answer is lost, {number}") for number in range(2)}
    claim_id = str(uuid4())
    lost = claim(other, world.token, claim_id=claim_id)
    again = claim(world.served, world.token, claim_id=claim_id, number=2, is_repeated=True)
    assert (again["job_id"], again["attempt"], again["token"]) == (lost["job_id"], 1, lost["token"])
    deliver(world.served, again)
    second = claim(world.served, world.token, claim_id=str(uuid4()), is_repeated=True)
    assert {again["job_id"], second["job_id"]} == jobs
    deliver(world.served, second)


def test_lost_claim_is_not_found_with_another_token(world: World, other: Served) -> None:
    job_id = world.submit("Claimed with one token.")
    claim_id, token = str(uuid4()), world.new_token()
    job = claim(other, world.token, claim_id=claim_id)
    again = claim_body(claim_id=claim_id, number=2, is_repeated=True, backends=[])
    with world.served.client(token) as unknown:
        assert unknown.post("/v1/workers/claim", json=again).json() == {"job": None}
    assert job["job_id"] == job_id
    deliver(world.served, job)


def test_workers_ask_which_voices_are_deleted(world: World, other: Served) -> None:
    voice_id = register(world.client)
    world.client.delete(f"/v1/voices/{voice_id}").raise_for_status()

    async def find(*voice_ids: str) -> set[str]:
        queue = HttpJobQueue(Access(other.url), world.token, name="test")
        try:
            return await queue.find_deleted(voice_ids)
        finally:
            await queue.close()

    assert asyncio.run(find(world.voice_id, voice_id, str(uuid4()))) == {voice_id}
    with world.served.client() as user:
        assert user.post("/v1/workers/deleted", json={"voice_ids": [voice_id]}).status_code == 401
