"""Counts the servers of a database: each holds the lock of a file next to it.

The system releases a lock when its process ends, so a crash leaves nothing to clean up.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from afterwords import disk

if TYPE_CHECKING:
    from filelock import BaseFileLock

SERVERS_MAX: Final = 64
"""Further servers of one file are not counted."""


class Presence:
    """The lock of this process among the servers of a database file."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._own: BaseFileLock | None = None

    def enter(self) -> int:
        """Take a lock, unless this process has one. Return the number of servers, including this one.

        Raises:
            StorageFullError, FileError: A lock file can't be created.
        """
        from filelock import FileLock, Timeout

        n_others = 0
        with disk.translate_errors(self._database):
            for number in range(1, SERVERS_MAX + 1):
                path = self._database.with_name(f"{self._database.name}.server{number}")
                if self._own is not None and not path.exists():
                    break
                if self._own is not None and str(path) == self._own.lock_file:
                    continue
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
        """Release the lock."""
        if self._own is not None:
            self._own.release()
            self._own = None
