"""`afterwords clone`: a recording becomes a voice."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from afterwords.cli import output

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
            "--backend", help="Backend to prepare for; see `afterwords backends`. auto takes the best one here."
        ),
    ] = "auto",
    consent: Annotated[
        str | None,
        typer.Option(
            "--consent", help="Whose voice it is: self, granted, public-domain or synthetic. Asked for at a terminal."
        ),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Take less time; the voice is less like the speaker.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the voice of that name.")] = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Clone it even if the recording is graded F.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the voice as JSON.")] = False,
) -> None:
    """Make a voice from a recording."""
    _check_call(recording, name, record=record, has_two_texts=text is not None and text_file is not None)
    from afterwords.cli.microphone import kept_on_failure, record_aloud
    from afterwords.local import check_clone, make_voice
    from afterwords.text import read_text

    if text_file is not None:
        text = read_text(text_file)
    chosen = check_clone(name, lang=lang, backend=backend, replace=replace)
    if consent is None and output.is_terminal():
        consent = output.ask("Whose voice is this?", choices=CONSENT)
    with ExitStack() as stack:
        source: Path | bytes | BinaryIO = sys.stdin.buffer if recording == "-" else Path(str(recording))
        if record:
            recorded = record_aloud()
            stack.enter_context(kept_on_failure(recorded, name))
            source = recorded.to_bytes("wav")
        bar = stack.enter_context(output.progress_bar("reading the recording"))
        cloned = make_voice(
            source,
            name=name,
            consent=consent,
            text=text,
            lang=lang,
            backend=backend,
            fast=fast,
            replace=replace,
            progress=bar,
            confirm=_confirm_in(bar) if output.is_terminal() else None,
            accept=_accept_in(bar, anyway=anyway, estimate=_estimate(chosen.name, fast=fast)),
        )
    _tell(cloned, as_json=as_json)


def _check_call(recording: str | None, name: str, *, record: bool, has_two_texts: bool) -> None:
    if record == (recording is not None):
        raise output.UsageError(
            "A voice is made from one recording.", hint="give a file, or - for stdin, or --record for the microphone."
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
        raise output.UsageError("Nothing is piped in.", hint="pipe a recording in, name a file, or add --record.")


def _estimate(backend: str, *, fast: bool) -> str:
    """How long preparing takes; only lite takes long, and was measured (docs/benchmarks.md)."""
    if backend != "lite":
        return ""
    return " Preparing it takes about " + ("15 s on two cores." if fast else "40 s on two cores; --fast is quicker.")


def _accept_in(bar: output.Bar, *, anyway: bool, estimate: str) -> Callable[[PreparedReference], bool]:
    def accept(prepared: PreparedReference) -> bool:
        """Show the grade before the work begins, and ask about an F."""
        report = prepared.report
        is_refused = report.grade == "F" and not anyway
        if is_refused and not output.is_terminal():
            return False
        with bar.hidden():
            output.note(f"The recording is graded {report.grade} (A is best).{'' if is_refused else estimate}")
            if not is_refused:
                return anyway
            for finding in report.findings:
                if finding.grade == "F":
                    output.note(f"  F  {output.shown(finding.reason)} {output.shown(finding.advice)}")
            return output.ask("Type yes to clone it anyway").strip().lower() == "yes"

    return accept


def _confirm_in(bar: output.Bar) -> Callable[[Transcript], str]:
    def confirm(heard: Transcript) -> str:
        """Let the person correct what was heard."""
        with bar.hidden():
            if heard.doubt:
                output.note(f"[yellow]{output.shown(heard.doubt)}[/yellow]")
            output.note(f"Heard (? marks what is doubtful):\n  {output.shown(heard.marked())}")
            return output.correct("Correct it if need be, then press Enter:", heard.text)

    return confirm


def _tell(cloned: CloneResult, *, as_json: bool) -> None:
    from afterwords.local import likeness

    voice, report = cloned.voice, cloned.prepared.report
    facts = likeness(voice)
    if as_json:
        output.result_json({**voice.model_dump(mode="json"), "likeness": facts, "notices": list(cloned.notices)})
    else:
        output.result(voice.name)
    window = cloned.prepared.window
    output.note(
        f"[bold green]✓[/bold green] {output.shown(voice.name)}: grade {report.grade}, "
        f"{window.start_s:.1f} to {window.end_s:.1f} s of the recording, backend {cloned.backend}"
    )
    if "similarity" in facts:
        output.note(
            f"  likeness to this recording {facts['similarity']:.2f} (nearest stock voice {facts['baseline']:.2f}, "
            "the same person again ≈ 0.92, another person ≈ 0.58; to other recordings it is about 0.05 less)"
        )
    for finding in report.findings:
        if finding.grade and finding.grade > "B":
            output.note(f"  {finding.grade}  {output.shown(finding.reason)} {output.shown(finding.advice)}")
    for notice in cloned.notices:
        output.note(f"  [yellow]{output.shown(notice)}[/yellow]")
    output.note(f'Next: afterwords say "Hello, this is my voice." --voice {output.quoted(voice.name)}')
