"""The queue: what it keeps for engines of a voice, and leases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from afterwords.errors import StaleAttemptError
from afterwords.server.blobs import open_blobs
from afterwords.server.ports import Blobs
from afterwords.server.records import Claim
from afterwords.server.services.job_events import JobEvents
from afterwords.server.services.job_queue import StoredJobQueue
from afterwords.server.services.recordings import Recordings
from tests.contracts.store_world import World

pytestmark = pytest.mark.anyio

KEY: dict[str, Any] = {"version": "1"}


@pytest.fixture
async def claim(world: World) -> Claim:
    await world.add_job()
    claim = await world.claim()
    assert claim is not None
    return claim


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return open_blobs(str(tmp_path / "blobs"))


@pytest.fixture
def queue(world: World, blobs: Blobs) -> StoredJobQueue:
    return StoredJobQueue(world.store, blobs, world.clock, JobEvents(), Recordings(blobs, None), b"secret", 15, 3)


async def stored(blobs: Blobs) -> list[str]:
    return [blob.path async for batch in blobs.listing() for blob in batch if "/prompts/" in blob.path]


async def test_checkpoint_is_kept_until_there_is_a_prompt(
    world: World, queue: StoredJobQueue, blobs: Blobs, claim: Claim
) -> None:
    for checkpoint in (b"a third", b"two thirds"):
        await queue.save_checkpoint(claim, **KEY, checkpoint=checkpoint)
    assert await queue.checkpoint(claim, **KEY) == b"two thirds"
    assert await queue.checkpoint(claim, version="2") is None
    assert await queue.prompt(claim, **KEY) is None
    assert len(await world.store.find_known_paths(await stored(blobs))) == 1, "the sweep leaves it"
    await queue.save_prompt(claim, **KEY, prompt=b"whole")
    assert (await queue.prompt(claim, **KEY), await queue.checkpoint(claim, **KEY)) == (b"whole", None)
    assert len(await stored(blobs)) == 1


async def test_full_prompt_is_preferred_to_a_fast_one(queue: StoredJobQueue, claim: Claim) -> None:
    await queue.save_prompt(claim, **KEY, prompt=b"fast", is_fast=True)
    assert await queue.prompt(claim, **KEY) == b"fast"
    await queue.save_prompt(claim, **KEY, prompt=b"full")
    assert await queue.prompt(claim, **KEY) == b"full"


async def test_prompt_of_a_deleted_voice_is_not_stored(
    world: World, queue: StoredJobQueue, blobs: Blobs, claim: Claim
) -> None:
    await world.store.delete_voice(claim.voice.voice_id, account_id=claim.voice.account_id)
    await queue.save_checkpoint(claim, **KEY, checkpoint=b"a third")
    await queue.save_prompt(claim, **KEY, prompt=b"whole")
    assert await stored(blobs) == []


async def test_lease_is_stretched_until_the_next_heartbeat(world: World, queue: StoredJobQueue, claim: Claim) -> None:
    job = claim.job
    assert await queue.heartbeat(job.job_id, job.attempt, lease_s=600)
    world.clock.advance(599)
    assert (await world.store.reap(max_attempts=3)).requeued == ()
    assert await queue.heartbeat(job.job_id, job.attempt)
    world.clock.advance(16)
    assert (await world.store.reap(max_attempts=3)).requeued == (job.job_id,)


async def test_ended_attempt_may_store_its_prompt_for_a_lease(
    world: World, queue: StoredJobQueue, claim: Claim
) -> None:
    job = claim.job
    await queue.fail(job.job_id, job.attempt, error="synthesis_failed")
    world.clock.advance(14)
    assert (await queue.find_claim(job.job_id, job.attempt, may_be_final=True)).job.job_id == job.job_id
    world.clock.advance(2)
    with pytest.raises(StaleAttemptError):
        await queue.find_claim(job.job_id, job.attempt, may_be_final=True)
