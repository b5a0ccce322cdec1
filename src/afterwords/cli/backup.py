"""`afterwords backup` and `restore`: the server on this machine in one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output
from afterwords.cli.serve import require_server

if TYPE_CHECKING:
    from afterwords.server.backup import Contents


def backup(
    file: Annotated[Path, typer.Argument(help="File to write, for example afterwords.tar.", show_default=False)],
) -> None:
    """Back up the server's database and audio into one file, while it runs."""
    require_server("Backing up a server")
    import asyncio

    from afterwords.server.backup import back_up
    from afterwords.server.settings import load_settings

    with output.waiting("copying"):
        contents = asyncio.run(back_up(load_settings(), file))
    output.result(output.plain(str(file)))
    _print_contents(contents)
    if contents.lost:
        count = len(contents.lost)
        output.note(f"[bold red]{count} files are missing or altered in the storage[/bold red] and in the backup:")
        for path in contents.lost[:20]:
            output.note(f"  {output.shown(path)}")
        raise typer.Exit(1)


def restore(
    file: Annotated[Path, typer.Argument(help="File written by `afterwords backup`.", show_default=False)],
    replace: Annotated[bool, typer.Option("--replace", help="Replace the server on this machine.")] = False,
) -> None:
    """Restore the server on this machine from a backup. Stop the server first."""
    require_server("Restoring a server")
    import asyncio

    from afterwords.server.backup import restore as run
    from afterwords.server.settings import load_settings

    with output.waiting("verifying and restoring"):
        contents = asyncio.run(run(load_settings(), file, replace=replace))
    output.note("[bold green]✓[/bold green] Restored. Keys, limits and usage are those of the backup.")
    _print_contents(contents)
    output.note("Next: afterwords serve")


def _print_contents(contents: Contents) -> None:
    size = f"{contents.size_bytes / 1e6:,.1f} MB"
    output.note(f"Voices: {contents.n_voices:,}. Audio files: {contents.n_files:,}. Size: {size}.")
