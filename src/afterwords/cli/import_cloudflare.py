"""`afterwords import-cloudflare`: bring the data of the hosted service to the server on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output
from afterwords.cli.options import AsJson
from afterwords.cli.serve import require_server

if TYPE_CHECKING:
    from afterwords.server.cloudflare.importer import ImportResult

SHOWN_MAX = 5
TABLES = {
    "accounts": "accounts",
    "keys": "keys",
    "voices": "voices",
    "jobs": "jobs",
    "cache": "cached texts",
    "customers": "Stripe customers",
}


def import_cloudflare(
    d1: Annotated[Path, typer.Option("--d1", help="Dump of the database: wrangler d1 export.", show_default=False)],
    kv: Annotated[Path, typer.Option("--kv", help="The keys: wrangler kv key list.", show_default=False)],
    r2: Annotated[
        str,
        typer.Option("--r2", help="The audio: a folder, or s3://bucket?endpoint=…&region=auto.", show_default=False),
    ],
    owner_column: Annotated[
        str | None,
        typer.Option("--owner-column", help="Column of voices with the hash of the key.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read everything, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Import accounts, keys, voices, jobs and audio of the hosted service on Cloudflare. Stop the server first.

    Keys go on working. What was imported before is left alone, so the command can be repeated.
    """
    require_server("Importing a server")
    import asyncio

    from afterwords.server.cloudflare.importer import import_cloudflare as run
    from afterwords.server.settings import load_settings

    with output.progress_bar("reading") as bar:
        result = asyncio.run(
            run(
                load_settings(),
                d1=d1,
                kv=kv,
                r2=r2,
                owner_column=owner_column,
                is_dry_run=dry_run,
                on_progress=bar,
            )
        )
    if as_json:
        findings = result.findings.by_problem
        output.result_json(
            {"new": result.new, "present": result.n_present, "files": result.copied_files,
             "bytes": result.copied_bytes, "findings": findings}
        )  # fmt: skip
    _print(result, is_dry_run=dry_run)


def _print(result: ImportResult, *, is_dry_run: bool) -> None:
    new = result.new
    counts = ", ".join(f"{name} {new[table]:,}" for table, name in TABLES.items())
    start = "It would import" if is_dry_run else "[bold green]✓[/bold green] Imported"
    output.note(f"{start}: {counts}, audio files {result.copied_files:,} ({result.copied_bytes / 1e6:,.1f} MB).")
    if result.n_present:
        output.note(f"Already here: {result.n_present:,}.")
    for problem, names in result.findings.by_problem.items():
        shown = ", ".join(output.shown(name) for name in names[:SHOWN_MAX])
        more = f", and {len(names) - SHOWN_MAX:,} more (--json lists all)" if len(names) > SHOWN_MAX else ""
        output.note(f"[yellow]{output.shown(problem)} ({len(names):,}):[/yellow] {shown}{more}")
    output.note("Nothing was changed. Run it again without --dry-run." if is_dry_run else "Next: afterwords serve")
