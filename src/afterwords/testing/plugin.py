"""The pytest plug-in: fixtures for tests of programs that use an afterwords server.

pytest loads it wherever afterwords is installed, so it imports nothing but pytest until a fixture is used. The server
starts once per session; every test has its own account.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from afterwords import AsyncClient, Client, Voice
    from afterwords.testing import FaultyTransport, RunningServer


@pytest.fixture(scope="session")
def afterwords_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Return the real server on a loopback port, with a test tone: `url`, `api_key`, `admin_secret`, `new_key()`.

    Raises:
        MissingExtraError: The extra `server` is not installed.
    """
    from afterwords.testing import RunningServer

    with RunningServer(tmp_path_factory.mktemp("afterwords")) as server:
        yield server


@pytest.fixture
def afterwords_api_key(afterwords_server: RunningServer) -> str:
    """Return a key of an account that only this test uses."""
    return afterwords_server.new_key()


@pytest.fixture
def afterwords_client(afterwords_server: RunningServer, afterwords_api_key: str) -> Iterator[Client]:
    """Return an `afterwords.Client` of the server with this test's account."""
    from afterwords import Client

    with Client(afterwords_server.url, api_key=afterwords_api_key) as client:
        yield client


@pytest.fixture
def afterwords_async_client(afterwords_server: RunningServer, afterwords_api_key: str) -> AsyncClient:
    """Return an `afterwords.AsyncClient` of the server with this test's account, for `async with`."""
    from afterwords import AsyncClient

    return AsyncClient(afterwords_server.url, api_key=afterwords_api_key)


@pytest.fixture
def afterwords_voice(afterwords_client: Client) -> Voice:
    """Return a voice in this test's account, from the recording that afterwords ships."""
    from importlib.resources import as_file, files

    with as_file(files("afterwords") / "data" / "reader.wav") as recording:
        return afterwords_client.voices.create(recording, name="reader", consent="public-domain")


@pytest.fixture
def afterwords_faults() -> FaultyTransport:
    """Return a transport for clients that injects the faults of `.inject(…)`; other requests pass."""
    from afterwords.testing import FaultyTransport

    return FaultyTransport()


@pytest.fixture
def afterwords_faulty_client(
    afterwords_server: RunningServer, afterwords_faults: FaultyTransport, afterwords_api_key: str
) -> Iterator[Client]:
    """Return an `afterwords.Client` with the transport `afterwords_faults` and this test's account."""
    from afterwords import Client

    with Client(afterwords_server.url, api_key=afterwords_api_key, transport=afterwords_faults) as client:
        yield client
