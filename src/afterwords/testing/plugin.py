"""The pytest plug-in: fixtures for programs that speak through an afterwords server.

Loaded in every pytest run on a machine that has afterwords, so that nothing but pytest is imported until a fixture is
asked for. A server is started once a session; every test has an account of its own in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from afterwords import AsyncClient, Client, Voice
    from afterwords.testing import FaultyServer, RunningServer


@pytest.fixture(scope="session")
def afterwords_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The real server on a loopback port, with a tone for a voice: `url`, `api_key`, `admin_secret`, `new_key()`.

    Raises:
        MissingExtraError: the extra `server` is not installed.
    """
    from afterwords.testing import RunningServer

    with RunningServer(tmp_path_factory.mktemp("afterwords")) as server:
        yield server


@pytest.fixture
def afterwords_api_key(afterwords_server: RunningServer) -> str:
    """A key to an account that this test alone uses."""
    return afterwords_server.new_key()


@pytest.fixture
def afterwords_client(afterwords_server: RunningServer, afterwords_api_key: str) -> Iterator[Client]:
    """An `afterwords.Client` of the server, with the account of this test."""
    from afterwords import Client

    with Client(afterwords_server.url, api_key=afterwords_api_key) as client:
        yield client


@pytest.fixture
def afterwords_async_client(afterwords_server: RunningServer, afterwords_api_key: str) -> AsyncClient:
    """An `afterwords.AsyncClient` of the server, with the account of this test, to be used in `async with`."""
    from afterwords import AsyncClient

    return AsyncClient(afterwords_server.url, api_key=afterwords_api_key)


@pytest.fixture
def afterwords_voice(afterwords_client: Client) -> Voice:
    """A voice in the account of this test, made of the recording that comes with afterwords."""
    from importlib.resources import as_file, files

    with as_file(files("afterwords") / "data" / "reader.wav") as recording:
        return afterwords_client.voices.create(recording, name="reader", consent="public-domain")


@pytest.fixture
def afterwords_faults(afterwords_server: RunningServer) -> Iterator[FaultyServer]:
    """A proxy in front of the server: what `.inject(…)` says goes wrong, all else passes."""
    from afterwords.testing import FaultyServer

    with FaultyServer(afterwords_server.url) as faults:
        yield faults


@pytest.fixture
def afterwords_faulty_client(afterwords_faults: FaultyServer, afterwords_api_key: str) -> Iterator[Client]:
    """An `afterwords.Client` that asks through `afterwords_faults`, with the account of this test."""
    from afterwords import Client

    with Client(afterwords_faults.url, api_key=afterwords_api_key) as client:
        yield client
