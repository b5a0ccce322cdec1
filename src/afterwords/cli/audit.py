"""`afterwords audit`: the audit log of the server on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output
from afterwords.cli.help import HelpCommand, HelpGroup
from afterwords.cli.options import AsJson
from afterwords.cli.serve import run_with_store

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from afterwords.server.ports import Store
    from afterwords.server.records import AuditEntry
    from afterwords.server.settings import Settings

audit = typer.Typer(cls=HelpGroup, no_args_is_help=True)


@audit.command("list", cls=HelpCommand)
def list_entries(
    limit: Annotated[int, typer.Option(min=1, help="Number of entries.")] = 100, as_json: AsJson = False
) -> None:
    """List what was done to keys, worker tokens, voices and accounts, and by which key; newest first."""

    def read(_settings: Settings, store: Store) -> Awaitable[list[AuditEntry]]:
        return store.list_audit(limit=limit)

    found = run_with_store(read, purpose="Reading the audit log")
    if as_json:
        output.result_json(
            [
                {
                    "at": entry.at.isoformat(),
                    "action": entry.action,
                    "target_id": entry.target_id,
                    "account_id": entry.account_id,
                    "by": entry.actor,
                    "request_id": entry.request_id,
                }
                for entry in found
            ]
        )
    elif found:
        rows = [
            (
                f"{entry.at:%Y-%m-%d %H:%M:%S}",
                entry.action,
                entry.target_id,
                entry.account_id or "-",
                entry.actor,
                entry.request_id or "-",
            )
            for entry in found
        ]
        output.result_table(("at (UTC)", "action", "id", "account", "by", "request"), rows)
    else:
        output.note("The audit log is empty.")
