"""`afterwords keys`: the API keys of the server on this machine, straight in its database; with --remote, another's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from afterwords.cli import output
from afterwords.cli.help import HelpCommand, HelpGroup
from afterwords.cli.remote import Profile, Remote, is_remote, server
from afterwords.cli.serve import require_server

if TYPE_CHECKING:
    from afterwords.models import ApiKey
    from afterwords.server.services.keys import Keys, MintedKey

app = typer.Typer(
    cls=HelpGroup,
    help="List, create, rotate and revoke API keys of the server on this machine, or of another.",
    no_args_is_help=True,
)

T = TypeVar("T")
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KeyId = Annotated[str, typer.Argument(help="Its id, as `keys list` shows it.")]


@app.command(cls=HelpCommand)
def create(
    label: Annotated[str | None, typer.Option(help="Name of the key, for you.")] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="voices:read, voices:write or synthesize; absent: everything.")
    ] = None,
    character_limit: Annotated[
        int | None, typer.Option(min=0, max=2**53 - 1, help="Characters it may spend in a month.")
    ] = None,
    remote: Remote = False,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """Create a key. It is shown this once. With --remote, it needs the admin secret of that server."""
    if is_remote(remote, profile):
        with server(profile, admin_secret=_admin_secret(profile)) as client:
            made = client.keys.create(label=label, scopes=scope or (), character_limit=character_limit)
        _show(made.api_key, made.key_id, made.model_dump(mode="json", exclude_none=True), as_json)
        return
    from afterwords.errors import InvalidOptionError
    from afterwords.models import NAME_MAX_CHARS
    from afterwords.server.ports import Scope

    if label and len(label) > NAME_MAX_CHARS:
        raise InvalidOptionError("--label", value=f"{label[:20]}…", allowed=f"at most {NAME_MAX_CHARS} characters")
    known = set(Scope)
    for name in scope or ():
        if name not in known:
            raise InvalidOptionError("--scope", value=name, allowed=", ".join(Scope))
    scopes = tuple(Scope(name) for name in scope or ())
    _show_minted(
        _with_keys(lambda keys: keys.create(label=label, scopes=scopes, character_limit=character_limit)), as_json
    )


@app.command("list", cls=HelpCommand)
def list_(remote: Remote = False, profile: Profile = None, as_json: Json = False) -> None:
    """List the keys; the keys themselves are not kept."""
    if is_remote(remote, profile):
        with server(profile) as client:
            found = client.keys.list()
    else:
        found = _with_keys(lambda keys: keys.list(account_id=None))
    if as_json:
        output.result_json([key.model_dump(mode="json") for key in found])
        return
    if not found:
        output.note("There is no key yet: afterwords keys create")
        return
    rows = [
        (
            key.key_id,
            key.label or "",
            " ".join(key.scopes) or "all",
            _standing(key),
            f"{key.created_at:%Y-%m-%d}",
        )
        for key in found
    ]
    output.result_table(("id", "label", "scopes", "state", "created"), rows)


@app.command(cls=HelpCommand)
def revoke(key_id: KeyId, remote: Remote = False, profile: Profile = None) -> None:
    """Make a key useless at once."""
    if is_remote(remote, profile):
        with server(profile) as client:
            client.keys.revoke(key_id)
    else:
        _with_keys(lambda keys: keys.revoke(key_id, account_id=None))
    output.note("Revoked.")


@app.command(cls=HelpCommand)
def rotate(
    key_id: KeyId,
    overlap: Annotated[float, typer.Option(min=0, help="Seconds that the old key stays valid.")] = 0,
    remote: Remote = False,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """Put a new key in the place of one."""
    if is_remote(remote, profile):
        with server(profile) as client:
            made = client.keys.rotate(key_id, overlap_s=overlap)
        _show(made.api_key, made.key_id, made.model_dump(mode="json", exclude_none=True), as_json)
        output.note("If it takes the place of the key you are logged in with: afterwords login")
        return
    _show_minted(_with_keys(lambda keys: keys.rotate(key_id, account_id=None, overlap_s=overlap)), as_json)


def _with_keys(use: Callable[[Keys], Awaitable[T]]) -> T:
    """Use the keys of the database that a server here would open."""
    require_server("Managing keys")
    import asyncio

    from afterwords.server.services.keys import Keys
    from afterwords.server.settings import load_settings
    from afterwords.server.wiring import open_store

    async def run() -> T:
        store = open_store(load_settings())
        try:
            await store.open()
            return await use(Keys(store))
        finally:
            await store.close()

    return asyncio.run(run())


def _admin_secret(profile: str | None) -> str | None:
    """The secret that opens the door to new keys: the one that is set, else asked for at the terminal."""
    from afterwords.errors import NotLoggedInError
    from afterwords.profiles import find_access

    access = find_access(profile=profile)
    if access.admin_secret is not None:
        return access.admin_secret
    if not output.is_terminal():
        raise NotLoggedInError(access.base_url, what="admin secret")
    return output.ask_hidden(f"Admin secret of {access.base_url} (it is not shown):")


def _show_minted(minted: MintedKey, as_json: bool) -> None:
    facts = {"api_key": minted.secret, **minted.key.model_dump(mode="json")}
    _show(minted.secret, minted.key.key_id, facts, as_json)


def _show(secret: str, key_id: str | None, facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        output.result_json(facts)
        return
    output.note(f"{f'Key {output.shown(key_id)}' if key_id else 'A key'}, shown this once:")
    output.result(output.plain(secret))


def _standing(key: ApiKey) -> str:
    from afterwords.models import now

    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and key.expires_at <= now():
        return "expired"
    return "valid"
