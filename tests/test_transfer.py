"""Test copying voices between libraries and a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import afterwords as aw
from afterwords import local, transfer
from afterwords.errors import (
    CorruptVoiceError,
    UnauthorizedError,
    UnsupportedByServerError,
    VoiceExistsError,
    VoiceNotFoundError,
)
from afterwords.library.bundle import BundledPrompt, pack
from afterwords.library.prompts import usable_prompts
from afterwords.models import LEXICON_MAX_ENTRIES, LexiconEntry, Voice
from afterwords.provenance import verify_seal
from afterwords.transfer import TransferStatus
from tests.e2e.served import RECORDING, Served, serving
from tests.error_codes import has_code
from tests.hosted.service import HostedService


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("transfer") / "home") as server:
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[aw.Client]:
    """Return a client with a new account."""
    with aw.Client(served.url, api_key=served.new_key()) as client:
        yield client


@pytest.fixture
def other_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return another home folder."""
    return tmp_path / "other_home"


def use_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_HOME", str(home))


def outcomes(results: list[transfer.TransferResult]) -> dict[str, TransferStatus]:
    return {result.name: result.outcome for result in results}


def test_push_and_pull_include_prompts(
    me: Voice, served: Served, client: aw.Client, other_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = local.library()
    [prompt] = usable_prompts(library, me)
    there = aw.push(me, client=client)
    stored = [
        path.read_bytes()[32:] for path in (served.home / "server" / "blobs").rglob(f"{there.voice_id}/prompts/*")
    ]
    assert stored == [prompt.data]
    use_home(other_home, monkeypatch)
    back = aw.pull("me", client=client)
    assert usable_prompts(local.library(), back) == [prompt]


def test_unreadable_prompt_is_made_again(me: Voice, served: Served, client: aw.Client) -> None:
    bad = BundledPrompt("tone", "1", is_fast=False, data=b"fault-prompt")
    there = client.voices.import_(pack(me, local.library().reference(me), [bad]))
    assert client.say("Hello.", voice=there).duration_s > 0
    folder = served.home / "server" / "blobs"
    [kept] = [path.read_bytes()[32:] for path in folder.rglob(f"{there.voice_id}/prompts/*")]
    assert len(kept) == 32, "a prompt of the tone"


def test_find_remote_returns_pushed_voice(me: Voice, client: aw.Client) -> None:
    assert transfer.find_remote(me, client=client) is None
    there = aw.push(me, client=client)
    assert transfer.find_remote(me, client=client) == there


def test_pushed_voice_speaks_on_the_server(me: Voice, client: aw.Client) -> None:
    there = aw.push("me", client=client)
    assert (there.name, there.ref_sha256, there.consent) == ("me", me.ref_sha256, me.consent)
    assert client.say("Hello from the server.", voice="me").duration_s > 0.5


def test_pushing_again_changes_nothing(me: Voice, client: aw.Client) -> None:
    first, again = aw.push(me, client=client), aw.push("me", client=client)
    assert first.voice_id == again.voice_id
    assert transfer.send("me", client=client).outcome is TransferStatus.SAME
    assert len(list(client.voices.list())) == 1


def test_push_updates_the_lexicon_and_keeps_other_metadata(me: Voice, client: aw.Client, home: Path) -> None:
    there = aw.push("me", client=client)
    client.voices.update(there, metadata={"note": "theirs"})
    for alias in ("engine x", "engine ex"):
        entries = [LexiconEntry(word=f"nginx{n}", alias=alias * 10) for n in range(LEXICON_MAX_ENTRIES)]
        local.library().set_lexicon("me", entries)
        assert transfer.send("me", client=client).outcome is TransferStatus.UPDATED
        assert transfer.send("me", client=client).outcome is TransferStatus.SAME
        assert list(client.voices.get(there).lexicon) == entries
    local.library().set_lexicon("me", [])
    assert aw.push("me", client=client).lexicon == ()
    assert client.voices.get(there).metadata["note"] == "theirs"


def test_push_updates_changed_name(me: Voice, client: aw.Client) -> None:
    aw.push("me", client=client)
    local.library().rename("me", "myself")
    assert transfer.send("myself", client=client).outcome is TransferStatus.UPDATED
    assert [voice.name for voice in client.voices.list()] == ["myself"]


def test_pull_restores_voice_in_another_home(
    me: Voice, client: aw.Client, other_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aw.push("me", client=client)
    recording = local.library().reference(me)
    use_home(other_home, monkeypatch)
    here = aw.pull("me", client=client)
    assert local.library().reference(here) == recording
    assert (here.name, here.lang, here.ref_text, here.consent) == (me.name, me.lang, me.ref_text, me.consent)
    assert here.provenance == me.provenance
    assert verify_seal(here)
    assert aw.say("Hello from the other machine.", voice="me").duration_s > 0.5


def test_pulling_again_changes_nothing(
    me: Voice, client: aw.Client, other_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aw.push("me", client=client)
    assert transfer.fetch("me", client=client).outcome is TransferStatus.SAME  # pushed from here
    use_home(other_home, monkeypatch)
    first = aw.pull("me", client=client)
    assert transfer.fetch("me", client=client).outcome is TransferStatus.SAME
    assert [voice.voice_id for voice in aw.voices()] == [first.voice_id]
    assert transfer.send("me", client=client).outcome is TransferStatus.SAME


def test_lost_link_is_found_by_recording(me: Voice, client: aw.Client, home: Path) -> None:
    there = aw.push("me", client=client)
    (home / "links.json").unlink()
    assert aw.push("me", client=client).voice_id == there.voice_id
    assert aw.pull("me", client=client).voice_id == me.voice_id


def test_push_replaces_different_voice_only_with_replace(me: Voice, client: aw.Client) -> None:
    other = client.voices.create(RECORDING, name="me")
    with pytest.raises(VoiceExistsError) as refused:
        aw.push("me", client=client)
    assert "push --replace" in refused.value.hint
    there = aw.push("me", client=client, replace=True)
    assert [voice.voice_id for voice in client.voices.list()] == [there.voice_id]
    assert there.voice_id != other.voice_id


def test_pull_replaces_different_voice_only_with_replace(me: Voice, client: aw.Client) -> None:
    other = client.voices.create(RECORDING, name="me")
    with pytest.raises(VoiceExistsError) as refused:
        aw.pull("me", client=client)
    assert "pull --replace" in refused.value.hint
    assert local.library().get("me") == me
    assert aw.pull("me", client=client, replace=True).ref_sha256 == client.voices.get(other).ref_sha256
    assert len(aw.voices()) == 1


def test_voice_deleted_on_server_can_be_pushed_again(me: Voice, client: aw.Client) -> None:
    first = aw.push("me", client=client)
    client.voices.delete(first)
    again = aw.push("me", client=client)
    assert again.voice_id != first.voice_id
    assert [voice.voice_id for voice in client.voices.list()] == [again.voice_id]


def test_damaged_recording_is_not_pushed(me: Voice, client: aw.Client, home: Path) -> None:
    path = home / "voices" / me.voice_id / "reference.wav"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CorruptVoiceError):
        aw.push("me", client=client)
    assert list(client.voices.list()) == []


@pytest.mark.parametrize("homes", [1, 2])
def test_concurrent_pushes_create_one_voice(
    me: Voice, client: aw.Client, home: Path, other_home: Path, served: Served, homes: int
) -> None:
    folders = [home, home]
    if homes == 2:
        import shutil

        shutil.copytree(home, other_home)
        folders = [home, other_home]
    key = client._session.access.api_key
    assert key
    program = "import sys, afterwords as aw; sys.stdin.readline(); print(aw.push('me').voice_id)"
    pushes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={
                **os.environ,
                "AFTERWORDS_HOME": str(folder),
                "AFTERWORDS_BASE_URL": served.url,
                "AFTERWORDS_API_KEY": key,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    for push in pushes:
        assert push.stdin
        push.stdin.write("go\n")
        push.stdin.flush()
    ids = {push.communicate(timeout=60)[0].strip() for push in pushes}
    assert [voice.voice_id for voice in client.voices.list()] == list(ids)


def test_sync_copies_both_ways(me: Voice, client: aw.Client) -> None:
    client.voices.create(RECORDING, name="theirs", consent="granted")
    assert outcomes(aw.sync(client=client, is_dry=True)) == {
        "me": TransferStatus.PUSHED,
        "theirs": TransferStatus.PULLED,
    }
    assert outcomes(aw.sync(client=client)) == {"me": TransferStatus.PUSHED, "theirs": TransferStatus.PULLED}
    assert {voice.name for voice in client.voices.list()} == {voice.name for voice in aw.voices()} == {"me", "theirs"}
    assert outcomes(aw.sync(client=client)) == {"me": TransferStatus.SAME, "theirs": TransferStatus.SAME}


def test_sync_does_not_restore_removed_voices(me: Voice, client: aw.Client) -> None:
    client.voices.create(RECORDING, name="theirs")
    aw.sync(client=client)
    client.voices.delete("me")
    local.library().remove("theirs")
    assert outcomes(aw.sync(client=client)) == {
        "me": TransferStatus.REMOVED_THERE,
        "theirs": TransferStatus.REMOVED_HERE,
    }
    assert [voice.name for voice in client.voices.list()] == ["theirs"]
    assert [voice.name for voice in aw.voices()] == ["me"]
    assert aw.pull("theirs", client=client).name == "theirs"


def test_sync_keeps_both_voices_of_one_name(me: Voice, client: aw.Client) -> None:
    other = client.voices.create(RECORDING, name="me")
    assert outcomes(aw.sync(client=client, is_dry=True)) == {"me": TransferStatus.DIFFERS}
    assert outcomes(aw.sync(client=client)) == {"me": TransferStatus.DIFFERS}
    assert client.voices.get("me").voice_id == other.voice_id
    assert local.library().get("me") == me


def test_sync_stops_without_valid_key(me: Voice, served: Served) -> None:
    with aw.Client(served.url) as anonymous, pytest.raises(UnauthorizedError, check=has_code("not_logged_in")):
        aw.sync(client=anonymous)
    with aw.Client(served.url, api_key="aw_wrong") as invalid, pytest.raises(UnauthorizedError):
        aw.sync(client=invalid)


def test_links_are_separate_per_account(me: Voice, client: aw.Client, served: Served) -> None:
    first = aw.push("me", client=client)
    with aw.Client(served.url, api_key=served.new_key()) as other:
        second = aw.push("me", client=other)
        assert [voice.voice_id for voice in other.voices.list()] == [second.voice_id]
    assert aw.push("me", client=client).voice_id == first.voice_id


@pytest.mark.usefixtures("me")
class TestTheHostedService:
    @pytest.fixture
    def hosted(self) -> Iterator[aw.Client]:
        with HostedService() as service, aw.Client(service.url, api_key=service.api_key) as client:
            yield client

    def test_pushing_again_changes_nothing(self, hosted: aw.Client) -> None:
        first, again = aw.push("me", client=hosted), aw.push("me", client=hosted)
        assert first.voice_id == again.voice_id
        assert hosted.say("Hello from the hosted service.", voice="me").duration_s > 0.5

    def test_voice_of_same_name_is_refused_without_link(self, hosted: aw.Client, home: Path) -> None:
        aw.push("me", client=hosted)
        (home / "links.json").unlink()
        with pytest.raises(VoiceExistsError):
            aw.push("me", client=hosted)

    def test_pull_is_unsupported(self, hosted: aw.Client) -> None:
        hosted.voices.create(RECORDING, name="theirs")
        with pytest.raises(UnsupportedByServerError):
            aw.pull("theirs", client=hosted)
        assert outcomes(aw.sync(client=hosted)) == {"me": TransferStatus.PUSHED, "theirs": TransferStatus.FAILED}


def test_unknown_voice_is_named(client: aw.Client, tone: None) -> None:
    with pytest.raises(VoiceNotFoundError, match="unknown"):
        aw.push("unknown", client=client)
    with pytest.raises(VoiceNotFoundError, match="unknown"):
        aw.pull("unknown", client=client)
