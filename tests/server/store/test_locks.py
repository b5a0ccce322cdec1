"""Tests of a database that another process locks: operations fail within 2 s, and failed writes never run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import pytest

from afterwords.errors import DatabaseUnavailableError
from tests.contracts.store_world import MANY, World
from tests.server.store.second_process import second_process, store_in

pytestmark = pytest.mark.anyio
DEADLINE_S = 60


async def refusal(work: Awaitable[object]) -> DatabaseUnavailableError:
    """Return the error, which must come in time."""
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(DatabaseUnavailableError) as refused:
            await work
    return refused.value


async def test_locked_database_rejects_writes_and_allows_reads(world: World, folder: Path) -> None:
    ann = await world.caller()
    voice = await world.add_voice(ann)
    with second_process("hold", folder) as holder:
        assert holder.line() == "held"
        many = [world.store.submit(world.new_job(ann, voice), limits=MANY) for _ in range(20)]
        refusals = await asyncio.gather(*map(refusal, many), refusal(world.store.check()))
        assert await world.store.get_voice(voice.voice_id, account_id=ann.account_id) == voice
        holder.go_on()
        assert holder.line() == "released"

    accepted = await world.add_job(ann, voice)

    seen = await world.store.list_jobs(account_id=ann.account_id, status=None, limit=None, after=None)
    assert [job.job_id for job in seen] == [accepted.job_id]
    assert {(error.code, error.http_status) for error in refusals} == {("database_unavailable", 503)}


async def test_waiting_write_runs_after_the_lock_is_released(world: World, folder: Path) -> None:
    ann = await world.caller()
    with second_process("hold", folder) as holder:
        assert holder.line() == "held"
        waiting = asyncio.create_task(world.add_voice(ann))
        await asyncio.sleep(0)
        holder.go_on()
        voice = await waiting

    assert await world.store.get_voice(voice.voice_id, account_id=ann.account_id) == voice


async def test_cancelled_write_never_runs(world: World, folder: Path) -> None:
    ann = await world.caller()
    with second_process("hold", folder) as holder:
        assert holder.line() == "held"
        leaving = asyncio.create_task(world.add_voice(ann))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        holder.go_on()
        kept = await world.add_voice(ann)

    assert await world.store.list_voices(account_id=ann.account_id, limit=None, after=None) == [kept]


async def test_exclusive_lock_rejects_reads_until_it_is_released(folder: Path) -> None:
    store = store_in(folder)
    await store.open()
    with second_process("hold-all", folder) as holder:
        assert holder.line() == "held"
        await asyncio.gather(*[refusal(store.find_caller(bytes(32))) for _ in range(20)], refusal(store.check()))
        waiting = asyncio.create_task(store.find_caller(bytes(32)))
        holder.go_on()
        assert await waiting is None
        assert holder.line() == "released"

    await store.check()
    await store.close()
