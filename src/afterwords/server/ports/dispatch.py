"""The queue of jobs, and the dispatchers that run them. Adapters live in `dispatch/`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence, Set
from typing import BinaryIO, Protocol

from afterwords.models import WordTiming
from afterwords.server.records import (
    Claim,
    JobProgress,
    ReportKind,
    StoredJob,
)


class JobQueue(Protocol):
    """The source of a dispatcher's jobs, and the receiver of its results."""

    async def claim(
        self, *, backends: Sequence[str], worker: str, skip_voices: Sequence[str] = (), prepare: Sequence[str] = ()
    ) -> Claim | None:
        """Claim the next waiting job, except for these voices. A queue may wait for one until it is interrupted.

        Args:
            prepare: Backends for which a preparation may be claimed, if no job waits. Such a claim ends with
                `end_preparation`, `retry` or `release`.
        """

    def interrupt(self) -> None:
        """Make a claim that waits for a job return, because other jobs can start now."""

    async def heartbeat(self, job_id: str, attempt: int) -> bool:
        """Renew the lease of an attempt. Return False if the job was cancelled or claimed by another worker."""

    async def reference(self, claim: Claim) -> bytes:
        """Return the reference recording as a canonical WAV file.

        Raises:
            AudioMissingError: The recording is missing or altered.
        """

    async def prompt(self, claim: Claim, *, version: str) -> bytes | None:
        """Return the stored prompt of the job's backend for its voice."""

    async def save_prompt(self, claim: Claim, *, version: str, prompt: bytes, is_fast: bool = False) -> None:
        """Store the prompt of the job's backend for its voice, and remove its checkpoint."""

    async def find_deleted(self, voice_ids: Sequence[str]) -> set[str]:
        """Return which of these voices have been deleted, so that nothing of them stays in memory."""

    async def checkpoint(self, claim: Claim, *, version: str) -> bytes | None:
        """Return the checkpoint of a preparation that was interrupted."""

    async def save_checkpoint(self, claim: Claim, *, version: str, checkpoint: bytes) -> None:
        """Store a checkpoint, from which the next attempt continues to prepare the voice."""

    async def save_report(self, claim: Claim, kind: ReportKind, report: bytes) -> None:
        """Store what was found out about the speech, before `complete`.

        Raises:
            InvalidRequestError: It is not a report of this kind about the text.
            StaleAttemptError: As for `complete`.
        """

    async def complete(self, job_id: str, attempt: int | None, wav: BinaryIO, *, synth_ms: int | None = None) -> None:
        """Complete an attempt with its audio, an open WAV file. A second delivery changes nothing.

        Args:
            synth_ms: Time of the synthesis. None: the time since the job was accepted.

        Raises:
            RecordingError, SynthesisError: The audio is invalid or too long for the text. The job has failed.
            StaleAttemptError: Another attempt holds the job, or the lease has expired. Nothing is stored.
            StaleAttemptError: The job was deleted with its voice. Nothing is stored.
        """

    async def fail(self, job_id: str, attempt: int | None, *, error: str) -> None:
        """Fail a job with an error code of the API. A second call changes nothing.

        Raises:
            StaleAttemptError: As for `complete`.
        """

    async def retry(self, job_id: str, attempt: int, *, error: str, max_attempts: int | None = None) -> None:
        """Put the job of a lost worker back into the queue, or fail it with the code if no attempts are left."""

    async def release(self, job_id: str, attempt: int) -> None:
        """Put a job back into the queue, because the worker stops."""

    async def end_preparation(self, job_id: str, attempt: int) -> None:
        """End a preparation: the prompt is stored, or the first speech will show why the voice can't be prepared."""


class AttemptQueue(JobQueue, Protocol):
    """A queue whose attempts may be continued by a process that did not claim them."""

    async def heartbeat(self, job_id: str, attempt: int, *, lease_s: float | None = None) -> bool:
        """Renew a lease, for as long as the process that continues the attempt may take to start, if given."""

    async def is_wanted(self, job_id: str, attempt: int, *, wait_s: float) -> bool:
        """Wait until a job ends, at most `wait_s` seconds, and return whether the attempt still holds it."""

    async def find_claimed(self, worker: str) -> Claim | None:
        """Return a claim that a worker holds."""

    async def find_claim(self, job_id: str, attempt: int, *, may_be_final: bool = False) -> Claim:
        """Return the claim of an attempt; optionally also after it ended the job, for the length of a lease.

        Raises:
            StaleAttemptError: It does not hold the job, or the job was deleted with its voice.
        """

    def attempt_token(self, job_id: str, attempt: int, *, claimed_with: str | None = None) -> str:
        """Return the token with which another machine may fetch the voice of an attempt and deliver its result.

        Args:
            claimed_with: ID of the token of a remote worker, without which it is not valid.
        """

    def subscribe(self, on_final: Callable[[str], None]) -> None:
        """Call back with the ID of each job that is final, if this process ended it."""


class Dispatcher(Protocol):
    """Claims jobs from a `JobQueue` and synthesizes them."""

    @property
    def backends(self) -> Mapping[str, frozenset[str]]:
        """The backends, best first, with the languages of each."""

    def unspoken(self, backend: str, text: str) -> list[str]:
        """Return the words of a text that a backend can't pronounce.

        Raises:
            TextError: No word can be pronounced.
        """

    @property
    def prompt_versions(self) -> Mapping[str, str]:
        """The prompt version of each backend, if it is known without loading the backend."""

    @property
    def features(self) -> Mapping[str, frozenset[str]]:
        """What each backend can do, of `backends.base.FEATURES`, wherever its jobs run."""

    @property
    def prepares(self) -> Set[str]:
        """The backends for which it claims preparations, now or once its workers run."""

    @property
    def is_ready(self) -> bool:
        """Whether a job would start immediately."""

    @property
    def state(self) -> str:
        """Human-readable status, such as "loading lite, 40 %"."""

    async def start(self) -> None:
        """Start. Models load in the background."""

    def wake(self) -> None:
        """Signal that a job is waiting."""

    def listen(self, job_id: str) -> Listener | None:
        """Subscribe to the audio of a job before it is submitted. Return None if the dispatcher can't stream."""

    def progress(self, job: StoredJob) -> JobProgress:
        """Return the progress of a pending job, as far as this dispatcher knows it."""

    def cancel(self, job_id: str) -> None:
        """Stop a job if this dispatcher runs it."""

    async def stop(self, *, grace_s: float) -> None:
        """Claim no more jobs, finish the running ones within `grace_s`, and release the rest."""


class Listener(Protocol):
    """The audio of one job while it is synthesized."""

    @property
    def attempt(self) -> int:
        """Number of the attempt whose audio this is, once it has started."""

    @property
    def words(self) -> Sequence[WordTiming] | None:
        """The words in the audio so far, in order; None if the attempt reports none, or broke off."""

    @property
    def duration_s(self) -> float:
        """Duration of the audio so far, in seconds."""

    async def wait_until_started(self) -> int | None:
        """Wait for the first audio, and return the sample rate in Hz. None: the job runs elsewhere or was closed."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield mono 16-bit little-endian PCM. Raises SynthesisError if the synthesis breaks off."""

    def close(self) -> None:
        """Unsubscribe."""
