"""What is done without being asked: dead leases, webhooks, deleted voices, and what no row names."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from afterwords.errors import AfterwordsError
from afterwords.server.ports import Blobs, Clock, Dispatcher, Store
from afterwords.server.services.deliveries import Deliveries
from afterwords.server.services.home import HomeVoices
from afterwords.server.services.job_events import News
from afterwords.server.services.keys import Keys
from afterwords.server.services.ownership import Ownership, Standing, is_ours
from afterwords.server.services.voices import Voices

log = logging.getLogger("afterwords.server")

USE_INTERVAL_S: Final = 60


@dataclass(frozen=True, slots=True)
class Housekeeping:
    """The reaper, the sweeper and the deliveries of webhooks; `run` does their work until it is cancelled."""

    store: Store
    blobs: Blobs
    clock: Clock
    voices: Voices
    keys: Keys
    home: HomeVoices
    ownership: Ownership
    dispatcher: Dispatcher
    news: News
    deliveries: Deliveries
    max_attempts: int
    reap_interval_s: float
    sweep_interval_s: float
    sweep_grace_s: float

    async def run(self) -> None:
        """Work until cancelled; a failure is written down and tried again at the next turn."""
        async with asyncio.TaskGroup() as group:
            group.create_task(_every(self.reap_interval_s, self.reap))
            group.create_task(self.deliveries.run(self.reap_interval_s))
            group.create_task(_every(self.reap_interval_s, self.home.refresh))
            group.create_task(_every(self.sweep_interval_s, self.sweep))
            group.create_task(_every(USE_INTERVAL_S, self.keys.note_use))

    async def reap(self) -> None:
        """Give jobs of dead workers to others, and finish deletions that were cut short."""
        reaped = await self.store.reap(max_attempts=self.max_attempts)
        self.news.tell(*reaped.failed)
        if reaped.requeued:
            self.dispatcher.wake()
        due = await self.store.purge_due()
        if due and await self.ownership.holds():
            for voice_id, paths in due:
                await self.voices.purge(voice_id, paths)

    async def sweep(self) -> int:
        """Remove blobs that no row has named for the grace; returns how many.

        Nothing is removed from storage that is not known to be this database's. The time counts from when the
        database first saw the blob: one that was restored from a backup has not known the storage for long.
        """
        newest = self.clock.now() - timedelta(seconds=self.sweep_grace_s)
        n_swept = 0
        if await self.ownership.renew() is Standing.OWN:
            async for batch in self.blobs.listing():
                old = [blob.path for blob in batch if blob.modified_at <= newest and is_ours(blob.path)]
                strays = await self.store.strays(old, grace_s=self.sweep_grace_s) if old else set()
                await self.blobs.delete(*sorted(strays))
                n_swept += len(strays)
        if n_swept:
            log.info("swept orphans=%d", n_swept)
        await self.store.forget_old()
        return n_swept

    async def leave(self) -> None:
        """Write down what would be lost; renew the mark, so that a copy of the running database is told from it."""
        with contextlib.suppress(AfterwordsError):
            await self.keys.note_use()
        with contextlib.suppress(AfterwordsError):  # then the mark stays that of the last sweep
            if await self.ownership.look() is Standing.OWN:
                await self.ownership.adopt()


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
