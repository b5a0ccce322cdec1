"""Decides which database owns the storage: only the owner may remove blobs that it has no rows for.

The storage contains a mark with the id of its database and a token. Each sweep replaces the token, and the database
keeps the tokens that it wrote. So a copy or an older backup of the database is detected.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Final
from uuid import uuid4

from afterwords.server.ports import Blobs, Store

log = logging.getLogger("afterwords.server")

MARK_PATH: Final = "owner.json"
DISPUTED: Final = "disputed"
ADOPT: Final = "If nothing else uses this storage: afterwords storage adopt"
_ID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_SERVER_PATH: Final = re.compile(f"(?:voices/{_ID}/|jobs/{_ID}[-.]).+|probe-{_ID}.*")


class OwnershipStatus(StrEnum):
    """What the mark of the storage means for this database. The value is shown to users."""

    OWN = "ok"
    UNMARKED = f"the storage has no mark, and contains audio that this database does not know. {ADOPT}"
    FOREIGN = f"the storage belongs to another database. {ADOPT}"
    COPY = f"a copy of this database, or a later state of it, uses the storage. {ADOPT}"
    UNREADABLE = f"the mark of the storage, {MARK_PATH}, can't be read. {ADOPT}"

    @property
    def sweep(self) -> str:
        """Whether the sweep is on, with the reason if it is off."""
        return self.value if self is OwnershipStatus.OWN else f"off: {self.value}"


def is_server_path(path: str) -> bool:
    """Return whether servers write such a path. Other files in the storage are never touched."""
    return _SERVER_PATH.fullmatch(path) is not None


def database_id(secret: bytes) -> str:
    """Return the public id of the database with this secret."""
    return sha256(b"afterwords database\0" + secret).hexdigest()[:32]


@dataclass(slots=True)
class Ownership:
    """The ownership of a storage by a database."""

    store: Store
    blobs: Blobs
    database_id: str
    _logged: OwnershipStatus = field(default=OwnershipStatus.OWN, init=False)

    async def read(self) -> OwnershipStatus:
        """Read the mark without changing it."""
        data = await self.blobs.get(MARK_PATH)
        if data is None:
            return OwnershipStatus.UNMARKED
        try:
            mark = json.loads(data)
            owner, token = str(mark["database"]), str(mark["token"])
        except (ValueError, KeyError, TypeError):
            return OwnershipStatus.UNREADABLE
        if owner != self.database_id:
            return OwnershipStatus.FOREIGN
        return OwnershipStatus.OWN if await self.store.has_mark(token) else OwnershipStatus.COPY

    async def holds(self) -> bool:
        """Return whether this database may remove blobs that another one could need."""
        status = await self.read()
        if status is OwnershipStatus.UNMARKED:
            status = await self.renew()
        return status is OwnershipStatus.OWN

    async def renew(self) -> OwnershipStatus:
        """Write a new token if the storage belongs to this database, or to none."""
        status = await self.read()
        if status is OwnershipStatus.UNMARKED and await self._has_no_foreign_recording():
            status = OwnershipStatus.OWN
        if status is OwnershipStatus.OWN:
            await self.adopt()
        elif status is OwnershipStatus.COPY:
            await self._write(DISPUTED)  # stops the other one, too: each lacks rows of the other
        if status is not self._logged:
            self._logged = status
            log.log(logging.INFO if status is OwnershipStatus.OWN else logging.WARNING, "sweep %s", status.sweep)
        return status

    async def adopt(self) -> None:
        """Make this database the owner, whatever the mark says."""
        token = uuid4().hex
        await self.store.add_mark(token)
        await self._write(token)

    async def list_unknown(self) -> list[str]:
        """Return the paths that a server has written and this database has no rows for."""
        paths: list[str] = []
        async for batch in self.blobs.listing():
            written = [blob.path for blob in batch if is_server_path(blob.path)]
            known = await self.store.find_known_paths(written) if written else set()
            paths += [path for path in written if path not in known]
        return paths

    async def _has_no_foreign_recording(self) -> bool:
        """Return whether storage without a mark is empty, or has known blobs and no unknown recording."""
        n_known = n_unknown = 0
        async for batch in self.blobs.listing():
            paths = [blob.path for blob in batch if is_server_path(blob.path) and not blob.path.startswith("probe-")]
            known = await self.store.find_known_paths(paths) if paths else set()
            if any(path.endswith("/ref.wav") and path not in known for path in paths):
                return False
            n_known += len(known)
            n_unknown += len(paths) - len(known)
        return n_known > 0 or n_unknown == 0

    async def _write(self, token: str) -> None:
        mark = {"database": self.database_id, "token": token}
        await self.blobs.put(MARK_PATH, json.dumps(mark).encode())
