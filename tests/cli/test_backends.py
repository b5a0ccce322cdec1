"""Test `afterwords backends` with the tone engine and with failing plug-ins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afterwords.errors import pip_install
from tests.cli.program import run


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """Return a folder for PYTHONPATH with an engine that can't be loaded."""
    folder = tmp_path / "plugins"
    (folder / "broken-1.0.dist-info").mkdir(parents=True)
    (folder / "broken-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (folder / "broken-1.0.dist-info" / "entry_points.txt").write_text("[afterwords.engines]\nbroken = broken:Engine\n")
    (folder / "broken.py").write_text("raise RuntimeError('\\x1b[2J no driver')\n")
    return str(folder)


@pytest.mark.usefixtures("tone")
def test_list_shows_available_backends() -> None:
    done = run("backends")

    head, row = done.out.splitlines()
    assert head.split() == ["backend", "runs", "languages", "about"]
    assert row.split()[:4] == ["tone", "auto", "de", "en"]
    assert (done.code, done.err) == (0, "")


def test_failing_plugin_is_listed_with_reason(broken: str) -> None:
    settings = {"PYTHONPATH": broken, "AFTERWORDS_BACKENDS": "tone,broken"}

    rows = run("backends", env=settings).out.splitlines()

    assert [row.split()[:2] for row in rows[1:]] == [["tone", "yes"], ["broken", "no"]]
    assert r"(RuntimeError: \x1b[2J no driver); fix: reinstall or remove broken" in rows[2]
    facts = json.loads(run("backends", "--json", env=settings).out)
    assert [(fact["backend"], fact["is_available"], fact["is_auto"]) for fact in facts] == [
        ("tone", True, False),
        ("broken", False, False),
    ]
    assert facts[1]["fix"] == "reinstall or remove broken"


def test_no_backend_prints_what_to_install() -> None:
    done = run("backends", env={"AFTERWORDS_BACKENDS": "nope"})

    assert (done.code, done.out) == (0, "")
    assert pip_install("lite") in done.err
    assert run("backends", "--json", env={"AFTERWORDS_BACKENDS": "nope"}).out == "[]\n"
