"""Test `afterwords voices … --remote` with a real server and a fake of the hosted service."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from afterwords.library.library import Library
from afterwords.models import Voice
from tests.cli.program import run
from tests.e2e.served import register
from tests.hosted.service import HostedService

HOSTILE = "\x1b]0;owned\x07\u202e"


@pytest.mark.parametrize("args", [("voices", "--remote"), ("voices", "list", "--remote")], ids=len)
def test_list_shows_voices_of_the_server(args: tuple[str, ...], client: httpx.Client) -> None:
    assert "afterwords push" in run(*args).err
    voice_id = register(client)

    head, row = run(*args).out.splitlines()

    assert head.split() == ["name", "lang", "backend", "status", "made", "id"]
    assert (row.split()[:3], row.split()[-1]) == (["me", "en", "tone"], voice_id)
    assert [voice["voice_id"] for voice in json.loads(run("voices", "list", "--remote", "--json").out)] == [voice_id]


def test_option_before_subcommand_is_refused() -> None:
    assert "voices list … --remote" in run("voices", "--remote", "list").expect_error(2, "usage")


def test_show_prints_details(client: httpx.Client) -> None:
    register(client, ref_text="The canary sings.", consent="self")

    facts = json.loads(run("voices", "show", "me", "--remote", "--json").out)

    assert (facts["name"], facts["consent"]["kind"], facts["ref_text"]) == ("me", "self", "The canary sings.")
    assert "lang         en" in run("voices", "show", facts["voice_id"], "--remote").out.splitlines()
    assert "did you mean 'me'?" in run("voices", "show", "mee", "--remote").expect_error(4, "voice_not_found")


def test_hostile_name_is_escaped(hosted: HostedService) -> None:
    with httpx.Client(base_url=hosted.url, headers={"Authorization": f"Bearer {hosted.api_key}"}) as client:
        voice_id = register(client, name=HOSTILE)

    for args in (("list",), ("list", "--json"), ("show", voice_id), ("show", "unknown"), ("rm", voice_id, "-y")):
        done = run("voices", *args, "--remote")
        assert not set("\x1b\x07\u202e") & set(done.out + done.err)
        assert args != ("list",) or r"\x1b]0;owned\x07\u202e" in done.out


def test_rename_renames_on_the_server(client: httpx.Client) -> None:
    register(client)

    assert run("voices", "rename", "me", " you ", "--remote").out == "you\n"

    assert client.get("/v1/voices").json()[0]["name"] == "you"
    run("voices", "rename", "you", "a\x07", "--remote").expect_error(5, "invalid_name")
    run("voices", "rename", "me", "x", "--remote").expect_error(4, "voice_not_found")


def test_removal_without_terminal_needs_yes(client: httpx.Client) -> None:
    voice_id = register(client)
    assert "add --yes" in run("voices", "rm", "me", "--remote").expect_error(2, "usage")
    assert len(client.get("/v1/voices").json()) == 1

    done = run("voices", "rm", "me", "--remote", "--yes")

    assert (done.code, done.err) == (0, f"✓ Removed me ({voice_id}).\n")
    assert client.get("/v1/voices").json() == []


def test_exported_voice_speaks_locally(client: httpx.Client, home: Path, tmp_path: Path) -> None:
    register(client, consent="self")

    assert run("voices", "export", "me", "--remote", cwd=tmp_path).out == "me.afterwords\n"
    assert run("voices", "import", tmp_path / "me.afterwords", "--name", "home").out == "home\n"

    assert Library(home).get("home").consent is not None
    said = run("say", "Hello.", "-o", tmp_path / "a.wav", env={"AFTERWORDS_BACKENDS": "tone"})
    assert (said.code, (tmp_path / "a.wav").exists()) == (0, True)


def test_import_uploads_voice_once(client: httpx.Client, me: Voice, tmp_path: Path) -> None:
    run("voices", "export", "me", "-o", "it", cwd=tmp_path)

    done = run("voices", "import", "it", "--remote", "--json", cwd=tmp_path)

    assert json.loads(done.out)["reference"]["sha256"] == me.ref_sha256
    assert done.err.endswith("--voice me --remote\n")
    again = json.loads(run("voices", "import", "it", "--remote", "--json", cwd=tmp_path).out)
    assert again["voice_id"] == json.loads(done.out)["voice_id"]
    assert len(client.get("/v1/voices").json()) == 1


def test_import_replaces_name_in_use_only_with_replace(client: httpx.Client, me: Voice, tmp_path: Path) -> None:
    old = register(client)
    run("voices", "export", "me", "-o", "it", cwd=tmp_path)

    run("voices", "import", "it", "--remote", cwd=tmp_path).expect_error(5, "voice_exists")
    assert [voice["voice_id"] for voice in client.get("/v1/voices").json()] == [old]
    assert run("voices", "import", "it", "--remote", "--replace", cwd=tmp_path).out == "me\n"

    (voice,) = client.get("/v1/voices").json()
    assert voice["voice_id"] != old


def test_altered_file_is_not_sent(client: httpx.Client, me: Voice, tmp_path: Path) -> None:
    run("voices", "export", "me", "-o", "it", cwd=tmp_path)
    data = bytearray((tmp_path / "it").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "it").write_bytes(data)

    run("voices", "import", "it", "--remote", cwd=tmp_path).expect_error(5, "invalid_bundle")

    assert client.get("/v1/voices").json() == []


def test_unsupported_request_exits_5(hosted: HostedService, me: Voice, tmp_path: Path) -> None:
    with httpx.Client(base_url=hosted.url, headers={"Authorization": f"Bearer {hosted.api_key}"}) as client:
        register(client, name="there")
    run("voices", "export", "me", "-o", "it", cwd=tmp_path)

    run("voices", "import", "it", "--remote", cwd=tmp_path).expect_error(5, "unsupported_by_server")
    run("voices", "export", "there", "--remote", cwd=tmp_path).expect_error(5, "unsupported_by_server")
    run("voices", "rename", "there", "x", "--remote").expect_error(5, "unsupported_by_server")


def test_not_logged_in_exits_3() -> None:
    run("voices", "--remote").expect_error(3, "not_logged_in")
