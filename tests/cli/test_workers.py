"""`afterwords worker` and `afterwords workers`: options, tokens, and what is refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.program import Result, run

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"AFTERWORDS_HOME": str(tmp_path), "AFTERWORDS_BACKENDS": "nothing", "AFTERWORDS_WORKER_TOKEN": ""}


def tokens(env: dict[str, str]) -> list[dict[str, str | None]]:
    return list(json.loads(run("workers", "token", "list", "--json", env=env).out))


def test_token_is_created_listed_and_revoked(env: dict[str, str]) -> None:
    assert "no worker tokens" in run("workers", "token", "list", env=env).err
    made = run("workers", "token", "create", "--label", "gpu", env=env)
    assert made.code == 0
    assert made.out.startswith("awp_")
    [token] = tokens(env)
    assert (token["label"], token["revoked_at"], token["prefix"]) == ("gpu", None, made.out[:8])
    assert made.out.strip()[8:] not in json.dumps(token)
    assert run("workers", "token", "revoke", str(token["token_id"]), env=env).code == 0
    assert tokens(env)[0]["revoked_at"]
    listed = run("workers", "token", "list", env=env)
    assert "revoked" in listed.out


def test_unknown_token_exits_with_4(env: dict[str, str]) -> None:
    assert "worker token" in run("workers", "token", "revoke", "unknown", env=env).expect_error(4, "key_not_found")


def worker(env: dict[str, str], *options: str, stdin: bytes = b"") -> Result:
    return run("worker", "--server", NOWHERE, *options, env=env, stdin=stdin)


def test_worker_needs_a_token(env: dict[str, str]) -> None:
    done = worker(env)
    assert done.code == 2
    assert "AFTERWORDS_WORKER_TOKEN" in done.err


def test_worker_without_an_engine_is_refused(env: dict[str, str]) -> None:
    done = worker({**env, "AFTERWORDS_WORKER_TOKEN": "awp_x"})
    assert done.code == 1
    assert "backend" in done.err


def test_token_in_argv_is_warned_of_and_not_from_stdin(env: dict[str, str]) -> None:
    assert "other users" in worker(env, "--token", "awp_secret").err
    from_stdin = worker(env, "--token", "-", stdin=b"awp_secret\n").err
    assert "other users" not in from_stdin
    assert "awp_secret" not in from_stdin


def test_empty_stdin_is_not_replaced_by_the_variable(env: dict[str, str]) -> None:
    for stdin in (b"", b"\n"):
        done = worker({**env, "AFTERWORDS_WORKER_TOKEN": "awp_x"}, "--token", "-", stdin=stdin)
        assert done.code == 2
        assert "No worker token is given." in done.err


def test_token_over_http_is_warned_of(env: dict[str, str]) -> None:
    done = run("worker", "--server", "http://voices.example.com", env={**env, "AFTERWORDS_WORKER_TOKEN": "awp_x"})
    assert "over http" in done.err


def test_wrong_address_is_refused(env: dict[str, str]) -> None:
    assert run("worker", "--server", "voices.example.com", env={**env, "AFTERWORDS_WORKER_TOKEN": "x"}).code == 5
