"""Record which files a program leaves in the user's home, and which addresses it connects to.

Threads of native libraries open sockets that Python can't see, so strace records connections. If strace is missing or
forbidden, only files are recorded.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Final

import pytest

_SILENCED_BY: Final = ("CI", "GITHUB_ACTIONS", "TF_BUILD", "ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY")
"""Variables of build machines that silence telemetry."""
_ADDRESS: Final = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')


@cache
def has_strace() -> bool:
    """Return whether programs can be traced; some containers forbid it."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


class Watched:
    """Set up an empty home folder in the environment of this process, and record what programs do.

    Attributes:
        before: The prefix for the command of a recorded process.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._user, self._log = folder / "user", folder / "connections.log"
        self._user.mkdir()
        for name in [name for name in os.environ if name.startswith("XDG_") or name in _SILENCED_BY]:
            monkeypatch.delenv(name)
        for name in ("HOME", "TMPDIR"):
            monkeypatch.setenv(name, str(self._user))
        calls = ["-s", "0", "-e", "trace=connect,sendto,sendmsg,sendmmsg"]
        self.before = ["strace", "-f", "--seccomp-bpf", "-A", "-o", str(self._log), *calls] if has_strace() else []

    @property
    def files(self) -> list[str]:
        """Return the files in the home folder, with relative paths."""
        return sorted(str(path.relative_to(self._user)) for path in self._user.rglob("*") if not path.is_dir())

    @property
    def addresses(self) -> set[str]:
        """Return the addresses outside this machine that a program connected to."""
        found = {v4 or v6 for v4, v6 in _ADDRESS.findall(self._log.read_text("utf-8"))} if has_strace() else set()
        return {address for address in found if not ipaddress.ip_address(address).is_loopback}

    def saw_the_end_of(self, pid: int) -> bool:
        """Return whether the trace of a process is complete: with -D, strace outlives it."""
        return re.search(rf"^{pid} +\+\+\+ ", self._log.read_text("utf-8"), re.M) is not None
