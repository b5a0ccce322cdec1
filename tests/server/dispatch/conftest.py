"""What the tests of dispatchers share: a desk, and a tone engine that fails as it is told."""

from __future__ import annotations

import pytest

from tests.server.dispatch.desk import Desk
from tests.server.dispatch.dispatching import leave_out_others


@pytest.fixture(autouse=True)
def fault_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_TESTING", "1")


@pytest.fixture(autouse=True)
def own_children() -> None:
    leave_out_others()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def desk() -> Desk:
    return Desk()
