"""A short chaos run, before the long ones of `make soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.chaos import Chaos


@pytest.mark.soak
def test_chaos_loses_and_charges_nothing_twice(tmp_path: Path) -> None:
    report = Chaos(tmp_path / "home", n_jobs=40, n_kills=6, seed=8).run()
    assert report.is_clean, "\n".join(report.table())
    assert sum(report.kills.values()) >= 6
