"""The contract of stores on Postgres."""

from __future__ import annotations

from tests.contracts.store_contract import StoreContract


class TestSqlStoreOnPostgres(StoreContract):
    """The contract on Postgres."""
