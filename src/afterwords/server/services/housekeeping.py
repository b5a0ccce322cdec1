"""What is done without being asked: dead leases, webhooks, deleted voices, and what no row names."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from afterwords.errors import AfterwordsError
from afterwords.server.ports import Blobs, Clock, Dispatcher, Store, WebhookCall
from afterwords.server.services.news import News
from afterwords.server.services.voices import Voices

log = logging.getLogger("afterwords.server")


@dataclass(frozen=True, slots=True)
class Housekeeping:
    """The reaper, the sweeper and the postman; `run` does their work until it is cancelled."""

    store: Store
    blobs: Blobs
    clock: Clock
    voices: Voices
    dispatcher: Dispatcher
    news: News
    deliver: Callable[[WebhookCall], Awaitable[bool]]
    max_attempts: int
    reap_interval_s: float
    sweep_interval_s: float
    sweep_grace_s: float

    async def run(self) -> None:
        """Work until cancelled; a failure is written down and tried again at the next turn."""
        async with asyncio.TaskGroup() as group:
            group.create_task(_every(self.reap_interval_s, self.reap))
            group.create_task(_every(self.reap_interval_s, self.post))
            group.create_task(_every(self.sweep_interval_s, self.sweep))

    async def reap(self) -> None:
        """Give jobs of dead workers to others, and finish deletions that were cut short."""
        reaped = await self.store.reap(max_attempts=self.max_attempts)
        self.news.tell(*reaped.failed)
        if reaped.requeued:
            self.dispatcher.wake()
        for voice_id, paths in await self.store.purge_due():
            await self.voices.purge(voice_id, paths)

    async def post(self) -> None:
        """Deliver the webhooks that are due, each once in this round."""
        async with asyncio.TaskGroup() as group:
            for call in await self.store.webhooks_due(limit=16):
                group.create_task(self._post(call))

    async def _post(self, call: WebhookCall) -> None:
        if await self.deliver(call):
            await self.store.webhook_done(call.job.job_id, delivered=True)

    async def sweep(self) -> int:
        """Remove blobs that no row names and that are old enough not to be on their way; returns how many."""
        newest = self.clock.now() - timedelta(seconds=self.sweep_grace_s)
        n_swept = 0
        async for batch in self.blobs.listing():
            old = [blob.path for blob in batch if blob.modified_at <= newest]
            known = await self.store.known_paths(old) if old else set()
            orphans = [path for path in old if path not in known]
            await self.blobs.delete(*orphans)
            n_swept += len(orphans)
        if n_swept:
            log.info("swept orphans=%d", n_swept)
        await self.store.forget_old()
        return n_swept


async def _every(interval_s: float, work: Callable[[], Awaitable[object]]) -> None:
    while True:
        try:
            await work()
        except AfterwordsError as error:
            log.warning("housekeeping failed code=%s", error.code)
        except Exception as error:  # noqa: BLE001 - an edge: this loop must outlive whatever one round meets
            with contextlib.suppress(Exception):
                log.error("housekeeping failed kind=%s", type(error).__name__)
        await asyncio.sleep(interval_s)
