"""Test `afterwords keys --remote` with a real server and a fake of the hosted service."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.cli.program import run
from tests.e2e.served import ADMIN_SECRET, Served
from tests.hosted.service import HostedService

UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
ADMIN = {"AFTERWORDS_ADMIN_SECRET": ADMIN_SECRET}
LABEL = "a\x1b[2Jb\u202e"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("keys") / "server", {"AFTERWORDS_WORKERS": "0"})
    yield served.start()
    served.kill()


@pytest.fixture
def key(served: Served, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a key with a new account, which the commands use."""
    key = served.new_key(label=LABEL)
    monkeypatch.setenv("AFTERWORDS_BASE_URL", served.url)
    monkeypatch.setenv("AFTERWORDS_API_KEY", key)
    return key


@pytest.mark.usefixtures("key")
def test_admin_creates_a_working_key(served: Served) -> None:
    done = run("keys", "create", "--remote", "--label", "new", "--scope", "voices:read", env=ADMIN)

    assert done.code == 0, done.err
    assert "shown this once" in done.err
    with served.client(done.out.strip()) as client:
        assert client.get("/v1/voices").status_code == 200
    listed = json.loads(run("keys", "list", "--remote", "--json", env=ADMIN).out)
    assert "new" in {key["label"] for key in listed}
    assert ADMIN_SECRET not in done.out + done.err


@pytest.mark.usefixtures("key")
def test_create_needs_admin_secret() -> None:
    message = run("keys", "create", "--remote").expect_error(3, "not_logged_in")
    assert "AFTERWORDS_ADMIN_SECRET" in message
    run("accounts", "--remote").expect_error(3, "not_logged_in")
    wrong = "another-secret-that-opens-nothing-at-all"
    assert wrong not in run("keys", "create", "--remote", env={"AFTERWORDS_ADMIN_SECRET": wrong}).expect_error(
        3, "unauthorized"
    )


def test_key_creates_scoped_key_without_admin_secret(key: str, served: Served) -> None:
    made = run("keys", "create", "--remote", "--scope", "voices:read")
    assert made.code == 0, made.err
    for secret in (key, made.out.strip()):
        with served.client(secret) as client:
            assert client.get("/v1/voices").json() == []
    accounts = json.loads(run("accounts", "--remote", "--json", env=ADMIN).out)
    assert {account["keys"] for account in accounts} >= {2}
    account = next(account for account in accounts if account["keys"] == 2)["account_id"]
    shown = json.loads(run("accounts", "show", account, "--remote", "--json", env=ADMIN).out)
    assert {key["account_id"] for key in shown["keys"]} == {account}
    made = run("keys", "create", "--remote", "--plan", "hobby", "--json", env=ADMIN)
    with served.client(json.loads(made.out)["api_key"]) as client:
        assert client.get("/v1/usage").json()["plan"] == "hobby"


def test_key_lists_rotates_and_revokes_own_keys(key: str) -> None:
    head, row = run("keys", "list", "--remote").out.splitlines()
    assert head.split() == ["id", "key", "label", "account", "scopes", "spent", "used", "(UTC)", "created", "state"]
    key_id, begins, label, _, *rest = row.split()
    assert (begins, label) == (f"{key[:8]}…", "a\\x1b[2Jb\\u202e")
    assert (rest[0], rest[1], rest[-1]) == ("all", "0", "valid")

    rotated = run("keys", "rotate", key_id, "--overlap", "60", "--remote", "--json")

    new = json.loads(rotated.out)
    assert "afterwords login" in rotated.err
    assert new["api_key"] != key
    env = {"AFTERWORDS_API_KEY": new["api_key"]}
    assert run("keys", "revoke", new["key_id"], "--remote", env=env).err == "Revoked.\n"
    run("usage", env={"AFTERWORDS_API_KEY": new["api_key"]}).expect_error(3, "unauthorized")


@pytest.mark.parametrize("command", ["revoke", "rotate"])
@pytest.mark.usefixtures("key")
def test_unknown_id_is_not_found(command: str) -> None:
    assert "keys list --remote" in run("keys", command, UNKNOWN_ID, "--remote").expect_error(4, "key_not_found")


@pytest.mark.usefixtures("key")
def test_invalid_scope_is_refused() -> None:
    run("keys", "create", "--remote", "--scope", "everything", env=ADMIN).expect_error(5, "invalid_field")


def test_hosted_service_only_creates_keys() -> None:
    with HostedService() as hosted:
        env = {
            "AFTERWORDS_BASE_URL": hosted.url,
            "AFTERWORDS_API_KEY": hosted.api_key,
            "AFTERWORDS_ADMIN_SECRET": hosted.admin_secret,
        }
        made = run("keys", "create", "--remote", "--label", "new", env=env)
        assert (made.code, made.err) == (0, "A key, shown this once:\n")
        assert run("usage", env={**env, "AFTERWORDS_API_KEY": made.out.strip()}).code == 0
        run("keys", "list", "--remote", env=env).expect_error(5, "unsupported_by_server")
        run("keys", "create", "--remote", "--character-limit", "5", env=env).expect_error(5, "unsupported_by_server")
