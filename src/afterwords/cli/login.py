"""`afterwords login`, `logout`, `whoami` and `profiles`: which server to use, and with which key.

A key is typed or piped in, never given as an option: other users of a machine can see the arguments of its processes.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output
from afterwords.cli.help import HelpCommand, HelpGroup
from afterwords.cli.options import AsJson, Profile
from afterwords.cli.remote import command
from afterwords.cli.usage import facts

if TYPE_CHECKING:
    from afterwords.client.profiles import Profiles

KEY_MAX_BYTES = 4096


def login(
    url: Annotated[
        str | None, typer.Argument(help="Address of the server, such as https://voices.example.com.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="Name of this login, if you have several.")
    ] = None,
) -> None:
    """Log in to a server with an API key, which is asked for or read from stdin."""
    from afterwords.client import Client
    from afterwords.client.profiles import DEFAULT_NAME, LOCAL_URL, Access, check_profile, check_secret, check_url

    profiles = _profiles()
    if profile is not None:
        check_profile(profile)
    if url is None and profile is not None:
        url = next((known.url for known in profiles.all() if known.name == profile), None)
    elif url is None:  # the server that commands use already
        current = profiles.current(os.environ.get("AFTERWORDS_PROFILE") or None)
        url = os.environ.get("AFTERWORDS_BASE_URL") or (current.url if current else None)
    if not url:
        if not output.is_terminal():
            raise output.UsageError("No server is named.", hint="name it: afterwords login https://…")
        url = output.ask(f"Address of the server (Enter: {LOCAL_URL})").strip() or LOCAL_URL
    url = check_url(url)
    name = profile
    if name is None:  # the login with this address, or `default` unless another server has that name
        urls = {known.name: known.url for known in profiles.all()}
        if same := [known for known, address in urls.items() if address == url]:
            chosen = profiles.current()
            name = chosen.name if chosen and chosen.name in same else same[0]
        elif DEFAULT_NAME in urls:
            raise output.UsageError(
                f"You are logged in to {urls[DEFAULT_NAME]} already.", hint="add --profile NAME to have both."
            )
        else:
            name = DEFAULT_NAME
    if not Access(url).is_private:
        output.note("[yellow]The address begins with http://: anyone on the network can read the key.[/yellow]")
    if output.is_terminal():
        typed = output.ask_hidden(f"API key for {url} (it is not shown):")
    elif sys.stdin is not None:
        typed = sys.stdin.buffer.readline(KEY_MAX_BYTES).decode("utf-8", "replace")
    else:
        raise output.UsageError("No key was given.", hint="pipe it in, or log in at a terminal.")
    api_key = check_secret(typed, "the API key")
    with output.waiting("asking the server"), Client(url, api_key=api_key) as client:
        client.usage()  # fails if the key is invalid
    is_in_keyring = profiles.save(name, url, api_key)
    place = "the keyring of this system" if is_in_keyring else f"{profiles.path}, which only you can read"
    output.note(f"[bold green]✓[/bold green] Logged in to {output.shown(url)} as {name}.")
    output.note(f"  The key is in {output.shown(place)}.")
    _warn_of_environment()
    output.note(f"Next: {output.shown(command('whoami', profile=profile))}")


def logout(profile: Profile = None) -> None:
    """Remove a login and its key from this machine. The key stays valid until `afterwords keys revoke`."""
    profiles = _profiles()
    current = profiles.get(profile) if profile else profiles.current(os.environ.get("AFTERWORDS_PROFILE") or None)
    if current is None:
        output.note("You are not logged in.")
        return
    profiles.remove(current.name)
    output.note(f"[bold green]✓[/bold green] Removed {current.name} and its key for {output.shown(current.url)}.")
    if chosen := profiles.current():
        output.note(f"  Now in use: {chosen.name}, {output.shown(chosen.url)}")
    _warn_of_environment()


def whoami(profile: Profile = None, as_json: AsJson = False) -> None:
    """Show the current server and login, and the backends that the server offers."""
    from afterwords.client import Client
    from afterwords.client.profiles import find_access
    from afterwords.errors import UnauthorizedError

    access = find_access(profile=profile)
    if access.api_key is None:
        raise UnauthorizedError.not_logged_in(access.base_url)
    with output.waiting("asking the server"), Client(access.base_url, api_key=access.api_key) as client:
        health, usage = client.health(), client.usage()
    if access.profile is None or os.environ.get("AFTERWORDS_API_KEY", "").strip() == access.api_key:
        key_from = "AFTERWORDS_API_KEY"
    else:
        profiles = _profiles()
        key_from = str(profiles.path) if profiles.get(access.profile).api_key else "keyring"
    shown = {
        "server": access.base_url,
        "profile": access.profile,
        "key_from": key_from,
        "version": health.version or "hosted",
        "backends": list(health.backends),
        **facts(usage),
    }
    if as_json:
        output.result_json(shown)
    else:
        output.result_facts({**shown, "backends": " ".join(health.backends)})


profiles = typer.Typer(cls=HelpGroup, invoke_without_command=True)


@profiles.callback()
def options(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        list_profiles()


@profiles.command("list", cls=HelpCommand)
def list_profiles(as_json: AsJson = False) -> None:
    """List the logins; the current one has a star."""
    profiles = _profiles()
    chosen, found = profiles.current(), profiles.all()
    if as_json:
        output.result_json(
            [
                {
                    "profile": p.name,
                    "url": p.url,
                    "key_in": "file" if p.api_key else "keyring",
                    "is_chosen": p == chosen,
                }
                for p in found
            ]
        )
    elif found:
        rows = [
            (f"{p.name}{' *' if p == chosen else ''}", p.url, str(profiles.path) if p.api_key else "keyring")
            for p in found
        ]
        output.result_table(("profile", "server", "key in"), rows)
    else:
        output.note("You are not logged in to any server: afterwords login https://voices.example.com")


@profiles.command(cls=HelpCommand)
def use(name: Annotated[str, typer.Argument(help="Name of a login, from `afterwords profiles`.")]) -> None:
    """Make a login the current one."""
    chosen = _profiles().use(name)
    output.result(chosen.name)
    output.note(f"[bold green]✓[/bold green] Now in use: {output.shown(chosen.url)}")
    _warn_of_environment()


def _profiles() -> Profiles:
    from afterwords.client.profiles import Profiles
    from afterwords.config import load_config

    return Profiles(load_config().home)


def _warn_of_environment() -> None:
    """Print which environment variables override the logins."""
    for name in ("AFTERWORDS_BASE_URL", "AFTERWORDS_API_KEY", "AFTERWORDS_PROFILE"):
        if os.environ.get(name):
            output.note(f"  [yellow]{name} is set and overrides this.[/yellow]")
