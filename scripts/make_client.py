"""Generate the blocking client, `client/_sync`, from the asynchronous one, `client/_async`: `make client`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

CLIENT: Final = Path(__file__).parents[1] / "src" / "afterwords" / "client"
HEADER: Final = "# Generated from client/_async/{name} by `make client`. Do not edit.\n"
REPLACEMENTS: Final = (
    (r"await asyncio\.to_thread\(([\w.]+), ", r"\1("),
    (r"await asyncio\.shield\((.*)\)", r"\1"),
    (r"asyncio\.sleep\(", "time.sleep("),
    (r"import asyncio\n", "import time\n"),
    (r"\basync (?=def |with |for |with`)", ""),
    (r"\bawait ", ""),
    (r"AsyncIterable\[str\] \| Iterable\[str\]", "Iterable[str]"),
    (r"import AsyncIterable, (AsyncIterator, )?Iterable", r"import \1Iterable"),
    (r"An iterable that is not asynchronous must not block\.", "A thread iterates over them."),
    (r"\bAsyncByteStream\b", "SyncByteStream"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\b__a(enter|exit|iter)__", r"__\1__"),
    (r"\banext\(", "next("),
    (r"\baclose\(", "close("),
    (r"\b_async\b", "_sync"),
    (r"for item in items:\n\s+yield item", "yield from items"),
    (r"for piece in (cast\(.*\)):\n\s+yield piece", r"yield from \1"),
    (r"\bTasks can share\b", "Threads can share"),
)
"""Patterns of what differs, applied in this order."""


def sources() -> list[Path]:
    """Return the files to generate from."""
    return [path for path in sorted((CLIENT / "_async").glob("*.py")) if path.name != "__init__.py"]


def generate(source: Path) -> str:
    """Return the blocking counterpart of a file, formatted."""
    text = source.read_text("utf-8")
    for pattern, replacement in REPLACEMENTS:
        text = re.sub(pattern, replacement, text)
    text = HEADER.format(name=source.name) + text
    for command in (["check", "--quiet", "--fix", "--select", "I,F"], ["format", "--quiet"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(CLIENT / "_sync" / source.name), "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    for source in sources():
        (CLIENT / "_sync" / source.name).write_text(generate(source), "utf-8")
