"""Waiting for a state: whoever changes it tells, whoever waits looks again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Changes:
    """The changes of one thing."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def tell(self) -> None:
        """Wake all who wait."""
        self._next.set()
        self._next = asyncio.Event()

    async def next(self) -> None:
        """Wait for the next change."""
        await self._next.wait()

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so."""
        while not is_so():
            await self.next()
