"""A job queue in memory: the whole port, with jobs to watch and errors on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import BinaryIO

from afterwords.audio.wav import read_wav
from afterwords.errors import MalformedWavError, StaleAttemptError, SynthesisError
from afterwords.models import JobStatus, SpeechFormat, new_id, now
from afterwords.server.records import Claim, ReportKind, StoredJob, StoredVoice
from afterwords.text import max_speech_s
from tests.conftest import READER

DEADLINE_S = 120
MAX_ATTEMPTS = 3


@dataclass
class MemoryQueue:
    """Implements the port JobQueue.

    Attributes:
        errors: What a method raises while it is set, by the method's name; "all" stands for every method.
        calls: (method, job id or voice id), in order.
    """

    jobs: dict[str, StoredJob] = field(default_factory=dict)
    wavs: dict[str, bytes] = field(default_factory=dict)
    reports: dict[tuple[str, ReportKind], bytes] = field(default_factory=dict)
    prompts: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    checkpoints: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    fast: dict[str, bool] = field(default_factory=dict)
    references: dict[str, bytes] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    claimed: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    # -- what a test calls

    def submit(
        self, text: str, *, voice: str = "me", backend: str = "tone", speed: float = 1.0, attempt: int = 0
    ) -> str:
        """Add a job that already had `attempt` attempts; return its id."""
        job_id = new_id()
        self.references.setdefault(voice, READER.read_bytes())
        self.jobs[job_id] = StoredJob(
            job_id=job_id,
            account_id="account",
            voice_id=voice,
            status=JobStatus.PENDING,
            lang="en",
            backend=backend,
            cache_key="",
            char_count=len(text),
            speed=speed,
            seed=None,
            response_format=SpeechFormat.WAV,
            attempt=attempt,
            created_at=now(),
            text=text,
        )
        return job_id

    def prepare(self, voice: str = "me", *, backend: str = "tone") -> str:
        """Add a preparation; return the id of its job."""
        job_id = self.submit("", voice=voice, backend=backend)
        self.jobs[job_id] = replace(self.jobs[job_id], text=None)
        return job_id

    def cancel(self, job_id: str) -> None:
        self._end(job_id, status=JobStatus.CANCELLED)

    def requeue(self, job_id: str) -> None:
        """Do what the reaper does when a lease expires."""
        self.claimed.discard(job_id)

    def is_final(self, job_id: str) -> bool:
        return self.jobs[job_id].status is not JobStatus.PENDING

    def outcome(self, job_id: str) -> str:
        """Return how a job ended: "ready", "cancelled", or the error."""
        return self.jobs[job_id].error or str(self.jobs[job_id].status)

    def calls_for(self, job_id: str) -> list[str]:
        """Return the calls for a job, without heartbeats."""
        return [call for call, name in self.calls if name == job_id and call != "heartbeat"]

    async def wait_until(self, predicate: Callable[[], bool]) -> None:
        """Wait, with a deadline, until the predicate is true; it is evaluated after each call to the queue."""
        async with asyncio.timeout(DEADLINE_S):
            while not predicate():
                await self._changed.wait()

    async def wait_for(self, *job_ids: str) -> list[str]:
        """Wait until these jobs are final; return how they ended."""
        await self.wait_until(lambda: all(self.is_final(job_id) for job_id in job_ids))
        return [self.outcome(job_id) for job_id in job_ids]

    # -- the port

    async def claim(
        self, *, backends: Sequence[str], worker: str, skip_voices: Sequence[str] = (), prepare: Sequence[str] = ()
    ) -> Claim | None:
        self._note("claim", worker)
        pending = [job for job in self.jobs.values() if job.status is JobStatus.PENDING]
        running = {(job.voice_id, job.backend) for job in pending if job.text is None and job.job_id in self.claimed}
        for job in sorted(pending, key=lambda job: job.text is None):
            may_run = job.backend in prepare if job.text is None else job.backend in backends
            is_held_back = job.voice_id in skip_voices or (job.voice_id, job.backend) in running
            if may_run and job.job_id not in self.claimed and not is_held_back:
                self.claimed.add(job.job_id)
                self.jobs[job.job_id] = replace(job, attempt=job.attempt + 1)
                self._note("claimed", job.job_id)
                return Claim(self.jobs[job.job_id], self._voice(job.voice_id), is_preparation=job.text is None)
        return None

    def interrupt(self) -> None:
        pass

    async def heartbeat(self, job_id: str, attempt: int) -> bool:
        self._note("heartbeat", job_id)
        return self._holds(job_id, attempt)

    async def reference(self, claim: Claim) -> bytes:
        self._note("reference", claim.voice.voice_id)
        return self.references[claim.voice.voice_id]

    async def prompt(self, claim: Claim, *, version: str) -> bytes | None:
        self._note("prompt", claim.voice.voice_id)
        return self.prompts.get(_key(claim, version))

    async def save_prompt(self, claim: Claim, *, version: str, prompt: bytes, is_fast: bool = False) -> None:
        self._note("save_prompt", claim.voice.voice_id)
        self.prompts[_key(claim, version)] = prompt
        self.checkpoints.pop(_key(claim, version), None)
        self.fast[claim.voice.voice_id] = is_fast

    async def find_deleted(self, voice_ids: Sequence[str]) -> set[str]:
        return self.deleted & {*voice_ids}

    async def checkpoint(self, claim: Claim, *, version: str) -> bytes | None:
        self._note("checkpoint", claim.voice.voice_id)
        return self.checkpoints.get(_key(claim, version))

    async def save_checkpoint(self, claim: Claim, *, version: str, checkpoint: bytes) -> None:
        self._note("save_checkpoint", claim.voice.voice_id)
        self.checkpoints[_key(claim, version)] = checkpoint

    async def save_report(self, claim: Claim, kind: ReportKind, report: bytes) -> None:
        self._note("save_report", claim.job.job_id)
        self.reports[claim.job.job_id, kind] = report

    async def complete(self, job_id: str, attempt: int | None, wav: BinaryIO, *, synth_ms: int | None = None) -> None:
        self._note("complete", job_id)
        job = self.jobs[job_id]
        if attempt is None or not self._holds(job_id, attempt):
            raise StaleAttemptError
        try:
            wav.seek(0)
            content = wav.read()
            samples, sample_rate = read_wav(content)
        except MalformedWavError:
            self._end(job_id, status=JobStatus.FAILED, error="empty_data")
            raise
        longest_s = max_speech_s(job.text or "", speed=job.speed)
        if len(samples) / sample_rate > longest_s:
            self._end(job_id, status=JobStatus.FAILED, error="runaway_audio")
            raise SynthesisError.runaway(duration_s=len(samples) / sample_rate, maximum_s=longest_s)
        self.wavs[job_id] = content
        self._end(job_id, status=JobStatus.READY, synth_ms=synth_ms)

    async def fail(self, job_id: str, attempt: int | None, *, error: str) -> None:
        self._note("fail", job_id)
        if self._holds(job_id, attempt):
            self._end(job_id, status=JobStatus.FAILED, error=error)

    async def retry(self, job_id: str, attempt: int, *, error: str, max_attempts: int | None = None) -> None:
        self._note("retry", job_id)
        if not self._holds(job_id, attempt):
            return
        if attempt >= (max_attempts or MAX_ATTEMPTS):
            self._end(job_id, status=JobStatus.FAILED, error=error)
        else:
            self.claimed.discard(job_id)

    async def release(self, job_id: str, attempt: int) -> None:
        self._note("release", job_id)
        if self._holds(job_id, attempt):
            self.claimed.discard(job_id)
            self.jobs[job_id] = replace(self.jobs[job_id], attempt=attempt - 1)

    async def end_preparation(self, job_id: str, attempt: int) -> None:
        self._note("end_preparation", job_id)
        if self._holds(job_id, attempt):
            self._end(job_id, status=JobStatus.READY)

    # -- private

    def _holds(self, job_id: str, attempt: int | None) -> bool:
        job = self.jobs[job_id]
        return job.status is JobStatus.PENDING and job_id in self.claimed and job.attempt == attempt

    def _end(self, job_id: str, *, status: JobStatus, error: str | None = None, synth_ms: int | None = None) -> None:
        self.jobs[job_id] = replace(self.jobs[job_id], status=status, error=error, synth_ms=synth_ms)
        self._notify()

    def _note(self, call: str, name: str) -> None:
        self.calls.append((call, name))
        self._notify()
        if error := self.errors.get(call, self.errors.get("all")):
            raise error

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _voice(self, voice_id: str) -> StoredVoice:
        reference = self.references[voice_id]
        return StoredVoice(
            voice_id=voice_id,
            account_id="account",
            name=voice_id,
            backend="tone",
            lang="en",
            ref_audio_key=f"voices/{voice_id}/reference.wav",
            ref_sha256=sha256(reference).hexdigest(),
            ref_duration_s=10.0,
            ref_sample_rate=24_000,
            created_at=now(),
        )


def _key(claim: Claim, version: str) -> tuple[str, str, str]:
    return claim.voice.voice_id, claim.job.backend, version
