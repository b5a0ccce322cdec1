"""Make the picture and the two recordings of the README by running the tool: `make media`. It takes two minutes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
MEDIA = ROOT / "docs" / "media"
READER = ROOT / "src" / "afterwords" / "data" / "reader.wav"
WIDTH = 124
SENTENCE = (
    "Hello. This voice was cloned from a short recording, on two cores, without a GPU. "
    "It resembles the speaker, and is not the speaker's identity."
)
COMMANDS = (
    ["doctor", "me.wav"],
    ["clone", "me.wav", "--name", "me", "--consent", "public-domain"],
    ["say", SENTENCE, "--voice", "me", "-o", "clone.mp3"],
)
LEFT_OUT = re.compile(r"\w.* after \d+ s\n|.*be transcribed(?:.|\n)*?(?=Next:)")
"""Lines of progress, which a terminal shows as a bar, and the notice of `transcribe` when its model is missing."""
SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>A recording is graded and cloned, and the voice says a sentence.</title>
<style>
.{unique_id}-matrix {{ font: {char_height}px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  line-height: {line_height}px; font-variant-east-asian: full-width; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""Rich's own picture loads its font from another host."""


def excerpt_of_reader() -> None:
    """Write the shipped recording up to its first pause after eight seconds."""
    samples, rate = soundfile.read(READER, dtype="float32")
    frame = rate // 50
    energy = np.square(samples[: len(samples) // frame * frame]).reshape(-1, frame).mean(axis=1)
    smoothed = np.convolve(energy, np.ones(10) / 10, "same")
    start = 8 * 50
    end = (start + int(smoothed[start : start + 100].argmin())) * frame
    soundfile.write(MEDIA / "reader.mp3", samples[:end], rate)


def main() -> None:
    MEDIA.mkdir(exist_ok=True)
    excerpt_of_reader()
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"), force_terminal=True)  # noqa: PTH123, SIM115
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(READER, Path(folder, "me.wav"))
        for arguments in COMMANDS:
            done = subprocess.run(
                [sys.executable, "-m", "afterwords", *arguments],
                cwd=folder,
                env={
                    **os.environ,
                    "AFTERWORDS_HOME": str(Path(folder, "home")),
                    "AFTERWORDS_WHISPER": "",
                    "COLUMNS": str(WIDTH),
                    "FORCE_COLOR": "1",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=True,
            )
            typed = " ".join(f'"{word[:24]}…"' if " " in word else word for word in arguments)
            console.print(f"[bold green]$[/] afterwords {typed}", highlight=False)
            console.print(Text.from_ansi(LEFT_OUT.sub("", done.stdout)), "")
        shutil.copy(Path(folder, "clone.mp3"), MEDIA)
    console.save_svg(str(MEDIA / "terminal.svg"), title="afterwords", code_format=SVG, unique_id="aw")


if __name__ == "__main__":
    main()
