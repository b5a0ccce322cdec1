"""Test `afterwords doctor`: it reports what `clone` does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from afterwords.audio.audio import Audio, decode
from afterwords.errors import AfterwordsError
from afterwords.local import make_voice
from tests.cli.program import run
from tests.conftest import READER, clipped

pytestmark = pytest.mark.usefixtures("tone")


def test_recording_is_graded_and_drawn() -> None:
    done = run("doctor", READER)

    title, _, levels, window, axis, taken, _, *findings = done.out.splitlines()
    assert (done.code, title) == (0, "reader.wav: grade B")
    assert len(levels) == len(axis) == 74
    assert axis.split() == ["0", "s", "24.7", "s"]
    assert taken == "  ━ clone uses: 10.2 to 24.5 s, grade B"
    # aligned to the column with the bars of these seconds
    assert (window.index("━") - 2, len(window) - 2) == (round(10.17 / 24.7 * 72), round(24.51 / 24.7 * 72))
    noise = next(number for number, line in enumerate(findings) if line.startswith("  B  noise"))
    assert findings[noise + 1].strip().startswith("→ record in a quiet room")
    assert done.err == f"Next: afterwords clone {READER} --name me\n"


def test_drawing_shows_the_level(tmp_path: Path) -> None:
    samples = np.zeros(72 * 1600, np.float32)
    samples[36 * 1600 :] = np.tile([0.5, -0.5], 36 * 800)
    Audio(samples, 16_000).save(tmp_path / "half.wav")

    bars = run("doctor", tmp_path / "half.wav").out.splitlines()[2]

    assert bars == "  " + " " * 36 + "█" * 36


def test_json_matches_what_clone_uses() -> None:
    cloned = make_voice(READER, name="me", consent="self")

    facts = json.loads(run("doctor", READER, "--json").out)

    window, report = cloned.prepared.window, cloned.prepared.report
    assert facts["window"] == {"start_s": window.start_s, "end_s": window.end_s, "grade": report.grade}
    assert facts["refusal"] is None
    assert {finding["measure"] for finding in facts["findings"]} >= {"length", "noise", "clipping", "level"}


@pytest.mark.parametrize("kind", ["short", "silent"])
def test_recording_that_clone_refuses_is_graded(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"{kind}.wav"
    samples = decode(READER).samples[: 16_000 * 3] if kind == "short" else np.zeros(16_000 * 8, np.float32)
    Audio(samples, 16_000).save(file)
    with pytest.raises(AfterwordsError) as refused:
        make_voice(file, name="me", consent="self")

    done = run("doctor", file)

    assert f"  clone would refuse it: {refused.value.message} Fix: {refused.value.hint}" in done.out.splitlines()
    assert done.code == 1
    assert done.err.startswith("Record again")
    facts = json.loads(run("doctor", file, "--json").out)
    assert (facts["window"], facts["refusal"]["code"]) == (None, refused.value.code)


def test_damaged_recording_is_graded_with_notice(tmp_path: Path) -> None:
    (tmp_path / "cut.wav").write_bytes(READER.read_bytes()[:600_000])

    done = run("doctor", "cut.wav", cwd=tmp_path)

    assert "cut.wav is damaged or incomplete: at least 6.0 s of 24.7 s (24 %) could not be read" in done.err
    assert "damaged or incomplete" in json.loads(run("doctor", "cut.wav", "--json", cwd=tmp_path).out)["notices"][0]


def test_grade_f_exits_1(tmp_path: Path) -> None:
    clipped(tmp_path / "clipped.wav")

    done = run("doctor", "clipped.wav", cwd=tmp_path)

    assert "grade F" in done.out
    assert (done.code, done.err) == (1, "Record again: a voice made from this recording would be poor.\n")
    assert json.loads(run("doctor", "clipped.wav", "--json", cwd=tmp_path).out)["window"]["grade"] == "F"


@pytest.mark.usefixtures("whisper")
def test_transcript_is_compared_with_recording() -> None:
    text = (READER.parent / "reader.txt").read_text("utf-8")

    half = run("doctor", READER, "--text", text[: len(text) // 2]).out

    assert "  A  surplus " in half
    assert "  F  coverage " in half


def test_text_of_wrong_length_is_graded_without_whisper() -> None:
    done = run("doctor", READER, "--text", "canary")

    assert "  F  pace " in done.out
    assert "canary" not in done.out + done.err


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("empty.wav", b"", "empty_data"),
        ("letter.wav", b"a letter" * 99, "unsupported_audio"),
        ("\x1b[2J.wav", None, "unreadable_file"),
    ],
)
def test_file_without_audio_is_refused(name: str, content: bytes | None, error: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)

    run("doctor", name, cwd=tmp_path).expect_error(5, error)


def test_escape_sequence_in_file_name_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "\x1b[2J[bold].wav").write_bytes(READER.read_bytes())

    done = run("doctor", "\x1b[2J[bold].wav", cwd=tmp_path)

    assert done.out.startswith(r"\x1b[2J[bold].wav: grade B")
    assert done.err == "Next: afterwords clone '\\x1b[2J[bold].wav' --name me\n"
