"""Run every block of a page as a reader would: in order, in one folder, with one home folder.

A block opens with its language: `sh` runs in a shell, `python` in an interpreter, `console` and `text` are not run. A
line `<!-- not run: why -->` above a block skips it and gives the reason. A page with the line `<!-- with a server -->`
finds a server in its environment, with an account of its own. A Python block that begins with `# name.py` is also
written to that file, for later blocks and tests. A full clone with `lite` takes a minute of CPU time, so the tests
clone with `--fast`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
FULL_CLONE = re.compile(r"^afterwords clone (?![^#\n]*--fast)[^#\n]*--consent self\b", re.M)
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?^```(?P<lang>\w+)\n(?P<code>.*?)^```$", re.S | re.M)
FILE = re.compile(r"# (\w+\.py)\n")


def blocks(page: Path) -> list[tuple[str, str]]:
    found = [m for m in BLOCK.finditer(page.read_text("utf-8")) if not m["reason"]]
    return [(m["lang"], m["code"]) for m in found if m["lang"] in {"sh", "python"}]


def keep_file(code: str, folder: Path) -> None:
    if name := FILE.match(code):
        (folder / name[1]).write_text(code, "utf-8")


def environment(folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    return {
        **os.environ,
        "AFTERWORDS_HOME": str(folder / "home"),
        "AFTERWORDS_WHISPER": "",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        **more,
    }


def run_blocks(page: Path, folder: Path, env: Mapping[str, str], *, before: Sequence[str] = ()) -> None:
    """Run the blocks of a page in a folder with a recording, each under the command `before`."""
    shutil.copy(ROOT / "src" / "afterwords" / "data" / "reader.wav", folder / "me.wav")
    for lang, written in blocks(page):
        keep_file(written, folder)
        code = FULL_CLONE.sub(r"\g<0> --fast", written)
        command = ["sh", "-euc", code] if lang == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(
            [*before, *command],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
