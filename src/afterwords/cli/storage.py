"""`afterwords storage`: whether the storage of the server on this machine belongs to its database."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from afterwords.cli import output
from afterwords.cli.help import HelpCommand, HelpGroup
from afterwords.cli.serve import require_server

if TYPE_CHECKING:
    from afterwords.server.services.ownership import Ownership

app = typer.Typer(
    cls=HelpGroup,
    help="Check that the storage of the server on this machine is its own, and adopt it.",
    invoke_without_command=True,
)

T = TypeVar("T")


@app.callback()
def storage(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        output.result(f"sweep {_with_ownership(_state)}")


@app.command(cls=HelpCommand)
def adopt(yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False) -> None:
    """Make the storage this database's own, so that the server removes audio there that no row names."""
    unknown = _with_ownership(lambda ownership: ownership.list_unknown())
    if unknown and not yes:
        many = f"{len(unknown):,} files" if len(unknown) > 1 else "1 file"
        output.confirm_removal(
            f"[bold]{many}[/bold] in the storage are not known to this database. Once it is adopted, the server "
            "removes them after AFTERWORDS_SWEEP_GRACE_S (an hour if not set). Nothing else may use the storage."
        )
    _with_ownership(lambda ownership: ownership.adopt())
    output.note("The storage belongs to this database now.")


async def _state(ownership: Ownership) -> str:
    from afterwords.server.services.ownership import OwnershipStatus

    status = await ownership.read()
    if status is OwnershipStatus.UNMARKED and not await ownership.list_unknown():
        return "not begun: a server marks the storage when it starts"
    return status.sweep


def _with_ownership(use: Callable[[Ownership], Awaitable[T]]) -> T:
    require_server("Looking at the storage")
    import asyncio

    from afterwords.server.app_state import open_storage, open_store
    from afterwords.server.services.ownership import Ownership, database_id
    from afterwords.server.settings import load_settings

    async def run() -> T:
        settings = load_settings()
        store = open_store(settings)
        try:
            await store.open()
            return await use(Ownership(store, open_storage(settings), database_id(await store.secret())))
        finally:
            await store.close()

    return asyncio.run(run())
