"""`afterwords voices`: the voices of the library, or of a server with --remote."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output
from afterwords.cli.help import HelpCommand, HelpGroup
from afterwords.cli.options import (
    AsJson,
    OutFile,
    Profile,
    Remote,
    Replace,
    VoiceName,
    Yes,
    check_group_options,
    complete_voice,
    is_remote,
)
from afterwords.cli.remote import command, option_value
from afterwords.cli.voice_store import open_store

if TYPE_CHECKING:
    from afterwords.models import Voice

voices = typer.Typer(cls=HelpGroup, invoke_without_command=True)


@voices.callback()
def options(context: typer.Context, remote: Remote = False, profile: Profile = None) -> None:
    if context.invoked_subcommand is None:
        list_voices(remote=remote, profile=profile)
    else:
        check_group_options(context, remote=remote, profile=profile)


@voices.command("list", cls=HelpCommand)
def list_voices(remote: Remote = False, profile: Profile = None, as_json: AsJson = False) -> None:
    """List all voices."""
    with open_store(remote, profile) as store:
        found = store.list()
    if as_json:
        output.result_json(found.facts)
    elif found.rows:
        output.result_table(found.headers, found.rows)
    elif found.hint:
        output.note(found.hint)


@voices.command(cls=HelpCommand)
def show(name: VoiceName, remote: Remote = False, profile: Profile = None, as_json: AsJson = False) -> None:
    """Show the details of a voice."""
    with open_store(remote, profile) as store:
        facts, summary = store.show(name)
    if as_json:
        output.result_json(facts)
    else:
        output.result_facts(summary)


@voices.command(cls=HelpCommand)
def rename(
    name: VoiceName,
    new: Annotated[str, typer.Argument(help="The new name.")],
    remote: Remote = False,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Rename a voice."""
    with open_store(remote, profile) as store:
        voice = store.rename(name, new)
    _print_voice(voice, as_json=as_json)


@voices.command(cls=HelpCommand)
def rm(
    name: VoiceName, yes: Yes = False, remote: Remote = False, profile: Profile = None, as_json: AsJson = False
) -> None:
    """Remove a voice with its recordings, transcript and everything made from them."""
    with open_store(remote, profile) as store:
        removal = store.find_for_removal(name)
        if not yes:
            output.confirm_removal(removal.warning)
        store.remove(removal.key)
    if as_json:
        output.result_json({"removed": removal.key})
    output.note(f"[bold green]✓[/bold green] Removed {removal.label}.")


@voices.command(cls=HelpCommand)
def default(
    name: Annotated[str | None, typer.Argument(help="Voice, by name or ID.", autocompletion=complete_voice)] = None,
    as_json: AsJson = False,
) -> None:
    """Show or set the voice that `say` uses without --voice."""
    from afterwords.local import default_voice

    voice = default_voice(name)
    if voice is not None:
        _print_voice(voice, as_json=as_json)
        return
    if as_json:
        output.result_json(None)
    output.note("No default voice is set. Set one: afterwords voices default NAME")


@voices.command(cls=HelpCommand)
def export(
    name: VoiceName, out: OutFile = None, remote: Remote = False, profile: Profile = None, as_json: AsJson = False
) -> None:
    """Export a voice to one file that `import` reads on any machine.

    Anyone who has the file can clone the speaker.
    """
    from afterwords.audio.output import check_writable, write_atomically

    if out == "-" and (as_json or sys.stdout.isatty()):
        raise output.UsageError("A voice file is binary and can't be printed here.", hint="add -o FILE, or use a pipe.")
    if out not in (None, "-"):
        check_writable(Path(str(out)))
    with open_store(remote, profile) as store:
        voice, data = store.export(name)
    stem = re.sub(r"[^\w-]+", "-", voice.name)[:60].strip("-") or "voice"
    path = output.free_path(Path(f"{stem}.afterwords")) if out is None else Path(out)
    write_atomically(sys.stdout.buffer if out == "-" else path, data, is_private=True)
    if out == "-":
        return
    if as_json:
        size = {"file": str(path), "size_bytes": len(data)}
        output.result_json({**size, "name": voice.name, "voice_id": voice.voice_id})
    else:
        output.result(output.plain(str(path)))
    output.note(
        f"[bold green]✓[/bold green] {output.shown(voice.name)} is in {output.shown(str(path))}. "
        "Anyone who has this file can clone the speaker: treat it like the recording."
    )
    output.note(f"Next, on another machine: afterwords voices import {output.quoted(option_value(str(path)))}")


@voices.command("import", cls=HelpCommand)
def import_(
    file: Annotated[str, typer.Argument(help="File written by `voices export`; - reads stdin.")],
    name: Annotated[str | None, typer.Option("--name", "-n", help="Name of the voice. (default: its own)")] = None,
    replace: Replace = False,
    remote: Remote = False,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Import a voice from a file. A file that was altered is refused."""
    from afterwords.library.bundle import read_bundle, unpack
    from afterwords.text import check_name

    if file == "-" and (sys.stdin is None or sys.stdin.isatty()):
        raise output.UsageError("stdin is empty.", hint="pipe a voice file in, or name one.")
    bundle = unpack(read_bundle(sys.stdin.buffer if file == "-" else Path(file)))
    voice = bundle.voice if name is None else bundle.voice.model_copy(update={"name": check_name(name)})
    with open_store(remote, profile) as store:
        voice = store.import_(voice, bundle, replace=replace)
    if as_json:
        output.result_json(voice.model_dump(mode="json", exclude_none=True))
    else:
        output.result(output.plain(voice.name))
    server = ("--remote",) if is_remote(remote, profile) and profile is None else ()
    say = command("say", "Hello, this is my voice.", "--voice", voice.name, *server, profile=profile)
    output.note(f"[bold green]✓[/bold green] {output.shown(voice.name)} is ready.\nNext: {output.shown(say)}")


def _print_voice(voice: Voice, *, as_json: bool) -> None:
    if as_json:
        output.result_json(voice.model_dump(mode="json"))
    else:
        output.result(output.plain(voice.name))
