"""`afterwords clone`: make a voice from a recording."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from afterwords.cli import output
from afterwords.cli.options import Fast, Replace

if TYPE_CHECKING:
    from afterwords.local import CloneResult
    from afterwords.reference import PreparedReference
    from afterwords.reference.transcription import Transcript

CONSENT = {
    "self": "my own voice",
    "granted": "another person, who agreed",
    "public-domain": "a recording in the public domain",
    "synthetic": "no person's voice",
}


def clone(
    recording: Annotated[str | None, typer.Argument(help="Recording of 5 s to 30 min; - reads stdin.")] = None,
    name: Annotated[str, typer.Option("--name", "-n", help="Name of the new voice.")] = "",
    record: Annotated[bool, typer.Option("--record", help="Record from the microphone.")] = False,
    text: Annotated[str | None, typer.Option("--text", help="Transcript of the recording.")] = None,
    text_file: Annotated[
        Path | None, typer.Option("--text-file", help="File with the transcript of the recording.")
    ] = None,
    lang: Annotated[str, typer.Option("--lang", help="Language of the recording.")] = "en",
    backend: Annotated[
        str,
        typer.Option(
            "--backend", help="Backend to prepare the voice for; see `afterwords backends`. auto takes the best."
        ),
    ] = "auto",
    consent: Annotated[
        str | None,
        typer.Option("--consent", help="Whose voice it is: self, granted, public-domain or synthetic. (default: ask)"),
    ] = None,
    emotion: Annotated[
        str | None,
        typer.Option("--emotion", help="Add a take with this emotion, such as happy, to the voice of that name."),
    ] = None,
    fast: Fast = False,
    replace: Replace = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Clone even a recording of grade F.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the voice as JSON.")] = False,
) -> None:
    """Make a voice from a recording."""
    _check_arguments(recording, name, record=record, has_two_texts=text is not None and text_file is not None)
    from afterwords.cli.microphone import keep_on_failure, record_aloud
    from afterwords.local import check_clone, make_voice
    from afterwords.text import read_text

    if text_file is not None:
        text = read_text(text_file)
    chosen = check_clone(name, lang=lang, backend=backend, emotion=emotion, replace=replace)
    if consent is None and output.is_terminal():
        consent = output.ask("Whose voice is this?", choices=CONSENT)
    with ExitStack() as stack:
        source: Path | bytes | BinaryIO = sys.stdin.buffer if recording == "-" else Path(str(recording))
        if record:
            recorded = record_aloud()
            stack.enter_context(keep_on_failure(recorded, name))
            source = recorded.to_bytes("wav")
        bar = stack.enter_context(output.progress_bar("reading the recording"))
        questions = _Questions(bar, chosen.name, is_fast=fast, anyway=anyway)
        cloned = make_voice(
            source,
            name=name,
            consent=consent,
            text=text,
            lang=lang,
            backend=backend,
            emotion=emotion,
            fast=fast,
            replace=replace,
            progress=bar,
            confirm=questions.correct_transcript if output.is_terminal() else None,
            accept=questions.accept_grade,
        )
    _print_result(cloned, name if emotion is not None else None, as_json=as_json)


def _check_arguments(recording: str | None, name: str, *, record: bool, has_two_texts: bool) -> None:
    if record == (recording is not None):
        raise output.UsageError(
            "clone needs exactly one recording.", hint="give a file, - for stdin, or --record for the microphone."
        )
    if not name:
        raise output.UsageError("The voice has no name.", hint="add --name me.")
    if has_two_texts:
        raise output.UsageError("There are two transcripts.", hint="give --text or --text-file, not both.")
    if record and not output.is_terminal():
        raise output.UsageError(
            "--record needs a terminal, where Enter ends the recording.", hint="give a recorded file instead."
        )
    if recording == "-" and (sys.stdin is None or sys.stdin.isatty()):
        raise output.UsageError("stdin is empty.", hint="pipe a recording in, name a file, or add --record.")


class _Questions:
    """What `clone` asks at a terminal while it works."""

    def __init__(self, bar: output.Bar, backend: str, *, is_fast: bool, anyway: bool) -> None:
        self._bar, self._anyway = bar, anyway
        self._estimate = ""
        if backend == "lite":  # measured in docs/benchmarks.md; the other backends are quick
            duration = "12 s on two cores." if is_fast else "15 s on two cores."
            self._estimate = f" Preparing it takes about {duration}"

    def accept_grade(self, prepared: PreparedReference) -> bool:
        """Show the grade before the slow work begins; ask whether to go on with an F."""
        report = prepared.report
        is_refused = report.grade == "F" and not self._anyway
        if is_refused and not output.is_terminal():
            return False
        with self._bar.hidden():
            output.note(f"The recording is graded {report.grade} (A is best).{'' if is_refused else self._estimate}")
            if not is_refused:
                return self._anyway
            for finding in report.findings:
                if finding.grade == "F":
                    output.note(f"  F  {output.shown(finding.reason)} {output.shown(finding.advice)}")
            return output.ask("Type yes to clone it anyway").strip().lower() == "yes"

    def correct_transcript(self, transcript: Transcript) -> str:
        """Let the user correct the transcript."""
        with self._bar.hidden():
            if transcript.doubt:
                output.note(f"[yellow]{output.shown(transcript.doubt)}[/yellow]")
            output.note(f"Transcript (? marks doubtful words):\n  {output.shown(transcript.marked())}")
            return output.edit_line("Correct it if needed, then press Enter:", transcript.text)


def _print_result(cloned: CloneResult, speaker: str | None, *, as_json: bool) -> None:
    from afterwords.local import likeness

    voice, report, window = cloned.voice, cloned.prepared.report, cloned.prepared.window
    facts = likeness(voice)
    if as_json:
        output.result_json({**voice.model_dump(mode="json"), "likeness": facts, "notices": list(cloned.notices)})
    else:
        output.result(voice.name)
    output.note(
        f"[bold green]✓[/bold green] {output.shown(voice.name)}: grade {report.grade}, "
        f"{window.start_s:.1f} to {window.end_s:.1f} s of the recording, backend {cloned.backend}"
    )
    if "similarity" in facts:
        stock = f"nearest stock voice {facts['baseline']:.2f}, " if "baseline" in facts else ""
        output.note(
            f"  likeness to this recording {facts['similarity']:.2f} ({stock}"
            "the same person again ≈ 0.92, another person ≈ 0.58; to other recordings it is about 0.05 less)"
        )
    for finding in report.findings:
        if finding.grade and finding.grade > "B":
            output.note(f"  {finding.grade}  {output.shown(finding.reason)} {output.shown(finding.advice)}")
    for notice in cloned.notices:
        output.note(f"  [yellow]{output.shown(notice)}[/yellow]")
    speaker = f"{output.quoted(speaker)} --emotion {voice.emotion}" if speaker else output.quoted(voice.name)
    output.note(f'Next: afterwords say "Hello, this is my voice." --voice {speaker}')
