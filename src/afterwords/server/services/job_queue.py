"""The desk where dispatchers get their work: claims with leases, references, prompts, and what became of an attempt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import BinaryIO, Final

from afterwords.errors import LostReferenceError
from afterwords.models import JobStatus
from afterwords.server.cache_key import prompt_path
from afterwords.server.ports import Blobs, Claim, Store, StoredVoice
from afterwords.server.services.completion import Completion
from afterwords.server.services.job_events import News
from afterwords.server.services.recordings import Recordings

_DIGEST_BYTES: Final = 32


class Kind(StrEnum):
    """What is stored of a voice for an engine."""

    FULL = "full"
    FAST = "fast"
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True, slots=True)
class JobDesk:
    """What the services hand a dispatcher; it implements the port Desk."""

    store: Store
    blobs: Blobs
    recordings: Recordings
    news: News
    completion: Completion
    lease_s: float
    max_attempts: int

    async def claim(self, *, backends: Sequence[str], worker: str, except_voices: Sequence[str] = ()) -> Claim | None:
        return await self.store.claim(
            backends=backends, lease_s=self.lease_s, worker=worker, except_voices=except_voices
        )

    async def heartbeat(self, claim: Claim) -> bool:
        return await self.store.heartbeat(claim.job.job_id, claim.job.attempt, lease_s=self.lease_s)

    async def reference(self, voice: StoredVoice) -> bytes:
        wav = await self.recordings.get(voice)
        if wav is None:
            raise LostReferenceError
        return wav

    async def prompt(self, voice: StoredVoice, *, backend: str, version: str) -> bytes | None:
        if found := await kept_prompt(self.blobs, voice, backend=backend, version=version):
            return found[1]
        return await self.recordings.prompt(voice, backend=backend, version=version)

    async def keep_prompt(
        self, voice: StoredVoice, *, backend: str, version: str, prompt: bytes, is_fast: bool = False
    ) -> None:
        await self._keep(voice, prompt_path_of(voice, backend, version, Kind.FAST if is_fast else Kind.FULL), prompt)
        await self.blobs.delete(prompt_path_of(voice, backend, version, Kind.CHECKPOINT))

    async def checkpoint(self, voice: StoredVoice, *, backend: str, version: str) -> bytes | None:
        return await _kept(self.blobs, prompt_path_of(voice, backend, version, Kind.CHECKPOINT))

    async def keep_checkpoint(self, voice: StoredVoice, *, backend: str, version: str, checkpoint: bytes) -> None:
        await self._keep(voice, prompt_path_of(voice, backend, version, Kind.CHECKPOINT), checkpoint)

    async def _keep(self, voice: StoredVoice, path: str, data: bytes) -> None:
        """Keep it next to the voice, its digest before it: a prompt has no row that could hold one."""
        await self.blobs.put(path, with_digest(data), is_durable=False)
        if await self.store.voice(voice.voice_id, account_id=voice.account_id) is None:
            await self.blobs.delete(path)  # the voice was deleted while the prompt was made

    async def complete(self, job_id: str, attempt: int | None, wav: BinaryIO, *, synth_ms: int | None = None) -> None:
        await self.completion.complete(job_id, attempt, wav, synth_ms=synth_ms)

    async def fail(self, job_id: str, attempt: int, *, error: str) -> None:
        await self.completion.fail(job_id, attempt, error=error)

    async def retry(self, job_id: str, attempt: int, *, error: str, max_attempts: int | None = None) -> None:
        status = await self.store.retry(
            job_id, attempt, error=error, max_attempts=min(max_attempts or self.max_attempts, self.max_attempts)
        )
        if status is not None and status is not JobStatus.PENDING:
            self.news.tell(job_id)

    async def give_back(self, job_id: str, attempt: int) -> None:
        await self.store.give_back(job_id, attempt)


async def kept_prompt(blobs: Blobs, voice: StoredVoice, *, backend: str, version: str) -> tuple[Kind, bytes] | None:
    """Read the prompt of a voice that is stored, the better one first."""
    for kind in (Kind.FULL, Kind.FAST):
        if (kept := await _kept(blobs, prompt_path_of(voice, backend, version, kind))) is not None:
            return kind, kept
    return None


async def _kept(blobs: Blobs, path: str) -> bytes | None:
    kept = await blobs.get(path)
    if kept is None or sha256(kept[_DIGEST_BYTES:]).digest() != kept[:_DIGEST_BYTES]:
        return None
    return kept[_DIGEST_BYTES:]


def with_digest(data: bytes) -> bytes:
    """A prompt or checkpoint as it is stored."""
    return sha256(data).digest() + data


def prompt_path_of(voice: StoredVoice, backend: str, version: str, kind: Kind) -> str:
    """Where a prompt or checkpoint of a voice is stored; another version or transcript makes another path."""
    facts = [backend, version, voice.ref_sha256, voice.lang, voice.ref_text or ""]
    if kind is not Kind.FULL:
        facts.append(kind)
    return prompt_path(voice.voice_id, sha256("\0".join(facts).encode()).hexdigest())
