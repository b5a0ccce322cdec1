"""Test `afterwords voices` with the library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import afterwords as aw
from afterwords.errors import pip_install
from afterwords.local import library
from afterwords.models import Voice
from tests.cli.program import list_files, run
from tests.conftest import READER


def test_empty_library_names_clone(home: Path) -> None:
    done = run("voices")

    assert (done.code, done.out) == (0, "")
    assert "afterwords clone me.wav --name me" in done.err
    assert not home.exists()
    assert run("voices", "list", "--json").out == "[]\n"


@pytest.mark.parametrize("args", [("voices",), ("voices", "list")])
def test_list_marks_default_with_a_star(args: tuple[str, ...], me: Voice) -> None:
    library().set_default("me")

    done = run(*args)

    head, row = done.out.splitlines()
    assert head.split() == ["name", "lang", "backend", "grade", "length", "consent", "made"]
    assert row.split()[:8] == ["me", "*", "en", "tone", "B", "14.3", "s", "self"]
    assert head.index("lang") == row.index("en")
    assert (done.code, done.err) == (0, "")


def test_columns_align_in_every_script(me: Voice) -> None:
    library().rename("me", "声")  # one character, two columns of a terminal

    head, row = run("voices").out.splitlines()

    assert head.index("lang") == row.index("en") + 1


def test_json_list_matches_library(me: Voice) -> None:
    library().set_default("me")
    (voice,) = json.loads(run("voices", "list", "--json").out)
    assert voice.pop("is_default") is True
    assert Voice.model_validate(voice) == me


def test_damaged_voice_is_reported_and_removable(home: Path, me: Voice) -> None:
    lost = home / "voices" / "00000000-0000-4000-8000-000000000000"
    lost.mkdir()
    (lost / "voice.json").write_text("{")

    done = run("voices", "list")

    assert done.code == 0
    assert "me" in done.out
    assert f"{lost} is damaged: voice.json is not JSON.\n  Fix: " in done.err
    assert run("voices", "rm", lost.name, "--yes").code == 0
    assert run("voices", "list").err == ""


def test_hostile_name_is_escaped(home: Path, me: Voice) -> None:
    file = home / "voices" / me.voice_id / "voice.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"name": "\x1b]0;owned\x07\u202e"}))

    for args in (("list",), ("list", "--json"), ("show", me.voice_id), ("default", me.voice_id), ("show", "unknown")):
        done = run("voices", *args)
        assert not set("\x1b\x07\u202e") & set(done.out + done.err)
    assert r"\x1b]0;owned\x07\u202e" in run("voices", "list").out
    assert r"\x1b]0;owned\x07\u202e." in run("voices", "rm", me.voice_id, "-y").err


def test_show_prints_details(home: Path, me: Voice) -> None:
    facts = json.loads(run("voices", "show", "me", "--json").out)

    assert facts["voice_id"] == me.voice_id
    assert facts["is_sealed"] is True
    assert facts["original"] == str(home / "voices" / me.voice_id / "original.wav")
    shown = run("voices", "show", "me").out.splitlines()
    assert f"id           {me.voice_id}" in shown
    assert "seal         intact" in shown
    assert shown[0] == "name         me"
    assert not any("sha256" in line for line in shown)


def test_voice_with_altered_recording_is_refused(home: Path, me: Voice) -> None:
    (home / "voices" / me.voice_id / "reference.wav").write_bytes(b"RIFF")

    assert "its recording was changed" in run("voices", "show", "me").expect_error(1, "corrupt_voice")


@pytest.mark.parametrize("args", [("show",), ("rename", "x"), ("rm", "--yes"), ("rm",), ("default",)])
def test_unknown_voice_suggests_nearest_name(args: tuple[str, ...], me: Voice) -> None:
    command, *rest = args
    assert "did you mean 'me'?" in run("voices", command, "mee", *rest).expect_error(4, "voice_not_found")


def test_rename_checks_the_new_name(me: Voice) -> None:
    assert run("voices", "rename", "me", " you ").out == "you\n"
    assert [voice.name for voice in aw.voices()] == ["you"]
    run("voices", "rename", "you", "a\x07").expect_error(5, "invalid_name")
    run("voices", "rename", "you").expect_error(2, "usage")


def test_removal_without_terminal_needs_yes(home: Path, me: Voice) -> None:
    assert "add --yes" in run("voices", "rm", "me").expect_error(2, "usage")
    assert aw.voices() == [me]

    done = run("voices", "rm", "me", "--yes")

    assert (done.code, done.out, done.err) == (0, "", "✓ Removed me.\n")
    assert list_files(home) == ["library.json"]


def test_default_is_unset_at_first(me: Voice) -> None:
    none = run("voices", "default")
    assert (none.code, none.out) == (0, "")
    assert "afterwords voices default NAME" in none.err
    assert run("voices", "default", "me").out == "me\n"
    assert run("voices", "default").out == "me\n"


def test_newer_library_is_not_changed(home: Path, me: Voice) -> None:
    (home / "library.json").write_text('{"schema": 99, "default": null}')

    assert pip_install(options="--upgrade") in run("voices").expect_error(1, "newer_library")
    assert "99" in run("voices", "rm", "me", "-y").expect_error(1, "newer_library")
    assert (home / "voices" / me.voice_id).exists()


def test_json_prints_the_changed_voice(me: Voice) -> None:
    renamed = json.loads(run("voices", "rename", "me", "myself", "--json").out)
    assert (renamed["name"], renamed["voice_id"]) == ("myself", me.voice_id)
    assert json.loads(run("voices", "default", "--json").out) is None
    assert json.loads(run("voices", "default", "myself", "--json").out)["name"] == "myself"
    assert json.loads(run("voices", "rm", "myself", "--yes", "--json").out) == {"removed": "myself"}
    assert library().list() == []


def test_take_is_cloned_shown_and_spoken(me: Voice, tmp_path: Path) -> None:
    done = run("clone", str(READER), "--name", "me", "--emotion", "happy", "--consent", "self")
    assert done.out == "me-happy\n"
    assert "--voice me --emotion happy" in done.err
    assert "happy (B)" in run("voices", "show", "me").out
    spoken = run("say", "Hello.", "--voice", "me", "--emotion", "happy", "-o", str(tmp_path / "hello.wav"), "--json")
    assert json.loads(spoken.out)["voice"] == "me-happy"
    refused = run("say", "Hello.", "--voice", "me", "--emotion", "sad", "-o", str(tmp_path / "no.wav"))
    assert (refused.code, "Its takes: happy" in refused.err) == (4, True)
