"""Synthesis requests: a cached file, or a job that clients wait for, stream or cancel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import Final, Generic, TypeVar

from afterwords.backends.base import FEATURES, timbre_only
from afterwords.errors import (
    AfterwordsError,
    AudioMissingError,
    ConflictError,
    NotFoundError,
    QuotaExceededError,
    StorageUnavailableError,
    UnavailableError,
    VoiceNotFoundError,
)
from afterwords.library.takes import NEUTRAL, takes
from afterwords.markup import parse, reading_of
from afterwords.models import (
    Alignment,
    Estimate,
    JobStatus,
    Reading,
    SpeechFormat,
    Usage,
    Verification,
    new_id,
    read_lexicon,
)
from afterwords.server.cache_key import cache_key, cache_path
from afterwords.server.failpoints import reach
from afterwords.server.metrics import Metrics
from afterwords.server.ports import BlobReader, Blobs, Clock, Dispatcher, Listener, Store
from afterwords.server.records import (
    CacheEntry,
    Caller,
    Idempotency,
    NewJob,
    QueueLimits,
    Quota,
    ReportKind,
    StoredJob,
    StoredVoice,
)
from afterwords.server.services.audio_cache import AudioCache
from afterwords.server.services.backend_choice import BackendCatalog
from afterwords.server.services.job_events import JobEvents
from afterwords.server.services.recordings import Recordings
from afterwords.server.services.voices import find_voice
from afterwords.server.spool import MemoryReader
from afterwords.server.tracing import current_traceparent, note, span
from afterwords.text import check_text

log = logging.getLogger("afterwords.server")

ONE_TAKE: Final = "A server speaks a text with one take of the voice, so tags of other takes within it have no effect."

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SynthesisRequest:
    """The fields of a request, not yet validated. `voice_id` may be a name."""

    voice_id: str
    text: str = field(repr=False)
    lang: str | None = None
    backend: str | None = None
    speed: float = 1.0
    seed: int | None = None
    response_format: SpeechFormat = SpeechFormat.WAV
    sample_rate: int | None = None
    webhook_url: str | None = None
    timestamps: bool = False
    keeps_timing: bool = True
    verify: bool = False
    emotion: str | None = None

    @property
    def has_report(self) -> bool:
        """Whether more than the audio is wanted. The cache, which keeps no text, has none of it."""
        return self.timestamps or self.verify

    @property
    def digest(self) -> str:
        """SHA-256 of all fields."""
        values = [
            self.voice_id,
            self.text,
            self.lang,
            self.backend,
            float(self.speed),
            self.seed,
            self.response_format,
            self.webhook_url,
            # Without these, digests are those of earlier versions.
            *([True] if self.timestamps else []),
            *(["verify"] if self.verify else []),
            *([self.sample_rate] if self.sample_rate else []),
            *(["emotion", self.emotion] if self.emotion else []),
        ]
        return sha256(json.dumps(values).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ResolvedRequest(Generic[T]):
    """A valid request with every choice made, and what was found in the cache."""

    text: str = field(repr=False)
    voice: StoredVoice
    backend: str
    lang: str
    cache_key: str
    cached: T | None
    reading: Reading = field(repr=False)
    expected_s: float
    left_out: Sequence[str] = field(repr=False)
    notices: Sequence[str]


@dataclass(frozen=True, slots=True)
class CachedSpeech:
    """A cached WAV file. The caller closes it."""

    audio: BlobReader = field(repr=False)
    entry: CacheEntry
    voice_name: str
    backend: str
    left_out: Sequence[str] = field(default=(), repr=False)
    notices: Sequence[str] = ()
    quota: Quota | None = None


@dataclass(frozen=True, slots=True)
class AcceptedJob:
    """A job, with its audio stream if that was requested and is available."""

    job: StoredJob
    is_new: bool
    voice_name: str
    listener: Listener | None = None
    left_out: Sequence[str] = field(default=(), repr=False)
    notices: Sequence[str] = ()
    quota: Quota | None = None


@dataclass(frozen=True, slots=True)
class Synthesis:
    """The use cases of clients."""

    store: Store
    blobs: Blobs
    recordings: Recordings
    clock: Clock
    catalog: BackendCatalog
    limits: QueueLimits
    dispatcher: Dispatcher
    events: JobEvents
    audio_cache: AudioCache
    metrics: Metrics = field(default_factory=Metrics)
    renew: Callable[[str], Awaitable[bool]] | None = None
    """Ask for the next billing period of an account. Return whether there may be one now. None: nothing is sold."""
    _streams: dict[str, bool] = field(default_factory=dict, init=False, repr=False)
    """Jobs with an open stream, and whether another request shares the job."""

    # -- submit ----------------------------------------------------------------------------------------------

    async def submit(
        self, caller: Caller, request: SynthesisRequest, *, idempotency_key: str | None = None, listen: bool = False
    ) -> CachedSpeech | AcceptedJob:
        """Return cached audio, or submit a job.

        Raises:
            VoiceNotFoundError, ConflictError: No voice, or several voices, match.
            TextError, InvalidInputError, UnsupportedLangError: A field is invalid.
            AudioMissingError: The recording of the voice is missing.
            LimitError: A limit is reached.
            ConflictError: The idempotency key was used with another request.
        """
        resolved = await self._resolve(caller, request, self._open_cached)
        voice, backend, key = resolved.voice, resolved.backend, resolved.cache_key
        left_out, notices = resolved.left_out, resolved.notices
        idempotency = None
        if idempotency_key:
            idempotency = Idempotency(caller.account_id, "synthesize", idempotency_key, request.digest)
        if resolved.cached is not None:
            entry, audio = resolved.cached
            try:
                job_id = await self.store.find_repeated_job(idempotency) if idempotency else None
                job = await self.store.get_job(job_id, account_id=caller.account_id) if job_id else None
                quota = await self._read_quota(caller)
            except BaseException:
                audio.close()
                raise
            if job is None:
                self.metrics.cache_hits.add(backend)
                return CachedSpeech(audio, entry, voice.name, backend, left_out, notices, quota)
            audio.close()
            return AcceptedJob(job, False, voice.name, left_out=left_out, notices=notices, quota=quota)
        job_id, flight_key = new_id(), key
        options = (
            ("t", request.timestamps),
            ("v", request.verify),
            ("brief", not request.keeps_timing),
            # Times that are not kept reach only the listener of the job, so no other request may share it.
            (job_id, request.timestamps and not request.keeps_timing),
            (f"{request.sample_rate}", request.sample_rate),
        )
        chosen = [name for name, is_chosen in options if is_chosen]
        if request.response_format is not SpeechFormat.WAV or request.webhook_url is not None or chosen:
            parts = [key, request.response_format, request.webhook_url or "", *chosen]
            flight_key = sha256("\0".join(parts).encode()).hexdigest()
        new = NewJob(
            job_id=job_id,
            account_id=caller.account_id,
            voice_id=voice.voice_id,
            key_id=caller.key_id,
            spending_id=caller.spending_id,
            text=resolved.text,
            lang=resolved.lang,
            backend=backend,
            cache_key=key,
            flight_key=flight_key,
            char_count=len(resolved.text),
            speed=request.speed,
            seed=request.seed,
            response_format=request.response_format,
            sample_rate=request.sample_rate,
            webhook_url=request.webhook_url,
            timestamps=request.timestamps,
            keeps_timing=request.keeps_timing,
            verify=request.verify,
            reading=None if resolved.reading.is_empty else resolved.reading.model_dump_json(),
            character_limit=caller.character_limit,
        )
        with span("submit", backend=backend):
            new = replace(new, traceparent=current_traceparent())
            accepted = await self._submit_new(caller, new, idempotency, voice_name=voice.name, listen=listen)
            note(job_id=accepted.job.job_id, is_new=accepted.is_new)
        return replace(accepted, left_out=left_out, notices=notices)

    async def get_usage(self, caller: Caller) -> Usage:
        """Return the usage in the current period, after asking for it if the last one has ended."""
        usage = await self.store.get_usage(caller)
        return await self.store.get_usage(caller) if await self._is_renewed(caller, usage) else usage

    async def _is_renewed(self, caller: Caller, usage: Usage) -> bool:
        if self.renew is None or usage.period_end > self.clock.now():
            return False
        try:
            return await self.renew(caller.account_id)
        except AfterwordsError as error:  # it can't be known now, and the next request asks again
            log.warning("the next period of an account is unknown account=%s code=%s", caller.account_id, error.code)
            return False

    async def _read_quota(self, caller: Caller) -> Quota | None:
        if caller.character_limit is None and caller.plan is None:
            return None
        usage = await self.store.get_usage(caller)
        return None if usage.limit is None else Quota(usage.characters, usage.limit)

    async def estimate(self, caller: Caller, request: SynthesisRequest) -> Estimate:
        """Return what `submit` would take and charge; it raises the same errors, except for limits.

        Of the cache only the row is read: if its audio was lost, `submit` speaks the text again and charges it.
        """
        resolved = await self._resolve(caller, request, lambda voice, key: self.store.get_cached(voice.voice_id, key))
        usage = await self.get_usage(caller)
        characters, is_cached = len(resolved.text), resolved.cached is not None
        charged = 0 if is_cached else characters
        remaining = None if usage.limit is None else max(0, usage.limit - usage.characters)
        pace_s = 0.0 if is_cached else await self.store.read_pace(resolved.backend)
        return Estimate(
            characters=characters,
            charged_characters=charged,
            is_cached=is_cached,
            backend=resolved.backend,
            lang=resolved.lang,
            duration_s=round(resolved.expected_s, 2),
            synthesis_s=None if pace_s is None else round(pace_s * characters, 2),
            remaining_characters=remaining,
            is_within_limit=remaining is None or charged <= remaining,
        )

    async def _resolve(
        self,
        caller: Caller,
        request: SynthesisRequest,
        find_cached: Callable[[StoredVoice, str], Awaitable[T | None]],
    ) -> ResolvedRequest[T]:
        """Validate a request, choose its backend and language, and look for it in the cache.

        The recording of the voice must exist unless the audio is cached.
        """
        text = check_text(request.text)
        speaker = await find_voice(self.store, caller, request.voice_id)
        voice, tags, notices = await self._choose_take(caller, speaker, request.emotion, text)
        reading = reading_of(text, lexicon=read_lexicon(speaker.metadata), emotions=tags)
        written = [*(entry.model_dump_json() for entry in reading.lexicon), *reading.emotions]
        make_key = partial(cache_key, "\0".join([text, *written]), speed=request.speed, seed=request.seed)
        backend, lang = request.backend or speaker.backend, request.lang or speaker.lang
        cached: T | None = None
        if (
            backend not in self.catalog.backends and not request.has_report
        ):  # its audio is kept, for example that of the hosted service
            key = make_key(lang=lang, backend=backend)
            cached = await find_cached(voice, key)
        if cached is None:
            backend, lang = self.catalog.for_speech(
                request.backend, request.lang, voice_backend=speaker.backend, voice_lang=speaker.lang
            )
            key = make_key(lang=lang, backend=backend)
            cached = None if request.has_report else await find_cached(voice, key)
        features = self.dispatcher.features.get(backend, frozenset(FEATURES))
        reads_ipa = "reads_ipa" in features
        script = parse(text, emotions=reading.emotions, lexicon=reading.lexicon, reads_ipa=reads_ipa)
        if voice.emotion and "continues_recording" not in features:
            notices.append(timbre_only(backend))
        left_out = self.dispatcher.unspoken(backend, script.text)
        if cached is None and not await self.recordings.exists(voice):
            raise AudioMissingError(code="reference_missing")
        return ResolvedRequest(
            text=text,
            voice=voice,
            backend=backend,
            lang=lang,
            cache_key=key,
            cached=cached,
            reading=reading,
            expected_s=script.expected_s(speed=request.speed),
            left_out=left_out,
            notices=[*notices, *script.notices],
        )

    async def _choose_take(
        self, caller: Caller, speaker: StoredVoice, emotion: str | None, text: str
    ) -> tuple[StoredVoice, list[str], list[str]]:
        """Return the voice that speaks a text: the speaker or one of its takes; names that are tags; and notices.

        Raises:
            VoiceNotFoundError: The speaker has no take for the emotion.
        """
        palette: dict[str, StoredVoice] = {}
        if speaker.family and (emotion or "[" in text):
            palette = takes(await self.store.find_family(speaker.family, account_id=caller.account_id), speaker)
        if emotion is not None and emotion not in palette:
            known = f"its takes: {', '.join(sorted(palette))}" if palette else "it has no takes"
            raise VoiceNotFoundError(f"The voice has no take for this emotion; {known}.", param="emotion")
        voice = speaker if emotion is None else palette[emotion]
        if not palette:
            return voice, [], []
        names = [*palette, NEUTRAL]
        segments = parse(text, emotions=names).segments
        chosen = [palette.get(each.emotion or "", voice) for each in segments if each.text] or [voice]
        if chosen.count(chosen[0]) == len(chosen):
            return chosen[0], names, []
        return voice, names, [ONE_TAKE]

    async def _submit_new(
        self, caller: Caller, new: NewJob, idempotency: Idempotency | None, *, voice_name: str, listen: bool
    ) -> AcceptedJob:
        listener = self.dispatcher.listen(new.job_id) if listen else None
        submit = partial(self.store.submit, new, limits=self.limits, idempotency=idempotency)
        try:
            try:
                submitted = await submit()
            except QuotaExceededError:
                if not await self._is_renewed(caller, await self.store.get_usage(caller)):
                    raise
                submitted = await submit()
            quota = submitted.quota
            if quota is None and not submitted.is_new:  # a repeated request
                quota = await self._read_quota(caller)
        except BaseException:
            if listener:
                listener.close()
            raise
        reach("job-committed")
        job_id = submitted.job.job_id
        if submitted.is_new:
            self.metrics.cache_misses.add(new.backend)
        if not submitted.is_new and job_id in self._streams:
            self._streams[job_id] = True
        elif submitted.is_new and listen:
            self._streams[job_id] = False
        if listener and not submitted.is_new:  # another job stands in: its stream has already started
            listener.close()
            listener = None
        self.dispatcher.wake()
        return AcceptedJob(submitted.job, submitted.is_new, voice_name, listener, quota=quota)

    async def _open_cached(self, voice: StoredVoice, key: str) -> tuple[CacheEntry, BlobReader] | None:
        """Open cached audio. A damaged file is dropped; unavailable storage counts as a cache miss."""
        entry = await self.store.get_cached(voice.voice_id, key)
        if entry is None:
            return None
        if wav := self.audio_cache.get(voice.voice_id, entry.sha256):
            return entry, MemoryReader(wav)
        path = cache_path(voice.voice_id, key)
        try:
            audio = await self.blobs.open(path, sha256=entry.sha256)
            if audio is None:
                await self.store.delete_cached(entry)
                await self.blobs.delete(path)
                return None
        except StorageUnavailableError:
            return None
        if isinstance(audio, MemoryReader):
            self.audio_cache.put(voice.voice_id, entry.sha256, audio.data)
        return entry, audio

    # -- read, stream, cancel --------------------------------------------------------------------------------

    async def get_job(self, caller: Caller, job_id: str, *, wait_s: float = 0) -> StoredJob:
        """Return a job after waiting up to `wait_s` seconds until it is final.

        Raises:
            NotFoundError: It does not exist, or belongs to another account.
        """
        job = await self.store.get_job(job_id, account_id=caller.account_id)
        if job is not None and wait_s > 0 and not job.status.is_final:
            job = await self._wait_until_final(job, wait_s)
        if job is None:
            raise NotFoundError(code="job_not_found")
        return job

    async def _wait_until_final(self, job: StoredJob, wait_s: float) -> StoredJob | None:
        read = partial(self.store.get_job, job.job_id, account_id=job.account_id)
        return await self.events.wait_until_final(job.job_id, read, wait_s=wait_s)

    async def wait_for_audio(self, job: StoredJob, listener: Listener, *, wait_s: float) -> int | None:
        """Wait for the first audio of a stream, and return its sample rate in Hz. None: the job ended without any."""
        began = asyncio.ensure_future(listener.wait_until_started())
        ended = asyncio.ensure_future(self._wait_until_final(job, wait_s))
        try:
            await asyncio.wait({began, ended}, return_when=asyncio.FIRST_COMPLETED)
            return began.result() if began.done() else None
        finally:
            began.cancel()
            ended.cancel()

    async def end_stream(self, caller: Caller, job_id: str, *, is_whole: bool) -> None:
        """End the stream of a job, and cancel the job if the client disconnected early.

        A job that is final or shared with another request is not cancelled.
        """
        if self._streams.pop(job_id, False) or is_whole:
            return
        with contextlib.suppress(NotFoundError, ConflictError):
            await self.cancel(caller, job_id)

    async def open_audio(self, job: StoredJob) -> BlobReader:
        """Return the WAV file of a job. The caller closes it.

        Raises:
            NotFoundError: The job has no audio.
            AudioMissingError: The audio is missing or altered. The job is failed.
        """
        if job.status is not JobStatus.READY or job.audio_key is None:
            raise NotFoundError(f"The job has no audio: its status is {job.status}.", code="job_not_ready")
        audio = await self.blobs.open(job.audio_key, sha256=job.audio_sha256 or "")
        if audio is None:
            await self.store.mark_audio_lost(job.job_id)
            self.metrics.audio_lost.add()
            raise AudioMissingError
        return audio

    async def get_alignment(self, job: StoredJob) -> Alignment:
        """Return when each character of a job is spoken.

        Raises:
            NotFoundError: The job is not ready.
            UnavailableError: It was submitted without timestamps, or its worker can't find them.
        """
        why = "its worker can't find them" if job.timestamps else "it was submitted without them"
        return Alignment.model_validate_json(await self._get_report(job, "timing", "timestamps", why=why))

    def has_timing(self, voice: StoredVoice, request: SynthesisRequest) -> bool:
        """Return whether the words of a request have times while they are spoken.

        Raises:
            InvalidInputError, UnsupportedLangError: The server does not offer its backend or language.
        """
        backend, _ = self.catalog.for_speech(
            request.backend, request.lang, voice_backend=voice.backend, voice_lang=voice.lang
        )
        return "has_timing" in self.dispatcher.features.get(backend, ())

    async def get_verification(self, job: StoredJob) -> Verification:
        """Return how the speech of a job compares with its text.

        Raises:
            NotFoundError: The job is not ready.
            UnavailableError: It was submitted without `verify`, or its worker can't verify.
        """
        why = "its worker can't verify speech" if job.verify else "it was submitted without `verify`"
        return Verification.model_validate_json(await self._get_report(job, "verification", "verification", why=why))

    async def _get_report(self, job: StoredJob, kind: ReportKind, name: str, *, why: str) -> str:
        """Return a report about a job; raise with its public name, and why it may be missing."""
        code = f"{name}_unavailable"
        if job.status is not JobStatus.READY and job.error != code:
            raise NotFoundError(f"The job has no {name}: its status is {job.status}.", code="job_not_ready")
        if (report := await self.store.get_report(job.job_id, kind)) is None:
            raise UnavailableError(f"The job has no {name}: {why}.", code=code)
        return report

    async def cancel(self, caller: Caller, job_id: str) -> StoredJob:
        """Cancel a pending job, and refund it.

        Raises:
            NotFoundError: The job does not exist.
            ConflictError: The job is ready or has failed.
        """
        began = self.clock.now()
        job = await self.store.cancel(job_id, account_id=caller.account_id)
        if job is None:
            raise NotFoundError(code="job_not_found")
        if job.status is not JobStatus.CANCELLED:
            raise ConflictError(f"The job is already {job.status}, so it can't be cancelled.", code="job_final")
        self.dispatcher.cancel(job_id)
        self.events.publish(job_id)
        if job.completed_at and job.completed_at >= began:  # not by an earlier request
            self.metrics.end_job(job.backend, job.status)
        return job
