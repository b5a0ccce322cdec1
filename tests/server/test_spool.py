"""The temporary file of uploads: in memory, on disk, and on a full disk."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from afterwords.errors import StorageFullError
from afterwords.server.spool import MEMORY_MAX_BYTES, Spool


@pytest.mark.parametrize("n_bytes", [0, 10, MEMORY_MAX_BYTES, MEMORY_MAX_BYTES + 1, 5 * MEMORY_MAX_BYTES])
def test_content_is_read_from_any_position(tmp_path: Path, n_bytes: int) -> None:
    data = bytes(range(256)) * (n_bytes // 256 + 1)
    with Spool(tmp_path / "not made yet") as spool:
        for place in range(0, n_bytes, 100_000):
            spool.write(data[place : min(place + 100_000, n_bytes)])
            assert spool.read_at(place, 7) == data[place : min(place + 7, n_bytes)]
        spool.replace_head(b"") if not n_bytes else spool.replace_head(data[:1])
        assert spool.seek(0, 2) == n_bytes
        assert spool.seek(n_bytes // 2) == spool.tell()
        assert spool.read() == data[n_bytes // 2 : n_bytes]
        assert spool.read_at(n_bytes, 10) == b""
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_failed_write_changes_nothing_and_may_be_retried(tmp_path: Path) -> None:
    first, second = b"a" * MEMORY_MAX_BYTES, b"b" * MEMORY_MAX_BYTES
    with Spool(tmp_path) as spool:
        spool.write(first)
        for n_bytes in (MEMORY_MAX_BYTES // 2, MEMORY_MAX_BYTES * 3 // 2):
            with file_size_limit(n_bytes), pytest.raises(StorageFullError):
                spool.write(second)
            assert spool.read_at(0, 10**9) == first
        spool.write(second)
        assert spool.read_at(0, 10**9) == first + second


@contextmanager
def file_size_limit(n_bytes: int) -> Iterator[None]:
    """Limit the size of files that this process may write."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
