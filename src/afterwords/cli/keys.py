"""`afterwords keys`: the API keys of the server on this machine, straight in its database; with --remote, another's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from afterwords.cli import output
from afterwords.cli.help import HelpCommand, HelpGroup, examples
from afterwords.cli.options import AsJson as Json
from afterwords.cli.options import Profile, Remote, is_remote
from afterwords.cli.remote import connect
from afterwords.cli.serve import require_server

if TYPE_CHECKING:
    from afterwords.models import ApiKey
    from afterwords.server.services.keys import KeyService, MintedKey

app = typer.Typer(
    cls=HelpGroup,
    help="List, create, rotate and revoke API keys of the server on this machine, or of another.",
    invoke_without_command=True,
)

T = TypeVar("T")
KeyId = Annotated[str, typer.Argument(help="Its id, as `keys list` shows it.")]


@app.callback()
def keys(context: typer.Context, remote: Remote = False, profile: Profile = None) -> None:
    if context.invoked_subcommand is None:
        list_(remote=remote, profile=profile)
    elif is_remote(remote, profile):
        raise output.UsageError(
            "--remote and --profile go last here.",
            hint=f"afterwords keys {context.invoked_subcommand} … --remote.",
        )


@app.command(cls=HelpCommand, epilog=examples("afterwords keys create --for KEY_ID --scope synthesize --label app"))
def create(
    label: Annotated[str | None, typer.Option(help="Name of the key, for you.")] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="voices:read, voices:write or synthesize; absent: everything.")
    ] = None,
    character_limit: Annotated[
        int | None, typer.Option(min=0, max=2**53 - 1, help="Characters it may spend in a month.")
    ] = None,
    account: Annotated[
        str | None, typer.Option(help="Account that it is for, as `afterwords accounts` shows it; absent: a new one.")
    ] = None,
    for_key: Annotated[str | None, typer.Option("--for", help="Id of a key whose account it is for.")] = None,
    home: Annotated[
        bool, typer.Option("--home", help="For the voices of this machine, with those that were pushed to them.")
    ] = False,
    remote: Remote = False,
    profile: Profile = None,
    as_json: Json = False,
) -> None:
    """Create a key for a new account, or for one that exists. It is shown this once.

    With --remote, it needs the admin secret of that server, or a key without scopes and limit: that one creates keys
    with scopes for its own account.
    """
    from afterwords.errors import InvalidOptionError

    if home and (account or for_key or is_remote(remote, profile)):
        raise InvalidOptionError("--home", value="true", allowed="without --account, --for and --remote")
    asked: dict[str, Any] = {
        "label": label,
        "character_limit": character_limit,
        "account_id": account,
        "for_key": for_key,
    }
    if is_remote(remote, profile):
        with connect(profile, admin_secret=_admin_secret(profile, is_needed=not scope)) as client:
            made = client.keys.create(scopes=scope or (), **asked)
        _show(made.api_key, made.key_id, made.model_dump(mode="json", exclude_none=True), as_json)
        return
    from afterwords.models import NAME_MAX_CHARS
    from afterwords.server.records import Scope

    if label and len(label) > NAME_MAX_CHARS:
        raise InvalidOptionError("--label", value=f"{label[:20]}…", allowed=f"at most {NAME_MAX_CHARS} characters")
    known = set(Scope)
    for name in scope or ():
        if name not in known:
            raise InvalidOptionError("--scope", value=name, allowed=", ".join(Scope))
    scopes = tuple(Scope(name) for name in scope or ())
    _show_minted(_with_keys(lambda keys: keys.create(scopes=scopes, is_home=home, **asked)), as_json)


@app.command("list", cls=HelpCommand)
def list_(remote: Remote = False, profile: Profile = None, as_json: Json = False) -> None:
    """List the keys; the keys themselves are not kept."""
    if is_remote(remote, profile):
        with connect(profile) as client:
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
            f"{key.prefix}…" if key.prefix else "-",
            key.label or "-",
            key.account_id[:8] if key.account_id else "-",
            " ".join(key.scopes) or "all",
            _spent(key),
            f"{key.used_at:%Y-%m-%d %H:%M}" if key.used_at else "-",
            f"{key.created_at:%Y-%m-%d}",
            _standing(key),
        )
        for key in found
    ]
    heads = ("id", "key", "label", "account", "scopes", "spent", "used (UTC)", "created", "state")
    output.result_table(heads, rows)


@app.command(cls=HelpCommand)
def revoke(key_id: KeyId, remote: Remote = False, profile: Profile = None) -> None:
    """Make a key useless at once."""
    if is_remote(remote, profile):
        with connect(profile) as client:
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
        with connect(profile) as client:
            made = client.keys.rotate(key_id, overlap_s=overlap)
        _show(made.api_key, made.key_id, made.model_dump(mode="json", exclude_none=True), as_json)
        output.note("If it takes the place of the key you are logged in with: afterwords login")
        return
    _show_minted(_with_keys(lambda keys: keys.rotate(key_id, account_id=None, overlap_s=overlap)), as_json)


def _with_keys(use: Callable[[KeyService], Awaitable[T]]) -> T:
    """Use the keys of the database that a server here would open."""
    require_server("Managing keys")
    import asyncio

    from afterwords.server.app_state import open_store
    from afterwords.server.services.keys import KeyService
    from afterwords.server.settings import load_settings

    async def run() -> T:
        store = open_store(load_settings())
        try:
            await store.open()
            return await use(KeyService(store))
        finally:
            await store.close()

    return asyncio.run(run())


def _admin_secret(profile: str | None, *, is_needed: bool = True) -> str | None:
    """Return the admin secret that is set; where it is needed and is not, ask at the terminal."""
    from afterwords.client.profiles import find_access
    from afterwords.errors import NotLoggedInError

    access = find_access(profile=profile)
    if access.admin_secret is not None or not is_needed:
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


def _spent(key: ApiKey) -> str:
    """Characters of this month, and the limit."""
    spent = "-" if key.characters is None else f"{key.characters:,}"
    return spent if key.character_limit is None else f"{spent} / {key.character_limit:,}"


def _standing(key: ApiKey) -> str:
    from afterwords.models import now

    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is None:
        return "valid"
    return "expired" if key.expires_at <= now() else f"valid until {key.expires_at:%Y-%m-%d %H:%M} UTC"


def accounts(remote: Remote = False, profile: Profile = None, as_json: Json = False) -> None:
    """List the accounts of the server on this machine, with what they have and have spent this month.

    With --remote, it needs the admin secret of the other server.
    """
    if is_remote(remote, profile):
        with connect(profile, admin_secret=_admin_secret(profile)) as client:
            found = list(client.keys.accounts())
    else:
        found = list(_with_keys(lambda keys: keys.list_accounts()))
    if as_json:
        output.result_json([account.model_dump(mode="json") for account in found])
        return
    if not found:
        output.note("There is no account yet: afterwords keys create")
        return
    rows = [
        (
            account.account_id,
            str(account.keys),
            str(account.voices),
            f"{account.characters:,}",
            f"{account.storage_bytes / 1e6:,.1f} MB",
            f"{account.created_at:%Y-%m-%d}",
        )
        for account in found
    ]
    output.result_table(("id", "keys", "voices", "characters this month", "storage", "created"), rows)
