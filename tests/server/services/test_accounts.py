"""The end of an account."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterwords.errors import ConflictError, NotFoundError, ServiceUnavailableError
from afterwords.server.blobs import open_blobs
from afterwords.server.ports import Blobs
from afterwords.server.records import Caller
from afterwords.server.services.accounts import close_account
from afterwords.server.services.ownership import Ownership, database_id
from tests.contracts.store_world import World, audio

pytestmark = pytest.mark.anyio


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return open_blobs(str(tmp_path / "blobs"))


@pytest.fixture
async def ownership(world: World, blobs: Blobs) -> Ownership:
    return Ownership(world.store, blobs, database_id(await world.store.secret()))


async def add_account(world: World, blobs: Blobs, name: str) -> Caller:
    """Return the key of an account with two voices, and a job whose audio is stored."""
    caller = await world.caller(name)
    for _ in range(2):
        voice = await world.add_voice(caller)
        await blobs.put(voice.ref_audio_key, b"recording")
    job = await world.add_job(caller, voice)
    await blobs.put(f"jobs/{job.job_id}.wav", b"speech")
    await blobs.put(f"voices/{voice.voice_id}/cache/{job.cache_key}.wav", b"speech")
    await world.claim()
    await world.store.finish(job.job_id, 1, audio(f"jobs/{job.job_id}.wav"))
    return caller


async def count_audio(blobs: Blobs) -> int:
    return sum([len([blob for blob in batch if blob.path.endswith(".wav")]) async for batch in blobs.listing()])


async def test_closed_account_leaves_no_audio(world: World, blobs: Blobs, ownership: Ownership) -> None:
    ann, bob = [await add_account(world, blobs, name) for name in ("ann", "bob")]

    assert await close_account(world.store, blobs, ownership, ann.account_id) == 2

    assert await count_audio(blobs) == 4
    assert await world.store.list_voices(account_id=ann.account_id, limit=None, after=None) == []
    assert len(await world.store.list_voices(account_id=bob.account_id, limit=None, after=None)) == 2
    assert await world.store.list_unpurged() == {}
    assert await close_account(world.store, blobs, ownership, ann.account_id) == 0
    with pytest.raises(NotFoundError):
        await close_account(world.store, blobs, ownership, "unknown")


async def test_subscription_is_cancelled_first(world: World, blobs: Blobs, ownership: Ownership) -> None:
    ann = await add_account(world, blobs, "ann")
    await world.add_customer(ann, subscription_id="sub_1", status="active")
    asked: list[str] = []

    async def cancel(account_id: str) -> None:
        asked.append(account_id)
        if len(asked) == 1:
            raise ServiceUnavailableError

    with pytest.raises(ConflictError, match="no key of Stripe"):
        await close_account(world.store, blobs, ownership, ann.account_id)
    with pytest.raises(ServiceUnavailableError):
        await close_account(world.store, blobs, ownership, ann.account_id, cancel_subscription=cancel)
    assert await world.caller("ann") == ann
    assert await count_audio(blobs) == 4

    await close_account(world.store, blobs, ownership, ann.account_id, cancel_subscription=cancel)

    assert asked == [ann.account_id] * 2
    assert await count_audio(blobs) == 0
