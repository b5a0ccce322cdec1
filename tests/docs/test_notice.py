"""NOTICE names every file of the package that is not source, and has the licenses that must travel with them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "afterwords"
SHIPPED, _, REST = (ROOT / "NOTICE").read_text("utf-8").partition("\nInstalled beside it")
ENTRIES, _, LICENSE = SHIPPED.partition("\nMIT License, of the parts above")


def test_every_data_file_of_the_package_is_named_and_no_other() -> None:
    files = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".mako")
    }
    assert set(re.findall(r"^([\w./-]+\.\w+)$", ENTRIES, re.M)) == files


def test_parts_under_mit_come_with_its_text_and_their_copyright() -> None:
    named = re.split(r"\n\n+(?=\S)", ENTRIES)
    under_mit = {line for entry in named if "MIT" in entry for line in re.findall(r"^[\w./-]+\.\w+$", entry, re.M)}
    copyrights = dict(re.findall(r"^([\w./-]+\.\w+).*: (Copyright .*)$", LICENSE, re.M))
    assert under_mit
    assert under_mit - {"backends/lite/data/pitch.bin"} == set(copyrights)  # made with what the table was made with
    assert "Permission is hereby granted, free of charge" in LICENSE
    assert "WITHOUT WARRANTY OF ANY KIND" in LICENSE


def test_the_wheel_carries_license_and_notice() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["license-files"] == ["LICENSE", "NOTICE"]
