"""Which voice of this library is which voice of a server.

Kept beside the voices and not in them, so that a link outlives either end: that is how `sync` tells a voice that was
removed here from one that never was. Identifiers alone are kept, nothing of the voice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from afterwords import disk
from afterwords.errors import LibraryBusyError, UnreadableFileError

_Known = dict[str, dict[str, str]]
LOCK_TIMEOUT_S = 120.0
"""How long a push waits for another one from this library; an upload may take a while."""


class Links:
    """The links of one home folder, in `links.json`: by server, from the identifier there to the one here."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._path = home / "links.json"

    def there(self, server: str, voice_id: str) -> list[str]:
        """What a voice of this library is called there; the last link first."""
        return [remote for remote, here in reversed(self._read().get(server, {}).items()) if here == voice_id]

    def here(self, server: str, remote_id: str) -> str | None:
        """What a voice of a server is called here, or was."""
        return self._read().get(server, {}).get(remote_id)

    def link(self, server: str, voice_id: str, remote_id: str) -> None:
        """Keep that these two are the same voice. Hold `alone` while doing so."""
        known = self._read()
        links = {there: here for there, here in known.get(server, {}).items() if there != remote_id}
        self._write({**known, server: {**links, remote_id: voice_id}})

    def unlink(self, server: str, remote_id: str) -> None:
        """Forget a voice of a server. Hold `alone` while doing so."""
        known = self._read()
        links = {there: here for there, here in known.get(server, {}).items() if there != remote_id}
        self._write({**known, server: links})

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep every other program that brings voices to servers, or from them, waiting.

        Raises:
            LibraryBusyError: another one does not end.
        """
        disk.make_folder(self._home)
        busy = LibraryBusyError(self._home, waited_s=LOCK_TIMEOUT_S)
        with disk.locked(self._home / ".links.lock", timeout_s=LOCK_TIMEOUT_S, busy=busy):
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
            raise UnreadableFileError(self._path, why="it is damaged; without it, voices are found by their recordings")
        return known

    def _write(self, known: _Known) -> None:
        disk.write(self._path, [json.dumps(known, indent=2).encode(), b"\n"])
