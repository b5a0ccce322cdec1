"""The one way in which a job ends: every dispatcher, in this process or behind a callback, brings its results here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from typing import BinaryIO, Final, NoReturn
from weakref import WeakValueDictionary

from afterwords.audio.wav import WavBlocks, pcm16, wav_blocks, wav_header
from afterwords.errors import (
    AfterwordsError,
    RecordingError,
    RunawayAudioError,
    StaleAttemptError,
    StorageQuotaExceededError,
    VoiceDeletedError,
)
from afterwords.provenance import mark_tags
from afterwords.server.cache_key import cache_path, job_path
from afterwords.server.failpoints import reach
from afterwords.server.ports import Blobs, Clock, Finished, Outcome, Store, StoredJob, StoredVoice
from afterwords.server.services.job_events import News
from afterwords.server.threads import in_thread
from afterwords.text import longest_speech_s

INLINE_BYTES: Final = 1 << 20
"""Up to this size a WAV is checked where the request is; beyond, in a thread."""
_STEP_BLOCKS: Final = 8


@dataclass(frozen=True, slots=True)
class Completion:
    """The use-cases of those who speak."""

    store: Store
    blobs: Blobs
    clock: Clock
    news: News
    _turns: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary, init=False, repr=False)
    """Two deliveries of one attempt write the same blob, and the one that came second may bring other audio."""

    async def open_job(self, job_id: str, attempt: int | None) -> StoredJob | None:
        """The job that a result may be brought for; None if this attempt has brought it already.

        Raises:
            VoiceDeletedError: the job is gone.
            StaleAttemptError: another attempt holds it, or the lease is over.
        """
        job = await self.store.job(job_id)
        if job is None:
            raise VoiceDeletedError
        if attempt is not None and attempt != job.attempt:
            raise StaleAttemptError
        if job.status.is_final:
            return None
        is_held = job.lease_expires is not None and job.lease_expires > self.clock.steady()
        if job.attempt and not is_held:  # 0: brought though nobody claimed it, as the hosted dispatch form does
            raise StaleAttemptError
        return job

    async def complete(self, job_id: str, attempt: int | None, wav: BinaryIO, *, synth_ms: int | None = None) -> None:
        """Take the audio of an attempt: check it, write the blobs, end the job by one conditional UPDATE.

        The file is read block by block, several times; memory does not depend on its length.

        A second delivery changes nothing, even one that comes at the same time.

        Raises:
            RecordingError, RunawayAudioError: it is no speech for this text; the job has failed.
            VoiceDeletedError, StaleAttemptError: as `open_job`; nothing is kept.
        """
        async with self._turns.setdefault(job_id, asyncio.Lock()):
            await self._complete(job_id, attempt, wav, synth_ms)

    async def _complete(self, job_id: str, attempt: int | None, wav: BinaryIO, synth_ms: int | None) -> None:
        job = await self.open_job(job_id, attempt)
        if job is None:
            return
        voice = await self.store.voice(job.voice_id, account_id=job.account_id)
        if voice is None:
            raise VoiceDeletedError
        try:
            audio = _marked(wav, job, voice)
            digest = await audio.sha256()
        except (RecordingError, RunawayAudioError) as error:
            await self.reject(job, error)
        path = job_path(job_id, job.attempt)
        await self.blobs.put(path, audio)
        await self.blobs.put(cache_path(job.voice_id, job.cache_key), audio, is_durable=False)
        reach("audio-stored")
        outcome = Outcome(
            audio_key=path,
            audio_sha256=digest,
            audio_bytes=audio.size_bytes,
            synth_ms=self._synth_ms(job) if synth_ms is None else synth_ms,
        )
        try:
            await self._finish(job, outcome)
        except StorageQuotaExceededError as error:  # the worker did well: to it, the result was taken
            await self._finish(job, Outcome(error=error.code))
            await self._drop(job, path)
        except (StaleAttemptError, VoiceDeletedError):
            await self._drop(job, path)
            raise

    async def reject(self, job: StoredJob, error: AfterwordsError) -> NoReturn:
        """Fail a job whose audio is none, and tell the worker."""
        await self._finish(job, Outcome(error=error.code))
        raise error

    async def fail(self, job_id: str, attempt: int | None, *, error: str) -> None:
        """End a job that can't be spoken. A second word changes nothing.

        Raises:
            VoiceDeletedError, StaleAttemptError: as `open_job`.
        """
        if job := await self.open_job(job_id, attempt):
            await self._finish(job, Outcome(error=error))

    async def _finish(self, job: StoredJob, outcome: Outcome) -> None:
        finished = await self.store.finish(job.job_id, job.attempt, outcome)
        if finished is Finished.GONE:
            raise VoiceDeletedError
        if finished is Finished.STALE:
            raise StaleAttemptError
        if finished is Finished.ALREADY:
            seen = await self.store.job(job.job_id)
            if seen is None or seen.audio_key != outcome.audio_key:  # cancelled in the meantime, for example
                raise StaleAttemptError
            return
        reach("job-finished")
        self.news.tell(job.job_id)

    async def _drop(self, job: StoredJob, path: str) -> None:
        """Remove what was written for a result that came too late."""
        with contextlib.suppress(AfterwordsError):  # the sweeper finds what can't be removed now
            await self.blobs.delete(path)
            if await self.store.cached(job.voice_id, job.cache_key) is None:
                await self.blobs.delete(cache_path(job.voice_id, job.cache_key))

    def _synth_ms(self, job: StoredJob) -> int:
        """What is known of a worker that does not say: the time since the job was accepted."""
        return max(0, round((self.clock.now() - job.created_at).total_seconds() * 1000))


@dataclass(frozen=True, slots=True)
class _Marked:
    """The audio of a worker as it is kept: mono 16-bit, and marked as synthetic speech. It is made while it is read."""

    header: bytes
    blocks: WavBlocks

    @property
    def size_bytes(self) -> int:
        return len(self.header) + 2 * self.blocks.n_frames

    def __iter__(self) -> Iterator[bytes]:
        yield self.header
        for samples in self.blocks:
            yield pcm16(samples)

    async def sha256(self) -> str:
        """The digest of all of it, which also sees whether it can be read to its end.

        Raises:
            NonFiniteAudioError: there are samples that are NaN or infinite.
        """
        digest, pieces = sha256(), iter(self)

        def step() -> bool:
            few = list(islice(pieces, _STEP_BLOCKS))
            for piece in few:
                digest.update(piece)
            return bool(few)

        if self.size_bytes <= INLINE_BYTES:
            while step():
                pass
        else:
            while await in_thread(step):
                pass
        return digest.hexdigest()


def _marked(wav: BinaryIO, job: StoredJob, voice: StoredVoice) -> _Marked:
    """The audio of a worker, judged by its length."""
    blocks = wav_blocks(wav, source="the audio")
    duration_s = blocks.n_frames / blocks.sample_rate
    longest_s = longest_speech_s(job.text or "", speed=job.speed)
    if duration_s > longest_s:
        raise RunawayAudioError(duration_s=duration_s, maximum_s=longest_s)
    tags = mark_tags(backend=job.backend, voice_name=voice.name, voice_id=voice.voice_id, made_at=job.created_at)
    return _Marked(wav_header(blocks.sample_rate, n_frames=blocks.n_frames, tags=tags), blocks)
