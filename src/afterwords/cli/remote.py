"""What the commands that ask a server share: their options, the client, and what a person is told who stops one."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from afterwords.cli import output

if TYPE_CHECKING:
    from afterwords.client import Client

Remote = Annotated[bool, typer.Option("--remote", help="Use a server, that of the login in use.")]
Profile = Annotated[
    str | None, typer.Option("--profile", "-p", help="Use the server of this login; see `afterwords profiles`.")
]
Timeout = Annotated[float | None, typer.Option("--timeout", min=0, help="Seconds to wait for a job. (default: 600)")]


def is_remote(remote: bool, profile: str | None) -> bool:
    """Whether a server is asked: naming one is enough."""
    return remote or profile is not None


def patience_s(timeout: float | None) -> float:
    """How long a job is waited for, in seconds."""
    from afterwords.client.operations import JOB_TIMEOUT_S

    return JOB_TIMEOUT_S if timeout is None else timeout


@contextmanager
def server(profile: str | None, *, admin_secret: str | None = None) -> Iterator[Client]:
    """The server of a profile, or, if none is named, the one that is set up."""
    from afterwords.client.sync import Client

    with Client(profile=profile, admin_secret=admin_secret) as client:
        yield client


def command(*words: str, profile: str | None) -> str:
    """A command that the person may copy."""
    where = () if profile is None else ("--profile", profile)
    return shlex.join(("afterwords", *words, *where))


def option_value(path: str) -> str:
    """A path that no command takes for an option."""
    return f"./{path}" if path.startswith("-") and path != "-" else path


@contextmanager
def told_if_stopped(message: str, again: str) -> Iterator[None]:
    """Where Ctrl-C ends what is done here, say what goes on, and the command that comes back to it."""
    try:
        yield
    except KeyboardInterrupt:
        output.note(f"{message}\n  {output.shown(again)}")
        raise
