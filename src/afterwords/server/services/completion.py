"""How every job ends, whichever dispatcher ran it: check the audio, store it, update the row, publish the event."""

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
from afterwords.errors import AfterwordsError, QuotaExceededError, RecordingError, StaleAttemptError, SynthesisError
from afterwords.provenance import mark_tags
from afterwords.server.cache_key import cache_path, job_path
from afterwords.server.concurrency import in_thread
from afterwords.server.failpoints import reach
from afterwords.server.metrics import Metrics
from afterwords.server.ports import Blobs, Clock, Store
from afterwords.server.records import AttemptResult, FinishStatus, ReportKind, StoredJob, StoredVoice
from afterwords.server.services.job_events import JobEvents
from afterwords.text import max_speech_s

INLINE_BYTES: Final = 1 << 20
"""WAV files up to this size are checked on the event loop, larger ones in a thread."""
_STEP_BLOCKS: Final = 8
_REPORT_MISSING: Final[dict[ReportKind, str]] = {
    "timing": "timestamps_unavailable",
    "verification": "verification_unavailable",
}


@dataclass(frozen=True, slots=True)
class Completion:
    """Completes and fails jobs."""

    store: Store
    blobs: Blobs
    clock: Clock
    events: JobEvents
    metrics: Metrics = field(default_factory=Metrics, kw_only=True)
    _locks: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary, init=False, repr=False)
    """Two deliveries of one attempt write the same blob, and the second may bring other audio."""

    async def open_job(self, job_id: str, attempt: int | None) -> StoredJob | None:
        """Return the job that a result may be delivered for. None: this attempt has delivered its result already.

        Raises:
            StaleAttemptError: The job was deleted with its voice.
            StaleAttemptError: Another attempt holds the job, or the lease has expired.
        """
        job = await self.store.get_job(job_id)
        if job is None:
            raise StaleAttemptError(code="voice_deleted")
        if attempt is not None and attempt != job.attempt:
            raise StaleAttemptError
        if job.status.is_final:
            return None
        if job.attempt and not self.is_held(job):  # 0: completed without a claim, as in the hosted dispatch form
            raise StaleAttemptError
        return job

    def is_held(self, job: StoredJob) -> bool:
        """Return whether a worker has the lease of a job."""
        return job.lease_expires is not None and job.lease_expires > self.clock.monotonic()

    async def complete(self, job_id: str, attempt: int | None, wav: BinaryIO, *, synth_ms: int | None = None) -> None:
        """Complete a job with its audio; see `JobQueue.complete` in `ports`.

        The file is read several times in blocks. Memory does not depend on its length.
        """
        async with self._locks.setdefault(job_id, asyncio.Lock()):
            job = await self.open_job(job_id, attempt)
            if job is None:
                return
            voice = await self.store.get_voice(job.voice_id, account_id=job.account_id)
            if voice is None:
                raise StaleAttemptError(code="voice_deleted")
            for kind in job.reports:
                if await self.store.get_report(job_id, kind) is None:  # the worker is an older one
                    await self._finish(job, AttemptResult(error=_REPORT_MISSING[kind]))
                    return
            try:
                audio = _MarkedAudio.from_wav(wav, job, voice)
                digest = await audio.sha256()
            except (RecordingError, SynthesisError) as error:
                await self.reject(job, error)
            if synth_ms is None:
                synth_ms = max(0, round((self.clock.now() - job.created_at).total_seconds() * 1000))
            path = job_path(job_id, job.attempt)
            await self.blobs.put(path, audio)
            if not job.reports:
                await self.blobs.put(cache_path(job.voice_id, job.cache_key), audio, is_durable=False)
            reach("audio-stored")
            try:
                await self._finish(job, AttemptResult(path, digest, audio.size_bytes, synth_ms), audio.duration_s)
            except QuotaExceededError as error:  # not the fault of the worker: its delivery succeeds
                await self._finish(job, AttemptResult(error=error.code))
                await self._delete_audio(job, path)
            except StaleAttemptError:
                await self._delete_audio(job, path)
                raise

    async def reject(self, job: StoredJob, error: AfterwordsError) -> NoReturn:
        """Fail a job whose audio is invalid, and raise the error for the worker."""
        await self._finish(job, AttemptResult(error=error.code))
        raise error

    async def fail(self, job_id: str, attempt: int | None, *, error: str) -> None:
        """Fail a job with an error code; see `JobQueue.fail` in `ports`."""
        if job := await self.open_job(job_id, attempt):
            await self._finish(job, AttemptResult(error=error))

    async def _finish(self, job: StoredJob, result: AttemptResult, duration_s: float = 0) -> None:
        status = await self.store.finish(job.job_id, job.attempt, result)
        if status is FinishStatus.GONE:
            raise StaleAttemptError(code="voice_deleted")
        if status is FinishStatus.STALE:
            raise StaleAttemptError
        if status is FinishStatus.ALREADY:
            final = await self.store.get_job(job.job_id)
            if final is None or final.audio_key != result.audio_key:  # cancelled in the meantime, for example
                raise StaleAttemptError
            return
        reach("job-finished")
        self.events.publish(job.job_id)
        metrics, who = self.metrics, (job.backend, job.worker_kind)
        metrics.end_job(job.backend, "failed" if result.error else "ready", result.error)
        if result.synth_ms is not None and duration_s:
            metrics.audio_seconds.add(*who, amount=duration_s)
            metrics.synthesis_seconds.add(*who, amount=result.synth_ms / 1000)
            metrics.real_time_factor.observe(result.synth_ms / 1000 / duration_s, *who)

    async def _delete_audio(self, job: StoredJob, path: str) -> None:
        """Delete the audio of a result that was too late or too large."""
        with contextlib.suppress(AfterwordsError):  # the sweep removes what remains
            await self.blobs.delete(path)
            if await self.store.get_cached(job.voice_id, job.cache_key) is None:
                await self.blobs.delete(cache_path(job.voice_id, job.cache_key))


@dataclass(frozen=True, slots=True)
class _MarkedAudio:
    """The audio of a job as it is stored: mono, 16-bit, marked as synthetic. It is converted while it is read."""

    header: bytes
    blocks: WavBlocks

    @classmethod
    def from_wav(cls, wav: BinaryIO, job: StoredJob, voice: StoredVoice) -> _MarkedAudio:
        blocks = wav_blocks(wav, source="the audio")
        duration_s = blocks.n_frames / blocks.sample_rate
        longest_s = max_speech_s(job.text or "", speed=job.speed)
        if duration_s > longest_s:
            raise SynthesisError.runaway(duration_s=duration_s, maximum_s=longest_s)
        tags = mark_tags(backend=job.backend, voice_name=voice.name, voice_id=voice.voice_id, made_at=job.created_at)
        return cls(wav_header(blocks.sample_rate, n_frames=blocks.n_frames, tags=tags), blocks)

    @property
    def duration_s(self) -> float:
        return self.blocks.n_frames / self.blocks.sample_rate

    @property
    def size_bytes(self) -> int:
        return len(self.header) + 2 * self.blocks.n_frames

    def __iter__(self) -> Iterator[bytes]:
        yield self.header
        for samples in self.blocks:
            yield pcm16(samples)

    async def sha256(self) -> str:
        """Return the digest. This also checks that the file can be read to its end.

        Raises:
            RecordingError: Samples are NaN or infinite.
        """
        digest, chunks = sha256(), iter(self)

        def step() -> bool:
            few = list(islice(chunks, _STEP_BLOCKS))
            for chunk in few:
                digest.update(chunk)
            return bool(few)

        if self.size_bytes <= INLINE_BYTES:
            while step():
                pass
        else:
            while await in_thread(step):
                pass
        return digest.hexdigest()
