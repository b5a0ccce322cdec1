"""Fixtures of tests on Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from afterwords.server.ports import Store
from afterwords.server.store import SqlStore
from afterwords.server.store.postgres import connections, database
from afterwords.server.store.schema import metadata
from tests.contracts.store_world import PLANS, ManualClock
from tests.postgres import PostgresServer


@pytest.fixture
def long_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengthen the deadlines: on a busy machine, what these tests do may take longer than 2 s."""
    monkeypatch.setattr(connections, "STATEMENT_TIMEOUT_S", 60)
    monkeypatch.setattr(database, "DEADLINE_S", 60)
    monkeypatch.setattr(database, "_WRITE", f"BEGIN; {connections.timeouts(60, scope='LOCAL')}")


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    """Return the URL of an empty database."""
    return postgres.url(postgres.create_database())


@pytest.fixture(scope="session")
def shared_url(postgres: PostgresServer) -> str:
    """Return the URL of a database with the schema, which the tests of the contract share."""
    url = postgres.url(postgres.create_database())

    async def migrate() -> None:
        store = SqlStore(url, clock=ManualClock(), folder=Path())
        await store.open()
        await store.close()

    asyncio.run(migrate())
    return url


@pytest.fixture
async def store(postgres: PostgresServer, shared_url: str, clock: ManualClock, tmp_path: Path) -> AsyncIterator[Store]:
    names = ", ".join(name for name in metadata.tables if name != "server")
    postgres.execute(f"TRUNCATE {names} CASCADE", shared_url.rpartition("/")[2])
    store = SqlStore(shared_url, clock=clock, folder=tmp_path, plans=PLANS, has_meter=True)
    await store.open()
    yield store
    await store.close()
