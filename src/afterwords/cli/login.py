"""`afterwords login`, `logout`, `whoami`, `usage` and `profiles`: which server is asked, and with which key.

A key is typed or piped in, never given as an option: what runs on a machine is for all its users to see.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output
from afterwords.cli.help import HelpCommand, HelpGroup
from afterwords.cli.options import AsJson, Profile
from afterwords.cli.remote import command, connect

if TYPE_CHECKING:
    from afterwords.client.profiles import Access, Profiles
    from afterwords.models import Usage

KEY_MAX_BYTES = 4096


def login(
    url: Annotated[
        str | None, typer.Argument(help="Address of the server, such as https://voices.example.com.")
    ] = None,
    profile: Annotated[str | None, typer.Option("--profile", "-p", help="Name of this login, to have several.")] = None,
) -> None:
    """Log in to a server with an API key, which is asked for or read from stdin."""
    from afterwords.client import Client
    from afterwords.client.profiles import Access, check_profile, check_secret, check_url

    profiles = _profiles()
    if profile is not None:
        check_profile(profile)
    url = check_url(url or _configured_url(profiles, profile) or _ask_url())
    name = profile or _name_for(profiles, url)
    if not Access(url).is_private:
        output.note("[yellow]The address begins with http:// — whoever is on the way can read the key.[/yellow]")
    api_key = check_secret(_read_key(url), "the API key")
    with output.waiting("asking the server"), Client(url, api_key=api_key) as client:
        client.usage()  # what needs a key shows that it is one
    is_in_keyring = profiles.save(name, url, api_key)
    place = "the keyring of this system" if is_in_keyring else f"{profiles.path}, which you alone may read"
    output.note(f"[bold green]✓[/bold green] Logged in to {output.shown(url)} as {name}.")
    output.note(f"  The key is in {output.shown(place)}.")
    _warn_of_environment()
    output.note(f"Next: {output.shown(command('whoami', profile=profile))}")


def logout(profile: Profile = None) -> None:
    """Remove a login and its key from this machine. The key stays valid until `afterwords keys revoke`."""
    profiles = _profiles()
    kept = profiles.get(profile) if profile else profiles.current(os.environ.get("AFTERWORDS_PROFILE") or None)
    if kept is None:
        output.note("There is no login to forget.")
        return
    profiles.remove(kept.name)
    output.note(f"[bold green]✓[/bold green] {kept.name} is forgotten, and its key for {output.shown(kept.url)}.")
    if chosen := profiles.current():
        output.note(f"  In use from now on: {chosen.name}, {output.shown(chosen.url)}")
    _warn_of_environment()


def whoami(profile: Profile = None, as_json: AsJson = False) -> None:
    """Show the server and login in use, and the backends that the server offers."""
    from afterwords.client import Client
    from afterwords.client.profiles import find_access
    from afterwords.errors import NotLoggedInError

    access = find_access(profile=profile)
    if access.api_key is None:
        raise NotLoggedInError(access.base_url)
    with output.waiting("asking the server"), Client(access.base_url, api_key=access.api_key) as client:
        health, usage = client.health(), client.usage()
    facts = {
        "server": access.base_url,
        "profile": access.profile,
        "key_from": _key_place(access),
        "version": health.version or "hosted",
        "backends": list(health.backends),
        **_spent(usage),
    }
    if as_json:
        output.result_json(facts)
    else:
        output.result_facts({**facts, "backends": " ".join(health.backends)})


def usage(profile: Profile = None, as_json: AsJson = False) -> None:
    """Show the characters that were used in this billing period."""
    with output.waiting("asking the server"), connect(profile) as client:
        spent = client.usage()
    facts = _spent(spent)
    if as_json:
        output.result_json(facts)
    else:
        output.result_facts(facts)


profiles_app = typer.Typer(
    cls=HelpGroup, help="List logins on several servers, and choose one.", invoke_without_command=True
)


@profiles_app.callback()
def profiles(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_profiles(as_json=False)


@profiles_app.command("list", cls=HelpCommand)
def list_profiles(as_json: AsJson = False) -> None:
    """List the logins; the one in use has a star."""
    kept = _profiles()
    chosen = kept.current()
    known = kept.all()
    if as_json:
        output.result_json(
            [
                {
                    "profile": p.name,
                    "url": p.url,
                    "key_in": "file" if p.api_key else "keyring",
                    "is_chosen": p == chosen,
                }
                for p in known
            ]
        )
    elif known:
        rows = [
            (f"{p.name}{' *' if p == chosen else ''}", p.url, str(kept.path) if p.api_key else "keyring") for p in known
        ]
        output.result_table(("profile", "server", "key in"), rows)
    else:
        output.note("No login is kept yet: afterwords login https://voices.example.com")


@profiles_app.command(cls=HelpCommand)
def use(name: Annotated[str, typer.Argument(help="A login, as `afterwords profiles` lists it.")]) -> None:
    """Use this login from now on."""
    chosen = _profiles().use(name)
    output.result(chosen.name)
    output.note(f"[bold green]✓[/bold green] {output.shown(chosen.url)} is asked from now on.")
    _warn_of_environment()


# -- what is set up -------------------------------------------------------------------------------------------


def _profiles() -> Profiles:
    from afterwords.client.profiles import Profiles
    from afterwords.config import load_config

    return Profiles(load_config().home)


def _configured_url(profiles: Profiles, profile: str | None) -> str | None:
    """The address that a login without one means: that of the profile, or the one that is asked anyway."""
    if profile is not None:
        return next((kept.url for kept in profiles.all() if kept.name == profile), None)
    if url := os.environ.get("AFTERWORDS_BASE_URL"):
        return url
    chosen = profiles.current(os.environ.get("AFTERWORDS_PROFILE") or None)
    return chosen.url if chosen else None


def _ask_url() -> str:
    from afterwords.client.profiles import LOCAL_URL

    if not output.is_terminal():
        raise output.UsageError("It is not clear which server.", hint="name it: afterwords login https://…")
    return output.ask(f"Address of the server (Enter: {LOCAL_URL})").strip() or LOCAL_URL


def _name_for(profiles: Profiles, url: str) -> str:
    """The profile that has this address, else `default`, which is never taken from another server unasked."""
    from afterwords.client.profiles import DEFAULT_NAME

    kept = {profile.name: profile.url for profile in profiles.all()}
    if same := [name for name, known in kept.items() if known == url]:
        chosen = profiles.current()
        return chosen.name if chosen and chosen.name in same else same[0]
    if DEFAULT_NAME in kept:
        raise output.UsageError(
            f"You are logged in to {kept[DEFAULT_NAME]} already.", hint="add --profile NAME to have both."
        )
    return DEFAULT_NAME


def _read_key(url: str) -> str:
    if output.is_terminal():
        return output.ask_hidden(f"API key for {url} (it is not shown):")
    if sys.stdin is None:
        raise output.UsageError("There is no key.", hint="pipe it in, or log in at a terminal.")
    return sys.stdin.buffer.readline(KEY_MAX_BYTES).decode("utf-8", "replace")


def _warn_of_environment() -> None:
    """Name the variables that go before what is kept."""
    for name in ("AFTERWORDS_BASE_URL", "AFTERWORDS_API_KEY", "AFTERWORDS_PROFILE"):
        if os.environ.get(name):
            output.note(f"  [yellow]{name} is set, and goes before it.[/yellow]")


def _key_place(access: Access) -> str:
    is_set = os.environ.get("AFTERWORDS_API_KEY", "").strip() == access.api_key
    if access.profile is None or is_set:
        return "AFTERWORDS_API_KEY"
    return str(_profiles().path) if _profiles().get(access.profile).api_key else "keyring"


def _spent(usage: Usage) -> dict[str, object]:
    return {
        "characters": usage.characters,
        "limit": usage.limit,
        "period": f"{usage.period_start:%Y-%m-%d} to {usage.period_end:%Y-%m-%d}",
    }
