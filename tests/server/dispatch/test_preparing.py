"""Voices that take long to prepare: what reports progress is left alone, and no step is done twice."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from afterwords.server.records import JobProgress
from tests.server.dispatch.desk import Desk
from tests.server.dispatch.dispatching import children, dispatching, eventually, install_odd

pytestmark = pytest.mark.anyio

KEY = ("me", "slow", "1")


@pytest.fixture(autouse=True)
def slow(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow engine, which prepares until there is a file `go` in the home folder."""
    install_odd(home, monkeypatch)


def log(home: Path) -> list[str]:
    return (home / "odd.log").read_text().split()


async def test_progress_extends_the_allowance_and_is_reported(
    desk: Desk, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with dispatching(desk, backends=("slow",), start_allowance_s=2.5) as dispatcher:
        job_id, behind = (desk.submit(text, backend="slow") for text in ("hello", "and again"))
        await eventually(lambda: int(desk.checkpoints.get(KEY, b"0")) >= 70)  # 3.5 s or more
        seen = [dispatcher.progress(desk.jobs[job]) for job in (job_id, behind)]
        assert [(progress.step, round(progress.fraction or 0, 2)) for progress in seen] == [("preparing", 0.4)] * 2
        (home / "go").touch()
        assert await desk.ended(job_id, behind) == ["ready", "ready"]
    assert desk.jobs[job_id].attempt == 1
    assert log(home) == ["from-0"], "the job behind it did not prepare the voice again"
    assert (desk.prompts, desk.checkpoints) == ({KEY: b"slow prompt"}, {})
    assert "preparing voice me for slow, 40 %" in caplog.text
    assert "killed" not in caplog.text


async def test_an_interrupted_preparation_goes_on_where_it_was(desk: Desk, home: Path) -> None:
    async with dispatching(desk, backends=("slow",)):
        job_id = desk.submit("hello", backend="slow")
        await eventually(lambda: int(desk.checkpoints.get(KEY, b"0")) >= 3)
        children()[0].kill()
        await eventually(lambda: len(log(home)) == 2)
    async with dispatching(desk, backends=("slow",)):  # the next server
        await eventually(lambda: len(log(home)) == 3)
        (home / "go").touch()
        assert await desk.ended(job_id) == ["ready"]
    steps = [int(line.removeprefix("from-")) for line in log(home)]
    assert steps[0] == 0
    assert 3 <= steps[1] <= steps[2]


async def test_voices_that_are_prepared_do_not_wait_for_one_that_is_not(desk: Desk, home: Path) -> None:
    desk.prompts["other", "slow", "1"] = b"known"
    async with dispatching(desk, backends=("slow",)) as dispatcher:
        preparing = desk.submit("hello", backend="slow")
        await eventually(lambda: KEY in desk.checkpoints)
        next_one = desk.submit("hello", voice="you", backend="slow")
        await desk.until(lambda: next_one in desk.claimed)
        assert await desk.ended(*(desk.submit("hi", voice="other", backend="slow") for _ in range(3))) == ["ready"] * 3
        assert not desk.is_final(preparing)
        assert dispatcher.progress(desk.jobs[next_one]) == JobProgress("waiting")
        (home / "go").touch()
        assert await desk.ended(preparing, next_one) == ["ready"] * 2


async def test_a_server_may_prepare_fast(desk: Desk, home: Path) -> None:
    async with dispatching(desk, backends=("slow",), prepare="fast"):
        assert await desk.ended(desk.submit("hello", backend="slow")) == ["ready"]
    assert log(home) == ["fast"]
    assert desk.fast == {"me": True}
