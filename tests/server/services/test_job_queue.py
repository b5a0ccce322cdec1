"""The desk: what it keeps for engines of a voice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from afterwords.server.blobs import open_blobs
from afterwords.server.ports import Blobs
from afterwords.server.services.job_events import JobEvents
from afterwords.server.services.job_queue import StoredJobQueue
from afterwords.server.services.recordings import Recordings
from afterwords.server.store import SqlStore
from tests.contracts.store_world import SetClock, World

pytestmark = pytest.mark.anyio

KEY: dict[str, Any] = {"backend": "tone", "version": "1"}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    clock = SetClock()
    store = SqlStore("sqlite:///afterwords.db", clock=clock, folder=tmp_path)
    await store.open()
    yield World(store, clock)
    await store.close()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return open_blobs(str(tmp_path / "blobs"))


@pytest.fixture
def desk(world: World, blobs: Blobs) -> StoredJobQueue:
    return StoredJobQueue(world.store, blobs, world.clock, JobEvents(), Recordings(blobs, None), 15, 3)


async def stored(blobs: Blobs) -> list[str]:
    return [blob.path async for batch in blobs.listing() for blob in batch if "/prompts/" in blob.path]


async def test_a_checkpoint_is_kept_until_there_is_a_prompt(world: World, desk: StoredJobQueue, blobs: Blobs) -> None:
    voice = await world.voice()
    for checkpoint in (b"a third", b"two thirds"):
        await desk.save_checkpoint(voice, **KEY, checkpoint=checkpoint)
    assert await desk.checkpoint(voice, **KEY) == b"two thirds"
    assert await desk.checkpoint(voice, backend="tone", version="2") is None
    assert await desk.prompt(voice, **KEY) is None
    assert len(await world.store.find_known_paths(await stored(blobs))) == 1, "the sweep leaves it"
    await desk.save_prompt(voice, **KEY, prompt=b"whole")
    assert (await desk.prompt(voice, **KEY), await desk.checkpoint(voice, **KEY)) == (b"whole", None)
    assert len(await stored(blobs)) == 1


async def test_a_full_prompt_comes_before_a_fast_one(world: World, desk: StoredJobQueue) -> None:
    voice = await world.voice()
    await desk.save_prompt(voice, **KEY, prompt=b"fast", is_fast=True)
    assert await desk.prompt(voice, **KEY) == b"fast"
    await desk.save_prompt(voice, **KEY, prompt=b"full")
    assert await desk.prompt(voice, **KEY) == b"full"


async def test_nothing_is_kept_of_a_voice_that_was_deleted(world: World, desk: StoredJobQueue, blobs: Blobs) -> None:
    voice = await world.voice()
    await world.store.delete_voice(voice.voice_id, account_id=voice.account_id)
    await desk.save_checkpoint(voice, **KEY, checkpoint=b"a third")
    await desk.save_prompt(voice, **KEY, prompt=b"whole")
    assert await stored(blobs) == []
