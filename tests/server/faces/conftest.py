"""Servers with the voice `me`, one of them in a thread, so that its parts can be made to fail; and programs of Node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from afterwords.server import create_app, load_settings
from tests.e2e.served import ADMIN_SECRET, Served, register, serving
from tests.server.test_embedding import RunningApp


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("faces") / "home") as server:
        with server.client() as client:
            register(client, name="me")
        yield server


def run_node(script: str, packages: Sequence[str], folder: Path, served: Served, **more: str) -> Any:
    """Run a script with packages of npm, the URL and key of a server, and return the JSON that it prints."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        pytest.skip("needs node and npm")
    install = [npm, "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(folder), *packages]
    if subprocess.run(install, capture_output=True, timeout=300, check=False).returncode:
        pytest.skip("npm can't install the clients here")
    environment = {**os.environ, "URL": served.url, "KEY": served.key, **more}
    command = [node, shutil.copy(Path(__file__).with_name(script), folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@dataclass(frozen=True)
class InProcess:
    """A running server, and a key of it with the voice `me`."""

    url: str
    key: str


@contextmanager
def running(home: Path, **settings: Any) -> Iterator[InProcess]:
    loaded = load_settings(home=home, backends="tone", admin_secret=ADMIN_SECRET, **settings)
    with RunningApp(create_app(loaded)) as app:
        with app.client() as admin:
            key = admin.post("/v1/keys").json()["api_key"]
        with app.client(key) as client:
            register(client, name="me")
        yield InProcess(app.url, key)


@pytest.fixture
def in_process(tmp_path: Path) -> Iterator[InProcess]:
    with running(tmp_path / "home") as server:
        yield server


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[InProcess]:
    """Yield a server that allows two texts in a minute, after the request that made the voice."""
    with running(tmp_path / "home", rate_limit=3) as server:
        yield server
