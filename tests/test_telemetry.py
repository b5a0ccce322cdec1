"""The switches of libraries' telemetry: set where nobody decided, left alone where somebody did."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from afterwords.telemetry import SWITCHES, turn_off_telemetry

ROOT = Path(__file__).parents[1]
PROGRAMS = [path for folder in ("src", "benchmarks", "examples", "scripts") for path in (ROOT / folder).rglob("*.py")]


def test_switches_are_set_where_they_are_absent_or_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "")
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    turn_off_telemetry()
    assert {name: os.environ[name] for name in SWITCHES} == SWITCHES


def test_a_switch_that_a_person_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    turn_off_telemetry()
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "0"


def test_onnxruntime_is_imported_in_one_place() -> None:
    importing = [path.name for path in PROGRAMS if re.search(r"(import|from) onnxruntime", path.read_text("utf-8"))]
    assert importing == ["telemetry.py"]
