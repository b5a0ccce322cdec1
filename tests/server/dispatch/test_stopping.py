"""The end of an in-process dispatcher, in good order and in none: nothing of it is left."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.server.dispatch.desk import PATIENCE_S, Desk
from tests.server.dispatch.dispatching import ENDLESS, LONG, children, dispatching

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]
SERVER = """
import asyncio, sys
from tests.server.dispatch.desk import Desk
from tests.server.dispatch.dispatching import children, dispatching

async def main():
    desk = Desk()
    async with dispatching(desk) as dispatcher:
        job_id = desk.submit(sys.argv[1])
        listener = dispatcher.listen(job_id)
        await listener.begun()
        print(children()[0].pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def served(text: str) -> subprocess.Popen[str]:
    """A process with a dispatcher that speaks a text, and prints the id of its child when sound is heard."""
    return subprocess.Popen([sys.executable, "-c", SERVER, text], stdout=subprocess.PIPE, text=True, cwd=ROOT)


async def test_within_its_grace_it_finishes_some_and_gives_back_the_others(desk: Desk) -> None:
    async with dispatching(desk) as dispatcher:
        short, endless = desk.submit("fault-slow and short"), desk.submit(ENDLESS)
        await desk.until(lambda: {short, endless} <= desk.claimed)
        await dispatcher.stop(grace_s=2)
        assert desk.outcome(short) == "ready"
        assert desk.said_of(endless) == ["claimed", "release"]
        assert children() == []


async def test_stopping_while_it_starts_leaves_nothing(desk: Desk) -> None:
    async with dispatching(desk, workers=2) as dispatcher:
        await dispatcher.stop(grace_s=0)
        assert children() == []
        assert not dispatcher.is_ready


async def test_stopping_twice_or_before_the_start_is_no_error(desk: Desk) -> None:
    async with dispatching(desk) as dispatcher:
        await dispatcher.stop(grace_s=0)
        await dispatcher.stop(grace_s=0)
    assert children() == []


async def test_stopping_does_not_wait_for_an_engine_that_hangs(desk: Desk) -> None:
    async with dispatching(desk) as dispatcher:
        hanging = desk.submit("now fault-hang")
        await desk.until(lambda: ("save_prompt", "me") in desk.calls)
        await dispatcher.stop(grace_s=0)
        assert desk.said_of(hanging) == ["claimed", "release"]
        assert children() == []


async def test_whoever_listens_is_told_that_it_stops(desk: Desk) -> None:
    async with dispatching(desk) as dispatcher:
        never = dispatcher.listen("never submitted")
        assert never is not None
        await dispatcher.stop(grace_s=0)
        assert await never.begun() is None


@pytest.mark.parametrize("text", ["fault-slow " * 200, "now fault-hang"], ids=["speaking", "hanging"])
def test_a_server_that_is_killed_takes_its_processes_along(text: str) -> None:
    with served(text) as server:
        assert server.stdout is not None
        child = psutil.Process(int(server.stdout.readline()))
        server.kill()
        child.wait(PATIENCE_S)


def test_the_failpoint_after_a_claim_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_FAILPOINT", "job-claimed")
    with served(LONG) as server:
        assert server.wait(PATIENCE_S) == -signal.SIGKILL
