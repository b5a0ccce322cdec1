"""A real server and a fake of the hosted service, for commands that use one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.e2e.served import Served, serving
from tests.hosted.service import HostedService

UseServer = Callable[[str, str], None]


@pytest.fixture
def use_server(monkeypatch: pytest.MonkeyPatch) -> UseServer:
    """Make commands use the server at a URL, with a key."""

    def use(url: str, key: str) -> None:
        monkeypatch.setenv("AFTERWORDS_BASE_URL", url)
        monkeypatch.setenv("AFTERWORDS_API_KEY", key)

    return use


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("cli") / "server") as server:
        yield server


@pytest.fixture
def account(served: Served, use_server: UseServer) -> str:
    """Use the server with a new account; return its key."""
    key = served.new_key()
    use_server(served.url, key)
    return key


@pytest.fixture
def client(served: Served, account: str) -> Iterator[httpx.Client]:
    """Return an HTTP client with the account of the commands."""
    with served.client(account) as client:
        yield client


@pytest.fixture
def hosted(use_server: UseServer) -> Iterator[HostedService]:
    """Use the fake hosted service."""
    with HostedService() as service:
        use_server(service.url, service.api_key)
        yield service
