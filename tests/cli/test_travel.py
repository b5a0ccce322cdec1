"""`afterwords push`, `pull` and `sync` as a person uses them: a server, a laptop, and a second home folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import afterwords as aw
from afterwords.models import Voice
from tests.cli.program import run
from tests.e2e.served import READER, Served, serving

HOSTILE = "me\x1b[2J"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("travel") / "server") as server:
        yield server


@pytest.fixture
def server(served: Served) -> Mapping[str, str]:
    """Settings for a server with an account that nothing else uses."""
    return {"AFTERWORDS_BASE_URL": served.url, "AFTERWORDS_API_KEY": served.new_key()}


@pytest.fixture
def client(server: Mapping[str, str]) -> Iterator[aw.Client]:
    with aw.Client(server["AFTERWORDS_BASE_URL"], api_key=server["AFTERWORDS_API_KEY"]) as client:
        yield client


def test_a_voice_goes_to_the_server_and_comes_to_another_home(
    me: Voice, server: Mapping[str, str], tmp_path: Path
) -> None:
    elsewhere = {**server, "AFTERWORDS_HOME": str(tmp_path / "elsewhere")}
    pushed = run("push", "me", env=server)
    assert (pushed.code, pushed.out) == (0, "me\n")
    assert "pushed" in pushed.err
    assert "Next: afterwords say" in pushed.err
    pulled = run("pull", "me", "--json", env=elsewhere)
    assert json.loads(pulled.out)["voice"]["reference"]["sha256"] == me.ref_sha256
    said = run("say", "Hello from here.", "--voice", "me", "-o", "hello.wav", cwd=tmp_path, env=elsewhere)
    assert said.code == 0, said.err
    assert (tmp_path / "hello.wav").stat().st_size > 10_000


@pytest.mark.usefixtures("me")
def test_doing_it_again_says_that_nothing_changed(server: Mapping[str, str]) -> None:
    first, again = (json.loads(run("push", "me", "--json", env=server).out) for _ in range(2))
    assert (first["outcome"], again["outcome"]) == ("pushed", "the same")
    assert first["voice"]["voice_id"] == again["voice"]["voice_id"]
    assert json.loads(run("pull", "me", "--json", env=server).out)["outcome"] == "the same"


@pytest.mark.usefixtures("me")
@pytest.mark.parametrize("command", ["push", "pull"])
def test_another_voice_of_that_name_is_kept_unless_told(
    command: str, server: Mapping[str, str], client: aw.Client
) -> None:
    client.voices.create(READER, name="me")
    run(command, "me", env=server).refused(5, "VoiceExistsError")
    assert run(command, "me", "--replace", env=server).code == 0


@pytest.mark.usefixtures("me")
def test_sync_tells_what_it_did_voice_by_voice(server: Mapping[str, str], client: aw.Client) -> None:
    client.voices.create(READER, name="theirs")
    assert "pulled" in run("sync", "--dry-run", env=server).out
    assert {trip["name"]: trip["outcome"] for trip in json.loads(run("sync", "--json", env=server).out)} == {
        "me": "pushed",
        "theirs": "pulled",
    }
    assert run("sync", env=server).out.count("the same") == 2


def test_sync_of_nothing_tells_how_to_begin(server: Mapping[str, str]) -> None:
    done = run("sync", env=server)
    assert (done.code, done.out) == (0, "")
    assert "afterwords clone" in done.err


def test_a_name_with_escapes_is_printed_escaped(me: Voice, server: Mapping[str, str], home: Path) -> None:
    path = home / "voices" / me.voice_id / "voice.json"
    path.write_text(path.read_text().replace('"name": "me"', '"name": ' + json.dumps(HOSTILE)))
    assert "me\\x1b[2J" in run("sync", env=server).out
    assert run("push", me.voice_id, env=server).code == 5  # the server takes no such name


@pytest.mark.usefixtures("me")
def test_without_a_key_it_says_how_to_log_in(server: Mapping[str, str]) -> None:
    error = run("push", "me", env={**server, "AFTERWORDS_API_KEY": ""}).refused(3, "NotLoggedInError")
    assert "afterwords login" in error


@pytest.mark.usefixtures("me")
def test_a_server_that_is_not_there_is_said_to_be(server: Mapping[str, str]) -> None:
    nowhere = {**server, "AFTERWORDS_BASE_URL": "http://127.0.0.1:9"}
    run("push", "me", env=nowhere).refused(8, "UnreachableError")
