"""What `afterwords cluster` refuses; tests/server/dispatch/test_ray.py uses it with a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.program import run


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"AFTERWORDS_HOME": str(tmp_path)}


def test_cluster_that_does_not_answer_exits_with_8(env: dict[str, str]) -> None:
    failed = run("cluster", "status", "--address", "127.0.0.1:1", env=env)
    assert "ray start" in failed.expect_error(8, "unreachable")


def test_address_of_ray_client_exits_with_5(env: dict[str, str]) -> None:
    failed = run("cluster", "status", env={**env, "AFTERWORDS_RAY_ADDRESS": "ray://127.0.0.1:10001"})
    assert "can't stream" in failed.expect_error(5, "invalid_option")


def test_fewer_replicas_than_the_minimum_exit_with_2(env: dict[str, str]) -> None:
    assert run("cluster", "deploy", "--backend", "tone", "--min", "2", "--max", "1", env=env).code == 2
