"""The system clock."""

from __future__ import annotations

import time
from datetime import datetime

from afterwords.models import now


class SystemClock:
    """The time of this machine.

    The monotonic clock starts at the wall-clock time, then counts by itself: a step of the wall clock expires no lease.
    """

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()

    def now(self) -> datetime:
        """Return the wall-clock time: aware, UTC, whole milliseconds."""
        return now()

    def synchronize(self, monotonic: float) -> None:
        """Continue from the time of a database that servers on several machines share."""
        self._offset_s = monotonic - time.monotonic()

    def monotonic(self) -> float:
        """Return seconds since the epoch that steps of the wall clock don't change."""
        return self._offset_s + time.monotonic()
