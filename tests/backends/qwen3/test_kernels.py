"""The Triton kernels: they are compiled on a machine with a GPU, and interpreted on the CPU everywhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

CHECKS = Path(__file__).with_name("kernel_checks.py")


def run_checks(**env: str) -> None:
    """All of them in one process."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS)]
    root, env = Path(__file__).parents[3], {**os.environ, **env}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=570, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kernels_agree_with_plain_torch_in_the_interpreter() -> None:
    run_checks(TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_agree_with_plain_torch_on_the_gpu() -> None:
    run_checks(TRITON_INTERPRET="0")
