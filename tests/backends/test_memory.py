"""The memory of a container and of processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from afterwords.backends import memory


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say")
def test_limit_of_a_container_counts_if_it_is_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP_LIMITS", (tmp_path / "none", limit))
    machine = memory.memory_bytes()
    assert machine > 100_000_000
    for text, expected in (("max\n", machine), ("2000000\n", 2_000_000), (f"{1 << 62}\n", machine)):
        limit.write_text(text)
        assert memory.memory_bytes() == expected


def test_unknown_memory_size_uses_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert memory.memory_bytes() == 1 << 40
    assert memory.memory_bytes(default=5) == 5


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not say")
def test_peak_of_this_process_grows_with_its_memory() -> None:
    before = memory.peak_bytes()
    held = bytearray(os.urandom(1 << 20) * 64)
    assert before is not None
    assert (memory.peak_bytes() or 0) >= max(before, len(held))
    if sys.platform == "linux":
        assert (memory.resident_bytes(os.getpid()) or 0) >= len(held)
