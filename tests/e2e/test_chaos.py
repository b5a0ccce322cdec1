"""The short chaos; `make soak` runs the long one."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.chaos import Chaos


def test_nothing_that_was_accepted_is_lost_or_paid_twice_whoever_is_killed(tmp_path: Path) -> None:
    report = Chaos(tmp_path / "home", n_jobs=60, n_kills=10, seed=1).run()
    assert report.is_clean, "\n".join(report.table())
    assert sum(report.kills.values()) >= 10
