"""`afterwords voices export` and `import`: a voice as one file, from this library or a server, and into either.

A file is judged here, whatever it is for: a byte that was changed on the way is found before anything else is done.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from afterwords.cli import output
from afterwords.cli.options import AsJson, Profile, Remote, complete_voice, is_remote
from afterwords.cli.remote import command, connect, explain_interrupt, option_value

if TYPE_CHECKING:
    from afterwords.client import Client
    from afterwords.library.bundle import Bundle
    from afterwords.models import Voice

ENDING: Final = ".afterwords"


# -- export ---------------------------------------------------------------------------------------------------


def export(
    name: Annotated[str, typer.Argument(help="Voice, by name or id.", autocompletion=complete_voice)],
    out: Annotated[str | None, typer.Option("--out", "-o", help="File to write; - writes to stdout.")] = None,
    remote: Remote = False,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Write a voice to one file that `import` reads on any machine. Anybody who has it can clone the speaker."""
    from afterwords.audio.output import check_place, write_whole

    if out == "-" and (as_json or sys.stdout.isatty()):
        raise output.UsageError("A voice is no text for stdout here.", hint="pipe it on, or name a file: -o FILE.")
    if out not in (None, "-"):
        check_place(Path(str(out)))
    voice, data = _packed_there(name, profile) if is_remote(remote, profile) else _packed_here(name)
    path = _path_of(voice) if out is None else Path(out)
    write_whole(sys.stdout.buffer if out == "-" else path, data, is_private=True)
    if out == "-":
        return
    if as_json:
        facts = {"name": voice.name, "voice_id": voice.voice_id}
        output.result_json({"file": str(path), "size_bytes": len(data), **facts})
    else:
        output.result(output.plain(str(path)))
    output.note(
        f"[bold green]✓[/bold green] {output.shown(voice.name)} is in {output.shown(str(path))}. "
        "Whoever has it can clone the speaker: treat it like the recording."
    )
    output.note(f"Next, on another machine: afterwords voices import {output.quoted(option_value(str(path)))}")


def _packed_here(name: str) -> tuple[Voice, bytes]:
    from afterwords.local import pack_voice

    return pack_voice(name)


def _packed_there(name: str, profile: str | None) -> tuple[Voice, bytes]:
    from afterwords.library.bundle import unpack

    with output.waiting("fetching the voice"), connect(profile) as client:
        data = client.voices.export(name)
    return unpack(data)[0], data


def _path_of(voice: Voice) -> Path:
    """A file named after the voice; one that is there already is kept."""
    return output.free_path(Path((re.sub(r"[^\w-]+", "-", voice.name)[:60].strip("-") or "voice") + ENDING))


# -- import ---------------------------------------------------------------------------------------------------


def import_(
    file: Annotated[str, typer.Argument(help="A file that `voices export` wrote; - reads stdin.")],
    name: Annotated[str | None, typer.Option("--name", "-n", help="Name of the voice. (default: its own)")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the voice of that name.")] = False,
    remote: Remote = False,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Import a voice from a file. A file that was changed is refused."""
    from afterwords.library.bundle import unpack_all
    from afterwords.text import check_name

    bundle = unpack_all(_read(file))
    voice = bundle.voice
    if name is not None:
        voice = voice.model_copy(update={"name": check_name(name)})
    if is_remote(remote, profile):
        with connect(profile) as client:
            kept = _kept_there(client, voice, bundle, replace=replace, profile=profile)
    else:
        kept = _kept_here(voice, bundle, replace=replace)
    if as_json:
        output.result_json(kept.model_dump(mode="json", exclude_none=True))
    else:
        output.result(output.plain(kept.name))
    there = ("--remote",) if is_remote(remote, profile) and profile is None else ()
    say = command("say", "Hello, this is my voice.", "--voice", kept.name, *there, profile=profile)
    output.note(f"[bold green]✓[/bold green] {output.shown(kept.name)} can speak.\nNext: {output.shown(say)}")


def _read(file: str) -> bytes:
    from afterwords.library.bundle import read_bundle

    if file != "-":
        return read_bundle(Path(file))
    if sys.stdin is None or sys.stdin.isatty():
        raise output.UsageError("Nothing is piped in.", hint="pipe a file in, or name one.")
    return read_bundle(sys.stdin.buffer)


def _kept_here(voice: Voice, bundle: Bundle, *, replace: bool) -> Voice:
    from afterwords.local import keep_bundle

    def may_replace(other: Voice) -> bool:
        return replace or _may_replace(voice, other, where="here")

    kept, notices = keep_bundle(voice, bundle, may_replace=may_replace)
    for notice in notices:
        output.note(f"  {output.shown(notice)}")
    return kept


def _kept_there(client: Client, voice: Voice, bundle: Bundle, *, replace: bool, profile: str | None) -> Voice:
    """Bring a voice to a server; what has its name there goes, once it has arrived."""
    from afterwords.library.bundle import pack
    from afterwords.transfer import find_by_name

    with output.waiting("asking the server"):
        same, taken = find_by_name(voice, client)
    if same is not None:
        return same
    if taken and not replace:
        _may_replace(voice, taken[0], where=f"on {client.base_url}")
    listed = command("voices", "list", "--remote", profile=profile)
    with explain_interrupt("The server may have taken it all the same. See what it has:", listed):
        with output.waiting("sending the voice"):
            kept = client.voices.import_(pack(voice, bundle.wav, bundle.prompts))
        for other in taken:
            client.voices.delete(other)
        return client.voices.get(kept)  # what an import answers is short


def _may_replace(voice: Voice, other: Voice, *, where: str) -> bool:
    """Ask the person at the terminal whether a voice may take the place of another.

    Raises:
        VoiceExistsError: there is nobody to ask.
        Exit: it may not.
    """
    from afterwords.errors import VoiceExistsError

    if not output.is_terminal():
        raise VoiceExistsError(voice.name, where="`afterwords voices import --replace`")
    output.confirm_replacing(f"There is a voice called {output.shown(other.name)} {output.shown(where)} already.")
    return True
