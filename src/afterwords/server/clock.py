"""The time as a server sees it: the wall clock for people, a steady one for leases."""

from __future__ import annotations

import time
from datetime import datetime

from afterwords.models import now


class SystemClock:
    """This machine's time.

    The steady clock begins at the wall clock's time and then counts by itself, so that a step of the wall clock
    expires no lease.
    """

    def __init__(self) -> None:
        self._offset_s = time.time() - time.monotonic()

    def now(self) -> datetime:
        """The wall clock, aware, UTC, in whole milliseconds."""
        return now()

    def steady(self) -> float:
        """Seconds since the epoch that never jump."""
        return self._offset_s + time.monotonic()
