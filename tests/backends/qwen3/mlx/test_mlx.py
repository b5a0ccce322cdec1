"""Runs the MLX checks, each file in a process: MLX does not check bounds, and a fault ends the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mlx.core", reason="mlx is not installed: pip install 'afterwords[mlx]'")


@pytest.mark.parametrize("checks", ["engine_checks.py", "agreement_checks.py", "parts_checks.py"])
def test_checks_pass(checks: str) -> None:
    file, root = Path(__file__).with_name(checks), Path(__file__).parents[4]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
