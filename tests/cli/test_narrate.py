"""Test `afterwords narrate`: the outline, the result, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afterwords import local
from afterwords.backends.speech_check import SpeechChecker
from afterwords.models import Voice
from afterwords.provenance import verify
from tests.cli.program import run
from tests.conftest import READER
from tests.narration.epubs import write_epub

pytestmark = pytest.mark.usefixtures("me")


def test_book_is_written_next_to_its_source(tmp_path: Path) -> None:
    write_epub(tmp_path / "tale.epub")
    done = run("narrate", "tale.epub", "--srt", "tale.srt", cwd=tmp_path)

    assert (done.code, done.out) == (0, "")
    assert "✓ tale.m4b: 1" in done.err
    assert "3 chapters, 8 sentences (me)" in done.err
    assert done.err.endswith("Next: afterwords verify tale.m4b\n")
    assert verify(tmp_path / "tale.m4b")
    assert "It was café time." in (tmp_path / "tale.srt").read_text("utf-8")


def test_result_as_json_names_what_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_TESTING", "1")
    (tmp_path / "b.txt").write_text("Chapter 1\n\nAll is well here. But fault-fail is not. [voice:me Fine.\n")
    done = run("narrate", "b.txt", "-o", "b.mp3", "--json", cwd=tmp_path)

    facts = json.loads(done.out)
    assert (facts["file"], facts["sentences"], facts["spoken"]) == ("b.mp3", 3, 3)
    assert facts["chapters"] == [{"title": "Chapter 1", "start_s": 0.0}]
    assert facts["left_out"][0].startswith("Chapter 1: “But fault-fail is not.”: The backend tone could not speak")
    assert "Chapter 1: The tag at position" in facts["notices"][0]
    assert "1 sentences could not be spoken" not in done.err
    assert "1 sentence could not be spoken and is left out:" in done.err


@pytest.mark.usefixtures("whisper")
def test_faulty_sentences_of_a_book_are_named(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("Hello there.")
    done = run("narrate", "b.txt", "--verify", "--report", "r.json", "--json", cwd=tmp_path)
    assert done.code == 1, "a tone says nothing"
    assert "Sentence 1, at 0.0 s, has faults in its only attempt: words" in done.err
    assert json.loads(done.out)["verification"] == json.loads((tmp_path / "r.json").read_text())
    assert (tmp_path / "b.m4b").exists()
    run("narrate", "b.txt", "--report", "r.json", cwd=tmp_path).expect_error(2, "usage")


@pytest.mark.usefixtures("whisper")
def test_verified_book_without_a_sentence_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_TESTING", "1")
    check = SpeechChecker.check
    passed = {"faults": ()}  # a tone says nothing
    monkeypatch.setattr(SpeechChecker, "check", lambda *a, **o: check(*a, **o).model_copy(update=passed))
    (tmp_path / "b.txt").write_text("Hello there.")
    assert run("narrate", "b.txt", "--verify", cwd=tmp_path).code == 0
    (tmp_path / "b.txt").write_text("Before all of this. Now fault-fail happens again.")
    assert run("narrate", "b.txt", "--verify", cwd=tmp_path).code == 1


def test_interrupted_book_names_the_folder_behind_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_TESTING", "1")
    (tmp_path / "b.txt").write_text("Before all of this. " + "Now fault-fail happens again. " * 9)
    (tmp_path / "b.m4b").symlink_to("real.m4b")
    failed = run("narrate", "b.txt", cwd=tmp_path)
    assert failed.code == 7
    assert f"1 sentence is kept in {tmp_path / 'real.m4b.sentences'}." in failed.err


def test_outline_shows_chapters_and_lengths(tmp_path: Path) -> None:
    write_epub(tmp_path / "tale.epub")
    (tmp_path / "cast.toml").write_text('BOB = "me"\n')
    done = run("narrate", tmp_path / "tale.epub", "--dry-run", "--cast", tmp_path / "cast.toml")
    rows = [line.split("  ") for line in done.out.splitlines()]
    assert [row[-1].strip() for row in rows] == ["chapter", "First & foremost", "Second", "Later", "all"]
    facts = json.loads(run("narrate", tmp_path / "tale.epub", "--dry-run", "--json").out)
    assert (facts["title"], facts["has_cover"], facts["sentences"]) == ("The Book", True, 8)
    assert [path.name for path in tmp_path.iterdir() if path.suffix in {".m4b", ".sentences"}] == []


def test_outline_reads_emotions_and_checks_the_speed(me: Voice, tmp_path: Path) -> None:
    local.default_voice(me)
    take = local.clone(READER, name="me", consent="self", emotion="happy")
    (tmp_path / "b.txt").write_text(f"So it was. [{take.emotion}] And so it is. [sad] Oh.")
    outline = json.loads(run("narrate", "b.txt", "--dry-run", "--json", cwd=tmp_path).out)
    assert (outline["sentences"], len(outline["notices"])) == (2, 1)
    run("narrate", "b.txt", "--dry-run", "--speed", "0", cwd=tmp_path).expect_error(5, "invalid_option")


@pytest.mark.parametrize(
    ("cast", "code"),
    [
        ("BOB = 1", "unreadable_file"),
        ("BOB", "unreadable_file"),
        ('"a]" = "me"', "invalid_option"),
        ('B = ""', "invalid_name"),
    ],
)
def test_wrong_cast_is_refused(cast: str, code: str, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("Hello.")
    (tmp_path / "cast.toml").write_text(cast)
    run("narrate", "b.txt", "--cast", "cast.toml", cwd=tmp_path).expect_error(5, code)


def test_unwritable_output_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("Hello.")
    run("narrate", "b.txt", "-o", "missing/b.m4b", cwd=tmp_path).expect_error(5, "unwritable_output")
    run("narrate", "b.txt", "-o", "b.doc", cwd=tmp_path).expect_error(5, "invalid_format")
    run("narrate", "b.pdf", cwd=tmp_path).expect_error(5, "invalid_book")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.txt", "home"]
    for name in (".", "", "/"):
        run("narrate", "b.txt", "-o", name, cwd=tmp_path).expect_error(5, "invalid_format")
