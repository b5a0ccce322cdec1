"""Tests of webhook deliveries: a receiver that fails delays only its own account."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from afterwords.errors import DatabaseUnavailableError
from afterwords.server.records import WebhookCall
from afterwords.server.services.deliveries import BACKOFF_MAX_S, PER_ACCOUNT_MAX, Deliveries
from tests.contracts.store_world import World

pytestmark = pytest.mark.anyio


async def add_webhooks(world: World, name: str, n: int) -> str:
    """Make webhooks of an account due. Return its id."""
    caller = await world.caller(name)
    voice = await world.add_voice(caller)

    async def end_a_job() -> None:
        job = await world.add_job(caller, voice, webhook_url="https://example.org/hook")
        await world.store.cancel(job.job_id, account_id=job.account_id)

    await asyncio.gather(*[end_a_job() for _ in range(n)])
    return caller.account_id


class Receivers:
    """All receivers: how they behave, and what they were sent."""

    def __init__(self) -> None:
        self.silent: set[str] = set()
        self.failing: set[str] = set()
        self.sent: Counter[str] = Counter()
        self.held: Counter[str] = Counter()
        self.changed = asyncio.Event()

    async def deliver(self, call: WebhookCall) -> bool:
        account_id = call.job.account_id
        self.sent[account_id] += 1
        self.changed.set()
        if account_id in self.silent:
            self.held[account_id] += 1
            await asyncio.Event().wait()
        return account_id not in self.failing

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not is_so():
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def delivering(world: World, deliver: Callable[[WebhookCall], Awaitable[bool]]) -> AsyncIterator[Deliveries]:
    deliveries = Deliveries(world.store, world.clock, deliver)
    running = asyncio.create_task(deliveries.run(0.01))
    try:
        yield deliveries
    finally:
        assert not running.done()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_silent_receiver_delays_only_its_own_account(world: World) -> None:
    receivers = Receivers()
    slow = await add_webhooks(world, "slow", 20)
    receivers.silent.add(slow)
    async with delivering(world, receivers.deliver):
        await receivers.until(lambda: receivers.held[slow] == PER_ACCOUNT_MAX)
        good = await add_webhooks(world, "good", 3 * PER_ACCOUNT_MAX)
        await receivers.until(lambda: receivers.sent[good] == 3 * PER_ACCOUNT_MAX)
    assert receivers.held[slow] == receivers.sent[slow] == PER_ACCOUNT_MAX


async def test_failing_receiver_gets_one_call_at_a_time_with_backoff(world: World) -> None:
    receivers = Receivers()
    bad = await add_webhooks(world, "bad", 20)
    receivers.failing.add(bad)
    async with delivering(world, receivers.deliver):
        await receivers.until(lambda: receivers.sent[bad] == PER_ACCOUNT_MAX)
        for number in range(1, 5):
            good = await add_webhooks(world, f"good {number}", 1)
            await receivers.until(lambda account_id=good: receivers.sent[account_id] == 1)  # type: ignore[misc]
            assert receivers.sent[bad] == PER_ACCOUNT_MAX + number - 1
            world.clock.advance(BACKOFF_MAX_S)
            await receivers.until(lambda n=number: receivers.sent[bad] == PER_ACCOUNT_MAX + n)  # type: ignore[misc]
        receivers.failing.clear()
        world.clock.advance(BACKOFF_MAX_S)
        await receivers.until(lambda: receivers.sent[bad] >= 20)


async def test_exception_of_a_delivery_does_not_end_the_loop(world: World) -> None:
    receivers = Receivers()
    account_id = await add_webhooks(world, "ann", 2)
    raised = iter([DatabaseUnavailableError(), ZeroDivisionError()])

    async def deliver(call: WebhookCall) -> bool:
        if error := next(raised, None):
            raise error
        return await receivers.deliver(call)

    async with delivering(world, deliver), asyncio.timeout(60):
        while not receivers.sent[account_id]:
            world.clock.advance(1)
            await asyncio.sleep(0.01)
