"""Delivering webhooks: some at once, few of each account, and fewer of one whose receiver does not answer.

Housekeeping runs it. The store puts a webhook off when it is taken, so one that is cut short comes again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from afterwords.errors import AfterwordsError
from afterwords.server.ports import Clock, Store, WebhookCall

log = logging.getLogger("afterwords.server")

AT_ONCE: Final = 64
PER_ACCOUNT: Final = 4
BACK_OFF_MAX_S: Final = 60.0


@dataclass(slots=True)
class _Receiver:
    """The receivers of one account, taken together."""

    n_under_way: int = 0
    n_failed: int = 0  # since it last took one
    not_before_s: float = 0.0  # by the steady clock


class Deliveries:
    """Delivers what is due. A receiver that is slow or fails delays the webhooks of its own account alone."""

    def __init__(self, store: Store, clock: Clock, deliver: Callable[[WebhookCall], Awaitable[bool]]) -> None:
        self._store = store
        self._clock = clock
        self._deliver = deliver
        self._receivers: dict[str, _Receiver] = {}  # with something under way, or that failed
        self._n_under_way = 0
        self._ended = asyncio.Event()

    async def run(self, interval_s: float) -> None:
        """Work until cancelled; what is due is looked for every interval, and whenever a delivery ends."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._ended.clear()
                with _logged():
                    await self._begin(group)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(interval_s):  # wait_for loses a cancellation that comes with the event
                        await self._ended.wait()

    async def _begin(self, group: asyncio.TaskGroup) -> None:
        if self._n_under_way >= AT_ONCE:
            return
        calls = await self._store.webhooks_due(
            limit=AT_ONCE - self._n_under_way, per_account=PER_ACCOUNT, allowed=self._allowed()
        )
        for call in calls:
            self._receivers.setdefault(call.job.account_id, _Receiver()).n_under_way += 1
            self._n_under_way += 1
            group.create_task(self._attempt(call))

    def _allowed(self) -> Mapping[str, int]:
        """How many more may begin, of accounts that have fewer than others."""
        now = self._clock.steady()
        allowed = {}
        for account_id, receiver in self._receivers.items():
            most = PER_ACCOUNT if not receiver.n_failed else int(now >= receiver.not_before_s)
            allowed[account_id] = max(0, most - receiver.n_under_way)
        return allowed

    async def _attempt(self, call: WebhookCall) -> None:
        account_id = call.job.account_id
        receiver = self._receivers[account_id]
        is_taken = False
        try:
            with _logged():
                is_taken = await self._deliver(call)
                if is_taken:
                    await self._store.webhook_done(call.job.job_id, delivered=True)
        finally:
            self._n_under_way -= 1
            receiver.n_under_way -= 1
            receiver.n_failed = 0 if is_taken else receiver.n_failed + 1
            receiver.not_before_s = self._clock.steady() + min(2.0 ** min(receiver.n_failed, 10), BACK_OFF_MAX_S)
            if not receiver.n_under_way and not receiver.n_failed:
                del self._receivers[account_id]
            self._ended.set()


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    """Write a failure down, and go on: this loop must outlive whatever one webhook meets."""
    try:
        yield
    except AfterwordsError as error:
        log.warning("a webhook failed code=%s", error.code)
    except Exception as error:  # noqa: BLE001 - an edge, and its message may hold a URL
        log.error("a webhook failed kind=%s", type(error).__name__)
