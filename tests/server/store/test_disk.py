"""Tests of a full disk: writes fail, reads and deletions work, and the database stays intact."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.store.second_process import second_process

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits")
OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")


def test_file_size_limit_counts_as_full_disk(folder: Path) -> None:
    with second_process("fill-file", folder) as process:
        said = process.end().splitlines()

    assert said[:2] == ["submit: full", "read: True"]
    assert said[2:] == [*said[2:4], "delete: done", "purged: done", "submit: done", "ok"]  # after space was freed


def can_mount(folder: Path) -> bool:
    try:
        done = subprocess.run([*OWN_MOUNTS, "mount", "-t", "tmpfs", "x", folder], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def test_voice_can_be_deleted_on_a_full_disk(tmp_path: Path) -> None:
    if not can_mount(tmp_path):
        pytest.skip("this system allows no private mounts")
    mounted = ("sh", "-c", 'mount -t tmpfs -o size=1m x "$0" && exec "$@"', str(tmp_path))

    with second_process("fill-disk", tmp_path, before=[*OWN_MOUNTS, *mounted]) as process:
        said = process.end().splitlines()

    full = ["submit: full", "read: True", "delete: done", "purged: done"]
    assert said == [*full, "delete: done", "purged: done", "submit: done", "ok"]
