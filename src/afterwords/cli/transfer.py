"""`afterwords push`, `pull` and `sync`: voices between this library and a server."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output
from afterwords.cli.remote import Profile, command, server
from afterwords.cli.say import complete_voice

if TYPE_CHECKING:
    from afterwords.client import Client
    from afterwords.transfer import Trip

Replace = Annotated[bool, typer.Option("--replace", help="Replace another voice of that name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def push(
    name: Annotated[str, typer.Argument(help="Name or id of a voice here.", autocompletion=complete_voice)],
    profile: Profile = None,
    replace: Replace = False,
    as_json: AsJson = False,
) -> None:
    """Copy a voice to a server. Running it again changes nothing."""
    from afterwords import transfer

    with _asked(profile) as client:
        trip = _unless_taken(
            f"{client.base_url} has another voice named {name}.",
            lambda instead: transfer.send(name, client=client, replace=instead),
            replace,
        )
    _tell(trip, client.base_url, as_json=as_json)
    if trip.voice is not None:
        say = command("say", "Hello from anywhere.", "--voice", trip.name, "--remote", profile=profile)
        output.note(f"Next: {output.shown(say)}")


def pull(
    name: Annotated[str, typer.Argument(help="Name or id of a voice on the server.")],
    profile: Profile = None,
    replace: Replace = False,
    as_json: AsJson = False,
) -> None:
    """Copy a voice from a server into this library. Running it again changes nothing."""
    from afterwords import transfer

    with _asked(profile) as client:
        trip = _unless_taken(
            f"There is another voice named {name} here.",
            lambda instead: transfer.fetch(name, client=client, replace=instead),
            replace,
        )
    _tell(trip, client.base_url, as_json=as_json)
    output.note(f'Next: afterwords say "Hello, I am here." --voice {output.quoted(trip.name)}')


def sync(
    profile: Profile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be copied, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy the voices that one side lacks, both ways. Nothing is removed or overwritten."""
    from afterwords import transfer

    with _asked(profile) as client:
        trips = transfer.sync(client=client, is_dry=dry_run)
    if as_json:
        output.result_json([_facts(trip) for trip in trips])
    elif trips:
        rows = [(trip.name, trip.outcome.value, _advice(trip)) for trip in trips]
        output.result_table(("name", "would be" if dry_run else "is", ""), rows)
    else:
        output.note("There are no voices, here or there. Make one: afterwords clone me.wav --name me")
    if failed := [trip.error for trip in trips if trip.outcome is transfer.Outcome.FAILED and trip.error]:
        raise typer.Exit(failed[0].exit_code)


@contextmanager
def _asked(profile: str | None) -> Iterator[Client]:
    with server(profile) as client:
        try:
            yield client
        except KeyboardInterrupt:
            output.note("Nothing is half done: the same command, again, does what is left.")
            raise


def _unless_taken(told: str, bring: Callable[[bool], Trip], replace: bool) -> Trip:
    """Bring a voice; where another one has its name, the person at the terminal decides."""
    from afterwords.errors import VoiceExistsError

    try:
        return bring(replace)
    except VoiceExistsError:
        if not output.is_terminal():
            raise
        output.confirm_replacing(output.shown(told))
        return bring(True)


def _tell(trip: Trip, server: str, *, as_json: bool) -> None:
    if as_json:
        output.result_json(_facts(trip))
    else:
        output.result(output.plain(trip.name))
    for notice in trip.notices:
        output.note(f"  {output.shown(notice)}")
    output.note(f"[bold green]✓[/bold green] {output.shown(trip.name)}: {trip.outcome.value} ({output.shown(server)})")


def _facts(trip: Trip) -> dict[str, object]:
    return {
        "name": trip.name,
        "outcome": trip.outcome.value,
        "voice": trip.voice.model_dump(mode="json") if trip.voice else None,
        "error": trip.error.code if trip.error else None,
    }


def _advice(trip: Trip) -> str:
    """What to do about a voice that was not brought."""
    from afterwords.transfer import Outcome

    name = output.plain(shlex.quote(trip.name))
    return {
        Outcome.DIFFERS: f"two voices have this name: afterwords push {name} --replace, or pull {name} --replace",
        Outcome.REMOVED_THERE: f"to bring it there again: afterwords push {name}",
        Outcome.REMOVED_HERE: f"to bring it here again: afterwords pull {name}",
        Outcome.FAILED: trip.error.message if trip.error else "",
    }.get(trip.outcome, "")
