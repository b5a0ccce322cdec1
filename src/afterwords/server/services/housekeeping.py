"""Periodic work: expired leases, webhooks, deleted voices, home voices, orphaned blobs, and subscriptions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from afterwords.errors import AfterwordsError
from afterwords.server.metrics import Metrics
from afterwords.server.ports import Blobs, Clock, Dispatcher, Store
from afterwords.server.services.billing import Billing
from afterwords.server.services.deliveries import Deliveries
from afterwords.server.services.home import HomeVoices
from afterwords.server.services.job_events import JobEvents
from afterwords.server.services.keys import KeyService
from afterwords.server.services.ownership import Ownership, OwnershipStatus, is_server_path
from afterwords.server.services.voices import VoiceService
from afterwords.server.settings import Settings

log = logging.getLogger("afterwords.server")

KEY_USE_INTERVAL_S: Final = 60
BILLING_INTERVAL_S: Final = 60
RECONCILE_INTERVAL_S: Final = 3600


@dataclass(frozen=True, slots=True)
class Housekeeping:
    """The reaper, the sweeper, and the delivery of webhooks."""

    store: Store
    blobs: Blobs
    clock: Clock
    voices: VoiceService
    keys: KeyService
    home: HomeVoices
    ownership: Ownership
    dispatcher: Dispatcher
    events: JobEvents
    deliveries: Deliveries
    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    billing: Billing | None = None

    async def run(self) -> None:
        """Run until cancelled. A failure is logged, and the work is repeated at the next interval."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat("reap", self.settings.reap_interval_s, self.reap))
            group.create_task(self.deliveries.run(self.settings.reap_interval_s))
            group.create_task(self._repeat("library", self.settings.reap_interval_s, self.home.refresh))
            group.create_task(self._repeat("sweep", self.settings.sweep_interval_s, self.sweep))
            group.create_task(self._repeat("key use", KEY_USE_INTERVAL_S, self.keys.save_use))
            if billing := self.billing:
                group.create_task(self._repeat("reconcile", RECONCILE_INTERVAL_S, billing.reconcile_due))
                group.create_task(self._repeat("renewals", BILLING_INTERVAL_S, billing.renew_due))
                group.create_task(self._repeat("meters", BILLING_INTERVAL_S, billing.send_meters))

    async def _repeat(self, name: str, interval_s: float, work: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await work()
            except AfterwordsError as error:
                self.metrics.housekeeping_failures.add(name)
                log.warning("housekeeping failed code=%s", error.code)
            except Exception as error:  # noqa: BLE001 - an edge: the loop must survive any failure
                self.metrics.housekeeping_failures.add(name)
                with contextlib.suppress(Exception):
                    log.error("housekeeping failed kind=%s", type(error).__name__)
            await asyncio.sleep(interval_s)

    async def reap(self) -> None:
        """Put the jobs of dead workers back into the queue, and finish interrupted deletions."""
        reaped = await self.store.reap(max_attempts=self.settings.max_attempts)
        self.events.publish(*reaped.failed)
        self.metrics.expired.add("requeued", amount=len(reaped.requeued))
        self.metrics.expired.add("failed", amount=len(reaped.failed))
        for job_id in reaped.failed:
            if job := await self.store.get_job(job_id):
                self.metrics.end_job(job.backend, job.status, job.error)
        if reaped.requeued:
            self.dispatcher.wake()
        unpurged = await self.store.list_unpurged()
        if unpurged and await self.ownership.holds():
            for voice_id, paths in unpurged.items():
                await self.voices.purge(voice_id, paths)

    async def sweep(self) -> int:
        """Remove blobs that no row has referred to for `sweep_grace_s`. Return their number.

        Nothing is removed unless the storage belongs to this database. The grace starts when this database first
        sees the blob, since a database that was restored from a backup may lack the rows of recent blobs.
        """
        newest = self.clock.now() - timedelta(seconds=self.settings.sweep_grace_s)
        n_swept = 0
        if await self.ownership.renew() is OwnershipStatus.OWN:
            async for batch in self.blobs.listing():
                old = [blob.path for blob in batch if blob.modified_at <= newest and is_server_path(blob.path)]
                strays = await self.store.find_strays(old, grace_s=self.settings.sweep_grace_s) if old else set()
                await self.blobs.delete(*sorted(strays))
                n_swept += len(strays)
        if n_swept:
            self.metrics.swept.add(amount=n_swept)
            log.info("swept orphans=%d", n_swept)
        await self.store.delete_expired()
        return n_swept

    async def leave(self) -> None:
        """Save the use of keys, and renew the mark of the storage, so that a copy of the database is detected."""
        with contextlib.suppress(AfterwordsError):
            await self.keys.save_use()
        with contextlib.suppress(AfterwordsError):  # the mark of the last sweep remains
            if await self.ownership.read() is OwnershipStatus.OWN:
                await self.ownership.adopt()
