"""Calls that are made again while the database or the storage does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

from afterwords.errors import ServiceUnavailableError, StorageFullError

OUTAGE: Final = (ServiceUnavailableError, StorageFullError)
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 2.0

T = TypeVar("T")


async def wait_at_most(timeout_s: float, event: asyncio.Event) -> None:
    """Wait for an event, or until the time is over."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)


async def insist(
    call: Callable[[], Awaitable[T]], *, for_s: float, is_pointless: Callable[[], bool] = lambda: False
) -> T:
    """Call until it is not refused for an outage.

    Args:
        call: makes the call anew each time.
        for_s: how long to go on; the last refusal is raised then.
        is_pointless: asked before each further call; the refusal is raised where it is so.
    """
    until = asyncio.get_running_loop().time() + for_s
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return await call()
        except OUTAGE:
            if is_pointless() or asyncio.get_running_loop().time() + pause_s > until:
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
