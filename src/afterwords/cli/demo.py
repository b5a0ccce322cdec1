"""`afterwords demo`: from nothing to a cloned voice that speaks, with a recording that is shipped."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from afterwords.cli import output

NAME = "reader"
TEXT = "Hello! This voice was made on your own machine, from half a minute of a person reading aloud."


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("hello.wav"),
    fast: Annotated[bool, typer.Option("--fast", help="Take less time; the voice is less like the speaker.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Clone the voice of a recording that comes with afterwords, and speak a sentence into hello.wav."""
    from afterwords import local
    from afterwords.audio.output import check_output

    check_output(out)
    data = files("afterwords") / "data"
    recording, transcript = (data / "reader.wav").read_bytes(), (data / "reader.txt").read_text("utf-8").strip()
    known = {voice.name for voice in local.voices()}
    if NAME not in known:
        output.note(f"Cloning the voice [bold]{NAME}[/bold] from 24.7 s of a public-domain reading…")
        with output.progress_bar() as progress:
            local.make_voice(
                recording, name=NAME, consent="public-domain", text=transcript, fast=fast, progress=progress
            )
    with output.progress_bar() as progress:
        speech = local.stream(TEXT, voice=NAME, progress=progress)
        speech.audio().save(out)
    facts = local.likeness(speech.voice)
    done = speech.result
    assert done is not None, "the speech was read to its end"
    if as_json:
        output.result_json(
            {
                "file": str(out),
                "voice": NAME,
                "real_time_factor": round(done.real_time_factor, 3),
                **facts,
                **done.model_dump(mode="json"),
            }
        )
        return
    output.result(f"{output.plain(str(out))}: {done.duration_s:.1f} s of speech in the voice of the reader")
    if "similarity" in facts:
        output.result(
            f"  likeness          {facts['similarity']:.2f}  "
            "(GE2E cosine to this recording; the same person again ≈ 0.92, another person ≈ 0.58)"
        )
        output.result(f"  baseline          {facts['baseline']:.2f}  (nearest stock voice, {facts['nearest_stock']})")
    output.result(f"  real-time factor  {done.real_time_factor:.2f}  (seconds of work a second of speech)")
    output.note("lite matches pitch and timbre: it resembles the speaker and is not their identity.")
    output.note("Next: afterwords clone me.wav --name me")
