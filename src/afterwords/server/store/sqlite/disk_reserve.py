"""A file of random bytes next to the database, which is deleted to make room for a deletion on a full disk.

A deletion writes before it frees space. Without the reserve, nothing could be deleted from a full disk.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RESERVE_BYTES: Final = 256 * 1024
"""A deletion writes about 20 pages of 4 KiB, and one more for every job or two of the voice."""


@dataclass(frozen=True, slots=True)
class DiskReserve:
    """The reserve of a database. All server processes on the database share it."""

    path: Path

    def make(self) -> bool:
        """Create the file if it is missing. Return False if the disk has no room for it."""
        try:
            if self.path.exists():
                return True
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)  # EXCL follows no link
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                file.write(os.urandom(RESERVE_BYTES))  # random bytes, so that file systems can't compress them
        except FileExistsError:
            return True
        except OSError:
            self.release()
            return False
        if self.path.stat().st_size < RESERVE_BYTES:
            self.release()
        return self.path.exists()

    def release(self) -> None:
        """Delete the file."""
        with contextlib.suppress(OSError):
            self.path.unlink()
