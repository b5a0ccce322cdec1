"""Measure `lite`: enrollment, real-time factor, memory, and the time from the command to the first sound.

Each run is a process as a user starts it; the table has the medians of a few runs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

RUNS = 5
TEXT = (
    "The harbour was quiet when they arrived, and only the gulls seemed to notice. A man in a gray coat was fixing "
    "a net by the wall. He looked up, nodded once, and went back to his work as if they had always been there. "
    "No one spoke for a while. Then the bell rang from the church on the hill, and the day began."
)
READER = Path(str(files("afterwords") / "data" / "reader.wav"))


def program(home: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of a user with this home folder."""
    return [sys.executable, "-m", "afterwords"], {**os.environ, "AFTERWORDS_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def clone_seconds(home: Path, *options: str) -> float:
    """Return the wall time of `afterwords clone`."""
    command, env = program(home)
    started = time.perf_counter()
    arguments = ["clone", str(READER), "--name", f"reader{'-'.join(options)}", "--consent", "public-domain"]
    subprocess.run([*command, *arguments, *options], env=env, check=True, capture_output=True)
    return time.perf_counter() - started


def first_sound_seconds(home: Path) -> float:
    """Return the time from the start of `afterwords say` to its first sample."""
    command, env = program(home)
    started = time.perf_counter()
    arguments = ["say", TEXT, "--voice", "reader", "--format", "pcm", "-o", "-"]
    with subprocess.Popen(
        [*command, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(2)
        first_s = time.perf_counter() - started
        process.stdout.read()
    return first_s


def speak(home: Path) -> tuple[float, float]:
    """Return the real-time factor of speaking TEXT, and the peak of resident memory in MB."""
    command, env = program(home)
    code = (
        "import resource, sys; from afterwords.cli.app import app;"
        "app(sys.argv[1:], standalone_mode=False);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    arguments = ["say", TEXT, "--voice", "reader", "-o", str(home / "out.wav"), "--json"]
    done = subprocess.run([command[0], "-c", code, *arguments], env=env, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["real_time_factor"], int(done.stderr.split()[-1]) / 1024


def table() -> list[str]:
    """Return the figures as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        full = clone_seconds(home)
        fast = clone_seconds(home, "--fast")
        first = statistics.median(first_sound_seconds(home) for _ in range(RUNS))
        runs = [speak(home) for _ in range(RUNS)]
    factor, memory = (statistics.median(values) for values in zip(*runs, strict=True))
    return [
        "| what | measured | to reach |",
        "|---|---|---|",
        f"| real-time factor (seconds of work per second of speech) | {factor:.2f} | ≤ 0.5 |",
        f"| resident memory while speaking, peak | {memory:.0f} MB | ≤ 400 MB |",
        f"| `clone`, total | {full:.0f} s | ≤ 60 s |",
        f"| `clone --fast`, total | {fast:.0f} s | ≤ 15 s |",
        f"| from the command `say` to the first sound, prepared voice | {first:.1f} s | ≤ 2.5 s |",
    ]


if __name__ == "__main__":
    print("\n".join(table()))
