"""`afterwords clone`: a recording becomes a voice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output

if TYPE_CHECKING:
    from afterwords.studio import Cloned
    from afterwords.transcribe import Transcript

CONSENT = {
    "self": "it is my own voice",
    "granted": "the speaker has given me leave",
    "public-domain": "the recording is in the public domain",
    "synthetic": "no person has this voice",
}
READ_ALOUD = (
    "When the sunlight strikes raindrops in the air, they act as a prism and form a rainbow. "
    "People look, but no one ever finds it. I am reading this for my own voice, and I agree to that."
)


def clone(
    recording: Annotated[str | None, typer.Argument(help="A recording, 5 s to 30 min; - reads stdin.")] = None,
    name: Annotated[str, typer.Option("--name", "-n", help="What to call the voice.")] = "",
    record: Annotated[bool, typer.Option("--record", help="Record from the microphone instead.")] = False,
    text: Annotated[str | None, typer.Option("--text", help="What is said in the recording.")] = None,
    text_file: Annotated[Path | None, typer.Option("--text-file", help="The same, from a file.")] = None,
    lang: Annotated[str, typer.Option("--lang", help="Language of the recording.")] = "en",
    backend: Annotated[str, typer.Option("--backend", help="What shall speak with it.")] = "auto",
    consent: Annotated[str | None, typer.Option("--consent", help=" | ".join(CONSENT) + ".")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Take less time, for less likeness.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of the voice of that name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the voice as JSON.")] = False,
) -> None:
    """Make a voice from a recording."""
    if record == (recording is not None):
        raise typer.BadParameter("give a recording, or - for stdin, or --record.")
    if not name:
        raise typer.BadParameter("give the voice a name: --name me.")
    if text is not None and text_file is not None:
        raise typer.BadParameter("give --text or --text-file, not both.")
    from afterwords.studio import make_voice
    from afterwords.text import read_text

    if text_file is not None:
        text = read_text(text_file)
    if consent is None and output.is_terminal():
        consent = output.ask("By what right may this voice be cloned?", choices=CONSENT)
    source = _record() if record else sys.stdin.buffer if recording == "-" else Path(str(recording))
    with output.progress_bar() as progress:
        cloned = make_voice(
            source,
            name=name,
            consent=consent,
            text=text,
            lang=lang,
            backend=backend,
            fast=fast,
            replace=replace,
            progress=progress,
            confirm=_confirm if output.is_terminal() else None,
        )
    _tell(cloned, as_json=as_json)


def _confirm(heard: Transcript) -> str:
    """Let the person correct what was heard."""
    output.note(f"Heard (? marks what is doubtful):\n  {output.shown(heard.marked())}")
    return output.ask("Press Enter if that is right, or type what is said", default=heard.text)


def _record() -> bytes:
    """Record until Enter is pressed, and give the bytes of a WAV file."""
    import threading

    from rich.live import Live

    from afterwords.audio import record

    target = output.console()
    target.print(f"Read this aloud, then press Enter:\n\n  [bold]{READ_ALOUD}[/bold]\n")
    stop = threading.Event()

    def wait_for_enter() -> None:
        sys.stdin.readline()
        stop.set()

    threading.Thread(target=wait_for_enter, daemon=True).start()
    with Live(console=target, transient=True, refresh_per_second=10) as live:

        def meter(elapsed_s: float, peak: float) -> None:
            live.update(f"[red]●[/red] {elapsed_s:5.1f} s  {'█' * round(40 * min(peak, 1)):<40}")

        taken = record(stop=stop, max_duration_s=300, on_level=meter)
    return taken.to_bytes("wav")


def _tell(cloned: Cloned, *, as_json: bool) -> None:
    from afterwords.studio import likeness

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
    if facts:
        output.note(
            f"  likeness {facts['similarity']:.2f} (nearest stock voice {facts['baseline']:.2f}, "
            "the same person again ≈ 0.92, another person ≈ 0.58)"
        )
    for finding in report.findings:
        if finding.grade and finding.grade > "B":
            output.note(f"  {finding.grade}  {output.shown(finding.reason)} {output.shown(finding.advice)}")
    for notice in cloned.notices:
        output.note(f"  [yellow]{output.shown(notice)}[/yellow]")
    output.note(f'Next: afterwords say "Hello, this is my voice." --voice {_quoted(voice.name)}')


def _quoted(name: str) -> str:
    import shlex

    return output.shown(shlex.quote(name))
