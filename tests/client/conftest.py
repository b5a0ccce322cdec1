"""A real server for all tests of the clients, and a client of each kind with its own account."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from afterwords import Client, Voice
from tests.client.both_clients import ClientFactory
from tests.client.faulty_proxy import FaultyServer
from tests.e2e.served import ADMIN_SECRET, RECORDING, Served, serving


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unset the variables of the developer, and shorten the pauses between retries."""
    for name in ("BASE_URL", "API_KEY", "ADMIN_SECRET", "PROFILE"):
        monkeypatch.delenv(f"AFTERWORDS_{name}", raising=False)
    # The real pauses add up to minutes. TestRules checks how long they are, without I/O.
    monkeypatch.setattr("afterwords.client.requests.BACKOFF_S", 0.004)


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served") / "home") as served:
        yield served


@pytest.fixture
def key(server: Served) -> str:
    """Return a key of an account that only this test uses."""
    return server.new_key()


@pytest.fixture
def direct(server: Served, key: str) -> Iterator[Client]:
    """Yield a client without faults, to inspect the server."""
    with Client(server.url, api_key=key, admin_secret=ADMIN_SECRET) as client:
        yield client


@pytest.fixture
def voice(direct: Client) -> Voice:
    return direct.voices.create(RECORDING, name="me", consent="public-domain")


@pytest.fixture
def faults(server: Served) -> Iterator[FaultyServer]:
    with FaultyServer(server.url) as proxy:
        yield proxy


@pytest.fixture(params=["blocking", "asynchronous"])
def make_client(request: pytest.FixtureRequest) -> Iterator[ClientFactory]:
    """Yield a factory of clients: first of the one kind, then of the other."""
    with ExitStack() as stack:
        yield ClientFactory(request.param, stack)


@pytest.fixture
def client(make_client: ClientFactory, server: Served, key: str) -> Client:
    return make_client(server.url, key, admin_secret=ADMIN_SECRET)


@pytest.fixture
def faulty(make_client: ClientFactory, faults: FaultyServer, key: str) -> Client:
    """Return a client whose requests pass through the proxy."""
    return make_client(faults.url, key, admin_secret=ADMIN_SECRET)
