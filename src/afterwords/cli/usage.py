"""`afterwords usage`: the characters of a billing period, by day."""

from __future__ import annotations

import sys
from datetime import timedelta
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from afterwords.cli import output
from afterwords.cli.options import AsJson, Profile
from afterwords.cli.remote import connect
from afterwords.cli.serve import run_with_store

if TYPE_CHECKING:
    from datetime import datetime

    from afterwords.models import Usage
    from afterwords.server.ports import Store

DAYS_MAX: Final = 32
"""Days to draw: as many as a monthly period touches that begins in the middle of a day."""


def usage(
    account: Annotated[
        str | None,
        typer.Option("--account", help="Account of the server on this machine: an ID from `afterwords accounts`."),
    ] = None,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Show the characters used in this billing period, by day.

    They are those of the key or account that is logged in; with --account, those of an account of the server on this
    machine, from its database.
    """
    from afterwords.models import now

    if account is None:
        with output.waiting("asking the server"), connect(profile) as client:
            found = client.usage()
    elif profile is None:
        found = _read_account(account)
    else:
        raise output.UsageError("--account is for the server on this machine.", hint="remove --profile or --account.")
    moment = now()
    days_left = max(0, ceil((found.period_end - moment) / timedelta(days=1)))
    if as_json:
        days = found.model_dump(mode="json")["days"]
        output.result_json({**facts(found), "plan": found.plan, "days_left": days_left, "days": days})
        return
    spent = f"{found.characters:,}"
    if found.limit is not None:
        percent = 100 * found.characters / found.limit if found.limit else 100
        spent += f" of {found.limit:,} ({percent:.0f} %)"
    _print_days(found, moment)
    period = f"{facts(found)['period']}, {days_left} day{'' if days_left == 1 else 's'} left"
    output.result_facts({"characters": spent, "plan": found.plan, "period": period})


def facts(usage: Usage) -> dict[str, Any]:
    """Return the usage as `whoami` shows it."""
    return {
        "characters": usage.characters,
        "limit": usage.limit,
        "period": f"{usage.period_start:%Y-%m-%d} to {usage.period_end:%Y-%m-%d}",
    }


def _read_account(account_id: str) -> Usage:
    async def read(_settings: Any, store: Store) -> Usage:
        from afterwords.errors import InvalidOptionError
        from afterwords.server.records import Caller

        if account_id not in {account.account_id for account in await store.list_accounts()}:
            allowed = "an ID from `afterwords accounts`"
            raise InvalidOptionError.for_option("--account", value=account_id, allowed=allowed)
        return await store.get_usage(Caller(account_id, key_id="", spending_id=""))

    return run_with_store(read, purpose="Reading usage")


def _print_days(usage: Usage, moment: datetime) -> None:
    """Draw the days of the period up to now as bars; into a pipe, print those with usage as lines."""
    spent = {day.day: day.characters for day in usage.days}
    if not spent:
        return
    if not sys.stdout.isatty():
        output.result_table(("day", "characters"), [(str(day), str(characters)) for day, characters in spent.items()])
        return
    from rich.console import Console
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    last = max(*spent, min(moment, usage.period_end - timedelta(microseconds=1)).date())
    n_days = min(DAYS_MAX, (last - min(*spent, usage.period_start.date())).days + 1)
    chart = Table.grid(padding=(0, 1), expand=True)
    chart.add_column(no_wrap=True)
    chart.add_column(ratio=1)
    chart.add_column(justify="right", no_wrap=True)
    for day in (last - timedelta(days=ago) for ago in reversed(range(n_days))):
        characters = spent.get(day, 0)
        chart.add_row(f"{day:%b %d}", ProgressBar(max(spent.values()), characters), f"{characters:,}")
    Console(color_system=None).print(chart)  # with colors, a bar also has a line for the rest
