"""The contract of stores on Postgres."""

from __future__ import annotations

import pytest

from tests.contracts.store_contract import StoreContract


@pytest.mark.usefixtures("long_deadlines")
class TestSqlStoreOnPostgres(StoreContract):
    """The contract on Postgres."""
