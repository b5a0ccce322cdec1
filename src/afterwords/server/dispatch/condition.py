"""A condition variable for one event loop, used by dispatchers, worker slots and audio streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Condition:
    """`asyncio.Condition` without its lock: callbacks, which can't await one, may notify."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def notify_all(self) -> None:
        """Wake every waiter."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the next notification."""
        await self._next.wait()

    async def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Wait until the predicate is true; it is evaluated after each notification."""
        while not predicate():
            await self.wait()
