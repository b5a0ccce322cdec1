"""Word that a job came to its end, for those who wait for it in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from afterwords.server.ports import StoredJob

LOOK_AGAIN_S: Final = 0.5
"""How often a job that is waited for is looked at: another process may have ended it."""

Look = Callable[[], Awaitable[StoredJob | None]]


@dataclass(slots=True, eq=False)
class _Watch:
    """A job that is waited for: one task looks at it, however many wait."""

    told: asyncio.Event = field(default_factory=asyncio.Event)
    n_waiting: int = 0
    task: asyncio.Task[StoredJob | None] | None = None


class News:
    """Who waits for which job. A job that another process may end is looked at now and then."""

    def __init__(self) -> None:
        self.is_closed = False
        self._watches: dict[str, _Watch] = {}

    def tell(self, *job_ids: str) -> None:
        """These jobs are final now, or gone."""
        for job_id in job_ids:
            if watch := self._watches.get(job_id):
                watch.told.set()

    def close(self) -> None:
        """Let nobody wait any more: the server stops."""
        self.is_closed = True
        self.tell(*self._watches)

    async def final(self, job_id: str, look: Look, *, wait_s: float) -> StoredJob | None:
        """Wait until a job is final, or gone, or the time is over, and return it as it is then.

        Args:
            look: reads its row; all who wait for the job share one look.
        """
        watch = self._watches.setdefault(job_id, _Watch())
        watch.n_waiting += 1
        try:
            if watch.task is None:
                watch.task = asyncio.create_task(self._watch(watch, look))
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    return await asyncio.shield(watch.task)
            return await look()
        finally:
            watch.n_waiting -= 1
            if not watch.n_waiting or watch.task is None or watch.task.done():
                self._drop(job_id, watch)

    async def _watch(self, watch: _Watch, look: Look) -> StoredJob | None:
        while True:
            watch.told.clear()
            seen = await look()
            if seen is None or seen.status.is_final or self.is_closed:
                return seen
            with suppress(TimeoutError):
                await asyncio.wait_for(watch.told.wait(), LOOK_AGAIN_S)

    def _drop(self, job_id: str, watch: _Watch) -> None:
        if self._watches.get(job_id) is watch:
            del self._watches[job_id]
        if watch.task is not None and not watch.n_waiting:
            watch.task.cancel()
