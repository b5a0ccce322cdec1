"""Steps of work in threads, which an exit or a client that leaves may interrupt in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run one short step in a thread; it has ended when this has, even if the task is cancelled.

    `asyncio.to_thread` leaves a step running behind a cancelled task, which then may close what the step uses.
    """
    is_cancelled = False

    def run() -> T:
        if is_cancelled:  # it waited for a thread until nobody wanted it
            raise RuntimeError("the step is not wanted any more")
        return step(*args, **kwargs)

    future = asyncio.get_running_loop().run_in_executor(None, run)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        is_cancelled = True
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({future})
        if not future.cancelled():
            future.exception()  # looked at, so that it is not reported as lost
        raise
