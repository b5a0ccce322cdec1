"""How many servers use a database file at the moment: each holds the lock of a file next to it until it ends.

The system releases a lock however its process ends, so nothing has to be cleaned up after a crash.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from afterwords import disk

if TYPE_CHECKING:
    from filelock import BaseFileLock

SERVERS_MAX: Final = 64
"""More servers than this on one file are not counted."""


class Presence:
    """The place of one process among the servers of a database file."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._own: BaseFileLock | None = None

    def enter(self) -> int:
        """Take a place; returns how many servers there are, this one included.

        Raises:
            StorageFullError, UnwritableOutputError: a lock file can't be made.
        """
        from filelock import FileLock, Timeout

        n_others = 0
        with disk.storing(self._database):
            for number in range(1, SERVERS_MAX + 1):
                path = self._database.with_name(f"{self._database.name}.server{number}")
                if self._own is not None and not path.exists():
                    break
                lock = FileLock(path, timeout=0, mode=0o600)
                try:
                    lock.acquire()
                except Timeout:
                    n_others += 1
                    continue
                if self._own is None:
                    self._own = lock
                else:
                    lock.release()
        return n_others + 1

    def leave(self) -> None:
        """Give the place back."""
        if self._own is not None:
            self._own.release()
            self._own = None
