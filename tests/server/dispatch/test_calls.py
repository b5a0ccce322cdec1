"""Dispatchers that call a service, whose HTTP edge answers what a test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from pydantic import SecretStr

from afterwords.errors import ServerSetupError, StaleAttemptError, StorageUnavailableError
from afterwords.models import JobStatus, new_id
from afterwords.server.dispatch.calls import CallDispatcher, NotCalledError
from afterwords.server.dispatch.runpod import RunPodDispatcher
from afterwords.server.dispatch.trigger import Trigger
from afterwords.server.records import Claim
from afterwords.server.settings import Settings
from tests.server.dispatch.memory_queue import MemoryQueue
from tests.server.dispatch.running import eventually

pytestmark = pytest.mark.anyio


class CallQueue(MemoryQueue):
    """Implements the part of the port AttemptQueue that calls need."""

    async def heartbeat(self, job_id: str, attempt: int, *, lease_s: float | None = None) -> bool:
        is_held = await super().heartbeat(job_id, attempt)
        self.jobs[job_id] = replace(self.jobs[job_id], lease_expires=time.monotonic() + (lease_s or 0.3))
        return is_held

    async def is_wanted(self, job_id: str, attempt: int, *, wait_s: float) -> bool:
        raise NotImplementedError

    async def find_claimed(self, worker: str) -> Claim | None:
        raise NotImplementedError

    async def find_claim(self, job_id: str, attempt: int, *, may_be_final: bool = False) -> Claim:  # noqa: ARG002
        self._note("find_claim", job_id)
        if not self._holds(job_id, attempt):
            raise StaleAttemptError
        job = self.jobs[job_id]
        return Claim(job, self._voice(job.voice_id))

    def attempt_token(self, job_id: str, attempt: int, *, claimed_with: str | None = None) -> str:  # noqa: ARG002
        return f"awt_1.{job_id}.{attempt}"

    def subscribe(self, on_final: Callable[[str], None]) -> None:
        pass


@pytest.fixture
def queue() -> CallQueue:
    return CallQueue()


@dataclass
class Edge:
    """The HTTP edge of a service.

    Attributes:
        answers: The content of its answers, by path; empty JSON for others.
        received: The paths that were called.
    """

    url: str = ""
    answers: dict[str, bytes] = field(default_factory=dict)
    received: list[str] = field(default_factory=list)

    async def respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        except asyncio.IncompleteReadError:  # connected, and sent nothing
            writer.close()
            return
        if "content-length: " in head:
            await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
        path = head.split()[1]
        self.received.append(path)
        content = self.answers.get(path, b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))
        await writer.drain()
        writer.close()


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    edge = Edge()
    async with await asyncio.start_server(edge.respond, "127.0.0.1", 0) as server:
        edge.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield edge


@asynccontextmanager
async def running(dispatcher: CallDispatcher) -> AsyncIterator[CallDispatcher]:
    await dispatcher.start()
    try:
        yield dispatcher
    finally:
        await dispatcher.stop(grace_s=0)


def trigger(edge: Edge, queue: CallQueue, **options: object) -> CallDispatcher:
    settings = Settings.model_validate({"backends": ("tone",), **options})
    return CallDispatcher(settings, queue, Trigger(settings, queue, f"{edge.url}/trigger"))


def runpod(edge: Edge, queue: CallQueue, *, key: str = "rpa_1") -> CallDispatcher:
    settings = Settings(backends=("tone",), runpod_url=edge.url, runpod_api_key=SecretStr(key), lease_s=0.3)
    return RunPodDispatcher(settings, queue, streams=None)  # type: ignore[arg-type]  # it uses none


async def test_short_outage_of_the_storage_delays_a_call(edge: Edge, queue: CallQueue) -> None:
    queue.errors["reference"] = StorageUnavailableError()
    async with running(trigger(edge, queue)):
        job_id = queue.submit("hello")
        await queue.wait_until(lambda: queue.calls.count(("reference", "me")) >= 2)
        queue.errors.clear()
        await eventually(lambda: edge.received == ["/trigger"])
        assert queue.calls_for(job_id)[:2] == ["claimed", "find_claim"]
        assert "release" not in queue.calls_for(job_id)


async def test_lasting_outage_of_the_storage_uses_no_attempt(edge: Edge, queue: CallQueue) -> None:
    queue.errors["reference"] = StorageUnavailableError()
    async with running(trigger(edge, queue, lease_s=0.1)) as dispatcher:
        job_id = queue.submit("hello")
        await queue.wait_until(lambda: queue.calls_for(job_id) == ["claimed", "find_claim", "release"])
        await eventually(lambda: "recordings can't be read (storage_unavailable)" in dispatcher.state)
        queue.errors.clear()
        await eventually(lambda: edge.received == ["/trigger"])
        assert queue.jobs[job_id].attempt == 1


async def test_answer_that_is_not_json_leaves_the_job_to_its_lease(edge: Edge, queue: CallQueue) -> None:
    edge.answers["/run"] = b"<html>"
    async with running(runpod(edge, queue)) as dispatcher:
        job_id = queue.submit("hello", voice=new_id())
        await queue.wait_until(lambda: queue.calls.count(("find_claim", job_id)) >= 2)
        assert dispatcher.state == "runpod: did not answer with JSON: check AFTERWORDS_RUNPOD_URL"
        assert queue.outcome(job_id) == "pending"


async def test_key_with_a_line_break_is_named_and_uses_no_attempt(edge: Edge, queue: CallQueue) -> None:
    async with running(runpod(edge, queue, key="rpa_1\r\n")) as dispatcher:
        job_id = queue.submit("hello", voice=new_id())
        await queue.wait_until(lambda: queue.calls_for(job_id) == ["claimed", "find_claim", "release"])
        await eventually(lambda: "check AFTERWORDS_RUNPOD_API_KEY" in dispatcher.state)
        assert edge.received == []


@pytest.mark.parametrize(
    ("status", "state", "is_stopped"), [("ready", "COMPLETED", False), ("cancelled", "IN_PROGRESS", True)]
)
async def test_call_that_goes_on_after_its_job_is_stopped(
    edge: Edge, queue: CallQueue, status: str, state: str, is_stopped: bool
) -> None:
    edge.answers |= {"/run": b'{"id": "c1"}', "/status/c1": b'{"status": "IN_PROGRESS"}'}
    async with running(runpod(edge, queue)) as dispatcher:
        job_id = queue.submit("hello", voice=new_id())
        await eventually(lambda: "/status/c1" in edge.received)
        edge.received.clear()
        edge.answers["/status/c1"] = b'{"status": "%s"}' % state.encode()
        queue._end(job_id, status=JobStatus(status))  # by another server
        dispatcher.cancel(job_id)
        await eventually(lambda: edge.received[-1:] == ["/cancel/c1" if is_stopped else "/status/c1"])
    assert ("/cancel/c1" in edge.received) is is_stopped


async def test_backend_without_an_app_does_not_hold_up_others(edge: Edge, queue: CallQueue) -> None:
    class OneApp(Trigger):
        async def call(self, claim: Claim) -> None:
            if claim.job.backend == "lite":
                raise NotCalledError("has no such app")
            await super().call(claim)

    settings = Settings(backends=("lite", "tone"))
    service = OneApp(settings, queue, f"{edge.url}/trigger")
    async with running(CallDispatcher(settings, queue, service)) as dispatcher:
        waiting = queue.submit("hello", backend="lite")
        await eventually(lambda: dispatcher.state == "modal: lite has no such app")
        assert dispatcher.is_ready
        job_id = queue.submit("hello")
        dispatcher.wake()
        await eventually(lambda: edge.received == ["/trigger"])
        assert queue.calls_for(job_id)[:2] == ["claimed", "find_claim"]
        assert "release" not in queue.calls_for(job_id)
        assert queue.calls_for(waiting)[:3] == ["claimed", "find_claim", "release"]


def test_several_backends_are_refused_for_an_endpoint() -> None:
    settings = Settings(backends=("lite", "tone"), runpod_url="http://127.0.0.1:1", runpod_api_key=SecretStr("rpa_1"))
    with pytest.raises(ServerSetupError, match="runs one backend"):
        RunPodDispatcher.check(settings)


def test_key_outside_ascii_is_refused() -> None:
    url = "http://127.0.0.1:1"
    settings = Settings(public_url=url, backends=("tone",), runpod_url=url, runpod_api_key=SecretStr("rpa_…"))
    with pytest.raises(ServerSetupError, match="characters outside ASCII"):
        RunPodDispatcher.check(settings)


async def test_lease_is_renewed_until_a_container_begins(edge: Edge, queue: CallQueue) -> None:
    edge.answers |= {"/run": b'{"id": "c1"}', "/status/c1": b'{"status": "IN_PROGRESS"}'}
    async with running(runpod(edge, queue)):
        job_id = queue.submit("hello", voice=new_id())
        await queue.wait_until(lambda: queue.calls.count(("heartbeat", job_id)) >= 3)
        await eventually(lambda: queue.calls[-1] == ("find_claim", job_id))
        await queue.heartbeat(job_id, 1)  # by a container
        begun = len(queue.calls)
        await queue.wait_until(lambda: queue.calls[begun:].count(("find_claim", job_id)) >= 3)
        assert ("heartbeat", job_id) not in queue.calls[begun:]
