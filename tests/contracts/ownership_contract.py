"""The contract of sweeps: what they remove from any storage. Tests of storages define the fixture `blobs`."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from afterwords.models import new_id
from afterwords.server.cache_key import cache_path, job_path, reference_path
from afterwords.server.ports import Blobs
from afterwords.server.services.deliveries import Deliveries
from afterwords.server.services.housekeeping import Housekeeping
from afterwords.server.services.ownership import MARK_PATH, Ownership, OwnershipStatus, database_id
from afterwords.server.settings import Settings
from afterwords.server.store import SqlStore
from tests.contracts.blobs_contract import everything
from tests.contracts.store_world import ManualClock, World

GRACE_S = 600
NOTHING = cast(Any, None)

Open = Callable[[str], Awaitable["Sweeper"]]


class Sweeper:
    """A database with a clock that a test moves, and the housekeeping of its server."""

    def __init__(self, folder: Path, blobs: Blobs) -> None:
        later = datetime.now(UTC) + timedelta(days=1)  # every blob is old
        self.clock = ManualClock(wall=later, monotonic_s=later.timestamp())
        self.store = SqlStore("sqlite:///rows.db", clock=self.clock, folder=folder)
        self.world = World(self.store, self.clock)
        self.blobs = blobs
        self.ownership: Ownership = NOTHING

    async def open(self) -> Sweeper:
        await self.store.open()
        self.ownership = Ownership(self.store, self.blobs, database_id(await self.store.secret()))
        return self

    async def sweep(self, *, after_s: float = 0) -> int:
        self.clock.advance(after_s)
        keeping = Housekeeping(
            store=self.store,
            blobs=self.blobs,
            clock=self.clock,
            voices=NOTHING,
            keys=NOTHING,
            home=NOTHING,
            ownership=self.ownership,
            dispatcher=NOTHING,
            events=NOTHING,
            deliveries=Deliveries(self.store, self.clock, NOTHING),
            settings=Settings(sweep_grace_s=GRACE_S),
        )
        return await keeping.sweep()

    async def sweep_twice(self) -> int:
        """Sweep once to see strays, and again after the grace."""
        return await self.sweep() + await self.sweep(after_s=GRACE_S)

    async def add_voice(self) -> str:
        """Add a voice with its recording. Return the path of the recording."""
        voice = await self.world.add_voice()
        await self.blobs.put(voice.ref_audio_key, b"recording")
        return voice.ref_audio_key


def stray() -> str:
    return reference_path(new_id())


@pytest.mark.anyio
class OwnershipContract:
    """A sweep removes only blobs that its own database has known for long enough."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    async def opening(self, blobs: Blobs, tmp_path: Path) -> AsyncIterator[Open]:
        async with AsyncExitStack() as stack:

            async def opening(name: str) -> Sweeper:
                sweeper = await Sweeper(tmp_path / name, blobs).open()
                stack.push_async_callback(sweeper.store.close)
                return sweeper

            yield opening

    async def test_stray_is_removed_after_the_grace(self, blobs: Blobs, opening: Open) -> None:
        mine = await opening("mine")
        assert await mine.sweep() == 0
        kept = await mine.add_voice()
        spoken = cache_path(kept.split("/")[1], "0" * 64)
        for path in (stray(), spoken, job_path(new_id(), 2), "notes.txt", "jobs/list.csv", f"probe-{new_id()}"):
            await blobs.put(path, b"x")

        assert await mine.sweep(after_s=86_400) == 0, "old, but seen for the first time"
        assert await mine.sweep(after_s=GRACE_S - 1) == 0
        assert await mine.sweep(after_s=1) == 4

        assert set(await everything(blobs)) == {kept, "notes.txt", "jobs/list.csv", MARK_PATH}

    async def test_storage_of_another_database_is_not_swept(self, blobs: Blobs, opening: Open) -> None:
        other = await opening("other")
        await other.sweep()
        kept = {await other.add_voice(), stray()}
        for path in kept:
            await blobs.put(path, b"recording")
        mine = await opening("mine")
        mine.clock.advance(7200)

        assert await mine.sweep_twice() == 0
        assert await mine.ownership.read() is OwnershipStatus.FOREIGN
        assert not await mine.ownership.holds()
        assert await other.ownership.holds()

        assert sorted(await mine.ownership.list_unknown()) == sorted(kept)
        await mine.ownership.adopt()
        assert await mine.sweep_twice() == 2
        assert not await other.ownership.holds()

    async def test_unmarked_storage_is_adopted_if_all_is_known(self, blobs: Blobs, opening: Open) -> None:
        mine, other = await opening("mine"), await opening("other")
        kept = await mine.add_voice()
        await blobs.put(job_path(new_id(), 1), b"left by a crash")

        assert await other.sweep_twice() == 0
        assert await other.ownership.read() is OwnershipStatus.UNMARKED
        unknown = stray()
        await blobs.put(unknown, b"recording")
        assert await mine.sweep_twice() == 0
        await blobs.delete(unknown)
        assert await mine.sweep_twice() == 1

        assert set(await everything(blobs)) == {kept, MARK_PATH}
        assert await other.sweep_twice() == 0

    async def test_older_copy_of_a_database_stops_both_sweeps(
        self, blobs: Blobs, opening: Open, tmp_path: Path
    ) -> None:
        before = await opening("mine")
        kept = [await before.add_voice()]
        await before.sweep()
        await before.store.close()
        shutil.copytree(tmp_path / "mine", tmp_path / "copy")
        mine, copy = await opening("mine"), await opening("copy")
        kept.append(await mine.add_voice())
        await mine.sweep()

        assert await copy.sweep_twice() == 0
        assert await copy.ownership.read() is OwnershipStatus.COPY
        assert await mine.sweep_twice() == 0
        assert await mine.ownership.read() is OwnershipStatus.COPY
        await mine.ownership.adopt()
        assert await copy.sweep_twice() == 0
        assert sorted(await everything(blobs)) == sorted([*kept, MARK_PATH])

    async def test_unreadable_mark_stops_the_sweep(self, blobs: Blobs, opening: Open) -> None:
        mine = await opening("mine")
        await blobs.put(stray(), b"x")
        for mark in (b"", b"[]", b"{}", b"\xff", json.dumps({"database": 1}).encode()):
            await blobs.put(MARK_PATH, mark)
            assert await mine.sweep_twice() == 0
            assert await mine.ownership.read() is OwnershipStatus.UNREADABLE
