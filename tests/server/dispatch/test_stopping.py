"""Stop a local dispatcher, orderly or by force: no process is left."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.server.dispatch.memory_queue import DEADLINE_S, MemoryQueue
from tests.server.dispatch.running import ENDLESS, LONG, children, running_dispatcher

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]
SERVER = """
import asyncio, sys
from tests.server.dispatch.memory_queue import MemoryQueue
from tests.server.dispatch.running import children, running_dispatcher

async def main():
    queue = MemoryQueue()
    async with running_dispatcher(queue) as dispatcher:
        job_id = queue.submit(sys.argv[1])
        listener = dispatcher.listen(job_id)
        await listener.wait_until_started()
        print(children()[0].pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def start_server(text: str) -> subprocess.Popen[str]:
    """Start a process with a dispatcher that speaks a text, and prints the pid of its worker once audio arrives."""
    return subprocess.Popen([sys.executable, "-c", SERVER, text], stdout=subprocess.PIPE, text=True, cwd=ROOT)


async def test_grace_period_finishes_some_jobs_and_releases_others(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue) as dispatcher:
        short, endless = queue.submit("fault-slow and short"), queue.submit(ENDLESS)
        await queue.wait_until(lambda: {short, endless} <= queue.claimed)
        await dispatcher.stop(grace_s=2)
        assert queue.outcome(short) == "ready"
        assert queue.calls_for(endless) == ["claimed", "release"]
        assert children() == []


async def test_stop_during_start_leaves_no_process(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue, workers=2) as dispatcher:
        await dispatcher.stop(grace_s=0)
        assert children() == []
        assert not dispatcher.is_ready


async def test_stop_can_be_called_twice(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue) as dispatcher:
        await dispatcher.stop(grace_s=0)
        await dispatcher.stop(grace_s=0)
    assert children() == []


async def test_stop_does_not_wait_for_a_hanging_engine(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue) as dispatcher:
        hanging = queue.submit("now fault-hang")
        await queue.wait_until(lambda: ("save_prompt", "me") in queue.calls)
        await dispatcher.stop(grace_s=0)
        assert queue.calls_for(hanging) == ["claimed", "release"]
        assert children() == []


async def test_stop_ends_waiting_listeners(queue: MemoryQueue) -> None:
    async with running_dispatcher(queue) as dispatcher:
        never = dispatcher.listen("never submitted")
        assert never is not None
        await dispatcher.stop(grace_s=0)
        assert await never.wait_until_started() is None


@pytest.mark.parametrize("text", ["fault-slow " * 200, "now fault-hang"], ids=["speaking", "hanging"])
def test_worker_processes_end_with_a_killed_server(text: str) -> None:
    with start_server(text) as server:
        assert server.stdout is not None
        worker = psutil.Process(int(server.stdout.readline()))
        server.kill()
        worker.wait(DEADLINE_S)


def test_failpoint_after_a_claim_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_FAILPOINT", "job-claimed")
    with start_server(LONG) as server:
        assert server.wait(DEADLINE_S) == -signal.SIGKILL
