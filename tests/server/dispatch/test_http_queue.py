"""Tests of the queue of remote workers against a server of which only the answers to claims matter."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from afterwords.client.profiles import Access
from afterwords.models import LexiconEntry, Reading
from afterwords.server.dispatch import http_queue
from afterwords.server.dispatch.http_queue import HttpJobQueue
from afterwords.server.dispatch.protocol import ClaimedJob
from tests.server.dispatch.memory_queue import DEADLINE_S
from tests.server.dispatch.running import JsonHandler, serving_requests

pytestmark = pytest.mark.anyio
JOB = {
    "token": "awt_1.x",
    "lease_s": 15,
    "is_streamed": False,
    "job_id": "31c3c1a6-0d5c-4bd4-a8cf-1b5eb6e0a3f1",
    "attempt": 1,
    "returned": 0,
    "backend": "tone",
    "lang": "en",
    "text": "A text.",
    "speed": 1,
    "seed": None,
    "voice_id": "3a07b2f8-4a3c-4f43-9a4e-8f1f6f9d5d0e",
    "voice_lang": "en",
    "ref_sha256": "0" * 64,
    "ref_text": None,
}


@contextmanager
def serve_claims(answer: Callable[[dict[str, Any]], object]) -> Iterator[str]:
    """Answer each claim with a job, and yield the URL."""

    class Handler(JsonHandler, BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.respond({"job": answer(body)})

    with serving_requests(Handler) as url:
        yield url


async def test_job_that_another_server_gives_late_is_taken() -> None:
    """Of two servers behind one address, the one that ends the wait does not know the poll at the other one."""
    asked, ended = threading.Event(), threading.Event()

    def answer(body: dict[str, Any]) -> object:
        if not body["backends"]:
            ended.set()
            return None
        asked.set()
        assert ended.wait(DEADLINE_S)
        return JOB

    with serve_claims(answer) as url:
        queue = HttpJobQueue(Access(url), "awp_x", name="test")
        claiming = asyncio.create_task(queue.claim(backends=["tone"], worker="w"))
        await asyncio.to_thread(asked.wait, DEADLINE_S)
        queue.interrupt()
        claim = await claiming
        await queue.close()
    assert claim is not None
    assert claim.job.job_id == JOB["job_id"]


async def test_claim_says_how_the_text_is_read() -> None:
    reading = Reading(lexicon=(LexiconEntry(word="nginx", alias="engine x"),), emotions=("happy",)).model_dump_json()
    claim = ClaimedJob.model_validate(JOB).as_claim()
    sent = ClaimedJob.from_claim(
        replace(
            claim, job=replace(claim.job, reading=reading), voice=replace(claim.voice, metadata={"note": "secret"})
        ),
        token="awt_1.x",
        lease_s=15,
        is_streamed=False,
    )
    with serve_claims(lambda _body: json.loads(sent.model_dump_json())) as url:
        queue = HttpJobQueue(Access(url), "awp_x", name="test")
        claimed = await queue.claim(backends=["tone"], worker="w")
        await queue.close()
    assert claimed is not None
    assert (claimed.job.reading, claimed.voice.metadata) == (reading, {})


async def test_idle_worker_forgets_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_queue, "CACHE_TTL_S", 0.05)
    recording = b"a voice" * 1000
    n_before = sys.getrefcount(recording)
    asked = threading.Semaphore(0)

    def answer(body: dict[str, Any]) -> object:
        asked.release()
        return None

    with serve_claims(answer) as url:
        queue = HttpJobQueue(Access(url), "awp_x", name="test")
        waiting = asyncio.create_task(queue.claim(backends=["tone"], worker="w"))
        await asyncio.to_thread(asked.acquire)
        queue._keep(("reference", "voice", "digest"), recording)
        assert sys.getrefcount(recording) > n_before
        async with asyncio.timeout(DEADLINE_S):
            while sys.getrefcount(recording) > n_before:
                await asyncio.to_thread(asked.acquire)
        queue.interrupt()
        await waiting
        await queue.close()


async def test_claim_after_a_lost_answer_says_so() -> None:
    bodies: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> object:
        bodies.append(body)
        if len(bodies) == 1:
            raise ConnectionResetError
        return JOB if len(bodies) == 2 else None

    with serve_claims(answer) as url:
        queue = HttpJobQueue(Access(url), "awp_x", name="test", once=True)
        assert await queue.claim(backends=["tone"], worker="w")
        assert await queue.claim(backends=["tone"], worker="w") is None
        await queue.close()
    lost, repeated, next_one = bodies
    assert lost["claim_id"] == repeated["claim_id"] != next_one["claim_id"]
    assert [body["is_repeated"] for body in bodies] == [False, True, False]
