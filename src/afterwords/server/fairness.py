"""Limits that keep one account from taking what all accounts share. The routes and the guard use them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from afterwords.errors import LimitError


class FairSemaphore:
    """A semaphore that serves accounts in turn: an account waits for one step of each other account at most."""

    def __init__(self, n_slots: int) -> None:
        self._n_free = n_slots
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def slot(self, account_id: str) -> AsyncIterator[None]:
        """Hold a slot for one step of an account's work."""
        await self._acquire(account_id)
        try:
            yield
        finally:
            self._release()

    async def _acquire(self, account_id: str) -> None:
        if self._n_free:
            self._n_free -= 1
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(account_id, deque()).append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if not granted.cancelled():  # it was granted in the moment of its cancellation
                self._release()
            raise

    def _release(self) -> None:
        while self._waiting:
            account_id, queue = self._waiting.popitem(last=False)
            granted = queue.popleft()
            if queue:
                self._waiting[account_id] = queue  # behind the other accounts
            if not granted.done():  # else its request was cancelled
                granted.set_result(None)
                return
        self._n_free += 1


class ConcurrencyLimit:
    """How many things one key or account may do at once.

    Args:
        maximum: at once.
        doing: names them in the error, as in "uploads under way".
    """

    def __init__(self, maximum: int, *, doing: str) -> None:
        self._maximum = maximum
        self._doing = doing
        self._n_open: dict[str, int] = {}

    @contextmanager
    def hold(self, who: str) -> Iterator[None]:
        """Count one more while the block runs.

        Raises:
            LimitError: there are as many as there may be.
        """
        self.enter(who)
        try:
            yield
        finally:
            self.leave(who)

    def enter(self, who: str) -> None:
        """Count one more, as `hold`; `leave` must follow."""
        n_open = self._n_open.get(who, 0)
        if n_open >= self._maximum:
            raise LimitError.too_many_concurrent(limit=self._maximum, what=self._doing)
        self._n_open[who] = n_open + 1

    def leave(self, who: str) -> None:
        """Count one less."""
        n_open = self._n_open.pop(who) - 1
        if n_open:
            self._n_open[who] = n_open
