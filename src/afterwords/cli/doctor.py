"""`afterwords doctor`: how good a recording is for cloning, and what would make it better."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output

if TYPE_CHECKING:
    from afterwords.audio import Audio
    from afterwords.reference import Window

_BARS = " ▁▂▃▄▅▆▇█"
_COLUMNS = 72
_BOTTOM_DB, _TOP_DB = -60.0, -6.0


def doctor(
    recording: Annotated[Path, typer.Argument(help="A recording, 5 s to 30 min.")],
    text: Annotated[str | None, typer.Option("--text", help="What is said in it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Grade a recording A to F, with reasons."""
    from afterwords.audio import decode
    from afterwords.reference import best_window, examine

    audio = decode(recording)
    report = examine(audio, transcript=text)
    window = best_window(audio)
    if as_json:
        output.result_json(
            {**report.to_dict(), "window": {"start_s": round(window.start_s, 3), "end_s": round(window.end_s, 3)}}
        )
        return
    output.result(f"{output.plain(recording.name)}: grade {report.grade}")
    output.result("")
    for line in _drawing(audio, window):
        output.result(line)
    output.result("")
    for finding in report.findings:
        advice = f" → {finding.advice}" if finding.advice else ""
        output.result(f"  {finding.grade or ' '}  {finding.measure:<12} {finding.reason}{advice}")


def _drawing(audio: Audio, window: Window) -> list[str]:
    """The level over time, and under it the window that would be used."""
    from afterwords.reference import level_over_time

    levels = level_over_time(audio, _COLUMNS)
    scale = (len(_BARS) - 1) / (_TOP_DB - _BOTTOM_DB)
    bars = "".join(_BARS[round(min(max(level, _BOTTOM_DB), _TOP_DB) * scale - _BOTTOM_DB * scale)] for level in levels)
    start = round(window.start_s / audio.duration_s * _COLUMNS)
    end = max(start + 1, round(window.end_s / audio.duration_s * _COLUMNS))
    used = " " * start + "━" * (end - start)
    seconds = f"0 s{f'{audio.duration_s:.1f} s':>{_COLUMNS - 3}}"
    return [
        f"  {bars}",
        f"  {used}",
        f"  {seconds}",
        f"  ━ the window that is used: {window.start_s:.1f} to {window.end_s:.1f} s",
    ]
