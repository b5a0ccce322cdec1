"""Delivers webhooks: a limited number at once and per account, fewer for an account whose receiver fails.

Housekeeping runs it. A claim delays a webhook in the store, so that an interrupted delivery is repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

from afterwords.errors import AfterwordsError
from afterwords.server.metrics import Metrics
from afterwords.server.ports import Clock, Store
from afterwords.server.records import WebhookCall

log = logging.getLogger("afterwords.server")

CONCURRENT_MAX: Final = 64
PER_ACCOUNT_MAX: Final = 4
BACKOFF_MAX_S: Final = 60.0


@dataclass(slots=True)
class _AccountState:
    """The deliveries of one account."""

    n_running: int = 0
    n_failed: int = 0  # since the last success
    not_before_s: float = 0.0  # monotonic time


class Deliveries:
    """Delivers webhooks that are due. A receiver that is slow or fails delays only the webhooks of its own account."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        deliver: Callable[[WebhookCall], Awaitable[bool]],
        *,
        metrics: Metrics | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._deliver = deliver
        self._metrics = metrics or Metrics()
        self._accounts: dict[str, _AccountState] = {}  # with running or failed deliveries
        self._n_running = 0
        self._ended = asyncio.Event()

    async def run(self, interval_s: float) -> None:
        """Deliver until cancelled. Due webhooks are claimed every interval, and whenever a delivery ends."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._ended.clear()
                now = self._clock.monotonic()
                allowed = {}
                for account_id, account in self._accounts.items():
                    maximum = PER_ACCOUNT_MAX if not account.n_failed else int(now >= account.not_before_s)
                    allowed[account_id] = max(0, maximum - account.n_running)
                with _log_failure():
                    if limit := CONCURRENT_MAX - self._n_running:
                        calls = self._store.claim_webhooks(limit=limit, per_account=PER_ACCOUNT_MAX, allowed=allowed)
                        for call in await calls:
                            self._accounts.setdefault(call.job.account_id, _AccountState()).n_running += 1
                            self._n_running += 1
                            group.create_task(self._attempt(call))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(interval_s):  # wait_for loses a cancellation that comes with the event
                        await self._ended.wait()

    async def _attempt(self, call: WebhookCall) -> None:
        account_id = call.job.account_id
        account = self._accounts[account_id]
        is_delivered = False
        try:
            with _log_failure():
                is_delivered = await self._deliver(call)
                if is_delivered:
                    await self._store.settle_webhook(call.job.job_id)
        finally:
            self._metrics.webhooks.add("delivered" if is_delivered else "failed")
            self._n_running -= 1
            account.n_running -= 1
            account.n_failed = 0 if is_delivered else account.n_failed + 1
            account.not_before_s = self._clock.monotonic() + min(2.0 ** min(account.n_failed, 10), BACKOFF_MAX_S)
            if not account.n_running and not account.n_failed:
                del self._accounts[account_id]
            self._ended.set()


@contextlib.contextmanager
def _log_failure() -> Iterator[None]:
    """Log an error and continue: the loop must survive any failure of a webhook."""
    try:
        yield
    except AfterwordsError as error:
        log.warning("a webhook failed code=%s", error.code)
    except Exception as error:  # noqa: BLE001 - an edge, and the message may contain a URL
        log.error("a webhook failed kind=%s", type(error).__name__)
