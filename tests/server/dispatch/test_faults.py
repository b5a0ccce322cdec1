"""Engines and worker processes that fail, and the local dispatcher afterwards."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.server.dispatch.memory_queue import MemoryQueue
from tests.server.dispatch.running import ENDLESS, LONG, children, eventually, install_odd, running_dispatcher

pytestmark = pytest.mark.anyio


async def test_second_attempt_of_crashing_job_runs_alone(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue):
        innocents = [queue.submit(f"fault-slow number {number} and on") for number in range(4)]
        poison = queue.submit("now fault-crash")
        assert await queue.wait_for(*innocents, poison) == ["ready"] * 4 + ["worker_lost"]
    assert queue.jobs[poison].attempt == 3
    assert {queue.jobs[job_id].attempt for job_id in innocents} == {2}
    first_claims_and_ends = 2 * 5
    later = [name for call, name in queue.calls if call in ("claimed", "retry", "complete")][first_claims_and_ends:]
    assert later[::2] == later[1::2], "each is claimed and ended before the next is claimed"


async def test_hanging_engine_is_killed_and_replaced(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue, stall_s=0.4):
        hanging, other = queue.submit("now fault-hang"), queue.submit(LONG)
        await eventually(lambda: len(children()) == 1)
        first = children()
        assert await queue.wait_for(hanging) == ["speaking_timed_out"]
        assert queue.jobs[hanging].attempt == 3
        assert not set(first) & set(children())
        queue.cancel(other)
        assert await queue.wait_for(queue.submit("the next")) == ["ready"]


async def test_out_of_memory_is_retried_once_in_a_new_process(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue) as dispatcher:
        await eventually(lambda: dispatcher.is_ready)
        first = children()
        other = queue.submit("fault-slow and not harmed by the other job")
        greedy = queue.submit("now fault-memory")
        assert await queue.wait_for(greedy, other) == ["out_of_memory", "ready"]
        assert (queue.jobs[greedy].attempt, queue.jobs[other].attempt) == (2, 1)
        assert not set(first) & set(children())
        assert await queue.wait_for(queue.submit("the next")) == ["ready"]


async def test_process_far_beyond_memory_limit_is_killed(queue: MemoryQueue, caplog: pytest.LogCaptureFixture) -> None:
    async with running_dispatcher(queue, worker_memory_mb=160):
        greedy = queue.submit(f"fault-leak {'and more ' * 100}")
        assert await queue.wait_for(greedy) == ["out_of_memory"]
        assert queue.jobs[greedy].attempt == 2
        assert await queue.wait_for(queue.submit("the next")) == ["ready"]
    assert "it takes too much memory" in caplog.text


async def test_process_beyond_memory_limit_finishes_first(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue, worker_memory_mb=200) as dispatcher:
        await eventually(lambda: dispatcher.is_ready)
        first = children()
        n_characters = 4 * 12  # 11 chunks of 16 MB, on top of 50 to 90
        assert await queue.wait_for(queue.submit("fault-leak".ljust(n_characters, "x"))) == ["ready"]
        await eventually(lambda: not set(first) & set(children()))
        assert await queue.wait_for(queue.submit("the next")) == ["ready"]


async def test_memory_limit_below_model_size_is_reported(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue, worker_memory_mb=64, backends=("lite",)) as dispatcher:
        await eventually(lambda: "can't be loaded" in dispatcher.state)
        assert not dispatcher.is_ready


async def test_process_is_replaced_after_recycle_after_jobs(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue, recycle_after=2) as dispatcher:
        seen = set()
        for number in range(5):
            await eventually(lambda: dispatcher.is_ready and len(children()) == 1)
            assert await queue.wait_for(queue.submit(f"number {number}")) == ["ready"]
            seen.update(children())
        assert len(seen) >= 2
    assert {job.attempt for job in queue.jobs.values()} == {1}


async def test_unexpected_error_fails_job_and_logs_no_text(
    queue: MemoryQueue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with running_dispatcher(queue):
        job_id = queue.submit("my secret words, fault-error")
        assert await queue.wait_for(job_id) == ["synthesis_failed"]
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text


async def test_endless_speech_is_aborted_as_runaway_audio(
    queue: MemoryQueue, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_odd(home, monkeypatch)
    queue.prompts["me", "odd", "1"] = b"known"
    async with running_dispatcher(queue, backends=("odd",)):
        endless = queue.submit("endless", backend="odd")
        assert await queue.wait_for(endless, queue.submit("the next", backend="odd")) == ["runaway_audio", "ready"]


async def test_failed_load_is_reported_and_retried(
    queue: MemoryQueue, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_odd(home, monkeypatch)
    queue.prompts["me", "odd", "1"] = b"known"
    broken = home / "broken"
    broken.touch()
    async with running_dispatcher(queue, backends=("odd",)) as dispatcher:
        await eventually(lambda: "odd can't be loaded (The model file odd.bin is missing." in dispatcher.state)
        assert not dispatcher.is_ready
        broken.unlink()
        assert await queue.wait_for(queue.submit("hello", backend="odd")) == ["ready"]
        assert dispatcher.is_ready


async def test_unloadable_backend_fails_only_its_own_jobs(
    queue: MemoryQueue, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_odd(home, monkeypatch)
    (home / "broken").touch()
    async with running_dispatcher(queue, backends=("tone", "odd")):
        odd, tone = queue.submit("hello", backend="odd"), queue.submit("hello")
        assert await queue.wait_for(odd, tone) == ["model_unavailable", "ready"]


async def test_waiting_job_loses_no_attempt_in_a_crash(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue) as dispatcher:
        speaking, waiting = queue.submit(ENDLESS), queue.submit("alone", attempt=1)
        listener = dispatcher.listen(speaking)
        assert listener is not None
        await listener.wait_until_started()
        await queue.wait_until(lambda: waiting in queue.claimed)
        children()[0].kill()
        assert await queue.wait_for(waiting) == ["ready"]
    assert queue.jobs[waiting].attempt == 2
    assert queue.calls_for(speaking)[:2] == ["claimed", "retry"]


async def test_waiting_job_is_released_if_no_process_starts(
    queue: MemoryQueue, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_odd(home, monkeypatch)
    async with running_dispatcher(queue, backends=("odd", "tone")) as dispatcher:
        speaking, waiting = queue.submit(ENDLESS), queue.submit("alone", attempt=1)
        listener = dispatcher.listen(speaking)
        assert listener is not None
        await listener.wait_until_started()
        await queue.wait_until(lambda: waiting in queue.claimed)
        (home / "broken").touch()
        children()[0].kill()
        await queue.wait_until(lambda: queue.calls_for(waiting) == ["claimed", "release"])
        (home / "broken").unlink()
        queue.cancel(speaking)
        assert await queue.wait_for(waiting) == ["ready"]
    assert queue.jobs[waiting].attempt == 2
