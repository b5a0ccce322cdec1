"""`afterwords push`, `pull` and `sync`: copy voices between the library and a server."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output
from afterwords.cli.options import AsJson, Profile, Replace, complete_voice
from afterwords.cli.remote import command, connect

if TYPE_CHECKING:
    from afterwords.client import Client
    from afterwords.transfer import TransferResult


def push(
    name: Annotated[str, typer.Argument(help="Voice of the library, by name or ID.", autocompletion=complete_voice)],
    profile: Profile = None,
    replace: Replace = False,
    as_json: AsJson = False,
) -> None:
    """Copy a voice to a server, with its takes. Running it again changes nothing."""
    from afterwords import transfer

    with _connect(profile) as client:
        result, *takes = [
            _copy(
                transfer.send,
                each,
                client,
                replace=replace,
                question=f"{client.base_url} has another voice named {each}.",
                as_json=as_json,
            )
            for each in (name, *(take.name for take in transfer.takes_of(name)))
        ]
    if as_json:
        output.result_json({**_facts(result), "takes": [_facts(take) for take in takes]})
    if result.voice is not None:
        if result.voice.status == "preparing":
            output.note("The server is preparing the voice; until it is ready, speech waits for it.")
        say = command("say", "Hello from anywhere.", "--voice", result.name, "--remote", profile=profile)
        output.note(f"Next: {output.shown(say)}")


def pull(
    name: Annotated[str, typer.Argument(help="Voice on the server, by name or ID.")],
    profile: Profile = None,
    replace: Replace = False,
    as_json: AsJson = False,
) -> None:
    """Copy a voice from a server into the library. Running it again changes nothing."""
    from afterwords import transfer

    with _connect(profile) as client:
        question = f"There is another voice named {name} here."
        result = _copy(transfer.fetch, name, client, replace=replace, question=question, as_json=as_json)
    if as_json:
        output.result_json(_facts(result))
    output.note(f'Next: afterwords say "Hello, I am here." --voice {output.quoted(result.name)}')


def sync(
    profile: Profile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be copied.")] = False,
    as_json: AsJson = False,
) -> None:
    """Sync voices both ways: copy those that only one side has. Nothing is removed or overwritten."""
    from afterwords import transfer

    with _connect(profile) as client:
        results = transfer.sync(client=client, is_dry=dry_run)
    if as_json:
        output.result_json([_facts(result) for result in results])
    elif results:
        rows = []
        for result in results:
            name = output.plain(shlex.quote(result.name))
            advice = {
                "differs": f"two voices have this name: afterwords push {name} --replace, or pull {name} --replace",
                "removed there": f"to copy it there again: afterwords push {name}",
                "removed here": f"to copy it here again: afterwords pull {name}",
                "failed": result.error.message if result.error else "",
            }
            rows.append((result.name, result.outcome.value, advice.get(result.outcome.value, "")))
        output.result_table(("name", "would be" if dry_run else "is", ""), rows)
    else:
        output.note("There are no voices, here or there. Make one: afterwords clone me.wav --name me")
    if failed := [result.error for result in results if result.outcome == "failed" and result.error]:
        raise typer.Exit(failed[0].exit_code)


@contextmanager
def _connect(profile: str | None) -> Iterator[Client]:
    with connect(profile) as client:
        try:
            yield client
        except KeyboardInterrupt:
            output.note("Every voice is copied completely or not at all. Run the command again to copy the rest.")
            raise


def _copy(
    transfer: Callable[..., TransferResult], name: str, client: Client, *, replace: bool, question: str, as_json: bool
) -> TransferResult:
    """Copy a voice, and show the result; if a different voice has its name, ask at a terminal whether to replace it."""
    from afterwords.errors import VoiceExistsError

    try:
        result = transfer(name, client=client, replace=replace)
    except VoiceExistsError:
        if not output.is_terminal():
            raise
        output.confirm_replacing(output.shown(question))
        result = transfer(name, client=client, replace=True)
    if not as_json:
        output.result(output.plain(result.name))
    for notice in result.notices:
        output.note(f"  {output.shown(notice)}")
    place = output.shown(client.base_url)
    output.note(f"[bold green]✓[/bold green] {output.shown(result.name)}: {result.outcome.value} ({place})")
    return result


def _facts(result: TransferResult) -> dict[str, object]:
    return {
        "name": result.name,
        "outcome": result.outcome.value,
        "voice": result.voice.model_dump(mode="json") if result.voice else None,
        "error": result.error.code if result.error else None,
    }
