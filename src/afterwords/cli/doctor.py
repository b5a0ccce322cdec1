"""`afterwords doctor`: how good a recording is for cloning, and how to improve it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output
from afterwords.cli.options import AsJson

if TYPE_CHECKING:
    from afterwords.audio.audio import Audio
    from afterwords.reference import Window

_BARS = " ▁▂▃▄▅▆▇█"
_COLUMNS = 72
_BOTTOM_DB, _TOP_DB = -60.0, -6.0


def doctor(
    recording: Annotated[Path, typer.Argument(help="Recording of 5 s to 30 min.")],
    text: Annotated[str | None, typer.Option("--text", help="Transcript of the recording.")] = None,
    lang: Annotated[str, typer.Option("--lang", help="Language of the recording.")] = "en",
    as_json: AsJson = False,
) -> None:
    """Grade a recording from A to F, with reasons, and show the part that `clone` would use."""
    from afterwords.audio.audio import decode
    from afterwords.errors import RecordingError
    from afterwords.local import transcribe_recording, transcript_doubts
    from afterwords.reference import examine, prepare
    from afterwords.text import MAX_LOCAL_CHARS, check_text, normalize_lang

    lang = normalize_lang(lang)
    text = check_text(text, max_chars=MAX_LOCAL_CHARS) if text is not None else None
    audio = decode(recording)
    notices = list(audio.notices)
    words = None
    if text is not None:
        with output.progress_bar("listening") as progress:
            transcript, warnings = transcribe_recording(audio, lang, progress)
        for warning in [*warnings, *transcript_doubts(transcript, lang=lang, text=text)]:
            output.note(f"[yellow]{output.shown(warning)}[/yellow]")
        words = transcript.words if transcript else None
    report = examine(audio, transcript=text, words=words)
    window, refusal = None, None
    try:
        prepared = prepare(audio, source=recording.name, transcript=text, words=words)
        window, used = prepared.window, prepared.report
    except RecordingError as error:
        refusal, used = error, report
    if as_json:
        facts = window and {"start_s": window.start_s, "end_s": window.end_s, "grade": used.grade}
        reason = refusal and {"code": refusal.code, "message": refusal.message}
        output.result_json({**report.to_dict(), "window": facts, "refusal": reason, "notices": notices})
    else:
        output.result(f"{output.plain(recording.name)}: grade {report.grade}\n")
        for line in _draw_levels(audio, window):
            output.result(f"  {line}")
        if window:
            output.result(f"  ━ clone uses: {window.start_s:.1f} to {window.end_s:.1f} s, grade {used.grade}\n")
        elif refusal:
            why = f"{output.plain(refusal.message)} Fix: {output.plain(refusal.hint)}"
            output.result(f"  clone would refuse it: {why}\n")
        for finding in report.findings:
            output.result_wrapped(f"  {finding.grade or ' '}  {finding.measure:<12} {finding.reason}", indent=18)
            if finding.advice:
                output.result_wrapped(f"{'':16}→ {finding.advice}", indent=18)
    for notice in notices:
        output.note(f"[yellow]{output.shown(notice)}[/yellow]")
    if refusal or used.grade == "F":
        failed = {finding.measure for finding in used.findings if finding.grade == "F"}
        if failed and failed <= {"pace", "coverage", "surplus"}:
            output.note("Correct the transcript, or leave it out: it does not match the recording.")
        else:
            output.note("Record again: a voice made from this recording would be poor.")
        raise typer.Exit(1)
    output.note(f"Next: afterwords clone {output.quoted(str(recording))} --name me")


def _draw_levels(audio: Audio, window: Window | None) -> list[str]:
    """Draw the level over time, with the window that would be used below it."""
    from afterwords.reference import level_over_time

    levels = level_over_time(audio, _COLUMNS)
    scale = (len(_BARS) - 1) / (_TOP_DB - _BOTTOM_DB)
    bars = "".join(_BARS[round((min(max(level, _BOTTOM_DB), _TOP_DB) - _BOTTOM_DB) * scale)] for level in levels)
    lines = [bars]
    if window is not None:
        start, end = (round(time_s / audio.duration_s * _COLUMNS) for time_s in (window.start_s, window.end_s))
        lines.append(" " * min(start, _COLUMNS - 1) + "━" * max(1, end - start))
    return [*lines, f"0 s{f'{audio.duration_s:.1f} s':>{_COLUMNS - 3}}"]
