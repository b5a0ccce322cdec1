"""Fixtures of store tests: an open SQL store on a new file."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from afterwords import disk
from afterwords.server.ports import Store
from afterwords.server.store import SqlStore
from tests.contracts.store_world import PLANS, ManualClock, World
from tests.server.store.second_process import NAME


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of the server, which does not exist yet."""
    return tmp_path / "home" / "server"


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with the schema, to copy: creating one takes 60 ms."""
    empty = tmp_path_factory.mktemp("migrated")

    async def migrate() -> None:
        store = SqlStore(f"sqlite:///{NAME}", clock=ManualClock(), folder=empty)
        await store.open()
        await store.close()

    asyncio.run(migrate())
    return empty / NAME


@pytest.fixture
async def store(migrated: Path, folder: Path, clock: ManualClock) -> AsyncIterator[Store]:
    disk.make_folder(folder)
    shutil.copy(migrated, folder)
    store: Store = SqlStore(f"sqlite:///{NAME}", clock=clock, folder=folder, plans=PLANS, has_meter=True)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def world(store: Store, clock: ManualClock) -> World:
    return World(store, clock)
