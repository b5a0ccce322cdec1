"""Test `afterwords push`, `pull` and `sync` with a server and two home folders."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import afterwords as aw
from afterwords.audio.audio import decode
from afterwords.models import Voice
from tests.cli.program import run
from tests.conftest import READER
from tests.e2e.served import RECORDING, Served

HOSTILE = "me\x1b[2J"


@pytest.fixture
def client(served: Served, account: str) -> Iterator[aw.Client]:
    with aw.Client(served.url, api_key=account) as client:
        yield client


@pytest.mark.usefixtures("account")
def test_voice_is_pushed_and_pulled_to_another_home(me: Voice, tmp_path: Path) -> None:
    other_home = {"AFTERWORDS_HOME": str(tmp_path / "other")}
    pushed = run("push", "me")
    assert (pushed.code, pushed.out) == (0, "me\n")
    assert "pushed" in pushed.err
    assert "Next: afterwords say" in pushed.err
    pulled = run("pull", "me", "--json", env=other_home)
    assert json.loads(pulled.out)["voice"]["reference"]["sha256"] == me.ref_sha256
    said = run("say", "Hello from here.", "--voice", "me", "-o", "hello.wav", cwd=tmp_path, env=other_home)
    assert said.code == 0, said.err
    assert (tmp_path / "hello.wav").stat().st_size > 10_000


@pytest.mark.usefixtures("me", "account")
def test_pushing_and_pulling_again_changes_nothing() -> None:
    first, again = (json.loads(run("push", "me", "--json").out) for _ in range(2))
    assert (first["outcome"], again["outcome"]) == ("pushed", "the same")
    assert first["voice"]["voice_id"] == again["voice"]["voice_id"]
    assert json.loads(run("pull", "me", "--json").out)["outcome"] == "the same"


@pytest.mark.usefixtures("me")
@pytest.mark.parametrize("command", ["push", "pull"])
def test_different_voice_of_same_name_needs_replace(command: str, client: aw.Client) -> None:
    client.voices.create(RECORDING, name="me")
    run(command, "me").expect_error(5, "voice_exists")
    assert run(command, "me", "--replace").code == 0


@pytest.mark.usefixtures("me")
def test_sync_lists_every_voice(client: aw.Client) -> None:
    client.voices.create(RECORDING, name="theirs")
    assert "pulled" in run("sync", "--dry-run").out
    assert {result["name"]: result["outcome"] for result in json.loads(run("sync", "--json").out)} == {
        "me": "pushed",
        "theirs": "pulled",
    }
    assert run("sync").out.count("the same") == 2


@pytest.mark.usefixtures("me", "account")
def test_take_speaks_on_a_server(tmp_path: Path) -> None:
    audio = aw.Audio(np.ascontiguousarray(decode(READER).samples[: 16_000 * 9]), 16_000)
    aw.clone(audio.save(tmp_path / "happy.wav"), name="me", emotion="happy", consent="self")
    pushed = json.loads(run("push", "me", "--json").out)
    assert [take["name"] for take in pushed["takes"]] == ["me-happy"]
    hello = ("say", "Hello.", "--emotion", "happy", "--remote", "-o", str(tmp_path / "hello.wav"))
    done = run(*hello, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["voice_id"] == pushed["takes"][0]["voice"]["voice_id"]
    assert run(*hello, "--dry-run").code == 2
    text = "We won the whole game today, all of it. " * 3
    live = run("say", "-", "--live", "--remote", "-o", "-", "--emotion", "happy", stdin=text.encode())
    assert live.err.count("keeps the timbre") == 1
    srt = tmp_path / "hello.srt"
    assert run("say", "[happy] Hello.", "--remote", "-o", "-", "--srt", str(srt)).code == 0
    assert "happy" not in srt.read_text()


@pytest.mark.usefixtures("account")
def test_sync_of_no_voices_names_clone() -> None:
    done = run("sync")
    assert (done.code, done.out) == (0, "")
    assert "afterwords clone" in done.err


@pytest.mark.usefixtures("account")
def test_escape_sequence_in_name_is_escaped(me: Voice, home: Path) -> None:
    path = home / "voices" / me.voice_id / "voice.json"
    path.write_text(path.read_text().replace('"name": "me"', '"name": ' + json.dumps(HOSTILE)))
    assert "me\\x1b[2J" in run("sync").out
    assert run("push", me.voice_id).code == 5  # the server refuses the name


@pytest.mark.usefixtures("me", "account")
def test_not_logged_in_names_login() -> None:
    error = run("push", "me", env={"AFTERWORDS_API_KEY": ""}).expect_error(3, "not_logged_in")
    assert "afterwords login" in error


@pytest.mark.usefixtures("me", "account")
def test_unreachable_server_exits_8() -> None:
    unreachable = {"AFTERWORDS_BASE_URL": "http://127.0.0.1:9"}
    run("push", "me", env=unreachable).expect_error(8, "unreachable")
