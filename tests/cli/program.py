"""Run the command line in a test, in this process or in its own."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, chdir
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

_PROGRESS = re.compile(r".+ after \d+ s(, about .+ left)?")  # printed every 10 s on a slow machine
COMMAND = [sys.executable, "-W", "error", "-m", "afterwords"]


@dataclass(frozen=True)
class Result:
    """The exit code and the output of a command."""

    code: int
    stdout: bytes
    err: str

    @property
    def out(self) -> str:
        return self.stdout.decode()

    def expect_error(self, exit_code: int, code: str) -> str:
        """Check that it failed with one line that begins with the code, its fix, and no result; return stderr."""
        first, second = [line for line in self.err.splitlines() if not _PROGRESS.fullmatch(line)]
        assert (self.code, self.stdout) == (exit_code, b"")
        assert first.startswith(f"Error ({code}): ")
        assert second.startswith("  Fix: ")
        return self.err


def environment(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of the test without the variables that change the output."""
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
    is_process: bool = False,
) -> Result:
    """Run `afterwords`, or a Python program that runs it, with pipes for stdin, stdout and stderr.

    It runs in this process, which saves a second. It runs in its own if `is_process` is set, or if it needs another
    environment when Python starts. Check that it prints no traceback and no escape sequence.

    Args:
        python: A program to run instead.
        before: A command that runs the program.
    """
    settings = environment(env)
    if is_process or python or before or _read_at_start(settings) != _STARTED_WITH:
        command = [sys.executable, "-c", python] if python else COMMAND
        done = subprocess.run(
            [*before, *command, *args],
            input=stdin,
            capture_output=True,
            timeout=120,
            check=False,
            cwd=cwd,
            env=settings,
        )
        code, stdout, err = done.returncode, done.stdout, done.stderr.decode()
    else:
        code, stdout, err = _run_in_process([str(arg) for arg in args], stdin, cwd, settings)
    assert "Traceback" not in err
    assert "\x1b" not in err
    return Result(code, stdout, err)


_READ_AT_START = ("PYTHON", "ALSA_", "LD_", "HF_", "XDG_", "HOME")


def _read_at_start(settings: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that Python, keyring, ALSA, huggingface_hub and completion read at their start."""
    set_by_commands = {"HF_HUB_DISABLE_TELEMETRY"}
    return {
        name: value
        for name, value in settings.items()
        if name.startswith(_READ_AT_START) and name not in set_by_commands
    }


_STARTED_WITH = _read_at_start(
    {
        **environment(),
        "HF_HUB_OFFLINE": "1",
        "PYTHON_KEYRING_BACKEND": "keyring.backends.fail.Keyring",
    }
)


def _run_in_process(
    args: list[str], stdin: bytes, cwd: Path | None, settings: Mapping[str, str]
) -> tuple[int, bytes, str]:
    from afterwords.cli import app

    streams = [io.TextIOWrapper(io.BytesIO(content), "utf-8", write_through=True) for content in (stdin, b"", b"")]
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, settings, clear=True))
        stack.enter_context(patch.object(sys, "argv", ["afterwords", *args]))
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            stack.enter_context(patch.object(sys, name, stream))
        if cwd is not None:
            stack.enter_context(chdir(cwd))
        try:
            app.run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            for number, handler in signals.items():
                signal.signal(number, handler)
    _, stdout, stderr = (stream.detach().getvalue() for stream in streams)
    return code, stdout, stderr.decode()


def list_files(folder: Path) -> list[str]:
    """Return the names of all files in a folder and its subfolders, without `.lock`."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != ".lock")


def run_and_interrupt(*args: str, env: Mapping[str, str]) -> tuple[int, bytes]:
    """Run `afterwords`, send SIGINT once it has written 8,000 bytes; return the exit code and stderr."""
    with subprocess.Popen([*COMMAND, *args], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(8000)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=120)
    return process.returncode, stderr
