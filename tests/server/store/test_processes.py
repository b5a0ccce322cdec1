"""Tests of several processes on one database, and of processes that are killed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.contracts.store_world import TEXT, World
from tests.server.store.second_process import NAME, second_process, store_in


@pytest.mark.anyio
async def test_two_processes_never_claim_the_same_job(world: World, folder: Path) -> None:
    ann = await world.caller()
    voice = await world.add_voice(ann)
    made = {(await world.add_job(ann, voice)).job_id for _ in range(300)}

    with second_process("claim", folder) as one, second_process("claim", folder) as two:
        assert one.line() == two.line() == "ready"
        one.go_on()
        two.go_on()
        claimed = [one.end().split(), two.end().split()]

    assert sorted(claimed[0] + claimed[1]) == sorted(made)
    assert all(claimed)


@pytest.mark.anyio
async def test_kill_during_writes_loses_no_accepted_job(folder: Path) -> None:
    answered: set[str] = set()
    for n_lines in (20, 75, 200):
        with second_process("submit", folder) as process:
            answered |= {process.line() for _ in range(n_lines)}
            process.kill()
            answered |= set(process.end().splitlines())
        store = store_in(folder)
        await store.open()
        await store.check()
        await store.close()
        with closing(sqlite3.connect(folder / NAME)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
            kept = {job_id for (job_id,) in connection.execute("SELECT job_id FROM jobs")}
            (charged,) = connection.execute("SELECT sum(characters) FROM usage").fetchone()

        assert answered <= kept
        assert charged == len(kept) * len(TEXT)
