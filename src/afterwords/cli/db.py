"""`afterwords db`: migrate, check, copy, back up and restore the database of the server on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import backup as files
from afterwords.cli import output
from afterwords.cli.help import HelpCommand, HelpGroup
from afterwords.cli.serve import require_server

if TYPE_CHECKING:
    from afterwords.server.databases import DatabaseState

db = typer.Typer(cls=HelpGroup, no_args_is_help=True)
backup = db.command(cls=HelpCommand)(files.backup)
restore = db.command(cls=HelpCommand)(files.restore)

DatabaseUrl = Annotated[
    str, typer.Argument(help="sqlite:///path/to/file.db, or postgresql://user:password@host/name.", show_default=False)
]


@db.command(cls=HelpCommand)
def migrate() -> None:
    """Create the database, or migrate it to this version, as `afterwords serve` does when it starts."""
    require_server("Migrating a database")
    import asyncio

    from afterwords.server.databases import migrate as run
    from afterwords.server.settings import load_settings
    from afterwords.server.store.migrate import HEAD

    with output.waiting("migrating"):
        before = asyncio.run(run(load_settings()))
    if before.is_current:
        output.note(f"The schema is up to date: {HEAD}.")
    elif before.version is None:
        output.note(f"Created the schema {HEAD}.")
    else:
        output.note(f"Migrated the schema from {before.version} to {HEAD}.")


@db.command(cls=HelpCommand)
def check() -> None:
    """Check the database, and change nothing. The exit code is 1 if it must be migrated, or is damaged."""
    require_server("Checking a database")
    import asyncio

    from afterwords.server.databases import check as run
    from afterwords.server.settings import load_settings
    from afterwords.server.store.migrate import HEAD, newer_database

    with output.waiting("checking"):
        state: DatabaseState = asyncio.run(run(load_settings()))
    if state.version and state.version > HEAD:
        raise newer_database(state.version)
    output.result(f"schema {state.version or 'none'}")
    if not state.is_current:
        output.note(f"This version needs schema {HEAD}. Next: afterwords db migrate")
        raise typer.Exit(1)
    for name, n_rows in (state.counts or {}).items():
        output.result(f"{name} {n_rows}")
    for problem in state.problems:
        output.note(f"[bold red]Damaged:[/bold red] {output.shown(problem)}")
    if state.problems:
        output.note("Restore a backup: afterwords db restore FILE --replace")
        raise typer.Exit(1)


@db.command(cls=HelpCommand)
def copy(source: DatabaseUrl, target: DatabaseUrl) -> None:
    """Copy all rows to an empty database, from SQLite to Postgres or back. Stop the servers first.

    Audio stays where it is: the storage belongs to the copy as well.
    """
    require_server("Copying a database")
    import asyncio

    from afterwords.server.databases import copy as run

    with output.waiting("copying"):
        counts = asyncio.run(run(source, target))
    output.note(
        f"[bold green]✓[/bold green] Copied {sum(counts.values()):,} rows: {counts['voices']:,} voices, "
        f"{counts['keys']:,} keys, {counts['jobs']:,} jobs."
    )
    output.note("Next: set AFTERWORDS_DATABASE_URL to the copy, and start the servers.")
