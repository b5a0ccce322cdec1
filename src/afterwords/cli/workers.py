"""`afterwords worker`: run the jobs of a server elsewhere. `afterwords workers`: such workers and their tokens."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from afterwords.cli import output
from afterwords.cli.help import HelpCommand, HelpGroup, examples
from afterwords.cli.options import AsJson, check_label
from afterwords.cli.serve import require_server, run_with_store

if TYPE_CHECKING:
    from afterwords.server.records import WorkerToken
    from afterwords.server.services.keys import KeyService

tokens = typer.Typer(cls=HelpGroup, no_args_is_help=True)

T = TypeVar("T")
VARIABLE: Final = "AFTERWORDS_WORKER_TOKEN"
TOKEN_MAX_BYTES: Final = 1024
TIMEOUT_S: Final = 15.0


def _workers() -> typer.Typer:
    group = typer.Typer(cls=HelpGroup, no_args_is_help=True)
    group.add_typer(tokens, name="token", help="List, create and revoke the tokens of remote workers.")
    return group


workers = _workers()


@workers.command("list", cls=HelpCommand)
def list_workers(
    url: Annotated[
        str | None, typer.Option("--url", help="Address of the server. (default: as for other commands)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the remote workers that are connected to a running server.

    This needs the admin secret in AFTERWORDS_ADMIN_SECRET. Of several servers that share a database, each lists only
    its own.
    """
    from afterwords.client._sync.session import Session
    from afterwords.client.parsing import parse_object
    from afterwords.client.profiles import find_access
    from afterwords.client.requests import Request

    request = Request("GET", "/v1/workers", is_admin=True, feature="listing its workers")
    with closing(Session(find_access(url), timeout_s=TIMEOUT_S)) as session:
        found = parse_object(session.request(request))["workers"]
    if as_json:
        output.result_json(found)
    elif found:
        rows = [
            (
                each["name"],
                each["version"],
                each["token_label"] or each["token_id"],
                " ".join(each["backends"]),
                str(each["running_jobs"]),
                f"{each['seen_s']:.0f} s ago",
            )
            for each in found
        ]
        output.result_table(("name", "version", "token", "backends", "running", "last request"), rows)
    else:
        output.note("No remote worker is connected. Start one: afterwords worker --server URL")


def worker(
    server: Annotated[str, typer.Option(help="Address of the server.", envvar="AFTERWORDS_BASE_URL")],
    token: Annotated[
        str | None, typer.Option(help=f"The worker token; - reads it from stdin. (default: {VARIABLE})")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Stop when no job is waiting.")] = False,
    max_jobs: Annotated[int | None, typer.Option(min=1, help="Stop after this many jobs.")] = None,
) -> None:
    """Run the jobs of a server elsewhere on this machine. Ctrl-C stops it after running jobs.

    The server creates the token: afterwords workers token create. Settings come from AFTERWORDS_* variables and
    config.toml in the home folder: see docs/workers.md.
    """
    require_server("A worker")
    from afterwords.client.profiles import Access, check_secret, check_url
    from afterwords.server.run import EXIT_BY_SIGNAL
    from afterwords.server.run_worker import run_worker
    from afterwords.server.settings import load_settings

    access = Access(check_url(server))
    if not access.is_private:
        output.note("[bold yellow]Warning:[/bold yellow] over http others can read the token, texts and voices.")
    if token == "-":
        token = sys.stdin.buffer.readline(TOKEN_MAX_BYTES).decode("utf-8", "replace") if sys.stdin else ""
    elif token is not None:
        output.note(
            "[bold yellow]Warning:[/bold yellow] other users of this machine can see the arguments of a command; "
            f"use --token - or {VARIABLE}."
        )
    secret = os.environ.get(VARIABLE, "") if token is None else token
    if not secret.strip():
        raise output.UsageError(
            "No worker token is given.",
            hint=f"create one on the machine of the server (afterwords workers token create), and set {VARIABLE}.",
        )
    signal = run_worker(load_settings(), access, check_secret(secret, "the worker token"), once=once, max_jobs=max_jobs)
    raise typer.Exit(EXIT_BY_SIGNAL.get(signal, 0))


@tokens.command(cls=HelpCommand, epilog=examples("afterwords workers token create --label gpu-1"))
def create(
    label: Annotated[str | None, typer.Option(help="Label to recognize the token by.")] = None, as_json: AsJson = False
) -> None:
    """Create a token for remote workers. It is shown only once."""
    check_label(label)
    secret, row = _run(lambda keys: keys.create_worker_token(label=label))
    if as_json:
        output.result_json({"token": secret, **_facts(row)})
        return
    output.note(f"Token {output.shown(row.token_id)}, shown this once:")
    output.result(output.plain(secret))


@tokens.command("list", cls=HelpCommand)
def list_tokens(as_json: AsJson = False) -> None:
    """List the tokens of remote workers, without the secrets."""
    found = list(_run(lambda keys: keys.list_worker_tokens()))
    if as_json:
        output.result_json([_facts(row) for row in found])
    elif found:
        rows = [
            (
                row.token_id,
                f"{row.prefix}…",
                row.label or "-",
                f"{row.created_at:%Y-%m-%d}",
                "revoked" if row.revoked_at else "valid",
            )
            for row in found
        ]
        output.result_table(("id", "token", "label", "created", "state"), rows)
    else:
        output.note("There are no worker tokens yet. Create one: afterwords workers token create")


@tokens.command(cls=HelpCommand)
def revoke(token_id: Annotated[str, typer.Argument(help="ID of the token, from `workers token list`.")]) -> None:
    """Revoke a token: its workers stop within a second, and their jobs go to others."""
    _run(lambda keys: keys.revoke_worker_token(token_id))
    output.note("Revoked.")


def _facts(row: WorkerToken) -> dict[str, Any]:
    return {
        "token_id": row.token_id,
        "label": row.label,
        "prefix": row.prefix,
        "created_at": row.created_at.isoformat(),
        "revoked_at": row.revoked_at and row.revoked_at.isoformat(),
    }


def _run(use: Callable[[KeyService], Awaitable[T]]) -> T:
    def with_keys(_settings: Any, store: Any) -> Awaitable[T]:
        from afterwords.server.services.keys import KeyService

        return use(KeyService(store))

    return run_with_store(with_keys, purpose="Managing worker tokens")
