"""All that the services know of what lies outside them: rows, blobs, a clock, and where jobs are spoken.

Records are frozen; every method of a port is one whole step that either happened or did not. Adapters live in
`store/`, `blobs/` and `dispatch/`, and are held to this page by the contracts under tests/contracts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, BinaryIO, Protocol

from afterwords.models import Account, ApiKey, Consent, JobStatus, Provenance, SpeechFormat, Usage


class Clock(Protocol):
    """The time. Tests bring their own."""

    def now(self) -> datetime:
        """What the wall shows, aware, UTC, in whole milliseconds."""
        ...

    def steady(self) -> float:
        """Seconds since the epoch that never jump while the process lives, whatever is done to the wall clock."""
        ...


# -- who asks ------------------------------------------------------------------------------------------------


class Scope(StrEnum):
    """What a key may do; a key without scopes may do everything."""

    VOICES_READ = "voices:read"
    VOICES_WRITE = "voices:write"
    SYNTHESIZE = "synthesize"


@dataclass(frozen=True, slots=True)
class Caller:
    """The key that a request came with. Its account owns what it makes.

    Attributes:
        spending_id: under which its characters are counted; rotation keeps it, so that a limit can't be rotated away.
        character_limit: characters that it may spend in a calendar month; None: any number.
    """

    account_id: str
    key_id: str
    spending_id: str
    scopes: frozenset[str] = frozenset()
    character_limit: int | None = None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to be stored: never the key itself, only its SHA-256 and how it begins.

    Attributes:
        account_id: whose it is. With `for_key`, it is the account of that key; with neither, a new one.
        is_home: it is of the account that sees the voices of the home, which is made if there is none.
    """

    sha256: bytes = field(repr=False)
    label: str | None = None
    scopes: tuple[str, ...] = ()
    character_limit: int | None = None
    account_id: str | None = None
    for_key: str | None = None
    prefix: str | None = None
    is_home: bool = False


@dataclass(frozen=True, slots=True)
class Idempotency:
    """That a request may be repeated: the caller's own key for it, and a digest of what was asked."""

    account_id: str
    route: str
    key: str
    body_sha256: str


# -- voices --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredVoice:
    """A voice as the store keeps it.

    Attributes:
        home_id: its id in the library of the home, where its recording is; None: the recording is in storage.
        ref_grade: how good its recording is, A to F; None: it was not graded.
    """

    voice_id: str
    account_id: str
    name: str
    backend: str
    lang: str
    ref_audio_key: str
    ref_sha256: str
    ref_duration_s: float
    ref_sample_rate: int
    created_at: datetime
    ref_text: str | None = field(default=None, repr=False)
    family: str | None = None
    consent: Consent | None = None
    provenance: Provenance | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    home_id: str | None = None
    ref_grade: str | None = None


@dataclass(frozen=True, slots=True)
class VoiceChanges:
    """What shall become of a voice; None leaves a field as it is."""

    name: str | None = None
    backend: str | None = None
    lang: str | None = None
    ref_text: str | None = field(default=None, repr=False)
    family: str | None = None
    metadata: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A piece of speech that can be given again."""

    voice_id: str
    cache_key: str
    sha256: str
    size_bytes: int
    synth_ms: int


# -- jobs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be accepted, everything decided.

    Attributes:
        flight_key: two pending jobs of a voice with the same one are the same job.
        char_count: what it costs.
    """

    job_id: str
    account_id: str
    voice_id: str
    key_id: str
    spending_id: str
    text: str = field(repr=False)
    lang: str
    backend: str
    cache_key: str
    flight_key: str
    char_count: int
    speed: float = 1.0
    seed: int | None = None
    response_format: SpeechFormat = SpeechFormat.WAV
    webhook_url: str | None = None
    character_limit: int | None = None


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A job as the store keeps it; its text is gone once it is final.

    Attributes:
        attempt: how often it was claimed; 0 while it never was.
        returned: how many of its attempts were given back unspoken, by servers that stopped.
        lease_expires: by the steady clock; None while nobody works on it.
        error: an error code of the API, if it failed.
    """

    job_id: str
    account_id: str
    voice_id: str
    status: JobStatus
    lang: str
    backend: str
    cache_key: str
    char_count: int
    speed: float
    seed: int | None
    response_format: SpeechFormat
    attempt: int
    lease_expires: float | None
    audio_key: str | None
    audio_sha256: str | None
    audio_bytes: int | None
    synth_ms: int | None
    error: str | None
    created_at: datetime
    completed_at: datetime | None
    text: str | None = field(default=None, repr=False)
    returned: int = 0


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that was accepted; `is_new` is False where a pending one, or the answer to a repeated request, stood in."""

    job: StoredJob
    is_new: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """How many jobs may wait."""

    pending: int
    pending_per_account: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that a worker holds for one attempt."""

    job: StoredJob
    voice: StoredVoice


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: audio that lies in storage already, or an error code of the API."""

    audio_key: str | None = None
    audio_sha256: str | None = None
    audio_bytes: int | None = None
    synth_ms: int | None = None
    error: str | None = None


class Finished(StrEnum):
    """What the store made of an outcome."""

    DONE = "done"  # the job was pending with this attempt, and is final now
    ALREADY = "already"  # it was final before: nothing changed
    STALE = "stale"  # another attempt holds it, or its lease is over
    GONE = "gone"  # the row is gone


@dataclass(frozen=True, slots=True)
class Reaped:
    """What came of looking at dead leases: ids of jobs that wait again, and of jobs that failed."""

    requeued: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WebhookCall:
    """A webhook that is due. `signing_key` is what its signature is made with."""

    job: StoredJob
    url: str
    tries: int
    signing_key: bytes = field(repr=False)


# -- the ports -----------------------------------------------------------------------------------------------


class Store(Protocol):
    """The rows. Every method is one transaction; what it raises left nothing behind.

    All raise DatabaseUnavailableError within 2 s where the database does not answer or is locked, and
    StorageFullError where its disk is full. What belongs to another account is as if it were not there.
    """

    async def open(self) -> bool:
        """Connect, and bring the schema up to date under a lock; True if the database was new."""
        ...

    async def close(self) -> None: ...

    async def announce(self) -> int:
        """Let others see that a server uses the database, until it is closed; returns how many do now."""
        ...

    async def check(self) -> None:
        """See that it can be read and written now."""
        ...

    async def secret(self) -> bytes:
        """32 random bytes, made with the database: worker tokens are signed with them."""
        ...

    # keys

    async def add_key(self, key: NewKey, *, by: str | None = None) -> ApiKey:
        """Keep a key; with no account, make one for it. `by` is the key that asks, None the admin.

        A key makes others for its own account only, and with scopes.

        Raises:
            KeyNotFoundError, InvalidFieldError: there is no such key or account, or it is another's.
            KeyReplacedError: the asking key is valid only for an overlap.
            InsufficientScopeError: the asking key has scopes or a limit.
            AdminRequiredError: a key asks for one without scopes.
        """
        ...

    async def keys_used(self, key_ids: Sequence[str]) -> None:
        """Note that these keys were used now."""
        ...

    async def accounts(self) -> list[Account]:
        """All accounts, oldest first, with what they have and have spent this calendar month."""
        ...

    async def home_account(self) -> str | None:
        """The account that sees the voices of the home; None while no key was made for it."""
        ...

    async def caller(self, sha256: bytes) -> Caller | None:
        """Whose key has this digest, if it is valid now: not revoked, not expired."""
        ...

    async def keys(self, *, account_id: str | None) -> list[ApiKey]:
        """The keys of an account, or of all; oldest first."""
        ...

    async def revoke_key(self, key_id: str, *, account_id: str | None, by: str | None = None) -> list[str] | None:
        """Revoke a key, cancel the pending jobs that it asked for, and drop their webhooks and those that are due.

        Returns the ids of the cancelled jobs; None if there is no such key.

        Args:
            by: the id of the key that asks; None is the admin.

        Raises:
            KeyReplacedError: the asking key is valid only for an overlap, and the other key is not itself.
            InsufficientScopeError: the asking key has scopes or a limit, and the other key is not itself.
        """
        ...

    async def rotate_key(
        self,
        key_id: str,
        *,
        account_id: str | None,
        sha256: bytes,
        overlap_s: float,
        by: str | None = None,
        prefix: str | None = None,
    ) -> ApiKey | None:
        """Put a new key in place of a valid one, which expires after the overlap; None if there is no such key.

        The new one has the old one's label, scopes, limit, account and spending_id.

        Args:
            by: the id of the key that asks; None is the admin.
            prefix: how the new key begins.

        Raises:
            KeyReplacedError: one of the two keys is valid only for an overlap: its successor would outlive it.
            InsufficientScopeError: the asking key has scopes or a limit, and the other key is not itself.
        """
        ...

    async def usage(self, caller: Caller) -> Usage:
        """Characters spent this calendar month (UTC): by the key where it has a limit, else by its account."""
        ...

    # voices

    async def add_voice(self, voice: StoredVoice, *, idempotency: Idempotency | None = None) -> StoredVoice:
        """Keep a voice; a repeated request gets the voice that the first one made.

        A voice of the home that is kept already is given back as it is, and one whose id is taken gets another.

        Raises:
            IdempotencyConflictError: the key came before with another body.
            StorageQuotaExceededError: the account would have stored too much.
        """
        ...

    async def replayed_voice(self, idempotency: Idempotency) -> StoredVoice | None:
        """The voice that this request made before, if it did.

        Raises:
            IdempotencyConflictError: the key came before with another body.
        """
        ...

    async def voice(self, voice_id: str, *, account_id: str) -> StoredVoice | None: ...

    async def voices_named(self, name: str, *, account_id: str) -> list[StoredVoice]:
        """The voices of an account that have exactly this name, oldest first; at most two, since more say no more."""
        ...

    async def voices(self, *, account_id: str, limit: int | None, after: str | None) -> list[StoredVoice]:
        """The voices of an account, oldest first; `after` is the id of the last one seen."""
        ...

    async def update_voice(self, voice_id: str, changes: VoiceChanges, *, account_id: str) -> StoredVoice | None:
        """Change a voice. Another transcript or language drops what was cached of it."""
        ...

    async def delete_voice(self, voice_id: str, *, account_id: str) -> list[str] | None:
        """Remove a voice with its jobs, cache and idempotency rows, leave a tombstone; None if there is none.

        Gives back what its pending jobs reserved. Returns the paths of its jobs' audio; its other blobs lie under
        `voice_prefix`.
        """
        ...

    async def purge_due(self) -> list[tuple[str, list[str]]]:
        """Deleted voices whose blobs may not be gone yet: (voice_id, paths of its jobs' audio)."""
        ...

    async def purged(self, voice_id: str) -> None:
        """Remember that nothing of a deleted voice is left; only id and times stay, until the sweep."""
        ...

    # cache

    async def cached(self, voice_id: str, cache_key: str) -> CacheEntry | None: ...

    async def uncache(self, entry: CacheEntry) -> None:
        """Drop an entry, unless another has taken its place."""
        ...

    # jobs

    async def submit(self, job: NewJob, *, limits: Limits, idempotency: Idempotency | None = None) -> Submitted:
        """Accept a job and reserve its characters, in one transaction.

        A repeated request gets the job that it made before; a pending job of the same voice with the same
        `flight_key` stands in for a new one. Neither is charged.

        Raises:
            VoiceNotFoundError: the voice is gone.
            QuotaExceededError, TooManyConcurrentRequestsError, QueueFullError: a limit is reached.
            StorageQuotaExceededError: the account has stored as much as it may.
            IdempotencyConflictError: the key came before with another body.
        """
        ...

    async def replayed_job(self, idempotency: Idempotency) -> str | None:
        """The job that the same request made before; None if it made none: an answer from the cache leaves no trace.

        Raises:
            IdempotencyConflictError: the key came before with another body.
        """
        ...

    async def job(self, job_id: str, *, account_id: str | None = None) -> StoredJob | None:
        """A job, of any account where none is named."""
        ...

    async def jobs(
        self, *, account_id: str, status: JobStatus | None, limit: int | None, after: str | None
    ) -> list[StoredJob]:
        """The jobs of an account, newest first; `after` is the id of the last one seen."""
        ...

    async def claim(
        self, *, backends: Sequence[str], lease_s: float, worker: str, except_voices: Sequence[str] = ()
    ) -> Claim | None:
        """Take the next waiting job of one of these backends, and of none of these voices, for a new attempt.

        Accounts take turns: the one that was served longest ago comes first, its oldest job before its others.
        No job is claimed twice at once, by however many processes.
        """
        ...

    async def heartbeat(self, job_id: str, attempt: int, *, lease_s: float) -> bool:
        """Renew a lease; False if the job is not this attempt's any more, and work on it shall stop."""
        ...

    async def finish(self, job_id: str, attempt: int | None, outcome: Outcome) -> Finished:
        """End a job by one conditional UPDATE (`status = pending AND attempt = :attempt`), with all that follows.

        Ready: the audio is named, and the cache gets its entry. Failed: the charge is given back. Either: the text is
        removed, a webhook becomes due. None stands for the current attempt. A lease that is over makes it STALE.

        Raises:
            StorageQuotaExceededError: with this audio the account would have stored too much; nothing is changed.
        """
        ...

    async def cancel(self, job_id: str, *, account_id: str) -> StoredJob | None:
        """Cancel a pending job and give its charge back; returns the job as it is now, None if there is none."""
        ...

    async def give_back(self, job_id: str, attempt: int) -> bool:
        """Let a job wait again, as if this attempt had not been: its worker stops in good order."""
        ...

    async def retry(self, job_id: str, attempt: int, *, error: str, max_attempts: int) -> JobStatus | None:
        """Let a job wait for its next attempt at once; once they are used up it fails with the code.

        Returns its state now; None where the job is not this attempt's.
        """
        ...

    async def reap(self, *, max_attempts: int) -> Reaped:
        """Let jobs wait again whose lease is over, and fail those without attempts left (`worker_lost`).

        A lease that ends further ahead than it ever lasted (the clock was set back between starts) is over too.
        """
        ...

    async def lost(self, job_id: str) -> None:
        """Fail a ready job whose audio is gone or altered (`audio_lost`)."""
        ...

    # webhooks and sweeping

    async def webhooks_due(
        self, *, limit: int, per_account: int = 4, allowed: Mapping[str, int] | None = None
    ) -> list[WebhookCall]:
        """Take webhooks that are due, the longest due first; each comes again later unless it is settled.

        Args:
            limit: of all.
            per_account: of each account; every account's first one comes before the second one of any.
            allowed: of accounts that may have fewer.
        """
        ...

    async def webhook_done(self, job_id: str, *, delivered: bool) -> None:
        """Settle a webhook: delivered, or given up."""
        ...

    async def known_paths(self, paths: Sequence[str]) -> set[str]:
        """Those of the paths that some row names: references, job audio, cache entries; prompts of known voices."""
        ...

    async def strays(self, paths: Sequence[str], *, grace_s: float) -> set[str]:
        """Those of the paths that no row names, and that this database first saw so at least the grace ago.

        The others are remembered with the time, by the steady clock.
        """
        ...

    async def add_mark(self, token: str) -> None:
        """Remember a token that is about to be written into the storage; the last 32 are kept."""
        ...

    async def has_mark(self, token: str) -> bool:
        """Whether this database wrote the token lately. A copy, or an older state of it, did not."""
        ...

    async def forget_old(self) -> None:
        """Remove idempotency rows older than a day, tombstones of purged voices older than 30 days, and the like."""
        ...


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A blob as a listing shows it."""

    path: str
    size_bytes: int
    modified_at: datetime


class Pieces(Protocol):
    """The content of a blob that is written piece by piece; it may be read several times."""

    @property
    def size_bytes(self) -> int: ...

    def __iter__(self) -> Iterator[bytes]: ...


class BlobReader(Protocol):
    """A blob that is read in pieces.

    Attributes:
        size_bytes: of the whole blob.
        piece_bytes: how much is best read at once.
    """

    @property
    def size_bytes(self) -> int: ...

    @property
    def piece_bytes(self) -> int: ...

    async def read(self, start: int, n_bytes: int) -> bytes:
        """Read so many bytes from a place.

        Raises:
            StorageUnavailableError: the blob is not there any more, or is another one.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Blobs(Protocol):
    """The audio bytes, by path. Paths are made of `[a-z0-9/.-]` and never leave the root.

    All raise StorageUnavailableError where the storage does not answer, StorageFullError where it is full.
    """

    async def put(self, path: str, data: bytes | Pieces, *, is_durable: bool = True) -> None:
        """Write a blob, whole or not at all; a durable one survives a power cut once this returns."""
        ...

    async def get(self, path: str, *, sha256: str | None = None) -> bytes | None:
        """Read a blob; None if it is missing, or is not what the digest says."""
        ...

    async def open(self, path: str, *, sha256: str) -> BlobReader | None:
        """Open a blob to read it in pieces; None if it is missing, or is not what the digest says."""
        ...

    async def exists(self, path: str) -> bool:
        """Whether there is such a blob, whole or not."""
        ...

    async def delete(self, *paths: str) -> None:
        """Remove blobs; those that are not there are no error."""
        ...

    async def delete_all(self, prefix: str) -> None:
        """Remove everything below a folder (`voices/…/`), and the folder."""
        ...

    def listing(self, prefix: str = "") -> AsyncIterator[list[BlobInfo]]:
        """Everything below a folder, unfinished writes included, in batches."""
        ...

    async def check(self) -> None:
        """See that it can be written now."""
        ...


class Desk(Protocol):
    """Where a dispatcher gets its work and brings its results; the services behind it keep all the rules."""

    async def claim(self, *, backends: Sequence[str], worker: str, except_voices: Sequence[str] = ()) -> Claim | None:
        """The next job, if one waits; jobs of the voices that are excepted wait on."""
        ...

    async def heartbeat(self, claim: Claim) -> bool:
        """Say that it is being worked on; False: stop, it was cancelled or is another's."""
        ...

    async def reference(self, voice: StoredVoice) -> bytes:
        """The reference recording, a canonical WAV.

        Raises:
            LostReferenceError: it is missing or altered.
        """
        ...

    async def prompt(self, voice: StoredVoice, *, backend: str, version: str) -> bytes | None:
        """What an engine made of the reference before, if it is kept."""
        ...

    async def keep_prompt(
        self, voice: StoredVoice, *, backend: str, version: str, prompt: bytes, is_fast: bool = False
    ) -> None:
        """Keep what an engine made of the reference, in place of its checkpoint."""
        ...

    async def checkpoint(self, voice: StoredVoice, *, backend: str, version: str) -> bytes | None:
        """How far an engine was with its prompt when it was interrupted, if that is kept."""
        ...

    async def keep_checkpoint(self, voice: StoredVoice, *, backend: str, version: str, checkpoint: bytes) -> None:
        """Keep how far an engine is with its prompt, from which the next attempt goes on."""
        ...

    async def complete(self, job_id: str, attempt: int | None, wav: BinaryIO, *, synth_ms: int | None = None) -> None:
        """Bring the audio of an attempt, an open WAV file.

        Raises:
            RecordingError, RunawayAudioError: it is no speech for this text; the attempt has failed.
            StaleAttemptError, VoiceDeletedError: the job is not this attempt's any more; nothing was kept.
        """
        ...

    async def fail(self, job_id: str, attempt: int, *, error: str) -> None:
        """End a job that can't be spoken, with a code of the API."""
        ...

    async def retry(self, job_id: str, attempt: int, *, error: str, max_attempts: int | None = None) -> None:
        """Have a job tried again whose worker was lost; with no attempt left it fails with the code."""
        ...

    async def give_back(self, job_id: str, attempt: int) -> None:
        """Return a job unspoken, because the worker stops."""
        ...


@dataclass(frozen=True, slots=True)
class JobProgress:
    """What is done for a pending job now.

    Attributes:
        step: "waiting", "loading", "preparing" or "speaking".
        fraction: how much of the step is done, from 0 to 1; None where that is not known.
    """

    step: str
    fraction: float | None = None


class Dispatcher(Protocol):
    """Where jobs are spoken. It claims them at the desk for itself."""

    @property
    def backends(self) -> Mapping[str, frozenset[str]]:
        """What it speaks, best first, with the languages of each."""
        ...

    def unspoken(self, backend: str, text: str) -> list[str]:
        """Return the words of a text that a backend leaves out.

        Raises:
            UnspeakableTextError: it would leave out all of them.
        """
        ...

    @property
    def prompt_versions(self) -> Mapping[str, str]:
        """The version of the prompts that each backend takes, as far as it is known without loading it."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether a job would be begun now."""
        ...

    @property
    def state(self) -> str:
        """What it is doing, in a few words, for people: "loading lite, 40 %"."""
        ...

    async def start(self) -> None:
        """Begin; models load in the background."""
        ...

    def wake(self) -> None:
        """A job waits."""
        ...

    def listen(self, job_id: str) -> Listener | None:
        """Hear a job that is about to be submitted while it is spoken; None where it can't stream."""
        ...

    def progress(self, job: StoredJob) -> JobProgress:
        """What is done for a pending job now, as far as it is known here."""
        ...

    def cancel(self, job_id: str) -> None:
        """Stop speaking a job, if it is spoken here."""
        ...

    async def stop(self, *, grace_s: float) -> None:
        """Take no more, finish what was begun within the grace, give the rest back."""
        ...


class Listener(Protocol):
    """The sound of one job while it is made."""

    async def begun(self) -> int | None:
        """The sample rate in Hz, once the first sound is there; None if it will not be heard here."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """16-bit little-endian mono PCM as it comes; raises SynthesisError where the speech breaks off."""
        ...

    def close(self) -> None:
        """Listen no more."""
        ...
