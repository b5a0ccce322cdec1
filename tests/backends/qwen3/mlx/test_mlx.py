"""Runs the MLX checks in a process of their own: MLX does not check bounds, and a fault ends the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mlx.core", reason="mlx is not installed: pip install 'afterwords[mlx]'")


def test_checks_pass() -> None:
    folder, root = Path(__file__).parent, Path(__file__).parents[4]
    files = [folder / name for name in ("engine_checks.py", "agreement_checks.py", "parts_checks.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
