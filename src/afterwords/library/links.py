"""Links between voices of this library and voices of servers.

Stored apart from the voices, so that a link outlives both ends: `sync` can distinguish a voice that was removed here
from one that never was here. Only IDs are stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from afterwords import disk
from afterwords.errors import FileError, LibraryError

_Known = dict[str, dict[str, str]]
LOCK_TIMEOUT_S = 120.0
"""How long a push waits for another push of this library, with its uploads."""


class Links:
    """The links of a home folder in `links.json`: per server, from remote ID to voice ID."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._path = home / "links.json"

    def remote_ids(self, server: str, voice_id: str) -> list[str]:
        """Return the IDs of a voice on a server, the newest link first."""
        return [remote for remote, here in reversed(self._read().get(server, {}).items()) if here == voice_id]

    def voice_id(self, server: str, remote_id: str) -> str | None:
        """Return the ID that a voice of a server has or had here."""
        return self._read().get(server, {}).get(remote_id)

    def link(self, server: str, voice_id: str, remote_id: str) -> None:
        """Link two voices. Hold `lock`."""
        known = self._read()
        links = {there: here for there, here in known.get(server, {}).items() if there != remote_id}
        self._write({**known, server: {**links, remote_id: voice_id}})

    def unlink(self, server: str, remote_id: str) -> None:
        """Remove the link of a remote voice. Hold `lock`."""
        known = self._read()
        links = {there: here for there, here in known.get(server, {}).items() if there != remote_id}
        self._write({**known, server: links})

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the links against other processes that push or pull.

        Raises:
            LibraryError: Another process holds the lock.
        """
        disk.make_folder(self._home)
        busy = LibraryError(
            f"Another process has locked the library in {self._home} for {LOCK_TIMEOUT_S:g} s.", code="library_busy"
        )
        with disk.lock(self._home / ".links.lock", timeout_s=LOCK_TIMEOUT_S, busy=busy):
            yield

    def _read(self) -> _Known:
        try:
            known = disk.read_json(self._path)
        except FileNotFoundError:
            return {}
        except ValueError:
            known = None
        if not isinstance(known, dict) or not all(
            isinstance(links, dict) and all(isinstance(here, str) for here in links.values())
            for links in known.values()
        ):
            raise FileError.unreadable(self._path, why="it is damaged; remove it, then voices are matched by recording")
        return known

    def _write(self, known: _Known) -> None:
        disk.write(self._path, [json.dumps(known, indent=2).encode(), b"\n"])
