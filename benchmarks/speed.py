"""How fast `lite` is: enrolment, real-time factor, memory, and the time from the command to the first sound.

Everything runs as the program that a user starts, in processes of its own; the medians of a few runs are printed.
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
    "The harbour was quiet when they arrived, and only the gulls seemed to notice. A man in a grey coat was mending "
    "a net by the wall. He looked up, nodded once, and went back to his work as if they had always been there. "
    "Nobody spoke for a while. Then the bell rang from the church on the hill, and the day began."
)
READER = Path(str(files("afterwords") / "data" / "reader.wav"))


def program(home: Path) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of a user with that home folder."""
    return [sys.executable, "-m", "afterwords"], {**os.environ, "AFTERWORDS_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def clone_seconds(home: Path, *options: str) -> float:
    """Wall time of `afterwords clone`, all in."""
    command, env = program(home)
    started = time.perf_counter()
    asked = ["clone", str(READER), "--name", f"reader{'-'.join(options)}", "--consent", "public-domain"]
    subprocess.run([*command, *asked, *options], env=env, check=True, capture_output=True)
    return time.perf_counter() - started


def first_sound_seconds(home: Path) -> float:
    """From starting `afterwords say` to the first sample that it gives."""
    command, env = program(home)
    started = time.perf_counter()
    asked = ["say", TEXT, "--voice", "reader", "--format", "pcm", "-o", "-"]
    with subprocess.Popen([*command, *asked], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.read(2)
        heard = time.perf_counter() - started
        process.stdout.read()
    return heard


def spoken(home: Path) -> tuple[float, float]:
    """Real-time factor of speaking TEXT, and the peak of resident memory in MB."""
    command, env = program(home)
    code = (
        "import resource, sys; from afterwords.cli.app import app;"
        "app(sys.argv[1:], standalone_mode=False);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    asked = ["say", TEXT, "--voice", "reader", "-o", str(home / "out.wav"), "--json"]
    done = subprocess.run([command[0], "-c", code, *asked], env=env, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)["real_time_factor"], int(done.stderr.split()[-1]) / 1024


def table() -> list[str]:
    """The figures as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        full = clone_seconds(home)
        fast = clone_seconds(home, "--fast")
        first = statistics.median(first_sound_seconds(home) for _ in range(RUNS))
        runs = [spoken(home) for _ in range(RUNS)]
    factor, memory = (statistics.median(values) for values in zip(*runs, strict=True))
    return [
        "| what | measured | to reach |",
        "|---|---|---|",
        f"| real-time factor (seconds of work a second of speech) | {factor:.2f} | ≤ 0.5 |",
        f"| resident memory while speaking, peak | {memory:.0f} MB | ≤ 400 MB |",
        f"| `clone`, all in | {full:.0f} s | ≤ 60 s |",
        f"| `clone --fast`, all in | {fast:.0f} s | ≤ 15 s |",
        f"| from the command `say` to the first sound, voice known | {first:.1f} s | ≤ 2.5 s |",
    ]


if __name__ == "__main__":
    print("\n".join(table()))
