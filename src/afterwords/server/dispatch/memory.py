"""How much memory a speaking process holds, and how much it may."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

_FALLBACK_BYTES: Final = 4 << 30  # where a system does not tell how much it has


def resident_bytes(pid: int) -> int | None:
    """What a process holds now; None where there is no /proc, or no such process."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def own_peak_bytes() -> int | None:
    """The most that this process ever held, for systems without /proc; None where they don't tell that either."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, the others kibibytes


def half_of_machine_bytes() -> int:
    """Half of what this machine has, or of what its container may use."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return _FALLBACK_BYTES
    with suppress(OSError, ValueError):  # no container, or one without a limit, which says "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text("ascii")))
    return total // 2
