"""The example projects pass their own tests, each in its own pytest process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("project", sorted(path.parent.name for path in EXAMPLES.glob("*/pyproject.toml")))
def test_example_passes_its_tests(project: str) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider"],  # -B: no bytecode in the sources
        cwd=EXAMPLES / project,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    passed = re.search(r"^(\d+) passed in", done.stdout, re.M)  # no failures, no skips
    assert passed, done.stdout
    assert int(passed[1]) > 0


def test_examples_exist() -> None:
    assert (EXAMPLES / "podcast" / "pyproject.toml").is_file()
