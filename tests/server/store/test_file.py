"""Tests of a database file that is moved, replaced or damaged: unavailable, never created again, and recovered."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from afterwords.errors import DatabaseUnavailableError
from tests.contracts.store_world import ManualClock, World, digest
from tests.server.store.second_process import NAME, store_in

pytestmark = pytest.mark.anyio


async def assert_is_unavailable(world: World) -> None:
    """Check that reads and writes fail."""
    with pytest.raises(DatabaseUnavailableError):
        await world.store.find_caller(digest("ann"))
    with pytest.raises(DatabaseUnavailableError):
        await world.store.list_keys(account_id=None)
    with pytest.raises(DatabaseUnavailableError):
        await world.caller("bob")
    with pytest.raises(DatabaseUnavailableError):
        await world.store.check()


async def assert_is_back(world: World) -> None:
    """Check that the rows are there, and that a voice can be added."""
    ann = await world.caller("ann")
    voice = await world.add_voice(ann)
    assert await world.store.get_voice(voice.voice_id, account_id=ann.account_id) == voice
    assert len(await world.store.list_keys(account_id=None)) == 1
    await world.store.check()


async def test_moved_file_is_unavailable_until_it_is_back(world: World, folder: Path) -> None:
    await world.caller("ann")
    (folder / NAME).rename(folder / "elsewhere")

    await assert_is_unavailable(world)
    assert not (folder / NAME).exists()
    (folder / "elsewhere").rename(folder / NAME)

    await assert_is_back(world)


async def test_moved_folder_is_unavailable_until_it_is_back(world: World, folder: Path) -> None:
    await world.caller("ann")
    folder.rename(folder.with_name("elsewhere"))

    await assert_is_unavailable(world)
    assert not folder.exists()
    folder.with_name("elsewhere").rename(folder)

    await assert_is_back(world)


async def test_copy_in_its_place_is_used_only_after_a_restart(world: World, folder: Path) -> None:
    """The log of the old file remains, and does not belong to the copy (a backup, for example)."""
    ann = await world.caller("ann")
    (folder / NAME).rename(folder / "elsewhere")
    shutil.copy(folder / "elsewhere", folder / NAME)
    await assert_is_unavailable(world)
    await world.store.close()

    await world.store.open()
    assert await world.store.find_caller(digest("ann")) == ann


async def test_other_database_in_its_place_is_not_changed(world: World, folder: Path, tmp_path: Path) -> None:
    await world.caller("ann")
    other = store_in(tmp_path / "other")
    await other.open()
    await other.close()
    (folder / NAME).rename(folder / "elsewhere")
    content = (tmp_path / "other" / NAME).read_bytes()
    (tmp_path / "other" / NAME).rename(folder / NAME)

    await assert_is_unavailable(world)
    assert (folder / NAME).read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"not a database " * 1000], ids=["empty", "noise"])
async def test_other_file_in_its_place_is_not_changed(world: World, folder: Path, content: bytes) -> None:
    await world.caller("ann")
    (folder / NAME).rename(folder / "elsewhere")
    (folder / NAME).write_bytes(content)

    await assert_is_unavailable(world)
    assert (folder / NAME).read_bytes() == content
    (folder / "elsewhere").rename(folder / NAME)

    await assert_is_back(world)


async def test_file_with_noise_can_not_be_opened(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / NAME).write_bytes(b"not a database " * 1000)

    with pytest.raises(DatabaseUnavailableError):
        await store_in(folder).open()
    assert (folder / NAME).read_bytes() == b"not a database " * 1000


async def test_files_are_private(world: World, folder: Path) -> None:
    await world.caller("ann")

    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}

    assert {NAME, f"{NAME}-wal", f"{NAME}-shm"} <= set(modes)
    assert set(modes.values()) == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


async def test_closed_store_is_unavailable(folder: Path, clock: ManualClock) -> None:
    store = store_in(folder)
    for _ in range(2):
        await assert_is_unavailable(World(store, clock))
        await store.close()
        await store.open()
        await store.check()
        assert await store.list_keys(account_id=None) == []
        await store.close()


async def test_cached_read_is_dropped_after_any_write(world: World, folder: Path) -> None:
    ann = await world.caller("ann")
    voice = await world.add_voice(ann)
    for name in ("first", "second"):
        assert await world.store.get_voice(voice.voice_id, account_id=ann.account_id) is not None
        with closing(sqlite3.connect(folder / NAME)) as elsewhere, elsewhere:
            elsewhere.execute("UPDATE voices SET name = ?", (name,))
        seen = await world.store.get_voice(voice.voice_id, account_id=ann.account_id)
        assert seen is not None
        assert seen.name == name
