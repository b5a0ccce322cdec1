"""`afterwords say`: a text becomes speech, in a file, in a pipe or aloud."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output
from afterwords.cli.options import Profile, Remote, Timeout, complete_voice, is_remote
from afterwords.cli.remote import job_timeout_s

if TYPE_CHECKING:
    from afterwords.audio.wav import Samples
    from afterwords.audio.writer import AudioWriter
    from afterwords.cli.save_audio import Place
    from afterwords.speech import Speech


def say(
    text: Annotated[str | None, typer.Argument(help="Text to speak, in quotes; - reads stdin.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Text file to speak.")] = None,
    voice: Annotated[
        str | None,
        typer.Option(
            "--voice",
            "-v",
            help="Voice, by name or id. (default: the default voice, or the only one)",
            autocompletion=complete_voice,
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="Audio file to write; - writes to stdout. Without it, the speech is played."),
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="wav, mp3, opus, flac or pcm. (default: by the ending of --out)")
    ] = None,
    speed: Annotated[float, typer.Option("--speed", help="0.25 to 4. The pitch stays the same.")] = 1.0,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Number that makes a sampling engine repeat itself.")
    ] = None,
    lang: Annotated[
        str | None, typer.Option("--lang", help="Language of the text, such as en. (default: the voice's)")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option("--backend", help="Backend to speak with; see `afterwords backends`. (default: the voice's)"),
    ] = None,
    play: Annotated[
        bool | None, typer.Option("--play/--no-play", help="Play the speech. (default: play, unless --out is given)")
    ] = None,
    remote: Remote = False,
    profile: Profile = None,
    timeout: Timeout = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Speak a text with a voice, on this machine or on a server."""
    if (text is None) == (file is None):
        raise output.UsageError(
            "There must be one text to speak.", hint="give it once: in quotes, as - for stdin, or with --file FILE."
        )
    is_heard = (out is None) if play is None else play
    if out is None and not is_heard:
        raise output.UsageError("The speech would go nowhere.", hint="add -o FILE, or remove --no-play.")
    if out == "-" and as_json:
        raise output.UsageError("stdout can't carry both audio and JSON.", hint="name a file: -o hello.wav.")
    if timeout is not None and not is_remote(remote, profile):
        raise output.UsageError("This machine waits for its own engine.", hint="--timeout goes with --remote.")
    from afterwords.cli.save_audio import place_for

    words = _words(text, file)
    place = place_for(out, format) if out is not None else None
    if is_remote(remote, profile):
        from afterwords.cli.say_remote import Order, say_remote

        how = {"lang": lang, "backend": backend, "speed": speed, "seed": seed}
        order = Order(words, voice, how, job_timeout_s(timeout), profile)
        say_remote(order, place, is_heard=is_heard, as_json=as_json)
        return
    from afterwords import local
    from afterwords.text import MAX_LOCAL_CHARS, check_text

    check_text(words, max_chars=MAX_LOCAL_CHARS)
    if preparing := local.must_prepare(voice=voice, lang=lang, backend=backend):
        about = ", about 40 s on two cores" if preparing == "lite" else ""
        output.note(f"Preparing the voice for {output.shown(preparing)}, once{about}.")
    with output.progress_bar() as progress, ExitStack() as stack, output.without_text_warnings():
        speech = local.stream(words, voice=voice, lang=lang, backend=backend, speed=speed, seed=seed, progress=progress)
        writer = stack.enter_context(_writer(place, speech)) if place is not None else None
        pieces = _written(speech, writer)
        if is_heard:
            from afterwords.audio.devices import play as play_aloud

            play_aloud(pieces, speech.sample_rate)
        else:
            _read_all(pieces, speech.sample_rate)
    _tell(speech, out, is_marked=writer is not None and writer.format != "pcm", as_json=as_json)


def _words(text: str | None, file: Path | None) -> str:
    from afterwords.text import read_text

    if file is not None:
        return read_text(file)
    return read_text(sys.stdin.buffer) if text == "-" else str(text)


def _writer(place: Place, speech: Speech) -> AudioWriter:
    from afterwords.audio.writer import AudioWriter

    return AudioWriter(place.target, format=place.format, sample_rate=speech.sample_rate, tags=speech.tags)


def _read_all(pieces: Iterator[Samples], sample_rate: int) -> None:
    """Read speech to its end; at Ctrl-C, say that nothing was kept of it."""
    spoken_s = 0.0
    try:
        for piece in pieces:
            spoken_s += len(piece) / sample_rate
    except KeyboardInterrupt:
        output.note(
            f"{output.duration(spoken_s)} of speech were made and not kept: a file is written whole or not at all."
        )
        raise


def _written(speech: Speech, writer: AudioWriter | None) -> Iterator[Samples]:
    """The speech, each chunk written before it is passed on."""
    for chunk in speech:
        if writer is not None:
            writer.write(chunk.samples)
        yield chunk.samples


def _tell(speech: Speech, out: str | None, *, is_marked: bool, as_json: bool) -> None:
    done = speech.result
    assert done is not None, "the speech was read to its end"
    if as_json:
        output.result_json(
            {
                "voice": speech.voice.name,
                "voice_id": speech.voice.voice_id,
                "file": None if out in (None, "-") else out,
                "left_out": list(speech.left_out),
                "real_time_factor": round(done.real_time_factor, 3),
                **done.model_dump(mode="json"),
            }
        )
    where = "" if out in (None, "-") else f"{output.shown(str(out))}: "
    output.note(
        f"[bold green]✓[/bold green] {where}{done.duration_s:.1f} s in the voice {output.shown(speech.voice.name)} "
        f"({done.backend}, took {output.duration(done.synth_ms / 1000)})"
    )
    output.note_left_out(done.backend, speech.left_out)
    if speech.backend != speech.voice.backend:
        output.note(f"  {done.backend} spoke: {output.shown(speech.reason)}")
    if where and is_marked:
        file = f"./{out}" if str(out).startswith("-") else str(out)
        output.note_how_to_listen(file)
        output.note(f"Next: afterwords verify {output.quoted(file)}")
