"""A file that only takes up room, beside the database: where the disk is full it makes way for a deletion.

Deleting writes before it frees: without room for that, a full disk could never be emptied by those who fill it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RESERVE_BYTES: Final = 256 * 1024
"""A deletion writes some 20 pages of 4 KiB, and one more for each job or two of the voice."""


@dataclass(frozen=True, slots=True)
class Reserve:
    """The file; every server process on the same database shares it."""

    path: Path

    def make(self) -> bool:
        """Take the room, unless it is taken already; False where there is none."""
        try:
            if self.path.exists():
                return True
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)  # EXCL follows no link
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                file.write(os.urandom(RESERVE_BYTES))  # noise, which no file system stores in less
        except FileExistsError:
            return True
        except OSError:
            self.give()
            return False
        if self.path.stat().st_size < RESERVE_BYTES:
            self.give()
        return self.path.exists()

    def give(self) -> None:
        """Leave the room to others."""
        with contextlib.suppress(OSError):
            self.path.unlink()
