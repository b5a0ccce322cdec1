"""Test `afterwords verify`: it finds the mark of `say` in every format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import afterwords as aw
from afterwords.audio.audio import Audio, decode
from afterwords.models import Voice
from tests.cli.program import run
from tests.conftest import READER


@pytest.mark.parametrize("ending", ["wav", "mp3", "opus", "flac"])
def test_mark_is_found_in_every_format(ending: str, tmp_path: Path, me: Voice) -> None:
    file = aw.say("Hello", voice=me).save(tmp_path / f"hello.{ending}")

    done = run("verify", file)

    title, *facts = done.out.splitlines()
    assert (done.code, title, done.err) == (0, "synthetic speech", "")
    assert [fact.split()[0] for fact in facts] == ["generator", "backend", "voice_name", "voice_id", "made_at"]
    assert f"  voice_id    {me.voice_id}" in facts


def test_json_prints_the_mark(tmp_path: Path, me: Voice) -> None:
    facts = json.loads(run("verify", aw.say("Hello").save(tmp_path / "hello.wav"), "--json").out)

    assert facts["is_marked"] is facts["is_synthetic"] is True
    assert (facts["voice_name"], facts["backend"]) == ("me", "tone")


def test_unmarked_file_exits_1() -> None:
    done = run("verify", READER)

    assert (done.code, done.err) == (1, "")
    assert "proves nothing" in done.out
    assert json.loads(run("verify", READER, "--json").out) == {"is_marked": False}


@pytest.mark.parametrize(
    ("comment", "title"),
    [
        ('digitalSourceType=trainedAlgorithmicMedia; voice="\x1b]0;owned\x07"', "synthetic speech"),
        ("digitalSourceType=digitalCapture", "marked, but not as synthetic speech"),
    ],
)
def test_mark_of_another_program_is_escaped(comment: str, title: str, tmp_path: Path) -> None:
    speech = Audio(decode(READER).samples, 16_000, {"comment": comment})

    done = run("verify", speech.save(tmp_path / "other.flac"))

    assert done.out.splitlines()[0] == title
    assert not set("\x1b\x07") & set(done.out)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("missing.wav", "unreadable_file"),
        (".", "unreadable_file"),
        ("letter.wav", "unsupported_audio"),
        ("empty.wav", "empty_data"),
    ],
)
def test_file_without_audio_is_refused(name: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "letter.wav").write_bytes(b"a letter" * 99)
    (tmp_path / "empty.wav").touch()

    run("verify", tmp_path / name).expect_error(5, error)
