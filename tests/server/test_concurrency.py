"""Fairness among accounts, and limits per owner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from afterwords.errors import LimitError
from afterwords.server.concurrency import ConcurrencyLimit, FairSemaphore
from tests.error_codes import has_code


async def step(slots: FairSemaphore, account_id: str, log: list[str]) -> None:
    async with slots.slot(account_id):
        log.append(account_id)
        await asyncio.sleep(0)


def test_accounts_are_served_round_robin() -> None:
    async def run() -> list[str]:
        slots, log = FairSemaphore(1), list[str]()
        await asyncio.gather(*(step(slots, name, log) for name in ["a"] * 10 + ["b"] * 2 + ["c"]))
        return log

    assert "".join(asyncio.run(run())) == "aabcab" + "a" * 7


@pytest.mark.parametrize("moment", ["while waiting", "when granted"])
def test_cancelled_requests_release_their_slots(moment: str) -> None:
    async def run() -> None:
        slots, log = FairSemaphore(2), list[str]()
        held = asyncio.Event()

        async def hold() -> None:
            async with slots.slot("a"):
                await held.wait()

        holding = [asyncio.create_task(hold()) for _ in range(2)]
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(step(slots, "a", log)) for _ in range(20)]
        await asyncio.sleep(0)
        first: Callable[[], object] = held.set
        if moment == "when granted":
            first()
            await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        first()
        await asyncio.gather(*holding, *waiting, return_exceptions=True)
        async with asyncio.timeout(60):
            await asyncio.gather(*(step(slots, "b", log) for _ in range(3)))
        assert log.count("b") == 3

    asyncio.run(run())


def test_limit_applies_per_owner() -> None:
    limit = ConcurrencyLimit(2, doing="uploads under way")
    with limit.hold("a"), limit.hold("a"):
        with (
            pytest.raises(LimitError, match="2 uploads under way", check=has_code("too_many_concurrent_requests")),
            limit.hold("a"),
        ):
            pass
        with limit.hold("b"):
            pass
    with limit.hold("a"):
        pass
