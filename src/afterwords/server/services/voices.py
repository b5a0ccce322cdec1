"""The use cases of voices: register, read, update, export, delete."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field, replace
from difflib import get_close_matches
from hashlib import sha256
from typing import Any, Final

from afterwords.errors import (
    AfterwordsError,
    AudioMissingError,
    ConflictError,
    InvalidInputError,
    InvalidRequestError,
    NotFoundError,
    VoiceNotFoundError,
)
from afterwords.library.bundle import BundledPrompt, holds_nul, pack, unpack
from afterwords.models import (
    LEXICON_MAX_BYTES,
    NAME_MAX_CHARS,
    Consent,
    ConsentKind,
    ReferenceInfo,
    Voice,
    new_id,
    parse_id,
)
from afterwords.server.cache_key import reference_path, voice_prefix
from afterwords.server.failpoints import reach
from afterwords.server.ports import Blobs, Clock, Store
from afterwords.server.records import Caller, Idempotency, StoredJob, StoredVoice, VoiceChanges
from afterwords.server.services.audio_cache import AudioCache
from afterwords.server.services.backend_choice import BackendCatalog
from afterwords.server.services.decoding import DecodingPool
from afterwords.server.services.job_queue import PromptKind, prompt_path_of, read_prompt, with_digest
from afterwords.server.services.ownership import Ownership
from afterwords.server.services.recordings import Recordings
from afterwords.text import check_name, check_text

log = logging.getLogger("afterwords.server")

METADATA_MAX_BYTES: Final = 16 * 1024
NEAREST_OF: Final = 100
"""Voices of an account, of which an error names the nearest."""


@dataclass(frozen=True, slots=True)
class VoiceFields:
    """The fields of a new voice, not yet validated."""

    name: str
    backend: str | None = None
    lang: str = "en"
    ref_text: str | None = field(default=None, repr=False)
    family: str | None = None
    consent: ConsentKind | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class VoiceService:
    """The voices of accounts. Voices of another account are treated as missing."""

    store: Store
    blobs: Blobs
    recordings: Recordings
    clock: Clock
    catalog: BackendCatalog
    decoding: DecodingPool
    audio_caches: tuple[AudioCache, ...]
    ownership: Ownership

    async def register(
        self, caller: Caller, fields: VoiceFields, recording: bytes, *, idempotency_key: str | None = None
    ) -> StoredVoice:
        """Create a voice from an uploaded recording.

        Raises:
            InvalidInputError: A field or the recording is invalid.
            ConflictError: The idempotency key was used with another upload.
        """
        fields = VoiceFields(
            name=check_name(fields.name),
            backend=fields.backend or None,
            lang=fields.lang,
            ref_text=_check_transcript(fields.ref_text),
            family=check_name(fields.family) if fields.family and fields.family.strip() else None,
            consent=fields.consent,
            metadata=_check_metadata(fields.metadata),
        )
        backend, lang = self.catalog.for_voice(fields.backend, fields.lang)
        body = json.dumps(astuple(fields)).encode()
        idempotency = _idempotency(caller, idempotency_key, body, sha256(recording).digest())
        if idempotency and (before := await self.store.find_repeated_voice(idempotency)):
            return before
        consent = Consent(kind=fields.consent, stated_at=self.clock.now()) if fields.consent else None
        canonical, reference = await self.decoding.prepare(recording)
        return await self._add(
            caller,
            canonical,
            reference,
            idempotency,
            prepare=backend in self.catalog.prepares,
            name=fields.name,
            backend=backend,
            lang=lang,
            ref_text=fields.ref_text,
            family=fields.family,
            consent=consent,
            metadata=fields.metadata,
        )

    async def import_bundle(self, caller: Caller, data: bytes, *, idempotency_key: str | None = None) -> StoredVoice:
        """Create a voice, with a new id, from a bundle. Consent, provenance and the prompts that fit are kept.

        Raises:
            InvalidBundleError: The data is not a bundle, or was altered.
            RecordingError, UnsupportedLangError: The recording or language can't be used here.
        """
        idempotency = _idempotency(caller, idempotency_key, b"bundle", sha256(data).digest())
        if idempotency and (before := await self.store.find_repeated_voice(idempotency)):
            return before
        bundle = await asyncio.to_thread(unpack, data)
        voice = bundle.voice
        assert voice.reference is not None, "unpack ensures it"
        grade = await self.decoding.grade(bundle.wav)
        wanted = voice.backend if voice.backend in self.catalog.backends else None
        backend, lang = self.catalog.for_voice(wanted, voice.lang)
        ref_text = _check_transcript(voice.ref_text)
        prompts = []
        for prompt in bundle.prompts:  # the engine validates the bytes when it reads them
            version = self.catalog.prompt_versions.get(prompt.backend, prompt.version)  # unknown for remote workers
            is_offered = prompt.backend in self.catalog.backends and version == prompt.version
            if is_offered and (lang, ref_text) == (voice.lang, voice.ref_text):
                prompts.append(prompt)
            else:
                log.info("a prompt for %s does not fit this server, or the imported voice", prompt.backend)
        stored = await self._add(
            caller,
            bundle.wav,
            voice.reference.model_copy(update={"grade": grade}),
            idempotency,
            prepare=backend in self.catalog.prepares and all(prompt.backend != backend for prompt in prompts),
            name=check_name(voice.name),
            backend=backend,
            lang=lang,
            ref_text=ref_text,
            family=voice.family,
            consent=voice.consent,
            provenance=voice.provenance,
            metadata=voice.metadata,
        )
        for prompt in prompts:
            kind = PromptKind.FAST if prompt.is_fast else PromptKind.FULL
            path = prompt_path_of(stored, prompt.backend, prompt.version, kind)
            with suppress(AfterwordsError):  # a prompt is a cache: it can be made again
                await self.blobs.put(path, with_digest(prompt.data), is_durable=False)
        return stored

    async def update(self, caller: Caller, name_or_id: str, changes: VoiceChanges) -> StoredVoice:
        """Update the fields of a voice, but not its recording.

        Another transcript or language removes its cached audio and prompts. The voice is prepared again if needed.

        Raises:
            VoiceNotFoundError, ConflictError, InvalidInputError: The voice or a value is invalid.
            ConflictError: Home voices are changed in the library.
        """
        before = await self._get_changeable(caller, name_or_id)
        voice_id, backend, lang = before.voice_id, changes.backend, changes.lang
        if backend is not None or lang is not None:
            backend, lang = self.catalog.for_speech(backend, lang, voice_backend=before.backend, voice_lang=before.lang)
        changes = VoiceChanges(
            name=None if changes.name is None else check_name(changes.name),
            backend=backend,
            lang=lang,
            ref_text=None if changes.ref_text is None else check_text(changes.ref_text),
            family=None if changes.family is None else check_name(changes.family),
            metadata=None if changes.metadata is None else _check_metadata(changes.metadata),
        )
        prepare = (backend or before.backend) in self.catalog.prepares
        keeps_prompts = lang in (None, before.lang) and changes.ref_text in (None, before.ref_text)
        if backend is not None and keeps_prompts:
            prepare = await self.must_prepare(replace(before, backend=backend))
        after = await self.store.update_voice(voice_id, changes, account_id=caller.account_id, prepare=prepare)
        if after is None:
            raise VoiceNotFoundError
        if (after.ref_text, after.lang) != (before.ref_text, before.lang):
            with suppress(AfterwordsError):  # no row refers to these files any more
                if await self.ownership.holds():
                    await self.blobs.delete_all(f"{voice_prefix(voice_id)}cache/")
                    await self.blobs.delete_all(f"{voice_prefix(voice_id)}prompts/")
        if after.is_preparing:
            self.catalog.dispatcher.wake()
        return after

    async def must_prepare(self, voice: StoredVoice) -> bool:
        """Return whether a voice has to be prepared for its backend: it has no prompt, as far as is known."""
        backend, version = voice.backend, self.catalog.prompt_versions.get(voice.backend)
        if backend not in self.catalog.prepares:
            return False
        if version is None:
            return True  # a worker finds out
        if await read_prompt(self.blobs, voice, backend=backend, version=version):
            return False
        return await self.recordings.prompt(voice, backend=backend, version=version) is None

    async def export_bundle(self, caller: Caller, name_or_id: str, *, with_prompts: bool = False) -> tuple[str, bytes]:
        """Return a voice's id, and its bundle.

        Raises:
            VoiceNotFoundError, ConflictError: No voice, or several voices, match.
            AudioMissingError: The recording is missing or altered.
        """
        stored = await find_voice(self.store, caller, name_or_id)
        wav = await self.recordings.get(stored)
        if wav is None:
            raise AudioMissingError(code="reference_missing")
        prompts = []
        for backend, version in self.catalog.prompt_versions.items() if with_prompts else ():
            if found := await read_prompt(self.blobs, stored, backend=backend, version=version):
                kind, data = found
                prompts.append(BundledPrompt(backend, version, kind is PromptKind.FAST, data))
        return stored.voice_id, await asyncio.to_thread(pack, as_voice(stored), wav, prompts)

    async def delete(self, caller: Caller, name_or_id: str) -> None:
        """Delete a voice with its recording, cache, prompts, jobs and their audio.

        Raises:
            VoiceNotFoundError, ConflictError: No voice, or several voices, match.
            ConflictError: Home voices are removed in the library.
        """
        voice_id = (await self._get_changeable(caller, name_or_id)).voice_id
        paths = await self.store.delete_voice(voice_id, account_id=caller.account_id)
        if paths is None:
            raise VoiceNotFoundError
        reach("voice-tombstoned")
        if not await self.purge(voice_id, paths):
            log.warning("deletion waits voice_id=%s: the storage belongs to another database", voice_id)

    async def delete_speech(self, caller: Caller, job: StoredJob) -> None:
        """Delete a final job with its audio, also from the cache.

        Raises:
            NotFoundError: It is deleted already.
        """
        paths = await self.store.remove_job(job.job_id, account_id=caller.account_id)
        if paths is None:
            raise NotFoundError(code="job_not_found")
        for cache in self.audio_caches:
            cache.discard_voice(job.voice_id)
        if await self.ownership.holds():  # otherwise, and after a crash, the sweep removes it
            await self.blobs.delete(*paths)

    async def _get_changeable(self, caller: Caller, name_or_id: str) -> StoredVoice:
        voice = await find_voice(self.store, caller, name_or_id)
        if voice.home_id is not None:
            raise ConflictError(code="home_voice")
        return voice

    async def purge(self, voice_id: str, paths: Sequence[str]) -> bool:
        """Remove the audio of a deleted voice. The reaper repeats what fails here.

        Returns:
            False, and nothing is removed, if the storage belongs to another database, which may have the voice, too.
        """
        for cache in self.audio_caches:
            cache.discard_voice(voice_id)
        if not await self.ownership.holds():
            return False
        await purge_voice(self.store, self.blobs, voice_id, paths)
        return True

    async def _add(
        self,
        caller: Caller,
        wav: bytes,
        reference: ReferenceInfo,
        idempotency: Idempotency | None,
        *,
        prepare: bool,
        **fields: Any,
    ) -> StoredVoice:
        """Write the recording, then the row: a voice that is listed has its recording."""
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
            **fields,
        )
        await self.blobs.put(path, wav)
        reach("reference-stored")
        try:
            stored = await self.store.add_voice(voice, idempotency=idempotency, prepare=prepare)
        except AfterwordsError:
            with suppress(AfterwordsError):  # the sweep removes what remains
                await self.blobs.delete(path)
            raise
        if stored.voice_id != voice_id:
            await self.blobs.delete(path)
        reach("voice-committed")
        if stored.is_preparing:
            self.catalog.dispatcher.wake()
        return stored


async def find_voice(store: Store, caller: Caller, name_or_id: str) -> StoredVoice:
    """Return a voice of the caller's account by its id, or by its exact name.

    Raises:
        VoiceNotFoundError: It does not exist, or belongs to another account.
        ConflictError: Several voices have this name.
    """
    voice_id = parse_id(name_or_id)
    if voice_id and (voice := await store.get_voice(voice_id, account_id=caller.account_id)):
        return voice
    try:
        name = check_name(name_or_id)
    except InvalidInputError:
        raise VoiceNotFoundError from None
    found = await store.find_voices(name, account_id=caller.account_id)
    if not found:
        raise VoiceNotFoundError
    if len(found) > 1:
        raise ConflictError(code="ambiguous_voice_name")
    return found[0]


async def find_speaker(store: Store, caller: Caller, name_or_id: str) -> StoredVoice:
    """Return a voice as `find_voice` does, or else by its alias. The error names the nearest voices of the account.

    Raises:
        VoiceNotFoundError, ConflictError: As for `find_voice`.
    """
    try:
        return await find_voice(store, caller, name_or_id)
    except VoiceNotFoundError:
        with suppress(InvalidInputError):
            if voice := await store.find_by_alias(check_name(name_or_id), account_id=caller.account_id):
                return voice
    names = [
        voice.name for voice in await store.list_voices(account_id=caller.account_id, limit=NEAREST_OF, after=None)
    ]
    if not names:
        raise VoiceNotFoundError("This account has no voices yet.", hint="create one: `afterwords clone`.")
    nearest = get_close_matches(name_or_id[:NAME_MAX_CHARS], names, n=3) or names[:3]
    message = f"This account has no such voice; the nearest: {', '.join(nearest)}."
    hint = "`afterwords alias NAME VOICE` gives a voice a further name."
    raise VoiceNotFoundError(f"{message} {hint}", hint=hint)


def as_voice(stored: StoredVoice) -> Voice:
    """Return the public voice, without its owner and storage path."""
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


def _check_transcript(text: str | None) -> str | None:
    return check_text(text) if text and text.strip() else None


def _check_metadata(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        plain = json.dumps(metadata, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise InvalidRequestError.invalid_field("metadata", rule="its numbers must be finite") from None
    if holds_nul(plain):  # a bundle can't contain one either
        raise InvalidRequestError.invalid_field("metadata", rule="it must not contain NUL characters")
    n_lexicon = len(json.dumps(metadata.get("lexicon", ""), ensure_ascii=False).encode())
    if len(plain.encode()) > METADATA_MAX_BYTES + n_lexicon or n_lexicon > LEXICON_MAX_BYTES:
        rule = f"it may have at most {METADATA_MAX_BYTES:,} bytes as JSON, and {LEXICON_MAX_BYTES:,} of a lexicon"
        raise InvalidRequestError.invalid_field("metadata", rule=rule)
    return metadata


def _idempotency(caller: Caller, key: str | None, *parts: bytes) -> Idempotency | None:
    if key is None:
        return None
    digest = sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()
    return Idempotency(account_id=caller.account_id, route="voices", key=key, body_sha256=digest)


async def purge_voice(store: Store, blobs: Blobs, voice_id: str, paths: Sequence[str]) -> None:
    """Remove all audio of a deleted voice from the storage, which must belong to the database."""
    await blobs.delete(*paths)
    await blobs.delete_all(voice_prefix(voice_id))
    await store.mark_purged(voice_id)
