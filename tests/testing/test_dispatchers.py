"""The contract of dispatchers, for the worker processes of a server, for remote workers, and for a plug-in."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from afterwords.server.app_state import open_store
from afterwords.server.services.keys import KeyService
from afterwords.testing import DispatcherContract, RunningServer
from tests.cli.program import run
from tests.e2e.workers import WorkerProgram

MODULE = "afterwords.server.dispatch.worker_main"


class TestLocalDispatcher(DispatcherContract):
    def kill_worker(self, server: RunningServer) -> None:  # noqa: ARG002 - it is in this process
        """Kill the newest worker: servers of earlier tests may have theirs in this process, too."""
        workers = [child for child in psutil.Process().children() if MODULE in child.cmdline()]
        max(workers, key=psutil.Process.create_time).kill()


class TestRemoteDispatcher(DispatcherContract):
    settings: ClassVar[Mapping[str, Any]] = {"workers": 0}

    start_worker: ClassVar[Callable[[], WorkerProgram]]
    worker: ClassVar[WorkerProgram]

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
        folder = tmp_path_factory.mktemp("remote")
        with cls.new_server(folder / "home") as server:
            token = asyncio.run(create_token(server))
            cls.start_worker = lambda: WorkerProgram(
                folder, token=token, url=server.url, AFTERWORDS_DRAIN_S="0", AFTERWORDS_STALL_S="1"
            )
            cls.worker = cls.start_worker()
            try:
                yield server
            finally:
                cls.worker.process.kill()
                cls.worker.process.wait()

    @classmethod
    def replace_worker(cls, sig: signal.Signals) -> int:
        code = cls.worker.stop(sig)
        cls.worker = cls.start_worker()
        return code

    def kill_worker(self, server: RunningServer) -> None:  # noqa: ARG002 - there is one worker
        self.replace_worker(signal.SIGKILL)

    def drain_worker(self, server: RunningServer) -> None:  # noqa: ARG002 - likewise
        assert self.replace_worker(signal.SIGTERM) == 0


async def create_token(server: RunningServer) -> str:
    store = open_store(server.settings)
    await store.open()
    try:
        return (await KeyService(store).create_worker_token())[0]
    finally:
        await store.close()


def test_plug_in_runs_the_jobs_of_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n", "utf-8")
    (info / "entry_points.txt").write_text("[afterwords.dispatchers]\nmine = mine:dispatcher\n", "utf-8")
    (tmp_path / "mine.py").write_text(
        "from afterwords.server.dispatch.local import LocalDispatcher\n"
        "class Mine(LocalDispatcher):\n"
        "    state = 'mine'\n"
        "def dispatcher(settings, queue, streams):\n"
        "    return Mine(settings, queue, streams)\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    with RunningServer(tmp_path / "home", dispatcher="mine") as server:
        _, body = server._request("GET", "/readyz")
    assert body["backend"] == "mine"


def test_unknown_dispatcher_is_refused(tmp_path: Path) -> None:
    env = {"AFTERWORDS_HOME": str(tmp_path), "AFTERWORDS_DISPATCHER": "nothing", "AFTERWORDS_BACKENDS": "tone"}
    assert "local" in run("serve", "--port", "0", env=env).err
