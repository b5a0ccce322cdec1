"""`afterwords push`, `pull` and `sync` as a person uses them: a server, a laptop, and a second home folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import afterwords as aw
from afterwords.models import Voice
from tests.cli.program import run
from tests.e2e.served import READER, Served

HOSTILE = "me\x1b[2J"


@pytest.fixture
def client(served: Served, account: str) -> Iterator[aw.Client]:
    with aw.Client(served.url, api_key=account) as client:
        yield client


@pytest.mark.usefixtures("account")
def test_a_voice_goes_to_the_server_and_comes_to_another_home(me: Voice, tmp_path: Path) -> None:
    elsewhere = {"AFTERWORDS_HOME": str(tmp_path / "elsewhere")}
    pushed = run("push", "me")
    assert (pushed.code, pushed.out) == (0, "me\n")
    assert "pushed" in pushed.err
    assert "Next: afterwords say" in pushed.err
    pulled = run("pull", "me", "--json", env=elsewhere)
    assert json.loads(pulled.out)["voice"]["reference"]["sha256"] == me.ref_sha256
    said = run("say", "Hello from here.", "--voice", "me", "-o", "hello.wav", cwd=tmp_path, env=elsewhere)
    assert said.code == 0, said.err
    assert (tmp_path / "hello.wav").stat().st_size > 10_000


@pytest.mark.usefixtures("me", "account")
def test_doing_it_again_says_that_nothing_changed() -> None:
    first, again = (json.loads(run("push", "me", "--json").out) for _ in range(2))
    assert (first["outcome"], again["outcome"]) == ("pushed", "the same")
    assert first["voice"]["voice_id"] == again["voice"]["voice_id"]
    assert json.loads(run("pull", "me", "--json").out)["outcome"] == "the same"


@pytest.mark.usefixtures("me")
@pytest.mark.parametrize("command", ["push", "pull"])
def test_another_voice_of_that_name_is_kept_unless_told(command: str, client: aw.Client) -> None:
    client.voices.create(READER, name="me")
    run(command, "me").refused(5, "VoiceExistsError")
    assert run(command, "me", "--replace").code == 0


@pytest.mark.usefixtures("me")
def test_sync_tells_what_it_did_voice_by_voice(client: aw.Client) -> None:
    client.voices.create(READER, name="theirs")
    assert "pulled" in run("sync", "--dry-run").out
    assert {trip["name"]: trip["outcome"] for trip in json.loads(run("sync", "--json").out)} == {
        "me": "pushed",
        "theirs": "pulled",
    }
    assert run("sync").out.count("the same") == 2


@pytest.mark.usefixtures("account")
def test_sync_of_nothing_tells_how_to_begin() -> None:
    done = run("sync")
    assert (done.code, done.out) == (0, "")
    assert "afterwords clone" in done.err


@pytest.mark.usefixtures("account")
def test_a_name_with_escapes_is_printed_escaped(me: Voice, home: Path) -> None:
    path = home / "voices" / me.voice_id / "voice.json"
    path.write_text(path.read_text().replace('"name": "me"', '"name": ' + json.dumps(HOSTILE)))
    assert "me\\x1b[2J" in run("sync").out
    assert run("push", me.voice_id).code == 5  # the server takes no such name


@pytest.mark.usefixtures("me", "account")
def test_without_a_key_it_says_how_to_log_in() -> None:
    error = run("push", "me", env={"AFTERWORDS_API_KEY": ""}).refused(3, "UnauthorizedError")
    assert "afterwords login" in error


@pytest.mark.usefixtures("me", "account")
def test_a_server_that_is_not_there_is_said_to_be() -> None:
    nowhere = {"AFTERWORDS_BASE_URL": "http://127.0.0.1:9"}
    run("push", "me", env=nowhere).refused(8, "UnreachableError")
