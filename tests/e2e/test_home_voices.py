"""Tests of home voices: voices of the library in the home folder of a server, visible to home keys only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from afterwords import transfer
from afterwords.client import Client
from afterwords.library.library import Library
from afterwords.models import LexiconEntry, Voice, new_id
from tests.cli.program import run
from tests.e2e.served import Served, register, serving, submit_text, wait_for_job, wait_until


@pytest.fixture(scope="module")
def shared_library(_library_with_me: Path, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Return a library with one voice, me, which tests don't change."""
    folder = tmp_path_factory.mktemp("home-voices") / "home"
    shutil.copytree(_library_with_me, folder)
    return Library(folder)


@pytest.fixture(scope="module")
def served(shared_library: Library) -> Iterator[Served]:
    with serving(shared_library.home, {"AFTERWORDS_REAP_INTERVAL_S": "0.1"}) as running:
        yield running


@pytest.fixture
def library(_library_with_me: Path, tmp_path: Path) -> Library:
    """Return a library with one voice, without a server."""
    shutil.copytree(_library_with_me, tmp_path / "served")
    return Library(tmp_path / "served")


def names(client: httpx.Client) -> list[str]:
    return [voice["name"] for voice in client.get("/v1/voices").json()]


def add_copy(library: Library, name: str, ending: bytes = b"\1\0") -> Voice:
    """Add a voice whose recording differs in its last sample."""
    first = library.get("me")
    wav = library.reference(first)[:-2] + ending
    assert first.reference is not None
    info = first.reference.model_copy(update={"sha256": sha256(wav).hexdigest()})
    voice = first.model_copy(update={"voice_id": new_id(), "name": name, "reference": info, "provenance": None})
    return library.save(voice, reference_wav=wav)


def test_home_voice_uses_the_recording_in_the_library(shared_library: Library, served: Served) -> None:
    me = shared_library.get("me")
    with served.client() as client:
        shown = client.get("/v1/voices/me").json()
        assert (shown["voice_id"], shown["ref_sha256"]) == (me.voice_id, me.ref_sha256)
        assert me.consent is not None
        assert me.provenance is not None
        assert shown["consent"] == me.consent.model_dump(mode="json")
        assert shown["provenance"]["seal"] == me.provenance.seal
        job_id = submit_text(client, "me", "From home.")
        assert wait_for_job(client, job_id)["status"] == "ready"
        bundle = client.get("/v1/voices/me/export")
        assert bundle.status_code == 200
    kept = {path.name for path in (shared_library.home / "server" / "blobs").rglob("*.*")}
    assert "ref.wav" not in kept  # the recording is only in the library
    assert not list((shared_library.home / "server" / "blobs").rglob("prompts"))  # so are its prompts
    assert "1 voice of this machine, for the first key" in served.log.read_text()


def test_only_home_keys_see_home_voices(shared_library: Library, served: Served) -> None:
    voice_id = shared_library.get("me").voice_id
    env = {"AFTERWORDS_HOME": str(shared_library.home), "AFTERWORDS_BACKENDS": "tone"}
    of_home = run("keys", "create", "--home", "--scope", "synthesize", "--scope", "voices:read", env=env).out.strip()
    with served.client(run("keys", "create", env=env).out.strip()) as other_client:
        assert names(other_client) == []
        for path in ("/v1/voices/me", f"/v1/voices/{voice_id}", f"/v1/voices/{voice_id}/export"):
            assert other_client.get(path).json()["error"]["code"] == "voice_not_found"
    with served.client(of_home) as narrow:
        assert names(narrow) == ["me"]
        assert wait_for_job(narrow, submit_text(narrow, "me", "With a narrow key."))["status"] == "ready"
    with served.client(served.new_key()) as of_admin:
        assert names(of_admin) == []


def test_home_voice_can_not_be_changed_over_http(shared_library: Library, served: Served) -> None:
    with served.client() as client:
        answers = [client.delete("/v1/voices/me"), client.patch("/v1/voices/me", json={"name": "you"})]
        assert {(a.status_code, a.json()["error"]["code"]) for a in answers} == {(409, "home_voice")}
        assert names(client) == ["me"]
    assert shared_library.get("me")


def test_changes_of_the_library_are_seen(shared_library: Library, served: Served) -> None:
    with served.client() as client:
        voice = add_copy(shared_library, "friend")
        wait_until(lambda: names(client) == ["me", "friend"], what="the new voice")
        wait_for_job(client, job_id := submit_text(client, "friend", "Soon to be gone."))
        shared_library.rename("friend", "visitor")
        wait_until(lambda: names(client) == ["me", "visitor"], what="the new name")
        shared_library.set_family("visitor", "crew")
        shared_library.set_lexicon("visitor", [LexiconEntry(word="nginx", alias="engine x")])
        wait_until(
            lambda: (shown := client.get("/v1/voices/visitor").json())["family"] == "crew" and shown["metadata"],
            what="the family and the lexicon",
        )
        assert client.get(f"/v1/jobs/{job_id}").status_code == 200

        other = add_copy(shared_library, "other", b"\3\0")
        wav = shared_library.reference(other)
        shared_library.remove("other")
        same_id = other.model_copy(update={"voice_id": voice.voice_id, "name": "visitor"})
        shared_library.save(same_id, reference_wav=wav, replace=True)
        wait_until(
            lambda: client.get("/v1/voices/visitor").json().get("ref_sha256") == other.ref_sha256, what="the other"
        )
        again = client.post("/v1/synthesize", json={"voice_id": "visitor", "text": "Soon to be gone."})
        assert again.headers["x-cache"] == "MISS"
        assert client.get(f"/v1/jobs/{job_id}").status_code == 404

        wait_for_job(client, job_id := again.json()["job_id"])
        shared_library.remove("visitor")
        wait_until(lambda: names(client) == ["me"], what="the end of the voice")
        assert client.get(f"/v1/jobs/{job_id}").status_code == 404
        blobs = shared_library.home / "server" / "blobs"
        wait_until(
            lambda: not any(name.startswith(job_id) for *_, found in os.walk(blobs) for name in found),
            what="the end of its audio",
        )


def test_pushing_a_home_voice_creates_no_second_voice(
    shared_library: Library, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFTERWORDS_HOME", str(shared_library.home))
    with Client(served.url, api_key=served.key) as client, served.client() as http:
        assert transfer.push("me", client=client).voice_id == shared_library.get("me").voice_id
        assert names(http) == ["me"]
        assert client.say("From the SDK.", voice="me").duration_s > 0
        pushed = register(http, name="friend")
        assert names(http) == ["me", "friend"]
        assert http.delete(f"/v1/voices/{pushed}").status_code == 204


def test_backup_has_audio_but_no_recording_of_a_home_voice(
    shared_library: Library, library: Library, served: Served, tmp_path: Path
) -> None:
    with served.client() as client:
        wait_for_job(client, job_id := submit_text(client, "me", "To be backed up."))
    file = tmp_path / "server.backup"
    done = run("backup", str(file), env={"AFTERWORDS_HOME": str(shared_library.home)})
    assert done.code == 0, done.err
    assert shared_library.reference(shared_library.get("me"))[44:1044] not in file.read_bytes()
    done = run("restore", str(file), env={"AFTERWORDS_HOME": str(library.home)})
    assert done.code == 0, done.err
    with serving(library.home) as restored, restored.client(served.key) as client:
        assert names(client) == ["me"]
        assert client.get(f"/v1/jobs/{job_id}/audio").status_code == 200


def test_library_can_be_disabled_and_damaged_voices_skipped(library: Library) -> None:
    damaged = add_copy(library, "damaged")
    (library.home / "voices" / damaged.voice_id / "voice.json").write_text("{")
    with serving(library.home) as served:
        key = served.key
        with served.client() as client:
            assert names(client) == ["me"]
            wait_for_job(client, submit_text(client, "me", "Before."))
    log = served.log.read_text()
    assert log.count("voices of this home not offered=1") == 1
    with serving(library.home, {"AFTERWORDS_SERVE_LIBRARY": "false"}) as served, served.client(key) as client:
        assert names(client) == []
        asked = {"voice_id": library.get("me").voice_id, "text": "Before."}
        assert client.post("/v1/synthesize", json=asked).status_code == 404
        assert register(client)
    with serving(library.home) as served, served.client(key) as client:
        again = client.post("/v1/synthesize", json=asked)
        assert again.headers["x-cache"] == "HIT"


def test_audio_is_kept_while_a_voice_can_not_be_offered(library: Library) -> None:
    me = library.get("me")
    folder = library.home / "voices"
    described = (folder / me.voice_id / "voice.json").read_bytes()
    with serving(library.home, {"AFTERWORDS_REAP_INTERVAL_S": "0.1"}) as served, served.client() as client:
        key = served.key
        wait_for_job(client, job_id := submit_text(client, "me", "To be kept."))
        (folder / me.voice_id / "voice.json").write_text("{")
        wait_until(lambda: "not offered=1" in served.log.read_text(), what="the warning about the damaged voice")
        (folder / me.voice_id / "voice.json").write_bytes(described)
        assert client.get(f"/v1/jobs/{job_id}/audio").status_code == 200
    (library.home / "library.json").rename(library.home / "away.json")
    folder.rename(library.home / "away")  # like a disk that is not mounted
    with serving(library.home) as served, served.client(key) as client:
        assert client.get(f"/v1/jobs/{job_id}/audio").status_code == 200
    (library.home / "away").rename(folder)
    (library.home / "away.json").rename(library.home / "library.json")
    with serving(library.home) as served, served.client(key) as client:
        assert client.get(f"/v1/jobs/{job_id}/audio").status_code == 200
        assert client.post("/v1/synthesize", json={"voice_id": "me", "text": "To be kept."}).headers["x-cache"] == "HIT"


def test_public_server_has_no_home_account(library: Library) -> None:
    served = Served(library.home, {"AFTERWORDS_HOST": "0.0.0.0", "AFTERWORDS_REAP_INTERVAL_S": "0.1"})
    try:
        served.start().ready()
        wait_until(lambda: "No key can use them yet" in served.log.read_text(), what="the line")
        with served.client(served.new_key()) as other_client:
            assert names(other_client) == []
        env = {"AFTERWORDS_HOME": str(library.home), "AFTERWORDS_BACKENDS": "tone"}
        with served.client(run("keys", "create", "--home", env=env).out.strip()) as own:
            wait_until(lambda: names(own) == ["me"], what="the voice")
    finally:
        served.kill()
