"""Notifies requests that wait for a job in this process when the job is final."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from afterwords.server.records import StoredJob

POLL_INTERVAL_S: Final = 0.5
"""How often a job is read while requests wait for it: another process may end it."""


@dataclass(slots=True, eq=False)
class _Watch:
    """One task that reads a job for all requests that wait for it."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)
    n_waiting: int = 0
    task: asyncio.Task[StoredJob | None] | None = None


class JobEvents:
    """Publishes the end of jobs, and polls for those that another process may end."""

    def __init__(self) -> None:
        self.is_closed = False
        self._watches: dict[str, _Watch] = {}
        self._subscribers: list[Callable[[str], None]] = []

    def subscribe(self, on_final: Callable[[str], None]) -> None:
        """Call back with the ID of each job that is published."""
        self._subscribers.append(on_final)

    def publish(self, *job_ids: str) -> None:
        """Wake the requests that wait for these jobs, which are final or deleted."""
        for job_id in job_ids:
            if watch := self._watches.get(job_id):
                watch.changed.set()
            for on_final in self._subscribers:
                on_final(job_id)

    def close(self) -> None:
        """Wake all waiting requests, because the server stops."""
        self.is_closed = True
        for watch in self._watches.values():
            watch.changed.set()

    async def wait_until_final(
        self, job_id: str, read: Callable[[], Awaitable[StoredJob | None]], *, wait_s: float
    ) -> StoredJob | None:
        """Wait until a job is final or deleted, at most `wait_s` seconds, and return it as it is then.

        Args:
            read: Reads the job. All requests that wait for it share one reader.
        """
        watch = self._watches.setdefault(job_id, _Watch())
        watch.n_waiting += 1

        async def poll() -> StoredJob | None:
            while True:
                watch.changed.clear()
                job = await read()
                if job is None or job.status.is_final or self.is_closed:
                    return job
                with suppress(TimeoutError):
                    await asyncio.wait_for(watch.changed.wait(), POLL_INTERVAL_S)

        try:
            if watch.task is None:
                watch.task = asyncio.create_task(poll())
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    return await asyncio.shield(watch.task)
            return await read()
        finally:
            watch.n_waiting -= 1
            if not watch.n_waiting or watch.task is None or watch.task.done():
                if self._watches.get(job_id) is watch:
                    del self._watches[job_id]
                if watch.task is not None and not watch.n_waiting:
                    watch.task.cancel()
