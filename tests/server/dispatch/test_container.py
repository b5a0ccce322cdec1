"""Tests of the container of a service that is called, against a server that answers as a test wants."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from afterwords.errors import ServiceUnavailableError
from afterwords.models import new_id
from afterwords.server.dispatch import container
from afterwords.server.dispatch.container import Container, _HandedJobs
from afterwords.server.dispatch.protocol import HandedJob
from tests.server.dispatch.memory_queue import DEADLINE_S
from tests.server.dispatch.running import JsonHandler, serving_requests
from tests.server.dispatch.test_http_queue import JOB

pytestmark = pytest.mark.anyio
NOWHERE = "http://127.0.0.1:9"
"""The port `discard`, on which nothing listens."""


@contextmanager
def serving(begin: Callable[[str, int], object]) -> Iterator[str]:
    """Answer the begin of an attempt, whose number is in its token; nothing that it fetches arrives."""
    is_over = threading.Event()

    class Handler(JsonHandler, BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            _, _, attempt = self.headers["Authorization"].rpartition(".")
            if self.path.endswith("/begin"):
                return self.respond({"job": begin(self.path.split("/")[3], int(attempt))})
            return self.respond({"is_wanted": True})

        def do_GET(self) -> None:
            is_over.wait(DEADLINE_S)

    with serving_requests(Handler) as url:
        try:
            yield url
        finally:
            is_over.set()


def give(job_id: str, attempt: int) -> dict[str, Any]:
    return {**JOB, "job_id": job_id, "attempt": attempt, "voice_id": job_id}


def handed_job(server: str, job_id: str, attempt: int = 1) -> HandedJob:
    token = f"awt_1.{job_id}.{attempt}"
    return HandedJob(server=server, job_id=job_id, token=token, voice_id=job_id, backend="tone")


@asynccontextmanager
async def opened() -> AsyncIterator[_HandedJobs]:
    jobs = _HandedJobs()
    yield jobs
    await jobs.close()


async def test_newer_attempt_begins_while_older_one_runs() -> None:
    job_id = str(JOB["job_id"])
    with serving(give) as url:
        async with opened() as jobs:
            cancelled: list[str] = []
            jobs.cancel = cancelled.append
            older = jobs.add(handed_job(url, job_id, 1))
            assert await jobs.claim(backends=["tone"], worker="w")
            newer = jobs.add(handed_job(url, job_id, 2))
            assert not older.ended.is_set()
            claim = await jobs.claim(backends=["tone"], worker="w")
            assert claim is not None
            assert claim.job.attempt == 2
            assert older.ended.is_set()
            jobs.end(job_id, 1)
            jobs.withdraw(older)
            assert not newer.ended.is_set()
            assert cancelled == []
            jobs.withdraw(newer)
            assert cancelled == [job_id]
            jobs.end(job_id, 2)
            assert newer.ended.is_set()
            assert await jobs.heartbeat(job_id, 2)  # as its end is reported


async def test_server_that_is_away_blocks_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(give) as url:
        async with opened() as jobs:
            away = jobs.add(handed_job(NOWHERE, new_id()))
            jobs.add(handed_job(url, new_id()))
            assert await jobs.claim(backends=["tone"], worker="w")
            with pytest.raises(ServiceUnavailableError):
                await jobs.claim(backends=["tone"], worker="w")
            assert not away.ended.is_set()
            monkeypatch.setattr(container, "OUTAGE_MAX_S", 0)
            away.give_up_at = None
            assert await jobs.claim(backends=["tone"], worker="w") is None
            assert away.ended.is_set()


@pytest.mark.parametrize("answer", [None, "a login page"])
async def test_answer_without_a_job_ends_the_attempt(answer: object) -> None:
    with serving(lambda *_: answer) as url:
        async with opened() as jobs:
            handed = jobs.add(handed_job(url, new_id()))
            assert await jobs.claim(backends=["tone"], worker="w") is None
            assert handed.ended.is_set()


async def test_cancelled_call_stops_its_job_alone() -> None:
    speaker = Container("tone")
    await asyncio.to_thread(speaker.start)
    with serving(give) as url:
        calls = [asyncio.create_task(speaker.run(handed_job(url, new_id()).model_dump())) for _ in range(2)]
        await wait_for_running(speaker, 2)
        calls[0].cancel()
        await wait_for_running(speaker, 1)
        assert (await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED))[0] == {calls[0]}
        assert calls[0].cancelled()
        calls[1].cancel()
        await wait_for_running(speaker, 0)
        await asyncio.wait(calls)
    await asyncio.to_thread(speaker.stop)


async def wait_for_running(speaker: Container, n_running: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while speaker._dispatcher.n_running != n_running:
            await asyncio.sleep(0.01)
