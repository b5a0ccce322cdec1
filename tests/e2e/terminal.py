"""Run a program at its own pseudo-terminal: wait for its output, type keys."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.cli.program import COMMAND, environment

DEADLINE_S = 60.0
CTRL_C, CTRL_U = "\x03", "\x15"
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07]*\x07|[=>])")

# The program must control the terminal to get Ctrl-C. `pty.fork` would do that, but is unsafe with pytest's threads.
_OWN = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """Run `afterwords`, or another command, with a terminal for stdin, stderr and, unless it is a file, stdout."""

    def __init__(
        self,
        *args: str | Path,
        cwd: Path | None = None,
        stdout: Path | None = None,
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._screen, inside = os.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 400, 0, 0))
        out = os.open(stdout, os.O_CREAT | os.O_WRONLY, 0o600) if stdout else os.dup(inside)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _OWN, *command, *args],
            stdin=inside,
            stdout=out,
            stderr=inside,
            cwd=cwd,
            env=environment(env),
            start_new_session=True,
        )
        os.close(inside)
        os.close(out)
        self.raw = ""
        self._seen = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._screen)

    @property
    def text(self) -> str:
        """The output so far, without escape sequences."""
        return _ESCAPES.sub("", self.raw).replace("\r", "")

    @property
    def is_echoing(self) -> bool:
        """Whether typed keys are shown."""
        return bool(termios.tcgetattr(self._screen)[3] & termios.ECHO)

    def expect(self, wanted: str) -> None:
        """Wait until this text is shown after the last expected one."""
        deadline = time.monotonic() + DEADLINE_S
        while (found := self.text.find(wanted, self._seen)) < 0:
            assert self._read(deadline), f"{wanted!r} was not shown; the last output was:\n{self.text[-1500:]}"
        self._seen = found + len(wanted)

    def type(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def type_until_end(self, keys: str) -> int:
        """Type this until the program ends, and return its exit code.

        Python's `input` loses a Ctrl-C between the prompt and the read, which happens on a busy machine.
        """
        deadline = time.monotonic() + DEADLINE_S
        while self._process.poll() is None and time.monotonic() < deadline:
            self.type(keys)
            while self._read(time.monotonic() + 1.0):
                pass
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=0.5)
        return self.wait()

    def wait(self) -> int:
        """Wait until the program has ended, and return its exit code."""
        deadline = time.monotonic() + DEADLINE_S
        while self._read(deadline):
            pass
        code = self._process.wait(timeout=max(0.1, deadline - time.monotonic()))
        assert "Traceback" not in self.text
        return code

    def _read(self, deadline: float) -> bool:
        """Read available output; return False at the end or at the deadline."""
        if not select.select([self._screen], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            shown = os.read(self._screen, 65536)
        except OSError:  # Linux: the program has exited
            return False
        self.raw += shown.decode(errors="replace")
        return bool(shown)
