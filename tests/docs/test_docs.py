"""Every block of the README and the docs is run, as a reader would: in order, in one folder, with one home.

A block opens with its language: `sh` runs in a shell, `python` in an interpreter, `console` and `text` are shown only.
A line `<!-- not run: why -->` above a block leaves it out, and the reason stands for all to read.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?^```(?P<lang>\w+)\n(?P<code>.*?)^```$", re.S | re.M)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def blocks(page: Path) -> list[tuple[str, str]]:
    found = [m for m in BLOCK.finditer(page.read_text("utf-8")) if not m["reason"]]
    return [(m["lang"], m["code"]) for m in found if m["lang"] in {"sh", "python"}]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_every_block_of_the_page_runs(page: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "src" / "afterwords" / "data" / "reader.wav", tmp_path / "me.wav")
    env = {
        **os.environ,
        "AFTERWORDS_HOME": str(tmp_path / "home"),
        "AFTERWORDS_WHISPER": "",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for lang, code in blocks(page):
        command = ["sh", "-euc", code] if lang == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text("utf-8")):
        assert (page.parent / target).exists(), target
