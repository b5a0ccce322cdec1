"""`afterwords alias`: further names of voices on a server, for programs that send names of their own."""

from __future__ import annotations

from typing import Annotated

import typer

from afterwords.cli import output
from afterwords.cli.options import AsJson, Profile
from afterwords.cli.remote import connect


def alias(
    name: Annotated[str | None, typer.Argument(help="The name that programs send. (default: list all)")] = None,
    voice: Annotated[str | None, typer.Argument(help="Name or ID of the voice that speaks.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias. Its voice stays.")] = False,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Give a voice of a server a further name, such as alloy, for programs made for OpenAI.

    Without arguments, list the aliases. An alias never replaces a voice of the same name.
    """
    if remove != (name is not None and voice is None):
        raise output.UsageError(
            "An alias needs a name and a voice.", hint="afterwords alias alloy me, or afterwords alias alloy --remove."
        )
    with output.waiting("asking the server"), connect(profile) as client:
        if name is None:
            found = client.voices.aliases()
        elif voice is None:
            client.voices.remove_alias(name)
            found = []
        else:
            found = [client.voices.set_alias(name, voice)]
    if as_json:
        output.result_json([each.model_dump(mode="json") for each in found])
    elif name is None and found:
        output.result_table(("alias", "voice", "voice id"), [(each.alias, each.voice, each.voice_id) for each in found])
    elif name is None:
        output.note("There are no aliases. Add one: afterwords alias alloy me")
    elif remove:
        output.note("Removed.")
    else:
        output.note(f"[bold green]✓[/bold green] {output.shown(name)} is spoken by {output.shown(found[0].voice)}.")
