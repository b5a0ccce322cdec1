"""`afterwords keys`: the API keys of the server on this machine, straight in its database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from afterwords.cli import output
from afterwords.cli.serve import require_server

if TYPE_CHECKING:
    from afterwords.models import ApiKey
    from afterwords.server.services.keys import Keys, MintedKey

app = typer.Typer(help="API keys of the server on this machine.", no_args_is_help=True)

T = TypeVar("T")
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def create(
    label: Annotated[str | None, typer.Option(help="What to call it.")] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="voices:read, voices:write or synthesize; absent: everything.")
    ] = None,
    character_limit: Annotated[
        int | None, typer.Option(min=0, max=2**53 - 1, help="Characters it may spend in a month.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key with an account of its own. It is shown this once."""
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
    _show(_with_keys(lambda keys: keys.create(label=label, scopes=scopes, character_limit=character_limit)), as_json)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the keys; the keys themselves are not kept."""
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


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(help="Its id, as `keys list` shows it.")]) -> None:
    """Make a key useless at once."""
    _with_keys(lambda keys: keys.revoke(key_id, account_id=None))
    output.note("Revoked.")


@app.command()
def rotate(
    key_id: Annotated[str, typer.Argument(help="Its id, as `keys list` shows it.")],
    overlap: Annotated[float, typer.Option(min=0, help="Seconds that the old key stays valid.")] = 0,
    as_json: Json = False,
) -> None:
    """Put a new key in the place of one."""
    _show(_with_keys(lambda keys: keys.rotate(key_id, account_id=None, overlap_s=overlap)), as_json)


def _with_keys(use: Callable[[Keys], Awaitable[T]]) -> T:
    """Use the keys of the database that a server here would open."""
    require_server("Managing keys")
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


def _show(minted: MintedKey, as_json: bool) -> None:
    if as_json:
        output.result_json({"api_key": minted.secret, **minted.key.model_dump(mode="json")})
        return
    output.note(f"Key {minted.key.key_id}, shown this once:")
    output.result(minted.secret)


def _standing(key: ApiKey) -> str:
    from afterwords.models import now

    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and key.expires_at <= now():
        return "expired"
    return "valid"
