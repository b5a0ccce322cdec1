"""Which database the storage belongs to: only that one may remove what it does not know.

The storage holds a mark, an object with the id of its database and a token. Each sweep replaces the token, and the
database keeps those that it wrote: so a copy of the database, or an older state that was restored, is told from the
one that used the storage last.
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
_OURS: Final = re.compile(f"(?:voices/{_ID}/|jobs/{_ID}[-.]).+|probe-{_ID}.*")


class Standing(StrEnum):
    """What the mark in the storage says to this database; the value is for people."""

    OWN = "ok"
    UNMARKED = f"the storage holds audio that this database does not know, and says nothing of its owner. {ADOPT}"
    FOREIGN = f"the storage belongs to another database. {ADOPT}"
    COPY = f"a copy of this database, or a later state of it, uses the storage. {ADOPT}"
    UNREADABLE = f"the mark of the storage, {MARK_PATH}, can't be read. {ADOPT}"

    @property
    def sweep(self) -> str:
        """Whether the sweep is on, and why not."""
        return self.value if self is Standing.OWN else f"off: {self.value}"


def is_ours(path: str) -> bool:
    """Whether a server writes such a path; whatever else lies in the storage is left alone."""
    return _OURS.fullmatch(path) is not None


def database_id(secret: bytes) -> str:
    """The public name of the database with this secret."""
    return sha256(b"afterwords database\0" + secret).hexdigest()[:32]


@dataclass(slots=True)
class Ownership:
    """The mark of a storage, as one database sees it."""

    store: Store
    blobs: Blobs
    database_id: str
    _logged: Standing = field(default=Standing.OWN, init=False)

    async def look(self) -> Standing:
        """Read the mark; nothing is changed."""
        data = await self.blobs.get(MARK_PATH)
        if data is None:
            return Standing.UNMARKED
        try:
            mark = json.loads(data)
            owner, token = str(mark["database"]), str(mark["token"])
        except (ValueError, KeyError, TypeError):
            return Standing.UNREADABLE
        if owner != self.database_id:
            return Standing.FOREIGN
        return Standing.OWN if await self.store.has_mark(token) else Standing.COPY

    async def holds(self) -> bool:
        """Whether this database may remove what another could still need."""
        standing = await self.look()
        if standing is Standing.UNMARKED:
            standing = await self.renew()
        return standing is Standing.OWN

    async def renew(self) -> Standing:
        """Put a new token into the mark of storage that is this database's, or that belongs to nobody yet."""
        standing = await self.look()
        if standing is Standing.UNMARKED and await self._is_known():
            standing = Standing.OWN
        if standing is Standing.OWN:
            await self.adopt()
        elif standing is Standing.COPY:
            await self._put(DISPUTED)  # so that the other one stops, too: neither knows all that the other wrote
        if standing is not self._logged:
            self._logged = standing
            log.log(logging.INFO if standing is Standing.OWN else logging.WARNING, "sweep %s", standing.sweep)
        return standing

    async def adopt(self) -> None:
        """Make the storage this database's, whatever the mark says."""
        token = uuid4().hex
        await self.store.add_mark(token)
        await self._put(token)

    async def unknown(self) -> list[str]:
        """What a server has written here and this database does not know."""
        paths: list[str] = []
        async for batch in self.blobs.listing():
            ours = [blob.path for blob in batch if is_ours(blob.path)]
            known = await self.store.known_paths(ours) if ours else set()
            paths += [path for path in ours if path not in known]
        return paths

    async def _is_known(self) -> bool:
        """Whether storage without a mark is this database's: empty, or with nothing but recordings that it knows."""
        n_known = n_unknown = 0
        async for batch in self.blobs.listing():
            ours = [blob.path for blob in batch if is_ours(blob.path) and not blob.path.startswith("probe-")]
            known = await self.store.known_paths(ours) if ours else set()
            if any(path.endswith("/ref.wav") and path not in known for path in ours):
                return False
            n_known += len(known)
            n_unknown += len(ours) - len(known)
        return n_known > 0 or n_unknown == 0

    async def _put(self, token: str) -> None:
        mark = {"database": self.database_id, "token": token}
        await self.blobs.put(MARK_PATH, json.dumps(mark).encode())
