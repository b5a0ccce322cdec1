"""`afterwords status`: the state of a running server."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any, Final

import typer

from afterwords.cli import output
from afterwords.cli.options import AsJson

TIMEOUT_S: Final = 15.0
NOT_READY: Final = 8


def status(
    url: Annotated[
        str | None, typer.Option("--url", help="Address of the server. (default: as for other commands)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show whether a running server is ready, its queue and workers. The exit code is 8 if it is not.

    On another machine, or if the server has a public URL, this needs the admin secret in AFTERWORDS_ADMIN_SECRET.
    """
    from afterwords.client._sync.session import Session
    from afterwords.client.parsing import parse_object
    from afterwords.client.profiles import find_access
    from afterwords.client.requests import Request

    access = find_access(url)
    request = Request(
        "GET", "/status", is_admin=True, is_public=access.admin_secret is None, feature="showing its status"
    )
    with contextlib.closing(Session(access, timeout_s=TIMEOUT_S)) as session:
        found = parse_object(session.request(request))
    if as_json:
        output.result_json(found)
    else:
        output.result_facts(_facts(found))
    if found.get("status") != "ready":
        raise typer.Exit(NOT_READY)


def _facts(found: dict[str, Any]) -> dict[str, Any]:
    """Return what is shown to people; an absent value is left out."""
    facts = {**found, "backends": " ".join(found.get("backends", ()))}
    facts["uptime"] = output.duration(facts.pop("uptime_s", 0))
    if (rate := facts.pop("cache_hit_rate", None)) is not None:
        facts["cache hits"] = f"{rate:.1%}"
    facts["disk free"] = f"{facts.pop('disk_free_bytes', 0) / 1e9:,.1f} GB"
    facts["waiting"], facts["running"] = facts.pop("waiting_jobs", None), facts.pop("running_jobs", None)
    if (oldest_s := facts.pop("oldest_job_s", None)) is not None:
        facts["oldest job"] = output.duration(oldest_s)
    return facts
