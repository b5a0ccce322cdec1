"""`afterwords storage`: check which database owns the storage of the server on this machine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import typer

from afterwords.cli import output
from afterwords.cli.help import HelpCommand, HelpGroup
from afterwords.cli.options import Yes
from afterwords.cli.serve import run_with_store

if TYPE_CHECKING:
    from afterwords.server.ports import Store
    from afterwords.server.services.ownership import Ownership
    from afterwords.server.settings import Settings

storage = typer.Typer(cls=HelpGroup, invoke_without_command=True)

T = TypeVar("T")


@storage.callback()
def options(context: typer.Context) -> None:
    if context.invoked_subcommand is not None:
        return

    async def state(ownership: Ownership) -> str:
        from afterwords.server.services.ownership import OwnershipStatus

        status = await ownership.read()
        if status is OwnershipStatus.UNMARKED and not await ownership.list_unknown():
            return "not begun: a server marks the storage when it starts"
        return status.sweep

    output.result(f"sweep {_with_ownership(state)}")


@storage.command(cls=HelpCommand)
def adopt(yes: Yes = False) -> None:
    """Mark the storage as owned by this server's database, which then removes audio that it does not know."""
    unknown = _with_ownership(lambda ownership: ownership.list_unknown())
    if unknown and not yes:
        count = f"{len(unknown):,} files" if len(unknown) > 1 else "1 file"
        output.confirm_removal(
            f"[bold]{count}[/bold] in the storage are not known to this database. Once it is adopted, the server "
            "removes them after AFTERWORDS_SWEEP_GRACE_S (default: one hour). Nothing else may use the storage."
        )
    _with_ownership(lambda ownership: ownership.adopt())
    output.note("The storage belongs to this database now.")


def _with_ownership(use: Callable[[Ownership], Awaitable[T]]) -> T:
    async def with_store(settings: Settings, store: Store) -> T:
        from afterwords.server.app_state import open_storage
        from afterwords.server.services.ownership import Ownership, database_id

        return await use(Ownership(store, open_storage(settings), database_id(await store.secret())))

    return run_with_store(with_store, purpose="Looking at the storage")
