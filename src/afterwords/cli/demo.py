"""`afterwords demo`: clone the voice of a bundled recording and speak a sentence with it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from afterwords.cli import output
from afterwords.cli.options import Fast

NAME = "reader"
TEXT = "Hello! This voice was made on your own machine, from half a minute of a person reading aloud."


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("hello.wav"),
    fast: Fast = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Clone the voice of a recording that comes with afterwords, and speak a sentence into hello.wav."""
    from afterwords import local
    from afterwords.audio.output import check_output

    check_output(out)
    data = files("afterwords") / "data"
    recording, transcript = (data / "reader.wav").read_bytes(), (data / "reader.txt").read_text("utf-8").strip()
    if NAME not in {voice.name for voice in local.voices()}:
        output.note(f"Cloning the voice [bold]{NAME}[/bold] from 24.7 s of a public-domain reading…")
        with output.progress_bar() as progress:
            local.make_voice(
                recording, name=NAME, consent="public-domain", text=transcript, fast=fast, progress=progress
            )
    with output.progress_bar() as progress:
        speech = local.stream(TEXT, voice=NAME, progress=progress)
        speech.save(out)
    likeness = local.likeness(speech.voice)
    done = speech.result
    assert done is not None, "the speech was read to its end"
    if as_json:
        facts = {"file": str(out), "voice": NAME, "real_time_factor": round(done.real_time_factor, 3)}
        output.result_json({**facts, **likeness, **done.model_dump(mode="json")})
        return
    output.result(f"{output.plain(str(out))}: {done.duration_s:.1f} s of speech in the voice of the reader")
    if "similarity" in likeness:
        output.result(
            f"  likeness          {likeness['similarity']:.2f}  "
            "(GE2E cosine to this recording; the same person again ≈ 0.92, another person ≈ 0.58)"
        )
    if "baseline" in likeness:
        nearest = likeness["nearest_stock"]
        output.result(f"  baseline          {likeness['baseline']:.2f}  (nearest stock voice, {nearest})")
    output.result(f"  real-time factor  {done.real_time_factor:.2f}  (seconds of work per second of speech)")
    if done.backend == "lite":
        output.note("lite matches pitch and timbre: it resembles the speaker and is not their identity.")
    output.note("Next: afterwords clone me.wav --name me")
