"""Run work fairly among accounts, in threads, only while its client is connected, or once something has changed."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from afterwords.errors import LimitError

if TYPE_CHECKING:
    from starlette.types import Receive

P = ParamSpec("P")
T = TypeVar("T")


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


class FairSemaphore:
    """A semaphore with a queue per account, served round-robin."""

    def __init__(self, n_slots: int) -> None:
        self._n_free = n_slots
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def slot(self, account_id: str) -> AsyncIterator[None]:
        """Hold a slot for one step of an account's work."""
        if self._n_free:
            self._n_free -= 1
        else:
            granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(account_id, deque()).append(granted)
            try:
                await granted
            except asyncio.CancelledError:
                if not granted.cancelled():  # granted at the moment of cancellation
                    self._release()
                raise
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        while self._waiting:
            account_id, queue = self._waiting.popitem(last=False)
            granted = queue.popleft()
            if queue:
                self._waiting[account_id] = queue  # behind the other accounts
            if not granted.done():  # otherwise its request was cancelled
                granted.set_result(None)
                return
        self._n_free += 1


class ConcurrencyLimit:
    """A limit of concurrent operations per account, or per another owner.

    Args:
        doing: Name of the operations in the error, as in "uploads under way".
        owner: What has the limit, in the error.
    """

    def __init__(self, maximum: int, *, doing: str, owner: str = "account") -> None:
        self._maximum = maximum
        self._doing = doing
        self._owner = owner
        self._n_open: dict[str, int] = {}

    @contextmanager
    def hold(self, owner_id: str) -> Iterator[None]:
        """Count an operation while the block runs.

        Raises:
            LimitError: The owner has reached the limit.
        """
        self.enter(owner_id)
        try:
            yield
        finally:
            self.leave(owner_id)

    def enter(self, owner_id: str) -> None:
        """Count an operation until `leave`; raises like `hold`."""
        n_open = self._n_open.get(owner_id, 0)
        if n_open >= self._maximum:
            raise LimitError(
                f"The {self._owner} already has {self._maximum:,} {self._doing}, which is its limit.",
                code="too_many_concurrent_requests",
                limit=self._maximum,
                retry_after_s=1,
            )
        self._n_open[owner_id] = n_open + 1

    def leave(self, owner_id: str) -> None:
        """Stop counting an operation."""
        n_open = self._n_open.pop(owner_id) - 1
        if n_open:
            self._n_open[owner_id] = n_open


async def in_thread(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a short step in a thread, and return after it has ended even if the task is cancelled.

    `asyncio.to_thread` leaves a step running after cancellation, while the task may close what the step uses.
    """
    is_cancelled = False

    def run() -> T:
        if is_cancelled:  # cancelled before a thread was free
            raise RuntimeError("the step was cancelled")
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
            future.exception()  # retrieve it, or asyncio logs it as never retrieved
        raise


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run work, and cancel it when the client disconnects.

    Args:
        receive: The ASGI callable of a request whose body was read.
        work: A coroutine; it has ended, with its cleanup, when this function returns or raises.

    Raises:
        ClientDisconnect: The client disconnected before the work ended.
    """
    from starlette.requests import ClientDisconnect

    async def wait_for_disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(wait_for_disconnect())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            leaving.result()
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait({working, leaving})
        for task in (working, leaving):
            if not task.cancelled():
                task.exception()  # retrieve it, or asyncio logs it as never retrieved
