"""A real server and the twin of the hosted service, for the commands that ask one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.e2e.served import Served, serving
from tests.hosted.service import HostedService

Asking = Callable[[str, str], None]


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Asking:
    """Have commands ask the server at an address, with a key."""

    def ask(url: str, key: str) -> None:
        monkeypatch.setenv("AFTERWORDS_BASE_URL", url)
        monkeypatch.setenv("AFTERWORDS_API_KEY", key)

    return ask


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("cli") / "server") as server:
        yield server


@pytest.fixture
def account(served: Served, asking: Asking) -> str:
    """The server is asked with an account that nothing else uses; this is its key."""
    key = served.new_key()
    asking(served.url, key)
    return key


@pytest.fixture
def client(served: Served, account: str) -> Iterator[httpx.Client]:
    """Sees what the commands did: it has their account."""
    with served.client(account) as client:
        yield client


@pytest.fixture
def hosted(asking: Asking) -> Iterator[HostedService]:
    """The hosted service is asked."""
    with HostedService() as service:
        asking(service.url, service.api_key)
        yield service
