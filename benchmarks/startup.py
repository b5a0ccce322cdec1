"""Measure start-up: `afterwords --help` and `import afterwords`, as ratios to the least possible.

The peers are a typer app of two empty commands and a bare interpreter. Runs alternate, so that a machine that slows
down slows both. All use bytecode, which the first run writes, as an installed package does.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

RUNS = 15
SMALL_PROGRAM = """
import typer
app = typer.Typer()
@app.command()
def one(name: str = "x"): "Do one thing."
@app.command()
def two(name: str = "x"): "Do another."
app()
"""


def seconds(command: Sequence[str], bytecode: Path) -> float:
    """Return the wall time of a Python program whose bytecode is in a folder."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(bytecode)
    started = time.perf_counter()
    subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True, env=env)
    return time.perf_counter() - started


def ratio(ours: Sequence[str], theirs: Sequence[str], bytecode: Path) -> tuple[float, float, float]:
    """Return the median ratio of paired runs, and both medians in seconds."""
    pairs = [(seconds(ours, bytecode), seconds(theirs, bytecode)) for _ in range(RUNS + 1)][1:]
    our_s, peer_s = zip(*pairs, strict=True)
    return statistics.median(a / b for a, b in pairs), statistics.median(our_s), statistics.median(peer_s)


def table() -> list[str]:
    """Return the figures as Markdown."""
    lines = ["| what | ours | peer | ratio (median of pairs) | to reach |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "small.py"
        program.write_text(SMALL_PROGRAM, "utf-8")
        installed = str(Path(sys.executable).with_name("afterwords"))
        cases = (
            ("`afterwords --help` / a two-command typer app", [installed, "--help"], [str(program), "--help"], 1.2),
            ("`import afterwords` / a bare interpreter", ["-c", "import afterwords"], ["-c", "pass"], 2.0),
        )
        for name, ours, theirs, goal in cases:
            median, our_s, peer_s = ratio(ours, theirs, Path(folder) / "bytecode")
            lines.append(f"| {name} | {our_s * 1000:.0f} ms | {peer_s * 1000:.0f} ms | {median:.2f} | ≤ {goal:g} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
