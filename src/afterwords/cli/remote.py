"""What the commands that use a server share: the client, the commands to suggest, and messages on Ctrl-C."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from afterwords.cli import output

if TYPE_CHECKING:
    from afterwords.client import Client


def connect(profile: str | None, *, admin_secret: str | None = None) -> Client:
    """Return a client of the server of a login, or of the configured server if no login is named."""
    from afterwords.client import Client

    return Client(profile=profile, admin_secret=admin_secret)


def job_timeout_s(timeout: float | None) -> float:
    """Return how long to wait for a job, in seconds."""
    from afterwords.client.requests import JOB_TIMEOUT_S

    return JOB_TIMEOUT_S if timeout is None else timeout


def command(*words: str, profile: str | None) -> str:
    """Return an `afterwords` command that the user can copy."""
    login = () if profile is None else ("--profile", profile)
    return shlex.join(("afterwords", *words, *login))


def option_value(path: str) -> str:
    """Return a path that can't be read as an option."""
    return f"./{path}" if path.startswith("-") and path != "-" else path


@contextmanager
def explain_interrupt(message: str, resume: str) -> Iterator[None]:
    """On Ctrl-C, say what goes on without this command, and the command that resumes."""
    try:
        yield
    except KeyboardInterrupt:
        output.note(f"{message}\n  {output.shown(resume)}")
        raise
