"""`afterwords doctor`: how good a recording is for cloning, and what would make it better."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output

if TYPE_CHECKING:
    from afterwords.audio.audio import Audio
    from afterwords.errors import RecordingError
    from afterwords.reference import PreparedReference, Report, Window
    from afterwords.reference.transcription import Word

_BARS = " ▁▂▃▄▅▆▇█"
_COLUMNS = 72
_BOTTOM_DB, _TOP_DB = -60.0, -6.0


def doctor(
    recording: Annotated[Path, typer.Argument(help="Recording of 5 s to 30 min.")],
    text: Annotated[str | None, typer.Option("--text", help="Transcript of the recording.")] = None,
    lang: Annotated[str, typer.Option("--lang", help="Language of the recording.")] = "en",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Grade a recording from A to F, say why, and show the part that `clone` would use."""
    from afterwords.audio.audio import decode
    from afterwords.errors import RecordingError
    from afterwords.reference import examine, prepare
    from afterwords.text import MAX_LOCAL_CHARS, check_text, normalise_lang

    lang = normalise_lang(lang)
    text = check_text(text, max_chars=MAX_LOCAL_CHARS) if text is not None else None
    audio = decode(recording)
    words = _heard(audio, lang, text) if text is not None else None
    report = examine(audio, transcript=text, words=words)
    taken: PreparedReference | RecordingError
    try:
        taken = prepare(audio, source=recording.name, transcript=text, words=words)
    except RecordingError as error:
        taken = error
    if as_json:
        output.result_json({**report.to_dict(), **_verdict(taken), "notices": list(audio.notices)})
    else:
        output.result(f"{output.plain(recording.name)}: grade {report.grade}\n")
        _show(audio, report, taken)
    for notice in audio.notices:
        output.note(f"[yellow]{output.shown(notice)}[/yellow]")
    if isinstance(taken, RecordingError) or taken.report.grade == "F":
        output.note(_fix(report if isinstance(taken, RecordingError) else taken.report))
        raise typer.Exit(1)
    output.note(f"Next: afterwords clone {output.quoted(str(recording))} --name me")


def _fix(report: Report) -> str:
    failed = {finding.measure for finding in report.findings if finding.grade == "F"}
    if failed and failed <= {"pace", "coverage", "surplus"}:
        return "Correct the transcript, or leave it out: it does not fit the recording."
    return "Record again: a voice made from this would not be worth the time."


def _verdict(taken: PreparedReference | RecordingError) -> dict[str, object]:
    """What `clone` would do, in plain types."""
    if isinstance(taken, Exception):
        return {"window": None, "refusal": {"code": taken.code, "message": taken.message}}
    start_s, end_s = taken.window.start_s, taken.window.end_s
    return {"window": {"start_s": start_s, "end_s": end_s, "grade": taken.report.grade}, "refusal": None}


def _show(audio: Audio, report: Report, taken: PreparedReference | RecordingError) -> None:
    for line in _drawing(audio, None if isinstance(taken, Exception) else taken.window):
        output.result(line)
    if isinstance(taken, Exception):
        output.result(f"  clone would refuse it: {output.plain(taken.message)} Fix: {output.plain(taken.hint)}\n")
    else:
        window = taken.window
        output.result(
            f"  ━ what clone takes: {window.start_s:.1f} to {window.end_s:.1f} s, grade {taken.report.grade}\n"
        )
    for finding in report.findings:
        output.result_wrapped(f"  {finding.grade or ' '}  {finding.measure:<12} {finding.reason}", indent=18)
        if finding.advice:
            output.result_wrapped(f"{'':16}→ {finding.advice}", indent=18)


def _heard(audio: Audio, lang: str, text: str) -> tuple[Word, ...] | None:
    """What `clone` would hold the transcript against, where something here can listen."""
    from afterwords.local import transcribe_recording, transcript_doubts

    with output.progress_bar("listening") as progress:
        heard, notices = transcribe_recording(audio, lang, progress)
    for notice in [*notices, *transcript_doubts(heard, lang=lang, text=text)]:
        output.note(f"[yellow]{output.shown(notice)}[/yellow]")
    return heard.words if heard else None


def _drawing(audio: Audio, window: Window | None) -> list[str]:
    """The level over time, and under it the window that would be used."""
    from afterwords.reference import level_over_time

    levels = level_over_time(audio, _COLUMNS)
    scale = (len(_BARS) - 1) / (_TOP_DB - _BOTTOM_DB)
    bars = "".join(_BARS[round((min(max(level, _BOTTOM_DB), _TOP_DB) - _BOTTOM_DB) * scale)] for level in levels)
    lines = [bars]
    if window is not None:
        start, end = (round(time_s / audio.duration_s * _COLUMNS) for time_s in (window.start_s, window.end_s))
        lines.append(" " * min(start, _COLUMNS - 1) + "━" * max(1, end - start))
    lines.append(f"0 s{f'{audio.duration_s:.1f} s':>{_COLUMNS - 3}}")
    return [f"  {line}" for line in lines]
