"""A real server that the tests of the clients share, and a client of either kind with an account of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from afterwords import Client, Voice
from afterwords.testing import FaultyServer
from tests.client.front import Either
from tests.e2e.served import ADMIN_SECRET, READER, Served, serving


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the developer's; and pauses of which no test wants to tell are short."""
    for name in ("BASE_URL", "API_KEY", "ADMIN_SECRET", "PROFILE"):
        monkeypatch.delenv(f"AFTERWORDS_{name}", raising=False)
    # patched, since the real pauses add up to minutes; how long they are is told by tests that do no I/O
    monkeypatch.setattr("afterwords.client.requests.BACKOFF_S", 0.004)


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served") / "home") as served:
        yield served


@pytest.fixture
def key(server: Served) -> str:
    """Of an account that this test alone has."""
    return server.new_key()


@pytest.fixture
def direct(server: Served, key: str) -> Iterator[Client]:
    """A client past all faults, to see what is on the server."""
    with Client(server.url, api_key=key, admin_secret=ADMIN_SECRET) as client:
        yield client


@pytest.fixture
def voice(direct: Client) -> Voice:
    return direct.voices.create(READER, name="me", consent="public-domain")


@pytest.fixture
def faults(server: Served) -> Iterator[FaultyServer]:
    with FaultyServer(server.url) as proxy:
        yield proxy


@pytest.fixture(params=["blocking", "awaited"])
def either(request: pytest.FixtureRequest) -> Iterator[Either]:
    """Makes clients: the one kind, then the other."""
    with ExitStack() as stack:
        yield Either(request.param, stack)


@pytest.fixture
def client(either: Either, server: Served, key: str) -> Client:
    return either(server.url, key, admin_secret=ADMIN_SECRET)


@pytest.fixture
def faulty(either: Either, faults: FaultyServer, key: str) -> Client:
    """A client that asks through the proxy."""
    return either(faults.url, key, admin_secret=ADMIN_SECRET)
