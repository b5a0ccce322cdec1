"""Speech on request: a cached piece at once, or a job that is waited for, heard, or cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256

from afterwords.errors import (
    JobFinalError,
    JobNotFoundError,
    JobNotReadyError,
    LostAudioError,
    LostReferenceError,
    StorageUnavailableError,
)
from afterwords.models import JobStatus, SpeechFormat, new_id
from afterwords.server.cache_key import cache_key, cache_path
from afterwords.server.failpoints import reach
from afterwords.server.ports import (
    BlobReader,
    Blobs,
    CacheEntry,
    Caller,
    Clock,
    Dispatcher,
    Idempotency,
    Limits,
    Listener,
    NewJob,
    Store,
    StoredJob,
    StoredVoice,
    Submitted,
)
from afterwords.server.services.audio_cache import HotAudio
from afterwords.server.services.backend_choice import Offer
from afterwords.server.services.job_events import News
from afterwords.server.services.recordings import Recordings
from afterwords.server.services.voices import find_voice
from afterwords.server.spool import MemoryReader
from afterwords.text import check_text


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller wants spoken, as it came; `voice_id` may be a name."""

    voice_id: str
    text: str = field(repr=False)
    lang: str | None = None
    backend: str | None = None
    speed: float = 1.0
    seed: int | None = None
    response_format: SpeechFormat = SpeechFormat.WAV
    webhook_url: str | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of all that was asked."""
        facts = [
            self.voice_id,
            self.text,
            self.lang,
            self.backend,
            float(self.speed),
            self.seed,
            self.response_format,
            self.webhook_url,
        ]
        return sha256(json.dumps(facts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Hit:
    """Speech that was made before: a WAV file, which the caller closes."""

    audio: BlobReader = field(repr=False)
    entry: CacheEntry
    backend: str
    left_out: Sequence[str] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job, and, where it was asked for and can be had, its sound while it is made."""

    job: StoredJob
    is_new: bool
    listener: Listener | None = None
    left_out: Sequence[str] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Synthesis:
    """The use-cases of those who ask."""

    store: Store
    blobs: Blobs
    recordings: Recordings
    clock: Clock
    offer: Offer
    limits: Limits
    dispatcher: Dispatcher
    news: News
    hot: HotAudio
    _streams: dict[str, bool] = field(default_factory=dict, init=False, repr=False)
    """Jobs that were made for a stream which goes on, and whether another request has joined each."""

    # -- asking ----------------------------------------------------------------------------------------------

    async def submit(
        self, caller: Caller, ask: Ask, *, idempotency_key: str | None = None, listen: bool = False
    ) -> Hit | Accepted:
        """Answer from the cache, or accept a job.

        Raises:
            VoiceNotFoundError, AmbiguousVoiceNameError: there is no one such voice.
            TextError, InvalidBackendError, UnsupportedLangError: it can't be spoken.
            LostReferenceError: the voice has lost its recording.
            LimitError: a limit of use is reached.
            IdempotencyConflictError: the idempotency key came before with another request.
        """
        text = check_text(ask.text)
        voice = await find_voice(self.store, caller, ask.voice_id)
        backend, lang = self.offer.for_speech(ask.backend, ask.lang, voice_backend=voice.backend, voice_lang=voice.lang)
        left_out = self.dispatcher.unspoken(backend, text)
        key = cache_key(text, lang=lang, backend=backend, speed=ask.speed, seed=ask.seed)
        idempotency = (
            Idempotency(caller.account_id, "synthesize", idempotency_key, ask.digest) if idempotency_key else None
        )
        if hit := await self._cached(voice, key):
            entry, audio = hit
            try:
                job_id = await self.store.replayed_job(idempotency) if idempotency else None
                job = await self.store.job(job_id, account_id=caller.account_id) if job_id else None
            except BaseException:
                audio.close()
                raise
            if job:
                audio.close()
            return Accepted(job, is_new=False, left_out=left_out) if job else Hit(audio, entry, backend, left_out)
        if not await self.recordings.exists(voice):
            raise LostReferenceError
        new = NewJob(
            job_id=new_id(),
            account_id=caller.account_id,
            voice_id=voice.voice_id,
            key_id=caller.key_id,
            spending_id=caller.spending_id,
            text=text,
            lang=lang,
            backend=backend,
            cache_key=key,
            flight_key=_flight_key(key, ask),
            char_count=len(text),
            speed=ask.speed,
            seed=ask.seed,
            response_format=ask.response_format,
            webhook_url=ask.webhook_url,
            character_limit=caller.character_limit,
        )
        return replace(await self._accept(new, idempotency, listen=listen), left_out=left_out)

    async def _accept(self, new: NewJob, idempotency: Idempotency | None, *, listen: bool) -> Accepted:
        listener = self.dispatcher.listen(new.job_id) if listen else None
        try:
            submitted: Submitted = await self.store.submit(new, limits=self.limits, idempotency=idempotency)
        except BaseException:
            if listener:
                listener.close()
            raise
        reach("job-committed")
        job_id = submitted.job.job_id
        if not submitted.is_new and job_id in self._streams:
            self._streams[job_id] = True
        elif submitted.is_new and listen:
            self._streams[job_id] = False
        if listener and not submitted.is_new:  # it is another's job that stands in: too late to hear it from the start
            listener.close()
            listener = None
        self.dispatcher.wake()
        return Accepted(submitted.job, submitted.is_new, listener)

    async def _cached(self, voice: StoredVoice, key: str) -> tuple[CacheEntry, BlobReader] | None:
        """A kept piece, if it is whole; one that is not is dropped, and a storage that is down is a miss."""
        entry = await self.store.cached(voice.voice_id, key)
        if entry is None:
            return None
        if wav := self.hot.get(voice.voice_id, entry.sha256):
            return entry, MemoryReader(wav)
        path = cache_path(voice.voice_id, key)
        try:
            audio = await self.blobs.open(path, sha256=entry.sha256)
            if audio is None:
                await self.store.uncache(entry)
                await self.blobs.delete(path)
                return None
        except StorageUnavailableError:
            return None
        if isinstance(audio, MemoryReader):
            self.hot.keep(voice.voice_id, entry.sha256, audio.data)
        return entry, audio

    # -- looking ---------------------------------------------------------------------------------------------

    async def job(self, caller: Caller, job_id: str, *, wait_s: float = 0) -> StoredJob:
        """One job; waits until it is final, at most `wait_s` seconds.

        Raises:
            JobNotFoundError: there is none, or it is another's.
        """
        job = await self.store.job(job_id, account_id=caller.account_id)
        if job is not None and wait_s > 0 and not job.status.is_final:
            job = await self._final(job, wait_s)
        if job is None:
            raise JobNotFoundError
        return job

    async def jobs(
        self, caller: Caller, *, status: JobStatus | None, limit: int | None, after: str | None
    ) -> list[StoredJob]:
        """The jobs of the caller's account, newest first."""
        return await self.store.jobs(account_id=caller.account_id, status=status, limit=limit, after=after)

    async def _final(self, job: StoredJob, wait_s: float) -> StoredJob | None:
        look = partial(self.store.job, job.job_id, account_id=job.account_id)
        return await self.news.final(job.job_id, look, wait_s=wait_s)

    async def first_sound(self, job: StoredJob, listener: Listener, *, wait_s: float) -> int | None:
        """The sample rate in Hz of a job that is heard, once it sounds; None if it ends without being heard here."""
        began = asyncio.ensure_future(listener.begun())
        ended = asyncio.ensure_future(self._final(job, wait_s))
        try:
            await asyncio.wait({began, ended}, return_when=asyncio.FIRST_COMPLETED)
            return began.result() if began.done() else None
        finally:
            began.cancel()
            ended.cancel()

    async def end_stream(self, caller: Caller, job_id: str, *, is_whole: bool) -> None:
        """End the stream that a job was made for; if its client left early, cancel the job.

        A job that is final by then stays what it is, and one that another request has joined goes on.
        """
        if self._streams.pop(job_id, False) or is_whole:
            return
        with contextlib.suppress(JobNotFoundError, JobFinalError):
            await self.cancel(caller, job_id)

    async def audio(self, job: StoredJob) -> BlobReader:
        """The WAV file of a job, which the caller closes.

        Raises:
            JobNotReadyError: it has none.
            LostAudioError: it is gone or altered; the job has failed with that, and answers so once.
        """
        if job.status is not JobStatus.READY or job.audio_key is None:
            raise JobNotReadyError(job.status)
        audio = await self.blobs.open(job.audio_key, sha256=job.audio_sha256 or "")
        if audio is None:
            await self.store.lost(job.job_id)
            raise LostAudioError
        return audio

    async def cancel(self, caller: Caller, job_id: str) -> StoredJob:
        """Cancel a job that is pending; what it reserved is given back.

        Raises:
            JobNotFoundError: there is none.
            JobFinalError: it is ready, or has failed.
        """
        job = await self.store.cancel(job_id, account_id=caller.account_id)
        if job is None:
            raise JobNotFoundError
        if job.status is not JobStatus.CANCELLED:
            raise JobFinalError(job.status)
        self.dispatcher.cancel(job_id)
        self.news.tell(job_id)
        return job


def _flight_key(key: str, ask: Ask) -> str:
    """Two requests fly together if all that is theirs is the same."""
    if ask.response_format is SpeechFormat.WAV and ask.webhook_url is None:
        return key
    return sha256("\0".join([key, ask.response_format, ask.webhook_url or ""]).encode()).hexdigest()
