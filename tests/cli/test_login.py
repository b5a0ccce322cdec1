"""Test `afterwords login`, `logout`, `whoami`, `usage` and `profiles` with a fake of the hosted service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.program import COMMAND, Result, environment, list_files, run
from tests.hosted.service import HostedService

WRONG = "aw_this-key-is-not-known-anywhere"


@pytest.fixture(scope="module")
def hosted() -> Iterator[HostedService]:
    with HostedService() as service:
        yield service


@pytest.fixture
def other_url(hosted: HostedService) -> str:
    """Return the URL of the same service with another host name."""
    return hosted.url.replace("127.0.0.1", "localhost")


@pytest.fixture
def keyring(tmp_path: Path) -> dict[str, str]:
    """Return settings for a real keyring that stores secrets in a folder."""
    return {
        "PYTHON_KEYRING_BACKEND": "keyrings.alt.file.PlaintextKeyring",
        "XDG_DATA_HOME": str(tmp_path / "keyring"),
    }


def login(url: str, *args: str, key: str, env: dict[str, str] | None = None) -> Result:
    return run("login", url, *args, stdin=f"{key}\n".encode(), env=env)


# -- login ----------------------------------------------------------------------------------------------------


def test_login_without_keyring_stores_key_in_private_file(hosted: HostedService, home: Path) -> None:
    done = login(hosted.url + "/", key=f"  {hosted.api_key}  ")

    assert (done.code, done.out) == (0, "")
    assert f"Logged in to {hosted.url} as default." in done.err
    assert f"The key is in {home / 'profiles.json'}, which only you can read." in done.err
    assert done.err.endswith("Next: afterwords whoami\n")
    assert hosted.api_key not in done.err
    assert (home / "profiles.json").stat().st_mode & 0o777 == (0o600 if os.name == "posix" else 0o666)
    assert json.loads(run("whoami", "--json").out) == {
        "server": hosted.url,
        "profile": "default",
        "key_from": str(home / "profiles.json"),
        "version": "hosted",
        "backends": ["qwen3-1.7b", "qwen3-0.6b"],
        "characters": 0,
        "limit": None,
        "period": json.loads(run("usage", "--json").out)["period"],
    }


def test_login_stores_key_in_keyring(
    hosted: HostedService, home: Path, keyring: dict[str, str], tmp_path: Path
) -> None:
    done = login(hosted.url, key=hosted.api_key, env=keyring)

    assert (done.code, done.out) == (0, "")
    assert "The key is in the keyring of this system." in done.err
    assert hosted.api_key not in (home / "profiles.json").read_text()
    assert json.loads(run("whoami", "--json", env=keyring).out)["key_from"] == "keyring"
    assert json.loads(run("profiles", "list", "--json", env=keyring).out)[0]["key_in"] == "keyring"
    kept = tmp_path / "keyring" / "python_keyring" / "keyring_pass.cfg"
    before = kept.read_text()

    assert run("logout", env=keyring).code == 0

    assert len(kept.read_text()) < len(before)
    run("whoami", env=keyring).expect_error(3, "not_logged_in")


def test_login_to_other_server_removes_old_key_from_keyring(
    hosted: HostedService, other_url: str, keyring: dict[str, str], tmp_path: Path
) -> None:
    for url in (hosted.url, other_url):
        assert login(url, "--profile", "work", key=hosted.api_key, env=keyring).code == 0

    kept = (tmp_path / "keyring" / "python_keyring" / "keyring_pass.cfg").read_text()
    assert len([line for line in kept.splitlines() if "work" in line]) == 1


def test_wrong_key_changes_nothing(hosted: HostedService, home: Path) -> None:
    login(hosted.url, key=WRONG).expect_error(3, "unauthorized")
    assert not list_files(home)
    login(hosted.url, key=hosted.api_key)
    before = (home / "profiles.json").read_bytes()

    message = login(hosted.url, key=WRONG).expect_error(3, "unauthorized")

    assert WRONG not in message
    assert (home / "profiles.json").read_bytes() == before


@pytest.mark.parametrize("key", ["", "a\x1b[2J schlüssel"], ids=ascii)
def test_malformed_key_is_refused_and_not_repeated(key: str, hosted: HostedService, home: Path) -> None:
    asked = len(hosted.requests)

    message = login(hosted.url, key=key).expect_error(5, "invalid_input")

    assert "The API key" in message
    assert not key or key not in message
    assert len(hosted.requests) == asked
    assert not list_files(home)


def test_key_is_not_an_option_and_not_in_traceback(hosted: HostedService) -> None:
    run("login", hosted.url, "--key", WRONG, stdin=b"x\n").expect_error(2, "usage")
    command = [*COMMAND, "--debug", "login", hosted.url]
    done = subprocess.run(
        command, input=WRONG, text=True, capture_output=True, check=False, env=environment(), timeout=60
    )

    assert done.returncode == 3
    assert "Traceback" in done.stderr
    assert WRONG not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://voices.example.com", "does not begin with https://"),
        ("https://me:canary@voices.example.com", "a user or a password"),
    ],
)
def test_invalid_address_is_refused_and_not_repeated(url: str, message: str) -> None:
    done = login(url, key="aw_key")

    assert message in done.expect_error(5, "invalid_input")
    assert "canary" not in done.err


def test_missing_address_without_terminal_is_a_usage_error() -> None:
    assert "afterwords login https://" in run("login", stdin=b"aw_key\n").expect_error(2, "usage")


def test_login_defaults_to_configured_address(hosted: HostedService) -> None:
    env = {"AFTERWORDS_BASE_URL": hosted.url}
    done = run("login", stdin=f"{hosted.api_key}\n".encode(), env=env)
    assert f"Logged in to {hosted.url} as default." in done.err
    assert "AFTERWORDS_BASE_URL is set and overrides this." in done.err

    again = run("login", stdin=f"{hosted.api_key}\n".encode())

    assert f"Logged in to {hosted.url} as default." in again.err


@pytest.mark.skipif(sys.platform != "linux", reason="only there 0.0.0.0 leads to this machine")
def test_plain_http_prints_a_warning(hosted: HostedService) -> None:
    done = login(hosted.url.replace("127.0.0.1", "0.0.0.0"), key=hosted.api_key, env={"NO_PROXY": "*"})

    assert done.code == 0
    assert "http://" in done.err.splitlines()[0]
    assert "can read the key" in done.err.splitlines()[0]


# -- several servers ------------------------------------------------------------------------------------------


def test_profiles_are_listed_used_and_removed(hosted: HostedService, other_url: str) -> None:
    assert "afterwords login" in run("profiles").err
    login(hosted.url, key=hosted.api_key)
    login(other_url, "-p", "work", key=hosted.api_key)

    assert [line.split()[:3] for line in run("profiles").out.splitlines()[1:]] == [
        ["default", hosted.url, run("profiles").out.splitlines()[1].split()[2]],
        ["work", "*", other_url],
    ]
    assert json.loads(run("whoami", "--json").out)["profile"] == "work"
    assert json.loads(run("whoami", "--json", "--profile", "default").out)["server"] == hosted.url
    assert json.loads(run("whoami", "--json", env={"AFTERWORDS_PROFILE": "default"}).out)["server"] == hosted.url

    assert run("profiles", "use", "default").out == "default\n"

    assert json.loads(run("whoami", "--json").out)["profile"] == "default"
    assert f"Now in use: work, {other_url}" in run("logout").err
    assert [kept["profile"] for kept in json.loads(run("profiles", "list", "--json").out)] == ["work"]


def test_login_to_other_server_keeps_default_profile(hosted: HostedService, other_url: str, home: Path) -> None:
    login(hosted.url, key=hosted.api_key)
    before = (home / "profiles.json").read_bytes()

    assert "--profile NAME" in login(other_url, key=hosted.api_key).expect_error(2, "usage")

    assert (home / "profiles.json").read_bytes() == before


def test_unknown_profile_is_refused(hosted: HostedService) -> None:
    for command in (("whoami",), ("usage",), ("logout",), ("voices",), ("jobs", "list")):
        message = run(*command, "--profile", "a\x1b[2J").expect_error(5, "invalid_option")
        assert r"a\x1b[2J" in message
    run("profiles", "use", "unknown").expect_error(5, "invalid_option")
    login(hosted.url, "--profile", "a b", key=hosted.api_key).expect_error(5, "invalid_option")


# -- which server ---------------------------------------------------------------------------------------------


def test_not_logged_in_names_login() -> None:
    assert "afterwords login" in run("whoami").expect_error(3, "not_logged_in")
    assert run("logout").err == "You are not logged in.\n"


def test_unreachable_server_exits_8() -> None:
    env = {"AFTERWORDS_BASE_URL": "http://127.0.0.1:1", "AFTERWORDS_API_KEY": "aw_key"}

    assert "http://127.0.0.1:1" in run("whoami", env=env).expect_error(8, "unreachable")


def test_whoami_names_key_from_environment(hosted: HostedService) -> None:
    env = {"AFTERWORDS_BASE_URL": hosted.url, "AFTERWORDS_API_KEY": hosted.api_key}
    facts = [line.split(maxsplit=1) for line in run("whoami", env=env).out.splitlines()]

    assert ["key_from", "AFTERWORDS_API_KEY"] in facts
    assert ["server", hosted.url] in facts
    assert not [fact for fact in facts if hosted.api_key in fact]


def test_damaged_profiles_are_one_line_error(home: Path) -> None:
    home.mkdir()
    (home / "profiles.json").write_text('{"profiles": 7}')

    assert "profiles.json" in run("whoami").expect_error(5, "unreadable_file")
