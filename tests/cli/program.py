"""The command line as a process, and what a person sees of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

COMMAND = [sys.executable, "-W", "error", "-m", "afterwords"]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    stdout: bytes
    err: str

    @property
    def out(self) -> str:
        return self.stdout.decode()

    def refused(self, code: int, error: str) -> str:
        """See that it failed as it should: one line that begins with the error, its fix, and no result."""
        first, second = self.err.splitlines()
        assert (self.code, self.stdout) == (code, b"")
        assert first.startswith(f"{error}: ")
        assert second.startswith("  Fix: ")
        return self.err


def environment(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """That of the test, without what makes terminals differ."""
    outside = {"FORCE_COLOR", "NO_COLOR", "COLUMNS", "TERM", "PYTHONWARNINGS", "PYTHONIOENCODING"}
    kept = {name: value for name, value in os.environ.items() if name not in outside}
    return {**kept, "TERM": "xterm", "PYTHONUTF8": "1", **(settings or {})}


def run(
    *args: str | Path,
    stdin: bytes = b"",
    cwd: Path | None = None,
    python: str | None = None,
    env: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
) -> Done:
    """Run `afterwords`, or some Python that runs it, with pipes for everything.

    No traceback may come out, and nothing that a terminal acts on. `before` is a command that runs it.
    """
    command = [sys.executable, "-c", python] if python else COMMAND
    done = subprocess.run(
        [*before, *command, *args],
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env=environment(env),
    )
    err = done.stderr.decode()
    assert "Traceback" not in err
    assert "\x1b" not in err
    return Done(done.returncode, done.stdout, err)


def files_in(folder: Path) -> list[str]:
    """What a folder holds, all the way down; the lock and the folders aside."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def interrupted(*args: str, env: Mapping[str, str]) -> tuple[int, bytes]:
    """Run `afterwords` and press Ctrl-C once it has written 8,000 bytes: how it ends, and what it tells."""
    with subprocess.Popen([*COMMAND, *args], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(8000)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    return process.returncode, told
