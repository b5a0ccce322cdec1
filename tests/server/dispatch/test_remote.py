"""Tests of the dispatcher of remote workers that need no worker."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest

from afterwords import __version__
from afterwords.server.dispatch.audio_stream import AudioStreams
from afterwords.server.dispatch.protocol import PROTOCOL, ClaimBody
from afterwords.server.dispatch.remote import RemoteDispatcher
from afterwords.server.ports import AttemptQueue
from afterwords.server.records import Claim
from afterwords.server.settings import Settings
from tests.server.dispatch.memory_queue import DEADLINE_S, MemoryQueue

pytestmark = pytest.mark.anyio


class SlowQueue(MemoryQueue):
    """A queue whose claims take until `may_answer` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()

    async def claim(self, **wish: Any) -> Claim | None:
        claim = await super().claim(**wish)
        await self.may_answer.wait()
        return claim


async def test_job_claimed_while_the_server_stops_is_given_back(tmp_path: Path) -> None:
    queue = SlowQueue()
    remote = RemoteDispatcher(Settings(home=tmp_path), cast("AttemptQueue", queue), AudioStreams(tmp_path))
    body = ClaimBody(
        protocol=PROTOCOL,
        version=__version__,
        worker="w",
        claim_id=str(uuid4()),
        number=1,
        offers={},
        backends=["tone"],
        skip_voices=[],
        wait_s=25,
    )
    job_id = queue.submit("A text.")
    await remote.start()
    polling = asyncio.create_task(remote.claim(body, token_id=str(uuid4())))
    await queue.wait_until(lambda: job_id in queue.claimed)
    stopping = asyncio.create_task(remote.stop(grace_s=DEADLINE_S))
    assert await polling is None
    queue.may_answer.set()
    await stopping
    assert queue.calls_for(job_id) == ["claimed", "release"]
