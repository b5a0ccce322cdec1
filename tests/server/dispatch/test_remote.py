"""Tests of the dispatcher of remote workers that need no worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest

from afterwords import __version__
from afterwords.errors import InvalidRequestError
from afterwords.server.dispatch import messages
from afterwords.server.dispatch.audio_stream import AudioStreams
from afterwords.server.dispatch.local import LocalDispatcher
from afterwords.server.dispatch.protocol import PROTOCOL, ClaimBody, Offer
from afterwords.server.dispatch.remote import CombinedDispatcher, RemoteDispatcher
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


def new_claim() -> ClaimBody:
    return ClaimBody(
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


async def test_only_workers_with_preparations_get_new_voices(tmp_path: Path, queue: MemoryQueue) -> None:
    remote = RemoteDispatcher(Settings(home=tmp_path), cast("AttemptQueue", queue), AudioStreams(tmp_path))
    offer = Offer(languages=frozenset({"en"}), prompt_version="1")
    token_id = str(uuid4())

    async def claim(**facts: object) -> set[str]:
        body = new_claim().model_copy(update={"offers": {"tone": offer, "lite": offer}, "backends": [], **facts})
        assert await remote.claim(body, token_id=token_id) is None
        return {*remote.prepares}

    assert await claim() == set()
    assert await claim(prepare=["tone"]) == {"tone"}
    assert await claim() == {"tone"}, "it is only busy"
    assert await claim(offers={"lite": offer}) == set()


async def test_job_claimed_while_the_server_stops_is_given_back(tmp_path: Path) -> None:
    queue = SlowQueue()
    remote = RemoteDispatcher(Settings(home=tmp_path), cast("AttemptQueue", queue), AudioStreams(tmp_path))
    job_id = queue.submit("A text.")
    await remote.start()
    polling = asyncio.create_task(remote.claim(new_claim(), token_id=str(uuid4())))
    await queue.wait_until(lambda: job_id in queue.claimed)
    stopping = asyncio.create_task(remote.stop(grace_s=DEADLINE_S))
    assert await polling is None
    queue.may_answer.set()
    await stopping
    assert queue.calls_for(job_id) == ["claimed", "release"]


async def test_all_dispatchers_stop_at_once_and_finish_streams(tmp_path: Path, queue: MemoryQueue) -> None:
    settings, streams = Settings(home=tmp_path, backends=("tone",), workers=0), AudioStreams(tmp_path)
    busy, idle = (RemoteDispatcher(settings, cast("AttemptQueue", queue), streams) for _ in range(2))
    all_of_them = CombinedDispatcher([busy, LocalDispatcher(settings, queue, streams)], idle, streams)
    job_id = queue.submit("A text.")
    await all_of_them.start()
    listener = streams.listen(job_id)
    never = streams.listen("never submitted")
    assert await busy.claim(new_claim(), token_id=str(uuid4()))
    audio = asyncio.Queue[bytes | None]()

    async def pcm() -> AsyncIterator[bytes]:
        while piece := await audio.get():
            yield piece

    receiving = asyncio.create_task(busy.receive(job_id, 1, pcm(), sample_rate=8_000))
    await audio.put(bytes(200))
    await listener.wait_until_started()
    stopping = asyncio.create_task(all_of_them.stop(grace_s=DEADLINE_S))
    assert await busy.claim(new_claim(), token_id=str(uuid4())) is None
    await audio.put(bytes(100))
    await audio.put(None)
    await receiving
    assert b"".join([piece async for piece in listener]) == bytes(300)
    listener.close()
    await stopping
    assert await never.wait_until_started() is None


async def test_words_that_are_not_those_of_the_text_are_refused(tmp_path: Path, queue: MemoryQueue) -> None:
    remote = RemoteDispatcher(Settings(home=tmp_path), cast("AttemptQueue", queue), AudioStreams(tmp_path))
    await remote.start()
    words = [{"text": "a", "start": 0, "start_s": 0.0, "end_s": 0.1}]
    for invalid in (
        messages.pack("audio", bytes(20), words=100 * words),
        messages.pack("audio", words=[{}]),
        b"pcm" * 9,
    ):

        async def content(data: bytes = invalid) -> AsyncIterator[bytes]:
            yield data

        job_id = queue.submit("A text.")
        assert await remote.claim(new_claim(), token_id=str(uuid4()))
        with pytest.raises(InvalidRequestError) as refused:
            await remote.receive(job_id, 1, content(), sample_rate=8_000, has_words=True)
        assert refused.value.param == "words"
        remote.cancel(job_id)
    await remote.stop(grace_s=DEADLINE_S)
