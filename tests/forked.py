"""Start `afterwords` as a process, by forking one that has imported its modules: this takes a third of the CPU time.

Each process has its own environment and files, and runs the code that `python -m afterwords` runs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

MODULES: Final = [
    "afterwords.cli.app",
    "afterwords.server.run",
    "afterwords.server.run_worker",
    "afterwords.server.store.sqlite.database",
    "alembic.runtime.environment",
    "alembic.script",
]


class ForkedProgram:
    """A forked process, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(MODULES)
        reader, writer = context.Pipe(duplex=False)
        self._process = context.Process(target=_run, args=(list(arguments), dict(env), log, writer))
        self._process.start()
        writer.close()
        assert self._process.pid is not None
        self.pid = self._process.pid
        with reader:
            self.stdout = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("afterwords", timeout or 0)
        return self._process.exitcode

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Program = subprocess.Popen[str] | ForkedProgram


def start_afterwords(
    arguments: Sequence[str], env: Mapping[str, str], log: Path, *, before: Sequence[str | Path] = ()
) -> Program:
    """Start it with a pipe for stdout.

    A new Python starts where forks are not safe, for benchmarks, which measure what users get, and if something must
    happen before Python imports modules.

    Args:
        log: Gets what it writes to stderr.
        before: A command to run it under.
    """
    can_fork = sys.platform == "linux" and "PYTEST_VERSION" in os.environ
    if can_fork and not before and "PYTHONPATH" not in env:
        log.touch()
        return ForkedProgram(arguments, env, log)
    command = [*before, sys.executable, "-m", "afterwords", *arguments]
    with log.open("ab") as stderr:
        return subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True
        )


def _run(arguments: list[str], env: dict[str, str], log: Path, stdout: Connection) -> None:
    """Run the command line in the new process."""
    from afterwords.cli import app

    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["afterwords", *arguments]
    with log.open("ab") as stderr, stdout:
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, encoding="utf-8") for number in (1, 2))
    app.run()
