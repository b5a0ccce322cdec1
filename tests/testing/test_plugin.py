"""The pytest plug-in of afterwords: the server, the clients and the fixtures."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
import pytest

import afterwords.testing
from afterwords.errors import JobFailedError, MissingExtraError, pip_install
from afterwords.testing import Fault, FaultyTransport, RunningServer

if TYPE_CHECKING:
    from afterwords import AsyncClient, Client, Voice

PLUGIN: Final = "afterwords.testing.plugin"


def get(server: RunningServer, path: str, secret: str = "nothing") -> httpx.Response:
    return httpx.get(f"{server.url}{path}", headers={"Authorization": f"Bearer {secret}"}, trust_env=False)


def run_pytest(folder: Path, *options: str, **env: str) -> str:
    """Run pytest in a project with our plug-in alone, warnings as errors; return its output."""
    options = ("-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", ".", *options)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": PLUGIN, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout + done.stderr


class TestServer:
    def test_server_offers_the_tone_and_is_ready(self, afterwords_server: RunningServer) -> None:
        assert get(afterwords_server, "/v1/health").json()["backends"] == ["tone"]
        assert get(afterwords_server, "/readyz").status_code == 200

    def test_keys_and_admin_secret_open_their_routes(self, afterwords_server: RunningServer) -> None:
        assert get(afterwords_server, "/v1/voices", afterwords_server.api_key).json() == []
        assert get(afterwords_server, "/v1/voices", afterwords_server.new_key()).json() == []
        assert get(afterwords_server, "/v1/keys", afterwords_server.admin_secret).status_code == 200
        assert get(afterwords_server, "/v1/voices", "aw_guessed").status_code == 401

    def test_new_key_takes_a_limit(self, afterwords_server: RunningServer) -> None:
        key = afterwords_server.new_key(label="poor", character_limit=10)
        assert get(afterwords_server, "/v1/usage", key).json()["limit"] == 10

    def test_new_key_with_invalid_fields_raises(self, afterwords_server: RunningServer) -> None:
        with pytest.raises(ValueError, match="invalid_field"):
            afterwords_server.new_key(character_limit=-1)

    def test_stopped_server_closes_port_and_database(self, tmp_path: Path) -> None:
        with RunningServer(tmp_path) as server:
            assert (tmp_path / "server" / "afterwords.db").is_file()
        with pytest.raises(httpx.ConnectError):
            get(server, "/v1/health")
        assert not (tmp_path / "server" / "afterwords.db-wal").exists()

    def test_failed_start_raises_with_the_log(self, tmp_path: Path) -> None:
        (tmp_path / "server").write_text("a file where its folder belongs")
        with pytest.raises(RuntimeError, match=r"the log of uvicorn\.error says why"):
            RunningServer(tmp_path).start()

    def test_missing_extra_raises_with_the_install_command(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        # patched, since a machine without the extra can't run the other tests
        monkeypatch.setattr("afterwords.testing.running.find_spec", lambda _: None)
        with pytest.raises(MissingExtraError, match="A server for tests needs the extra 'server'") as caught:
            RunningServer(tmp_path)
        assert caught.value.hint == pip_install("server")


class TestClient:
    def test_async_client_speaks(self, afterwords_async_client: AsyncClient, afterwords_voice: Voice) -> None:
        async def say() -> float:
            async with afterwords_async_client as client:
                return (await client.say("Awaited.", voice=afterwords_voice)).duration_s

        assert asyncio.run(say()) == pytest.approx(8 * 0.06)

    def test_client_speaks(self, afterwords_client: Client, afterwords_voice: Voice) -> None:
        audio = afterwords_client.say("A tone lasts sixty milliseconds a character.", voice=afterwords_voice)
        assert audio.duration_s == pytest.approx(44 * 0.06)

    @pytest.mark.parametrize("_run", [1, 2])
    def test_each_test_has_its_own_account(self, afterwords_client: Client, afterwords_voice: Voice, _run: int) -> None:
        assert [voice.voice_id for voice in afterwords_client.voices.list()] == [afterwords_voice.voice_id]

    def test_fault_reaches_only_the_faulty_client(
        self,
        afterwords_client: Client,
        afterwords_faulty_client: Client,
        afterwords_faults: FaultyTransport,
        afterwords_voice: Voice,
    ) -> None:
        afterwords_faults.inject(Fault.ANSWER, status=401, times=9)
        with pytest.raises(afterwords.errors.UnauthorizedError):
            afterwords_faulty_client.say("Hello.", voice=afterwords_voice)
        assert afterwords_client.say("Hello.", voice=afterwords_voice).duration_s > 0
        afterwords_faults.clear()
        assert afterwords_faulty_client.say("Hello.", voice=afterwords_voice).duration_s > 0

    @pytest.mark.parametrize(
        ("word", "reason"),
        [
            ("fault-fail", "synthesis_failed"),
            ("fault-error", "synthesis_failed"),
            ("fault-memory", "out_of_memory"),
            ("fault-crash", "worker_lost"),
            ("fault-hang", "speaking_timed_out"),
        ],
    )
    def test_fault_word_makes_the_job_fail(
        self, afterwords_client: Client, afterwords_voice: Voice, word: str, reason: str
    ) -> None:
        with pytest.raises(JobFailedError) as caught:
            afterwords_client.say(f"Then {word} comes.", voice=afterwords_voice)
        assert caught.value.reason == reason
        assert afterwords_client.say("The next one works.", voice=afterwords_voice).duration_s > 0


class TestElsewhere:
    def test_settings_of_developer_and_server_stay_apart(self, tmp_path: Path) -> None:
        (tmp_path / "test_it.py").write_text("""
import os, httpx
from afterwords.network import TELEMETRY_SWITCHES

def settings():
    others = {"PYTEST_CURRENT_TEST", *TELEMETRY_SWITCHES}
    return {name: value for name, value in os.environ.items() if name not in others}

BEFORE = settings()

def test_it(afterwords_server):
    assert settings() == BEFORE
    assert httpx.get(afterwords_server.url + "/v1/health", trust_env=False).json()["backends"] == ["tone"]
""")
        home = tmp_path / "home"
        theirs = {"HOME": str(home), "DATABASE_URL": "sqlite:////nowhere/db", "PORT": "x", "BACKENDS": "lite"}
        output = run_pytest(tmp_path, **{f"AFTERWORDS_{name}": value for name, value in theirs.items()})
        assert "1 passed" in output, output
        assert not home.exists()

    def test_run_without_fixtures_imports_only_the_plugin(self, tmp_path: Path) -> None:
        (tmp_path / "test_it.py").write_text("""
import sys

def test_it():
    ours = {name for name in sys.modules if name.startswith("afterwords")}
    assert ours == {"afterwords", "afterwords.testing", "afterwords.testing.plugin"}
    assert not {"numpy", "pydantic", "httpx", "fastapi", "uvicorn", "sqlalchemy"} & sys.modules.keys()
""")
        output = run_pytest(tmp_path)
        assert "1 passed" in output, output

    def test_fixtures_have_docstrings(self, tmp_path: Path) -> None:
        lines = run_pytest(tmp_path, "--fixtures").splitlines()
        ours = {n: line for n, line in enumerate(lines) if line.startswith("afterwords_")}
        assert len(ours) == 7
        assert all(lines[n + 1].startswith("    ") and "no docstring" not in lines[n + 1] for n in ours)


def test_public_names_can_be_imported() -> None:
    assert all(getattr(afterwords.testing, name) is not None for name in afterwords.testing.__all__)
    assert set(afterwords.testing.__all__) == set(dir(afterwords.testing))
    with pytest.raises(AttributeError, match="no attribute 'TestServer'"):
        getattr(afterwords.testing, "TestServer")  # noqa: B009 - mypy would refuse the attribute


def test_entry_point_names_the_plugin() -> None:
    (point,) = entry_points(group="pytest11", name="afterwords")
    assert point.value == PLUGIN
    assert point.load().__name__ == PLUGIN
