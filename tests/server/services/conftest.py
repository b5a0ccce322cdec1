"""Fixtures of service tests: a store with a clock that tests move."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from afterwords.server.store import SqlStore
from tests.contracts.store_world import ManualClock, World


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    clock = ManualClock()
    store = SqlStore("sqlite:///afterwords.db", clock=clock, folder=tmp_path)
    await store.open()
    yield World(store, clock)
    await store.close()
