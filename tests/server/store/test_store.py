"""Tests of the SQL store: the contract, and its URL."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from afterwords.errors import InvalidOptionError
from afterwords.server.clock import SystemClock
from afterwords.server.store import SqlStore
from afterwords.server.store.billing import expired
from afterwords.server.store.schema import customers
from tests.contracts.store_contract import StoreContract
from tests.contracts.store_world import START, World


class TestSqlStore(StoreContract):
    """The contract on SQLite."""


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@example.org",
        "postgresql+asyncpg://me:hunter2@example.org/afterwords",
        "sqlite://me:hunter2@example.org/file.db",
        "mysql://example.org/x?password=hunter2",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file.db?mode=memory",
        "afterwords.db",
        "",
    ],
)
def test_unknown_url_is_rejected_without_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="AFTERWORDS_DATABASE_URL") as refused:
        SqlStore(url, clock=SystemClock(), folder=tmp_path)

    assert "hunter2" not in str(refused.value)


@pytest.mark.anyio
async def test_sweep_finds_checkouts_of_customers_by_index(world: World) -> None:
    assert isinstance(world.store, SqlStore)
    query = f"EXPLAIN QUERY PLAN {select(customers.c.customer_id).where(expired(START)[customers])}"
    steps = await world.store.database.read(lambda connection: connection.exec_driver_sql(query).all())
    assert [step.detail for step in steps if "checkouts" in step.detail] == [
        "SEARCH checkouts USING INDEX ix_checkouts_customer_id (customer_id=?)"
    ]
