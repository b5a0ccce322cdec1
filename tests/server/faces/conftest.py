"""A server in a thread of the tests, whose parts can be made to fail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from afterwords.server import create_app, load_settings
from tests.e2e.served import ADMIN_SECRET, register
from tests.server.test_embedding import RunningApp


@dataclass(frozen=True)
class InProcess:
    """A running server, and a key of it with the voice `me`."""

    url: str
    key: str


@pytest.fixture
def in_process(tmp_path: Path) -> Iterator[InProcess]:
    settings = load_settings(home=tmp_path / "home", backends="tone", admin_secret=ADMIN_SECRET)
    with RunningApp(create_app(settings)) as running:
        with running.client() as admin:
            key = admin.post("/v1/keys").json()["api_key"]
        with running.client(key) as client:
            register(client, name="me")
        yield InProcess(running.url, key)
