"""Tests of the writer thread: a failed write affects no other."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from afterwords.errors import DatabaseUnavailableError, VoiceNotFoundError
from afterwords.server.records import NewKey, StoredVoice, SubmittedJob
from afterwords.server.store.sqlite.database import SqliteDatabase
from tests.contracts.store_world import MANY, TEXT, World, digest
from tests.server.store.second_process import NAME

pytestmark = pytest.mark.anyio


async def test_failed_writes_do_not_affect_others_in_the_batch(world: World) -> None:
    ann = await world.caller()
    voice, unstored = await world.add_voice(ann), world.new_voice(ann)
    first = await world.add_job(ann, voice)
    good = [world.new_job(ann, voice) for _ in range(30)]
    bad = [world.new_job(ann, unstored) for _ in range(30)]
    twice = [replace(world.new_job(ann, voice), job_id=first.job_id) for _ in range(30)]
    mixed = [job for three in zip(good, bad, twice, strict=True) for job in three]

    ends = await asyncio.gather(*[world.store.submit(job, limits=MANY) for job in mixed], return_exceptions=True)

    assert {type(end) for end in ends[0::3]} == {SubmittedJob}
    assert {type(end) for end in ends[1::3]} == {VoiceNotFoundError}
    assert {type(end) for end in ends[2::3]} == {sqlite3.IntegrityError}
    assert await world.characters_used() == 31 * len(TEXT)


async def test_write_that_fails_half_way_is_rolled_back(world: World, folder: Path) -> None:
    """`add_key` creates the account before the key."""
    ann = await world.caller("ann")
    many = [world.store.add_key(NewKey(digest("ann"))) for _ in range(10)]
    ends = await asyncio.gather(*many, world.add_voice(ann), return_exceptions=True)

    with closing(sqlite3.connect(folder / NAME)) as connection:
        assert connection.execute("SELECT count(*) FROM accounts").fetchone() == (1,)
    assert [type(end) for end in ends] == [IntegrityError] * 10 + [StoredVoice]


async def test_database_error_does_not_contain_the_values(world: World) -> None:
    first = await world.add_job()
    ann = await world.caller()
    with pytest.raises(sqlite3.IntegrityError) as refused:
        await world.add_job(ann, await world.add_voice(ann), job_id=first.job_id, webhook_url="https://canary.example/")

    assert "canary" not in f"{refused.value} {refused.value!r}"


async def test_concurrent_writes_share_a_commit(world: World, folder: Path) -> None:
    def pages() -> int:
        return (folder / f"{NAME}-wal").stat().st_size // 4096

    ann = await world.caller()
    await world.add_voice(ann)
    before = pages()
    await world.add_voice(ann)
    alone = pages() - before

    await asyncio.gather(*[world.add_voice(ann) for _ in range(20)])

    assert pages() - before - alone < 20 * alone / 2


async def test_accepted_jobs_are_on_disk(world: World, folder: Path) -> None:
    """The rows are read by a separate connection."""
    ann = await world.caller()
    jobs = await asyncio.gather(*[world.add_job(ann) for _ in range(10)])

    with closing(sqlite3.connect(folder / NAME)) as connection:
        rows = connection.execute("SELECT job_id FROM jobs").fetchall()
        settings = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "page_size")]

    assert {job_id for (job_id,) in rows} == {job.job_id for job in jobs}
    assert settings == ["wal", 4096]


async def test_write_behind_a_hanging_one_times_out_and_never_runs(folder: Path) -> None:
    database = SqliteDatabase(folder / NAME)
    await database.open()
    done: list[str] = []
    let_go = threading.Event()
    hanging = asyncio.create_task(database.write(lambda _: let_go.wait(60)))
    await asyncio.sleep(0)

    async with asyncio.timeout(60):
        with pytest.raises(DatabaseUnavailableError):
            await database.write(lambda _: done.append("behind"))
    let_go.set()
    assert await hanging
    await database.write(lambda _: done.append("after"))
    await database.close()

    assert done == ["after"]


async def test_store_works_on_several_event_loops(world: World) -> None:
    ann = await world.caller()

    def elsewhere() -> str:
        return asyncio.run(world.add_voice(ann)).voice_id

    voice_id = await asyncio.to_thread(elsewhere)

    assert await world.store.get_voice(voice_id, account_id=ann.account_id) is not None
