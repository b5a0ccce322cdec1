"""Offers the voices in the library of this server's home folder.

A home voice is a row of the home account without a copy of its recording: `Recordings` reads the library. `refresh`
updates the rows at the start, and when the library changes.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

from afterwords.errors import AfterwordsError, UnsupportedLangError
from afterwords.library.library import Library
from afterwords.models import Voice
from afterwords.server.ports import Store
from afterwords.server.records import StoredVoice, VoiceChanges
from afterwords.server.services.backend_choice import BackendCatalog
from afterwords.server.services.voices import VoiceService

log = logging.getLogger("afterwords.server")

Signature = tuple[str | None, frozenset[tuple[str, int, int]]]


@dataclass(slots=True)
class HomeVoices:
    """Updates the rows of the home voices from the library.

    A row is deleted, with its jobs and audio, only if its voice was removed or replaced in the library. A voice that
    is damaged, or that no backend of this server supports, keeps its row: the next start may offer it again.

    Attributes:
        library: None: the server offers no home voices.
        has_account: Whether an account sees them.
        n_offered: Number of voices that are offered, or would be if there were an account.
    """

    library: Library | None
    store: Store
    voices: VoiceService
    catalog: BackendCatalog
    has_account: bool = False
    n_offered: int = 0
    _signature: Signature | None = field(default=None, repr=False)

    async def refresh(self) -> None:
        """Update the rows if the library has changed. A library that can't be read is logged, and changes nothing."""
        if self.library is None:
            return
        account_id = await self.store.get_home_account()
        self.has_account = account_id is not None
        signature = (account_id, await asyncio.to_thread(_list_voice_files, self.library))
        if signature == self._signature:
            return
        try:
            kept = await asyncio.to_thread(_list_ids, self.library)
            voices, damaged = await asyncio.to_thread(self.library.scan)
        except AfterwordsError as error:
            log.warning("the voices of this home can't be read code=%s", error.code)
            self._signature = signature
            return
        new = {voice.voice_id: row for voice in voices if (row := self._row(voice, account_id or "")) is not None}
        if n_hidden := len(damaged) + len(voices) - len(new):
            log.warning("voices of this home not offered=%d (afterwords voices shows why)", n_hidden)
        self.n_offered = len(new)
        if account_id is None:
            self._signature = signature
            return
        rows = await self.store.list_voices(account_id=account_id, limit=None, after=None)
        pushed = {row.ref_sha256 for row in rows if row.home_id is None}
        old = {row.home_id: row for row in rows if row.home_id is not None}
        for home_id, row in old.items():
            wanted = new.get(home_id)
            if wanted is None:
                if kept is not None and home_id not in kept:
                    await self._delete(row)
            elif wanted.ref_sha256 in pushed or _identity(row) != _identity(wanted):
                await self._delete(row)
            elif _changeable(row) != _changeable(wanted):
                changes = VoiceChanges(**_changeable(wanted))
                prepare = await self.voices.must_prepare(wanted)
                await self.store.update_voice(row.voice_id, changes, account_id=account_id, prepare=prepare)
        for home_id, wanted in new.items():
            exists = home_id in old and _identity(old[home_id]) == _identity(wanted)
            if not exists and wanted.ref_sha256 not in pushed:  # the same recording is the same voice
                await self.store.add_voice(wanted, prepare=await self.voices.must_prepare(wanted))
        self._signature = signature

    async def _delete(self, row: StoredVoice) -> None:
        paths = await self.store.delete_voice(row.voice_id, account_id=row.account_id)
        if paths is not None:
            await self.voices.purge(row.voice_id, paths)

    def _row(self, voice: Voice, account_id: str) -> StoredVoice | None:
        """Return the row of a voice. None: no backend supports its language."""
        is_supported = voice.lang in self.catalog.backends.get(voice.backend, ())
        try:
            backend, lang = self.catalog.for_voice(voice.backend if is_supported else None, voice.lang)
        except UnsupportedLangError:
            return None
        assert voice.reference is not None, "the library ensures it"
        return StoredVoice(
            voice_id=voice.voice_id,
            account_id=account_id,
            name=voice.name,
            backend=backend,
            lang=lang,
            ref_audio_key=f"home/{voice.voice_id}/reference.wav",
            ref_sha256=voice.reference.sha256,
            ref_duration_s=voice.reference.duration_s,
            ref_sample_rate=voice.reference.sample_rate,
            created_at=voice.created_at,
            ref_text=voice.ref_text,
            family=voice.family,
            consent=voice.consent,
            provenance=voice.provenance,
            metadata=voice.metadata,
            home_id=voice.voice_id,
            ref_grade=voice.reference.grade,
        )


def _identity(row: StoredVoice) -> tuple[object, ...]:
    """Return the fields that can't change: with another recording or transcript, it is another voice."""
    return row.ref_sha256, row.ref_text, row.lang, row.consent, row.provenance


def _changeable(row: StoredVoice) -> dict[str, Any]:
    return {"name": row.name, "backend": row.backend, "family": row.family, "metadata": dict(row.metadata)}


def _list_ids(library: Library) -> frozenset[str] | None:
    """Return the ids of all voices in the library, including damaged ones.

    None: the library itself is missing, for example on a disk that is not mounted. Its voices were not removed.
    """
    if not (library.home / "library.json").exists():
        return None
    return frozenset(path.name for path in (library.home / "voices").glob("*"))


def _list_voice_files(library: Library) -> frozenset[tuple[str, int, int]]:
    """Return the voice.json files with time and inode. Adding, removing or renaming a voice changes them."""
    found = set()
    for path in (library.home / "voices").glob("*/voice.json"):
        try:
            stat = path.stat()
        except OSError:
            continue
        found.add((path.parent.name, stat.st_mtime_ns, stat.st_ino))
    return frozenset(found)
