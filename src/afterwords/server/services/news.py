"""Word that a job came to its end, for those who wait for it in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class News:
    """Who waits for which job. What happens in other processes is not heard here: those who wait look now and then."""

    def __init__(self) -> None:
        self.is_closed = False
        self._waiting: dict[str, set[asyncio.Event]] = {}

    def tell(self, *job_ids: str) -> None:
        """These jobs are final now, or gone."""
        for job_id in job_ids:
            for event in self._waiting.get(job_id, ()):
                event.set()

    def close(self) -> None:
        """Let nobody wait any more: the server stops."""
        self.is_closed = True
        self.tell(*self._waiting)

    @contextmanager
    def of(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set when the job ends."""
        event = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(event)
        try:
            yield event
        finally:
            events = self._waiting[job_id]
            events.discard(event)
            if not events:
                del self._waiting[job_id]
