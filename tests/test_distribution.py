"""The sdist and the wheel: they hold what they should, and the wheel runs."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import afterwords

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "afterwords"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
VERSION = afterwords.__version__
DIST_INFO = f"afterwords-{VERSION}.dist-info"


class Built(NamedTuple):
    """A wheel and an sdist."""

    wheel: Path
    sdist: Path


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """Run a command and return its output."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source: Path, out: Path) -> Built:
    """Build both distributions from a source tree, without an isolated environment."""
    run(sys.executable, "-m", "hatchling", "build", "-d", out, cwd=source)
    return Built(out / f"afterwords-{VERSION}-py3-none-any.whl", out / f"afterwords-{VERSION}.tar.gz")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


def test_wheel_holds_the_whole_package_and_nothing_else(built: Built) -> None:
    files = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
    metadata = {name for name in names if name.startswith(f"{DIST_INFO}/")}
    assert names - metadata == files
    assert {"afterwords/py.typed", "afterwords/data/reader.wav", "afterwords/backends/lite/data/voices.xz"} < files
    assert {f"{DIST_INFO}/licenses/LICENSE", f"{DIST_INFO}/licenses/NOTICE"} < metadata


def test_entry_points_of_the_wheel_are_those_of_the_project(built: Built) -> None:
    parser = configparser.ConfigParser(delimiters="=")
    with zipfile.ZipFile(built.wheel) as wheel:
        parser.read_string(wheel.read(f"{DIST_INFO}/entry_points.txt").decode())
    found = {group: dict(parser[group]) for group in parser.sections()}
    assert found == {"console_scripts": PROJECT["scripts"], **PROJECT["entry-points"]}


def test_wheel_from_the_sdist_is_the_same_to_the_byte(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as sdist:
        sdist.extractall(tmp_path, filter="data")
    again = build(tmp_path / f"afterwords-{VERSION}", tmp_path / "dist")
    assert again.wheel.read_bytes() == built.wheel.read_bytes()


def test_files_of_the_image_build_the_same_wheel(built: Built, tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text("utf-8")
    copied = [name for names in re.findall(r"^COPY ([^-].*) \S+$", dockerfile, re.M) for name in names.split()]
    ignored = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text("utf-8").split()
    assert {f"!{name}" for name in copied} == {line for line in ignored if line.startswith("!")}
    for name in copied:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    assert build(source, tmp_path / "dist").wheel.read_bytes() == built.wheel.read_bytes()


def test_sdist_brings_the_tests_and_the_docs(built: Built) -> None:
    with tarfile.open(built.sdist) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"tests/conftest.py", "docs/quickstart.md", "Makefile", "README.md", "NOTICE", "CHANGELOG.md"} < names
    hidden = {name for name in names if "__pycache__" in name or name.startswith(".")}
    assert hidden == {".gitignore"}  # hatchling always adds it


def test_index_accepts_both(built: Built, tmp_path: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *built, cwd=tmp_path)


def test_citation_has_the_version_and_the_license() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (citation["version"], citation["license"]) == (VERSION, PROJECT["license"])


def test_wheel_runs(built: Built, tmp_path: Path) -> None:
    folder = tmp_path / "installed"
    with zipfile.ZipFile(built.wheel) as wheel:
        wheel.extractall(folder)
    code = (
        "import afterwords, importlib.metadata as m; "
        "print(afterwords.__file__, m.version('afterwords'), len(m.distribution('afterwords').entry_points))"
    )
    file, version, count = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(folder)).split()
    assert (file, version) == (str(folder / "afterwords" / "__init__.py"), VERSION)
    assert int(count) == sum(map(len, PROJECT["entry-points"].values())) + len(PROJECT["scripts"])
    shown = run(sys.executable, "-m", "afterwords", "--version", cwd=tmp_path, PYTHONPATH=str(folder))
    assert shown.strip() == f"afterwords {VERSION}"
