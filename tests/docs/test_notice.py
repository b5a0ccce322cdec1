"""NOTICE lists every data file of the package, and has the license texts that must accompany them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "afterwords"
SHIPPED, _, REST = (ROOT / "NOTICE").read_text("utf-8").partition("\nInstalled with it")
ENTRIES, _, LICENSE = SHIPPED.partition("\nMIT License, of the parts above")


def test_notice_lists_exactly_the_data_files() -> None:
    files = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".mako", ".html", ".css")
    }
    assert set(re.findall(r"^([\w./-]+\.\w+)$", ENTRIES, re.M)) == files


def test_mit_parts_have_the_license_text_and_copyright() -> None:
    listed = re.split(r"\n\n+(?=\S)", ENTRIES)
    under_mit = {line for entry in listed if "MIT" in entry for line in re.findall(r"^[\w./-]+\.\w+$", entry, re.M)}
    copyrights = dict(re.findall(r"^([\w./-]+\.\w+).*: (Copyright .*)$", LICENSE, re.M))
    assert under_mit
    computed = {f"backends/lite/data/{name}" for name in ("pitch.bin", "probe.bin", "products.npz")}  # with the table
    assert under_mit - computed == set(copyrights)
    assert "Permission is hereby granted, free of charge" in LICENSE
    assert "WITHOUT WARRANTY OF ANY KIND" in LICENSE


def test_wheel_includes_license_and_notice() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["license-files"] == ["LICENSE", "NOTICE"]
