"""Test `afterwords demo` with the tone engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import afterwords as aw
from afterwords.provenance import verify
from tests.cli.program import list_files, run

pytestmark = pytest.mark.usefixtures("tone")


def test_demo_clones_the_reader_and_speaks(tmp_path: Path) -> None:
    done = run("demo", cwd=tmp_path)

    assert done.code == 0
    assert done.out.startswith("hello.wav: ")
    assert "Next: afterwords clone me.wav --name me" in done.err
    assert verify(tmp_path / "hello.wav") is not None
    (voice,) = aw.voices()
    facts = json.loads(run("demo", "-o", "again.mp3", "--json", cwd=tmp_path).out)
    assert (facts["file"], facts["voice"]) == ("again.mp3", "reader")
    assert aw.voices() == [voice]


def test_unwritable_output_is_refused_first(home: Path, tmp_path: Path) -> None:
    run("demo", "-o", "missing/hello.wav", cwd=tmp_path).expect_error(5, "unwritable_output")

    assert list_files(home) == []
