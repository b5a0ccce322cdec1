"""The job queue of the dispatchers: claims with leases, references, prompts, and the end of attempts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from functools import partial
from hashlib import sha256
from typing import Final

from pydantic import ValidationError

from afterwords.errors import AudioMissingError, InvalidRequestError, StaleAttemptError
from afterwords.markup import parse
from afterwords.models import Alignment, JobStatus, Reading, Verification
from afterwords.server.cache_key import prompt_path
from afterwords.server.ports import Blobs
from afterwords.server.records import Claim, ReportKind, StoredJob, StoredVoice
from afterwords.server.services.completion import Completion
from afterwords.server.services.recordings import Recordings
from afterwords.server.services.signing import worker_token
from afterwords.server.tracing import record

_DIGEST_BYTES: Final = 32


class PromptKind(StrEnum):
    """The quality of a stored prompt, or a checkpoint of its preparation."""

    FULL = "full"
    FAST = "fast"
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True, slots=True)
class StoredJobQueue(Completion):
    """The port `JobQueue` on the store."""

    recordings: Recordings
    secret: bytes = field(repr=False)
    lease_s: float
    max_attempts: int

    async def claim(
        self, *, backends: Sequence[str], worker: str, skip_voices: Sequence[str] = (), prepare: Sequence[str] = ()
    ) -> Claim | None:
        claim = await self.store.claim(backends=backends, lease_s=self.lease_s, worker=worker, skip_voices=skip_voices)
        if claim:
            job = claim.job
            self.metrics.attempts.add(job.backend, job.worker_kind)
            if job.attempt == 1:
                waited_s = (self.clock.now() - job.created_at).total_seconds()
                self.metrics.queue_wait.observe(max(0.0, waited_s), job.backend)
                record(
                    "wait", parent=job.traceparent, began_at=job.created_at, job_id=job.job_id, worker=job.worker_kind
                )
            return claim
        if not prepare:
            return None
        return await self.store.claim_preparation(
            backends=prepare,
            lease_s=self.lease_s,
            worker=worker,
            max_attempts=self.max_attempts,
            skip_voices=skip_voices,
        )

    async def find_claim(self, job_id: str, attempt: int, *, may_be_final: bool = False) -> Claim:
        if await self.store.get_job(job_id) is None and (claim := await self.store.get_preparation(job_id)):
            if claim.job.attempt != attempt or not self.is_held(claim.job):
                raise StaleAttemptError
            return claim
        job = await self.open_job(job_id, attempt)
        if job is None and may_be_final:
            final = await self.store.get_job(job_id)
            latest = self.clock.now() - timedelta(seconds=self.lease_s)
            if final and final.completed_at and final.completed_at >= latest:
                job = final
        if job is None:
            raise StaleAttemptError
        voice = await self.store.get_voice(job.voice_id, account_id=job.account_id)
        if voice is None:
            raise StaleAttemptError(code="voice_deleted")
        return Claim(job, voice)

    async def find_claimed(self, worker: str) -> Claim | None:
        return await self.store.find_claimed(worker)

    def interrupt(self) -> None:
        pass  # no claim waits

    async def heartbeat(self, job_id: str, attempt: int, *, lease_s: float | None = None) -> bool:
        return await self.store.heartbeat(job_id, attempt, lease_s=lease_s or self.lease_s)

    def attempt_token(self, job_id: str, attempt: int, *, claimed_with: str | None = None) -> str:
        return worker_token(self.secret, job_id, attempt, claimed_with=claimed_with)

    def subscribe(self, on_final: Callable[[str], None]) -> None:
        self.events.subscribe(on_final)

    async def is_wanted(self, job_id: str, attempt: int, *, wait_s: float) -> bool:
        job = await self.events.wait_until_final(job_id, partial(self._read_job, job_id), wait_s=wait_s)
        return job is not None and not job.status.is_final and job.attempt == attempt

    async def _read_job(self, job_id: str) -> StoredJob | None:
        """Return a job, or that of a preparation."""
        if job := await self.store.get_job(job_id):
            return job
        claim = await self.store.get_preparation(job_id)
        return claim.job if claim else None

    async def reference(self, claim: Claim) -> bytes:
        wav = await self.recordings.get(claim.voice)
        if wav is None:
            raise AudioMissingError(code="reference_missing")
        return wav

    async def prompt(self, claim: Claim, *, version: str) -> bytes | None:
        voice, backend = claim.voice, claim.job.backend
        if found := await read_prompt(self.blobs, voice, backend=backend, version=version):
            return found[1]
        return await self.recordings.prompt(voice, backend=backend, version=version)

    async def save_prompt(self, claim: Claim, *, version: str, prompt: bytes, is_fast: bool = False) -> None:
        await self._save(claim, version, PromptKind.FAST if is_fast else PromptKind.FULL, prompt)
        await self.blobs.delete(prompt_path_of(claim.voice, claim.job.backend, version, PromptKind.CHECKPOINT))

    async def find_deleted(self, voice_ids: Sequence[str]) -> set[str]:
        return await self.store.find_deleted(voice_ids)

    async def checkpoint(self, claim: Claim, *, version: str) -> bytes | None:
        path = prompt_path_of(claim.voice, claim.job.backend, version, PromptKind.CHECKPOINT)
        return await _read(self.blobs, path)

    async def save_checkpoint(self, claim: Claim, *, version: str, checkpoint: bytes) -> None:
        await self._save(claim, version, PromptKind.CHECKPOINT, checkpoint)

    async def save_report(self, claim: Claim, kind: ReportKind, report: bytes) -> None:
        job = claim.job
        try:
            if kind == "timing":
                is_valid = "".join(Alignment.model_validate_json(report).characters) == job.text
            else:
                found = Verification.model_validate_json(report)
                tags = Reading.model_validate_json(job.reading or "{}").emotions
                is_valid = bool(found.sentences) or not parse(job.text or "", emotions=tags).text  # it may be pauses
        except ValidationError:
            is_valid = False
        if not is_valid:
            raise InvalidRequestError.invalid_field(kind, rule="it must be a report about the text")
        if not await self.store.save_report(job.job_id, job.attempt, kind, report.decode()):
            raise StaleAttemptError

    async def _save(self, claim: Claim, version: str, kind: PromptKind, data: bytes) -> None:
        voice = claim.voice
        path = prompt_path_of(voice, claim.job.backend, version, kind)
        await self.blobs.put(path, with_digest(data), is_durable=False)
        if await self.store.get_voice(voice.voice_id, account_id=voice.account_id) is None:
            await self.blobs.delete(path)  # the voice was deleted during its preparation

    async def retry(self, job_id: str, attempt: int, *, error: str, max_attempts: int | None = None) -> None:
        status = await self.store.retry(
            job_id, attempt, error=error, max_attempts=min(max_attempts or self.max_attempts, self.max_attempts)
        )
        if status is not None:
            self.metrics.retry(error)
        if status is not None and status is not JobStatus.PENDING:
            self.events.publish(job_id)
            if job := await self.store.get_job(job_id):
                self.metrics.end_job(job.backend, status, error)

    async def release(self, job_id: str, attempt: int) -> None:
        if await self.store.release(job_id, attempt):
            self.metrics.releases.add()

    async def end_preparation(self, job_id: str, attempt: int) -> None:
        await self.store.end_preparation(job_id, attempt)


async def read_prompt(
    blobs: Blobs, voice: StoredVoice, *, backend: str, version: str
) -> tuple[PromptKind, bytes] | None:
    """Return the stored prompt of a voice, preferably the full one."""
    for kind in (PromptKind.FULL, PromptKind.FAST):
        if (prompt := await _read(blobs, prompt_path_of(voice, backend, version, kind))) is not None:
            return kind, prompt
    return None


async def _read(blobs: Blobs, path: str) -> bytes | None:
    data = await blobs.get(path)
    if data is None or sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
        return None
    return data[_DIGEST_BYTES:]


def with_digest(data: bytes) -> bytes:
    """Return a prompt or checkpoint with its digest in front: no row stores the digest."""
    return sha256(data).digest() + data


def prompt_path_of(voice: StoredVoice, backend: str, version: str, kind: PromptKind) -> str:
    """Return the path of a prompt or checkpoint."""
    further = () if kind is PromptKind.FULL else (kind,)
    return prompt_path(voice.voice_id, voice.prompt_digest(*further, backend=backend, version=version))
