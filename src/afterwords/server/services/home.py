"""The voices of the library in this server's home folder, offered as they are there.

A voice of the home is a row in the account of the home, without a copy of its recording: `Recordings` reads recording
and prompt in the library. `refresh` makes the rows follow the library, at the start and whenever it has changed since.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from afterwords.errors import AfterwordsError, UnsupportedLangError
from afterwords.library.library import Library
from afterwords.models import Voice
from afterwords.server.ports import Store, StoredVoice, VoiceChanges
from afterwords.server.services.backend_choice import Offer
from afterwords.server.services.voices import Voices

log = logging.getLogger("afterwords.server")

Signature = tuple[str | None, frozenset[tuple[str, int, int]]]


@dataclass(slots=True)
class HomeVoices:
    """Keeps the rows of the home's voices like its library.

    A row goes, with all that was spoken with it, only when its voice was removed or replaced at home. A voice that is
    damaged, or that no backend here can speak, keeps its row: the next start may be able to offer it again.

    Attributes:
        library: None where the server offers no voices of its home.
        has_account: whether there is an account that sees them.
        n_offered: how many voices are, or would be, offered.
    """

    library: Library | None
    store: Store
    voices: Voices
    offer: Offer
    has_account: bool = False
    n_offered: int = 0
    _seen: Signature | None = field(default=None, repr=False)

    async def refresh(self) -> None:
        """Offer what the library holds now; a library that can't be read is logged, and nothing changes."""
        if self.library is None:
            return
        account_id = await self.store.home_account()
        self.has_account = account_id is not None
        seen = (account_id, await asyncio.to_thread(_signature, self.library))
        if seen == self._seen:
            return
        try:
            kept = await asyncio.to_thread(_kept, self.library)
            there, damaged = await asyncio.to_thread(self.library.scan)
        except AfterwordsError as error:
            log.warning("the voices of this home can't be read code=%s", error.code)
            self._seen = seen
            return
        wanted = [(voice, row) for voice in there if (row := self._row(voice, account_id or "")) is not None]
        if n_left := len(damaged) + len(there) - len(wanted):
            log.warning("voices of this home not offered=%d (afterwords voices shows why)", n_left)
        self.n_offered = len(wanted)
        if account_id is not None:
            await self._follow(account_id, {voice.voice_id: row for voice, row in wanted}, kept=kept)
        self._seen = seen

    async def _follow(self, account_id: str, wanted: dict[str, StoredVoice], *, kept: frozenset[str] | None) -> None:
        rows = await self.store.voices(account_id=account_id, limit=None, after=None)
        pushed = {row.ref_sha256 for row in rows if row.home_id is None}
        offered = {row.home_id: row for row in rows if row.home_id is not None}
        for home_id, row in offered.items():
            now = wanted.get(home_id)
            if now is None:
                if kept is not None and home_id not in kept:
                    await self._withdraw(row)
            elif now.ref_sha256 in pushed or _fixed(row) != _fixed(now):
                await self._withdraw(row)
            elif (row.name, row.backend) != (now.name, now.backend):
                changes = VoiceChanges(name=now.name, backend=now.backend)
                await self.store.update_voice(row.voice_id, changes, account_id=account_id)
        for home_id, now in wanted.items():
            is_there = home_id in offered and _fixed(offered[home_id]) == _fixed(now)
            if not is_there and now.ref_sha256 not in pushed:  # the same recording is the same voice
                await self.store.add_voice(now)

    async def _withdraw(self, row: StoredVoice) -> None:
        paths = await self.store.delete_voice(row.voice_id, account_id=row.account_id)
        if paths is not None:
            await self.voices.purge(row.voice_id, paths)

    def _row(self, voice: Voice, account_id: str) -> StoredVoice | None:
        """The row of a voice; None where no backend here speaks its language."""
        try:
            backend, lang = self.offer.for_voice(
                voice.backend if voice.lang in self.offer.backends.get(voice.backend, ()) else None, voice.lang
            )
        except UnsupportedLangError:
            return None
        assert voice.reference is not None, "the library sees to it"
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


def _fixed(row: StoredVoice) -> tuple[object, ...]:
    """What can't be changed in a row: with another recording or transcript, it is another voice."""
    return row.ref_sha256, row.ref_text, row.lang, row.family, row.consent, row.provenance, dict(row.metadata)


def _kept(library: Library) -> frozenset[str] | None:
    """Return the ids of all voices that the library keeps, damaged ones too; None where the library itself is absent.

    A home folder on a disk that is not mounted is no library from which voices were removed.
    """
    if not (library.home / "library.json").exists():
        return None
    return frozenset(path.name for path in (library.home / "voices").glob("*"))


def _signature(library: Library) -> frozenset[tuple[str, int, int]]:
    """What changes whenever a voice comes, goes, or is renamed: voice.json is written again each time."""
    found = set()
    for path in (library.home / "voices").glob("*/voice.json"):
        try:
            facts = path.stat()
        except OSError:
            continue
        found.add((path.parent.name, facts.st_mtime_ns, facts.st_ino))
    return frozenset(found)
