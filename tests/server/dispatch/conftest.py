"""Fixtures for tests of dispatchers: a job queue in memory, and a tone engine with fault words."""

from __future__ import annotations

import pytest

from tests.server.dispatch.memory_queue import MemoryQueue
from tests.server.dispatch.running import ignore_other_children


@pytest.fixture(autouse=True)
def fault_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_TESTING", "1")


@pytest.fixture(autouse=True)
def own_children() -> None:
    ignore_other_children()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def queue() -> MemoryQueue:
    return MemoryQueue()
