"""A Ray cluster on this machine, as processes of its own: Ray takes signals, and ends processes that lose it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

import psutil

DEADLINE_S = 240
RAY = (sys.executable, "-m", "ray.scripts.scripts")
OBJECT_STORE_BYTES = 100_000_000


class RayCluster:
    """A head and further nodes, with one CPU each; use it as a context manager.

    Attributes:
        address: Host and port of the head.
    """

    def __init__(self, home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self._folder = Path(tempfile.mkdtemp(prefix="afterwords-ray-", dir="/tmp"))  # paths of sockets are short
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AFTERWORDS_")},
            "AFTERWORDS_HOME": str(home),
            "AFTERWORDS_TESTING": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._nodes: list[psutil.Popen] = []

    def __enter__(self) -> Self:
        try:
            port = self.address.rpartition(":")[2]
            self.add_node("--head", "--port", port, "--include-dashboard", "false", "--temp-dir", str(self._folder))
            return self
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        for node in reversed(self._nodes):
            self.kill_node(node)
        shutil.rmtree(self._folder, ignore_errors=True)

    def add_node(self, *options: str) -> psutil.Popen:
        """Start a node and wait until it runs; return the process whose children are the node."""
        options = options or ("--address", self.address)
        for last in (False, False, True):  # on a busy machine a node may miss a deadline of Ray
            log = self._folder / f"{time.monotonic_ns()}.log"
            with log.open("wb") as output:
                node = psutil.Popen(
                    [*RAY, "start", "--block", "--num-cpus", "1", "--num-gpus", "0", "--node-ip-address", "127.0.0.1",
                     "--object-store-memory", str(OBJECT_STORE_BYTES), *options],
                    env=self.environment, stdout=output, stderr=output, start_new_session=True,
                )  # fmt: skip
            end = time.monotonic() + DEADLINE_S
            while "Ray runtime started" not in (printed := log.read_text("utf-8", "replace")) and node.poll() is None:
                assert time.monotonic() < end, printed
                time.sleep(0.1)
            if node.poll() is None:
                break
            assert not last, printed
        self._nodes.append(node)
        return self._nodes[-1]

    def kill_node(self, node: psutil.Popen) -> None:
        """Kill all processes of a node at once."""
        self._nodes.remove(node)
        for process in [node, *node.children(recursive=True)]:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        node.wait(DEADLINE_S)

    def replicas(self) -> list[psutil.Process]:
        """Return the processes of our replicas."""
        children = [child for node in self._nodes for child in node.children(recursive=True)]
        return [child for child in children if _name(child).startswith("ray::ServeReplica:afterwords-")]

    def wait_for_replicas(self, number: int, *, without: list[psutil.Process] | None = None) -> list[psutil.Process]:
        """Wait until this many replicas run, apart from those that were killed."""
        end = time.monotonic() + DEADLINE_S
        while len(found := [each for each in self.replicas() if each not in (without or [])]) < number:
            assert time.monotonic() < end, f"{len(found)} replicas run"
            time.sleep(0.1)
        return found


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
