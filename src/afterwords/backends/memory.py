"""The memory of this machine or container, and of a process. Engines, the server and `bench` call it."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

CGROUP_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),  # version 2; "max" means unlimited
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),  # version 1
)


def memory_bytes(*, default: int = 1 << 40) -> int:
    """Return the memory of this machine, or the limit of its container if that is lower.

    Args:
        default: Returned where the system does not say, as on Windows.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return default
    for limit in CGROUP_LIMITS:
        with suppress(OSError, ValueError):
            total = min(total, int(limit.read_text("ascii")))
    return total


def resident_bytes(pid: int) -> int | None:
    """Return the memory that a process holds; None where there is no /proc, or no such process."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int | None:
    """Return the most memory that this process has held; None on Windows."""
    with suppress(OSError):  # first, since rusage also counts what the parent held when it started this process
        if found := re.search(rb"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_bytes(), re.MULTILINE):
            return int(found[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, other systems kibibytes
