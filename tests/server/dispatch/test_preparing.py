"""Voices that take long to prepare, for a job or in the background: no step is repeated."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from afterwords.errors import StorageUnavailableError
from afterwords.server.records import JobProgress
from tests.server.dispatch.memory_queue import DEADLINE_S, MemoryQueue
from tests.server.dispatch.running import children, eventually, install_odd, running_dispatcher

pytestmark = pytest.mark.anyio

KEY = ("me", "slow", "1")


@pytest.fixture(autouse=True)
def slow(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the slow engine, which prepares until a file `go` exists in the home folder."""
    install_odd(home, monkeypatch)


def log(home: Path) -> list[str]:
    return (home / "odd.log").read_text().split()


async def test_progress_extends_the_allowance_and_is_reported(
    queue: MemoryQueue, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with running_dispatcher(queue, backends=("slow",), start_allowance_s=2.5) as dispatcher:
        job_id, behind = (queue.submit(text, backend="slow") for text in ("hello", "and again"))
        await eventually(lambda: int(queue.checkpoints.get(KEY, b"0")) >= 70)  # 3.5 s or more
        seen = [dispatcher.progress(queue.jobs[job]) for job in (job_id, behind)]
        assert [(progress.step, round(progress.fraction or 0, 2)) for progress in seen] == [("preparing", 0.4)] * 2
        (home / "go").touch()
        assert await queue.wait_for(job_id, behind) == ["ready", "ready"]
    assert queue.jobs[job_id].attempt == 1
    assert log(home) == ["from-0"], "the second job did not prepare the voice again"
    assert (queue.prompts, queue.checkpoints) == ({KEY: b"slow prompt"}, {})
    assert "preparing voice me for slow, 40 %" in caplog.text
    assert "killed" not in caplog.text


async def test_interrupted_preparation_resumes_from_checkpoint(queue: MemoryQueue, home: Path) -> None:
    async with running_dispatcher(queue, backends=("slow",)):
        job_id = queue.submit("hello", backend="slow")
        await eventually(lambda: int(queue.checkpoints.get(KEY, b"0")) >= 3)
        children()[0].kill()
        await eventually(lambda: len(log(home)) == 2)
    async with running_dispatcher(queue, backends=("slow",)):  # after a restart
        await eventually(lambda: len(log(home)) == 3)
        (home / "go").touch()
        assert await queue.wait_for(job_id) == ["ready"]
    steps = [int(line.removeprefix("from-")) for line in log(home)]
    assert steps[0] == 0
    assert 3 <= steps[1] <= steps[2]


async def test_prepared_voices_run_while_another_is_prepared(queue: MemoryQueue, home: Path) -> None:
    queue.prompts["other", "slow", "1"] = b"known"
    async with running_dispatcher(queue, backends=("slow",)) as dispatcher:
        preparing = queue.submit("hello", backend="slow")
        await eventually(lambda: KEY in queue.checkpoints)
        next_one = queue.submit("hello", voice="you", backend="slow")
        await queue.wait_until(lambda: next_one in queue.claimed)
        assert (
            await queue.wait_for(*(queue.submit("hi", voice="other", backend="slow") for _ in range(3)))
            == ["ready"] * 3
        )
        assert not queue.is_final(preparing)
        assert dispatcher.progress(queue.jobs[next_one]) == JobProgress("waiting")
        (home / "go").touch()
        assert await queue.wait_for(preparing, next_one) == ["ready"] * 2


async def test_setting_prepare_fast_reaches_the_engine(queue: MemoryQueue, home: Path) -> None:
    async with running_dispatcher(queue, backends=("slow",), prepare="fast"):
        assert await queue.wait_for(queue.submit("hello", backend="slow")) == ["ready"]
    assert log(home) == ["fast"]
    assert queue.fast == {"me": True}


async def test_job_waits_for_the_preparation_of_its_voice(queue: MemoryQueue, home: Path) -> None:
    async with running_dispatcher(queue, backends=("slow",)) as dispatcher:
        preparation = queue.prepare(backend="slow")
        await eventually(lambda: KEY in queue.checkpoints)
        job_id = queue.submit("hello", backend="slow")
        looked = [call for call, _ in queue.calls].count("claim") + 2
        await eventually(lambda: [call for call, _ in queue.calls].count("claim") >= looked)
        assert dispatcher.progress(queue.jobs[job_id]).step == "preparing"
        assert job_id not in queue.claimed
        (home / "go").touch()
        assert await queue.wait_for(preparation, job_id) == ["ready", "ready"]
    assert log(home) == ["from-0"], "the job did not prepare the voice again"
    assert [call for call, _ in queue.calls].count("save_prompt") == 1


async def test_voice_speaks_with_another_backend_meanwhile(queue: MemoryQueue, home: Path) -> None:
    async with running_dispatcher(queue, backends=("slow", "tone")):
        preparation = queue.prepare(backend="slow")
        await eventually(lambda: KEY in queue.checkpoints)
        assert await queue.wait_for(queue.submit("hello", backend="tone")) == ["ready"]
        assert not queue.is_final(preparation)
        (home / "go").touch()
        assert await queue.wait_for(preparation) == ["ready"]


async def test_preparation_gives_way_to_job_of_another_voice(queue: MemoryQueue, home: Path) -> None:
    async with running_dispatcher(queue, backends=("slow",)):
        preparation = queue.prepare(backend="slow")
        await eventually(lambda: int(queue.checkpoints.get(KEY, b"0")) >= 3)
        job_id = queue.submit("hello", voice="you", backend="slow")
        await eventually(lambda: ("you", "slow", "1") in queue.checkpoints)
        assert queue.calls_for(preparation) == ["claimed", "release"]
        (home / "go").touch()
        assert await queue.wait_for(job_id, preparation) == ["ready", "ready"]
    assert queue.calls_for(preparation) == ["claimed", "release", "claimed", "end_preparation"]
    steps = [int(line.removeprefix("from-")) for line in log(home)]
    assert steps[:2] == [0, 0]
    assert steps[2] >= 3, "it resumed from its checkpoint"


async def test_prepared_voices_speak_during_a_preparation(queue: MemoryQueue, home: Path) -> None:
    queue.prompts["other", "slow", "1"] = b"known"
    async with running_dispatcher(queue, backends=("slow",)):
        preparation = queue.prepare(backend="slow")
        await eventually(lambda: KEY in queue.checkpoints)
        assert await queue.wait_for(queue.submit("hi", voice="other", backend="slow")) == ["ready"]
        assert queue.calls_for(preparation) == ["claimed"]
        (home / "go").touch()
        assert await queue.wait_for(preparation) == ["ready"]


async def test_killed_preparation_resumes_from_its_checkpoint(queue: MemoryQueue, home: Path) -> None:
    async with running_dispatcher(queue, backends=("slow",)):
        preparation = queue.prepare(backend="slow")
        await eventually(lambda: int(queue.checkpoints.get(KEY, b"0")) >= 3)
        children()[0].kill()
        await eventually(lambda: len(log(home)) == 2)
        (home / "go").touch()
        assert await queue.wait_for(preparation) == ["ready"]
    assert queue.calls_for(preparation) == ["claimed", "retry", "claimed", "end_preparation"]
    assert int(log(home)[1].removeprefix("from-")) >= 3


async def test_stop_does_not_wait_for_a_preparation(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue, backends=("slow",)) as dispatcher:
        preparation = queue.prepare(backend="slow")
        await eventually(lambda: KEY in queue.checkpoints)
        await asyncio.wait_for(dispatcher.stop(grace_s=10 * DEADLINE_S), DEADLINE_S)
    assert queue.calls_for(preparation) == ["claimed", "release"]


async def test_deleted_voice_stops_its_preparation(queue: MemoryQueue, home: Path) -> None:
    async with running_dispatcher(queue, backends=("slow",), lease_s=3):
        preparation = queue.prepare(backend="slow")
        await eventually(lambda: KEY in queue.checkpoints)
        queue.cancel(preparation)
        next_one = queue.prepare("you", backend="slow")
        await eventually(lambda: len(log(home)) == 2)
        (home / "go").touch()
        assert await queue.wait_for(next_one) == ["ready"]
    assert list(queue.prompts) == [("you", "slow", "1")]


async def test_prompt_that_is_not_stored_is_made_again(queue: MemoryQueue, home: Path) -> None:
    (home / "go").touch()
    queue.errors["save_prompt"] = StorageUnavailableError()
    async with running_dispatcher(queue, backends=("slow",), lease_s=3):
        preparation = queue.prepare(backend="slow")
        await queue.wait_until(lambda: "retry" in queue.calls_for(preparation))
        queue.errors.clear()
        assert await queue.wait_for(preparation) == ["ready"]
    assert queue.prompts == {KEY: b"slow prompt"}
