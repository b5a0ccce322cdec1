"""What an engine or a process may do to the in-process dispatcher, and what is left of it afterwards."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.server.dispatch.desk import Desk
from tests.server.dispatch.dispatching import ENDLESS, LONG, children, dispatching, eventually, install_odd

pytestmark = pytest.mark.anyio


async def test_poison_dies_alone_from_its_second_attempt_on(desk: Desk) -> None:
    async with dispatching(desk):
        innocents = [desk.submit(f"fault-slow number {number} and on") for number in range(4)]
        poison = desk.submit("now fault-crash")
        assert await desk.ended(*innocents, poison) == ["ready"] * 4 + ["worker_lost"]
    assert desk.jobs[poison].attempt == 3
    assert {desk.jobs[job_id].attempt for job_id in innocents} == {2}
    first_claims_and_ends = 2 * 5
    later = [name for call, name in desk.calls if call in ("claimed", "retry", "complete")][first_claims_and_ends:]
    assert later[::2] == later[1::2], "each is claimed and ended before the next is claimed"


async def test_a_hanging_engine_is_killed_and_replaced(desk: Desk) -> None:
    async with dispatching(desk, stall_s=0.4):
        hanging, beside = desk.submit("now fault-hang"), desk.submit(LONG)
        await eventually(lambda: len(children()) == 1)
        first = children()
        assert await desk.ended(hanging) == ["speaking_timed_out"]
        assert desk.jobs[hanging].attempt == 3
        assert not set(first) & set(children())
        desk.cancel(beside)
        assert await desk.ended(desk.submit("the next")) == ["ready"]


async def test_an_engine_out_of_memory_gets_one_more_try_in_a_fresh_process(desk: Desk) -> None:
    async with dispatching(desk) as dispatcher:
        await eventually(lambda: dispatcher.is_ready)
        first = children()
        beside = desk.submit("fault-slow and not harmed by what is beside it")
        greedy = desk.submit("now fault-memory")
        assert await desk.ended(greedy, beside) == ["out_of_memory", "ready"]
        assert (desk.jobs[greedy].attempt, desk.jobs[beside].attempt) == (2, 1)
        assert not set(first) & set(children())
        assert await desk.ended(desk.submit("the next")) == ["ready"]


async def test_a_process_far_beyond_its_memory_cap_is_killed(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    async with dispatching(desk, worker_memory_mb=160):
        greedy = desk.submit(f"fault-leak {'and more ' * 100}")
        assert await desk.ended(greedy) == ["out_of_memory"]
        assert desk.jobs[greedy].attempt == 2
        assert await desk.ended(desk.submit("the next")) == ["ready"]
    assert "it takes too much memory" in caplog.text


async def test_a_process_beyond_its_memory_cap_finishes_and_is_replaced(desk: Desk) -> None:
    async with dispatching(desk, worker_memory_mb=200) as dispatcher:
        await eventually(lambda: dispatcher.is_ready)
        first = children()
        n_characters = 4 * 12  # 11 chunks of 16 MB, on top of 50 to 90
        assert await desk.ended(desk.submit("fault-leak".ljust(n_characters, "x"))) == ["ready"]
        await eventually(lambda: not set(first) & set(children()))
        assert await desk.ended(desk.submit("the next")) == ["ready"]


async def test_a_cap_that_the_model_alone_exceeds_is_told_and_not_tried_in_a_circle(desk: Desk) -> None:
    async with dispatching(desk, worker_memory_mb=64, backends=("lite",)) as dispatcher:
        await eventually(lambda: "can't be loaded" in dispatcher.state)
        assert not dispatcher.is_ready


async def test_a_process_is_replaced_after_its_share_of_jobs(desk: Desk) -> None:
    async with dispatching(desk, recycle_after=2) as dispatcher:
        seen = set()
        for number in range(5):
            await eventually(lambda: dispatcher.is_ready and len(children()) == 1)
            assert await desk.ended(desk.submit(f"number {number}")) == ["ready"]
            seen.update(children())
        assert len(seen) >= 2
    assert {job.attempt for job in desk.jobs.values()} == {1}


async def test_an_error_nobody_foresaw_fails_the_job_and_tells_no_text(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with dispatching(desk):
        job_id = desk.submit("my secret words, fault-error")
        assert await desk.ended(job_id) == ["synthesis_failed"]
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text


async def test_speech_that_does_not_end_is_broken_off_and_judged_at_the_desk(
    desk: Desk, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_odd(home, monkeypatch)
    desk.prompts["me", "odd", "1"] = b"known"
    async with dispatching(desk, backends=("odd",)):
        endless = desk.submit("endless", backend="odd")
        assert await desk.ended(endless, desk.submit("the next", backend="odd")) == ["runaway_audio", "ready"]


async def test_loading_that_fails_is_told_and_tried_again(
    desk: Desk, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_odd(home, monkeypatch)
    desk.prompts["me", "odd", "1"] = b"known"
    broken = home / "broken"
    broken.touch()
    async with dispatching(desk, backends=("odd",)) as dispatcher:
        await eventually(lambda: "odd can't be loaded (The model file odd.bin is missing." in dispatcher.state)
        assert not dispatcher.is_ready
        broken.unlink()
        assert await desk.ended(desk.submit("hello", backend="odd")) == ["ready"]
        assert dispatcher.is_ready


async def test_a_second_backend_that_can_not_load_fails_its_own_jobs_alone(
    desk: Desk, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_odd(home, monkeypatch)
    (home / "broken").touch()
    async with dispatching(desk, backends=("tone", "odd")):
        odd, tone = desk.submit("hello", backend="odd"), desk.submit("hello")
        assert await desk.ended(odd, tone) == ["worker_lost", "ready"]


async def test_a_job_that_only_waits_beside_a_crash_loses_no_attempt(desk: Desk) -> None:
    async with dispatching(desk) as dispatcher:
        speaking, waiting = desk.submit(ENDLESS), desk.submit("alone", attempt=1)
        listener = dispatcher.listen(speaking)
        assert listener is not None
        await listener.begun()
        await desk.until(lambda: waiting in desk.claimed)
        children()[0].kill()
        assert await desk.ended(waiting) == ["ready"]
    assert desk.jobs[waiting].attempt == 2
    assert desk.said_of(speaking)[:2] == ["claimed", "retry"]


async def test_a_job_whose_process_does_not_come_back_is_given_back(
    desk: Desk, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_odd(home, monkeypatch)
    async with dispatching(desk, backends=("odd", "tone")) as dispatcher:
        speaking, waiting = desk.submit(ENDLESS), desk.submit("alone", attempt=1)
        listener = dispatcher.listen(speaking)
        assert listener is not None
        await listener.begun()
        await desk.until(lambda: waiting in desk.claimed)
        (home / "broken").touch()
        children()[0].kill()
        await desk.until(lambda: desk.said_of(waiting) == ["claimed", "release"])
        (home / "broken").unlink()
        desk.cancel(speaking)
        assert await desk.ended(waiting) == ["ready"]
    assert desk.jobs[waiting].attempt == 2
