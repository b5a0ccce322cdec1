"""Voices: registered, shown, changed, carried away, deleted."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from afterwords.errors import (
    AfterwordsError,
    AmbiguousVoiceNameError,
    HomeVoiceError,
    InvalidFieldError,
    InvalidNameError,
    LostReferenceError,
    VoiceNotFoundError,
)
from afterwords.library.bundle import Bundle, BundledPrompt, holds_nul, pack, unpack
from afterwords.models import Consent, ConsentKind, Provenance, ReferenceInfo, Voice, as_id, new_id
from afterwords.server.cache_key import reference_path, voice_prefix
from afterwords.server.failpoints import reach
from afterwords.server.ports import Blobs, Caller, Clock, Idempotency, Store, StoredVoice, VoiceChanges
from afterwords.server.services.audio_cache import HotAudio
from afterwords.server.services.backend_choice import Offer
from afterwords.server.services.decoding import DecodingPool
from afterwords.server.services.job_queue import Kind, kept_prompt, prompt_path_of, with_digest
from afterwords.server.services.ownership import Ownership
from afterwords.server.services.recordings import Recordings
from afterwords.text import check_name, check_text

log = logging.getLogger("afterwords.server")

METADATA_MAX_BYTES: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class VoiceFields:
    """What is said about a new voice, as it came."""

    name: str
    backend: str | None = None
    lang: str = "en"
    ref_text: str | None = field(default=None, repr=False)
    family: str | None = None
    consent: ConsentKind | None = None


@dataclass(frozen=True, slots=True)
class Voices:
    """The use-cases of voices. Another account's voice is as if it were not there."""

    store: Store
    blobs: Blobs
    recordings: Recordings
    clock: Clock
    offer: Offer
    decoding: DecodingPool
    hot: tuple[HotAudio, ...]
    ownership: Ownership
    prompt_versions: Mapping[str, str]

    async def register(
        self, caller: Caller, fields: VoiceFields, recording: bytes, *, idempotency_key: str | None = None
    ) -> StoredVoice:
        """Make a voice of an uploaded recording.

        Raises:
            InvalidInputError: a field or the recording can't be used.
            IdempotencyConflictError: the idempotency key came before with another upload.
        """
        fields = self._checked(fields)
        backend, lang = self.offer.for_voice(fields.backend, fields.lang)
        asked = json.dumps(_facts(fields))
        idempotency = _idempotency(caller, idempotency_key, asked.encode(), sha256(recording).digest())
        if idempotency and (known := await self.store.replayed_voice(idempotency)):
            return known
        consent = Consent(kind=fields.consent, stated_at=self.clock.now()) if fields.consent else None
        canonical, reference = await self.decoding.prepare(recording)
        return await self._keep(
            caller,
            canonical,
            reference,
            idempotency,
            name=fields.name,
            backend=backend,
            lang=lang,
            ref_text=fields.ref_text,
            family=fields.family,
            consent=consent,
        )

    async def take_in(self, caller: Caller, data: bytes, *, idempotency_key: str | None = None) -> StoredVoice:
        """Make a voice of a bundle, with an id of its own; consent and provenance come along.

        Raises:
            InvalidBundleError: it is no bundle, or was altered.
            RecordingError, UnsupportedLangError: what is in it can't be used here.
        """
        idempotency = _idempotency(caller, idempotency_key, b"bundle", sha256(data).digest())
        if idempotency and (known := await self.store.replayed_voice(idempotency)):
            return known
        bundle = await asyncio.to_thread(unpack, data)
        voice = bundle.voice
        assert voice.reference is not None, "unpack sees to it"
        grade = await self.decoding.grade(bundle.wav)
        wanted = voice.backend if voice.backend in self.offer.backends else None
        backend, lang = self.offer.for_voice(wanted, voice.lang)
        kept = await self._keep(
            caller,
            bundle.wav,
            voice.reference.model_copy(update={"grade": grade}),
            idempotency,
            name=check_name(voice.name),
            backend=backend,
            lang=lang,
            ref_text=_checked_transcript(voice.ref_text),
            family=voice.family,
            consent=voice.consent,
            provenance=voice.provenance,
            metadata=voice.metadata,
        )
        await self._keep_prompts(kept, bundle)
        return kept

    async def _keep_prompts(self, voice: StoredVoice, bundle: Bundle) -> None:
        """Keep what was prepared elsewhere and can be used here; the engine judges the bytes when it reads them."""
        for prompt in bundle.prompts:
            known = self.prompt_versions.get(prompt.backend, prompt.version)  # not known where others speak
            is_offered = prompt.backend in self.offer.backends
            if (
                not is_offered
                or known != prompt.version
                or (voice.lang, voice.ref_text) != (bundle.voice.lang, bundle.voice.ref_text)
            ):
                log.info("voice %s: what was prepared for %s is of no use here", voice.voice_id, prompt.backend)
                continue
            kind = Kind.FAST if prompt.is_fast else Kind.FULL
            path = prompt_path_of(voice, prompt.backend, prompt.version, kind)
            with suppress(AfterwordsError):  # a prompt is a cache: it will be made again
                await self.blobs.put(path, with_digest(prompt.data), is_durable=False)

    async def get(self, caller: Caller, name_or_id: str) -> StoredVoice:
        """Return a voice of the caller's account; see `find_voice`."""
        return await find_voice(self.store, caller, name_or_id)

    async def list(self, caller: Caller, *, limit: int | None, after: str | None) -> list[StoredVoice]:
        """The voices of the caller's account, oldest first."""
        return await self.store.voices(account_id=caller.account_id, limit=limit, after=after)

    async def change(self, caller: Caller, name_or_id: str, changes: VoiceChanges) -> StoredVoice:
        """Change what is said about a voice; the recording stays.

        Another transcript or language makes what was spoken or prepared before wrong, so that is dropped.

        Raises:
            VoiceNotFoundError, AmbiguousVoiceNameError, InvalidInputError: no such voice, or no such value.
            HomeVoiceError: it is changed where it is at home.
        """
        before = await self._changeable(caller, name_or_id)
        voice_id = before.voice_id
        changes = self._checked_changes(changes, before)
        after = await self.store.update_voice(voice_id, changes, account_id=caller.account_id)
        if after is None:
            raise VoiceNotFoundError
        if (after.ref_text, after.lang) != (before.ref_text, before.lang):
            with suppress(AfterwordsError):  # no row leads there any more
                if await self.ownership.holds():
                    await self.blobs.delete_all(f"{voice_prefix(voice_id)}cache/")
                    await self.blobs.delete_all(f"{voice_prefix(voice_id)}prompts/")
        return after

    async def carry_away(self, caller: Caller, name_or_id: str, *, with_prompts: bool = False) -> tuple[str, bytes]:
        """Return a voice's id, and the voice as one portable file, with what was prepared of it if that is wanted.

        Raises:
            VoiceNotFoundError, AmbiguousVoiceNameError: there is none, or several.
            LostReferenceError: its recording is missing or was altered.
        """
        stored = await self.get(caller, name_or_id)
        wav = await self.recordings.get(stored)
        if wav is None:
            raise LostReferenceError
        prompts = []
        for backend, version in self.prompt_versions.items() if with_prompts else ():
            if found := await kept_prompt(self.blobs, stored, backend=backend, version=version):
                kind, data = found
                prompts.append(BundledPrompt(backend, version, kind is Kind.FAST, data))
        return stored.voice_id, await asyncio.to_thread(pack, as_voice(stored), wav, prompts)

    async def delete(self, caller: Caller, name_or_id: str) -> None:
        """Remove a voice and all that was made of it: recording, cache, prompts, jobs and their audio.

        Raises:
            VoiceNotFoundError, AmbiguousVoiceNameError: there is none, or several.
            HomeVoiceError: it is removed where it is at home.
        """
        voice_id = (await self._changeable(caller, name_or_id)).voice_id
        paths = await self.store.delete_voice(voice_id, account_id=caller.account_id)
        if paths is None:
            raise VoiceNotFoundError
        reach("voice-tombstoned")
        if not await self.purge(voice_id, paths):
            log.warning("deletion waits voice_id=%s: the storage is not this database's", voice_id)

    async def _changeable(self, caller: Caller, name_or_id: str) -> StoredVoice:
        voice = await self.get(caller, name_or_id)
        if voice.home_id is not None:
            raise HomeVoiceError
        return voice

    async def purge(self, voice_id: str, paths: Sequence[str]) -> bool:
        """Remove the audio of a deleted voice; what fails here the reaper does again.

        False, and nothing is removed, while the storage is not this database's: the voice may be another's as well.
        """
        for audio in self.hot:
            audio.forget(voice_id)
        if not await self.ownership.holds():
            return False
        await self.blobs.delete(*paths)
        await self.blobs.delete_all(voice_prefix(voice_id))
        await self.store.purged(voice_id)
        return True

    async def _keep(
        self,
        caller: Caller,
        wav: bytes,
        reference: ReferenceInfo,
        idempotency: Idempotency | None,
        *,
        metadata: Mapping[str, Any] | None = None,
        provenance: Provenance | None = None,
        **fields: Any,
    ) -> StoredVoice:
        """The blob first, then the row: a voice that is listed has its recording."""
        voice_id = new_id()
        path = reference_path(voice_id)
        voice = StoredVoice(
            voice_id=voice_id,
            account_id=caller.account_id,
            ref_audio_key=path,
            ref_sha256=reference.sha256,
            ref_duration_s=reference.duration_s,
            ref_sample_rate=reference.sample_rate,
            ref_grade=reference.grade,
            created_at=self.clock.now(),
            metadata=metadata or {},
            provenance=provenance,
            **fields,
        )
        await self.blobs.put(path, wav)
        reach("reference-stored")
        try:
            kept = await self.store.add_voice(voice, idempotency=idempotency)
        except AfterwordsError:
            with suppress(AfterwordsError):  # the sweeper finds what can't be removed now
                await self.blobs.delete(path)
            raise
        if kept.voice_id != voice_id:
            await self.blobs.delete(path)
        reach("voice-committed")
        return kept

    def _checked(self, fields: VoiceFields) -> VoiceFields:
        return VoiceFields(
            name=check_name(fields.name),
            backend=fields.backend or None,
            lang=fields.lang,
            ref_text=_checked_transcript(fields.ref_text),
            family=check_name(fields.family) if fields.family and fields.family.strip() else None,
            consent=fields.consent,
        )

    def _checked_changes(self, changes: VoiceChanges, voice: StoredVoice) -> VoiceChanges:
        backend, lang = changes.backend, changes.lang
        if backend is not None or lang is not None:
            backend, lang = self.offer.for_speech(backend, lang, voice_backend=voice.backend, voice_lang=voice.lang)
        if changes.metadata is not None:
            _check_metadata(changes.metadata)
        return VoiceChanges(
            name=None if changes.name is None else check_name(changes.name),
            backend=backend,
            lang=lang,
            ref_text=None if changes.ref_text is None else check_text(changes.ref_text),
            family=None if changes.family is None else check_name(changes.family),
            metadata=changes.metadata,
        )


async def find_voice(store: Store, caller: Caller, name_or_id: str) -> StoredVoice:
    """Return a voice of the caller's account by its id, else by its exact name.

    Raises:
        VoiceNotFoundError: there is none, or it is another account's.
        AmbiguousVoiceNameError: several have that name.
    """
    voice_id = as_id(name_or_id)
    if voice_id and (voice := await store.voice(voice_id, account_id=caller.account_id)):
        return voice
    try:
        name = check_name(name_or_id)
    except InvalidNameError:
        raise VoiceNotFoundError from None
    found = await store.voices_named(name, account_id=caller.account_id)
    if not found:
        raise VoiceNotFoundError
    if len(found) > 1:
        raise AmbiguousVoiceNameError
    return found[0]


def as_voice(stored: StoredVoice) -> Voice:
    """The voice as everyone else knows it: without owner and storage."""
    return Voice(
        voice_id=stored.voice_id,
        name=stored.name,
        backend=stored.backend,
        lang=stored.lang,
        ref_text=stored.ref_text,
        family=stored.family,
        reference=ReferenceInfo(
            sha256=stored.ref_sha256,
            duration_s=stored.ref_duration_s,
            sample_rate=stored.ref_sample_rate,
            grade=stored.ref_grade,
        ),
        consent=stored.consent,
        provenance=stored.provenance,
        created_at=stored.created_at,
        metadata=dict(stored.metadata),
    )


def _checked_transcript(text: str | None) -> str | None:
    return check_text(text) if text and text.strip() else None


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    try:
        plain = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise InvalidFieldError("metadata", rule="its numbers must be finite") from None
    if holds_nul(plain):
        raise InvalidFieldError("metadata", rule="it may hold no NUL")  # nor may a bundle, which carries it on
    if len(plain.encode()) > METADATA_MAX_BYTES:
        raise InvalidFieldError("metadata", rule=f"it may have {METADATA_MAX_BYTES:,} bytes as JSON")


def _facts(fields: VoiceFields) -> list[str | None]:
    return [fields.name, fields.backend, fields.lang, fields.ref_text, fields.family, fields.consent]


def _idempotency(caller: Caller, key: str | None, *parts: bytes) -> Idempotency | None:
    if key is None:
        return None
    asked = sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()
    return Idempotency(account_id=caller.account_id, route="voices", key=key, body_sha256=asked)
