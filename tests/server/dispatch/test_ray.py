"""The Ray dispatcher on a real cluster of one node, with one replica that all tests share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from afterwords.errors import InvalidOptionError, UnreachableError
from afterwords.server.dispatch.ray.dispatcher import RayDispatcher
from afterwords.server.settings import Settings
from afterwords.testing import DispatcherContract
from afterwords.testing.running import RunningServer
from tests.clouds.soak import FAULTS
from tests.server.dispatch.ray_cluster import DEADLINE_S, RayCluster

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a Ray cluster needs Linux or macOS")

ATTEMPTS = 2  # each further one starts a replica

ENVIRONMENT = """
import json, os, sys
from afterwords.server.dispatch.ray.replica import Replica
Replica("tone", 1)
open(sys.argv[1], "w").write(json.dumps(dict(os.environ)))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with RayCluster(tmp_path_factory.mktemp("node")) as cluster:
        deployed = subprocess.run(
            [sys.executable, "-m", "afterwords", "cluster", "deploy", "--backend", "tone", "--json"],
            env={**cluster.environment, "AFTERWORDS_RAY_ADDRESS": cluster.address},
            capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        assert deployed.returncode == 0, deployed.stderr
        assert json.loads(deployed.stdout)["max_concurrent"] == 16
        yield cluster


class TestRayDispatcher(DispatcherContract):
    cluster: ClassVar[RayCluster]
    soak: ClassVar = FAULTS | {"test_hanging_engine_is_replaced"}

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
        cls.cluster = cluster
        cls.settings = {"dispatcher": "ray", "ray_address": cluster.address, "max_attempts": ATTEMPTS}
        with cls.new_server(tmp_path_factory.mktemp("ray") / "home") as server:
            yield server

    def kill_worker(self, server: RunningServer) -> None:  # noqa: ARG002 - it is in the cluster
        for replica in self.cluster.replicas():
            os.kill(replica.pid, signal.SIGKILL)  # Ray starts another one

    def test_hanging_engine_is_replaced(self, client: httpx.Client, voice_id: str) -> None:
        assert self.wait_for(client, self.submit(client, voice_id, "now fault-hang")) == "speaking_timed_out"
        assert self.wait_for(client, self.submit(client, voice_id, "The next one is spoken.")) == "ready"


def test_engine_sees_no_secrets_of_a_server(tmp_path: Path) -> None:
    secrets = {"AFTERWORDS_ADMIN_SECRET": "canary", "AFTERWORDS_API_KEY": "canary", "AWS_SECRET_ACCESS_KEY": "canary"}
    seen = tmp_path / "environment.json"
    environment = {**os.environ, **secrets, "AFTERWORDS_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", ENVIRONMENT, seen], env=environment, timeout=DEADLINE_S, check=True)
    assert "canary" not in json.loads(seen.read_text()).values()


def test_cluster_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, backends=("tone",), dispatcher="ray", ray_address="127.0.0.1:1")
    with pytest.raises(UnreachableError, match="connection refused") as raised:
        RayDispatcher.check(settings)
    assert raised.value.exit_code == 8
    assert "ray start" in raised.value.hint


def test_address_of_ray_client_is_refused(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, backends=("tone",), dispatcher="ray", ray_address="ray://127.0.0.1:10001")
    with pytest.raises(InvalidOptionError, match="can't stream"):
        RayDispatcher.check(settings)
