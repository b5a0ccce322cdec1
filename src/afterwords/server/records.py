"""The frozen rows and results that services, adapters and routes exchange."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final, Literal

from afterwords.models import Consent, JobStatus, Provenance, SpeechFormat, VoiceStatus, read_emotion

# -- accounts and keys ---------------------------------------------------------------------------------------


class Scope(StrEnum):
    """A permission of an API key. A key without scopes has all permissions."""

    VOICES_READ = "voices:read"
    VOICES_WRITE = "voices:write"
    SYNTHESIZE = "synthesize"


@dataclass(frozen=True, slots=True)
class Caller:
    """The API key of a request. Its account owns what the request creates.

    Attributes:
        spending_id: Characters are counted under this id. Rotation keeps it, so that a limit can't be rotated away.
        character_limit: Characters per billing period. None: unlimited.
        plan: Plan of the account. None: unlimited.
        is_suspended: The subscription of the account is not active.
    """

    account_id: str
    key_id: str
    spending_id: str
    scopes: frozenset[str] = frozenset()
    character_limit: int | None = None
    plan: str | None = None
    is_suspended: bool = False


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key to store: its SHA-256 and prefix, never the key itself.

    Attributes:
        account_id: Owner of the key. With `for_key`, the owner of that key; with neither, a new account.
        is_home: Use the account that sees the voices of the home folder, and create it if there is none.
        plan: Plan of the new account. None: unlimited.
    """

    sha256: bytes = field(repr=False)
    label: str | None = None
    scopes: tuple[str, ...] = ()
    character_limit: int | None = None
    account_id: str | None = None
    for_key: str | None = None
    prefix: str | None = None
    is_home: bool = False
    plan: str | None = None


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The idempotency key of a request, and the digest of its body."""

    account_id: str
    route: str
    key: str
    body_sha256: str


@dataclass(frozen=True, slots=True)
class WorkerToken:
    """A token of remote workers, without its secret.

    Attributes:
        prefix: Its first characters, to recognize it by.
    """

    token_id: str
    label: str | None
    prefix: str
    created_at: datetime
    revoked_at: datetime | None = None


# -- the audit log -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Actor:
    """The one who changes something.

    Attributes:
        name: The ID of a key; "admin"; "cli", the command line on a machine of the server; "server"; or "stripe".
        request_id: ID of the request, as in the log.
    """

    name: str = "cli"
    request_id: str | None = None


_COMMAND_LINE: Final = Actor()
ACTOR: Final[ContextVar[Actor]] = ContextVar("afterwords_actor", default=_COMMAND_LINE)
"""The actor of the current task. Requests and servers set it."""


class AuditAction(StrEnum):
    """What the audit log records."""

    KEY_CREATED = "key_created"
    KEY_ROTATED = "key_rotated"
    KEY_REVOKED = "key_revoked"
    VOICE_DELETED = "voice_deleted"
    WORKER_TOKEN_CREATED = "worker_token_created"
    WORKER_TOKEN_REVOKED = "worker_token_revoked"
    PLAN_CHANGED = "plan_changed"
    ACCOUNT_SUSPENDED = "account_suspended"
    ACCOUNT_RESUMED = "account_resumed"
    ACCOUNT_CLOSED = "account_closed"


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An action. A rotated key is recorded with its old ID, and the new key as created.

    Attributes:
        target_id: ID of the key, worker token, voice or account.
        account_id: The account that it belongs to; None for worker tokens.
        actor: See `Actor.name`.
    """

    at: datetime
    action: AuditAction
    target_id: str
    account_id: str | None
    actor: str
    request_id: str | None


# -- voices --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredVoice:
    """A row of `voices`.

    Attributes:
        home_id: Id in the library of the home folder, which holds the recording. None: the recording is in storage.
        ref_grade: Quality of the recording, A to F. None: not graded.
        is_preparing: It has a row in `preparations`.
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
    is_preparing: bool = False

    @property
    def emotion(self) -> str | None:
        return read_emotion(self.metadata, self.family)

    @property
    def status(self) -> VoiceStatus:
        return VoiceStatus.PREPARING if self.is_preparing else VoiceStatus.READY

    def prompt_digest(self, *kind: str, backend: str, version: str) -> str:
        """Return a digest of everything that a prompt depends on, among it the recording and the transcript."""
        parts = [backend, version, self.ref_sha256, self.lang, self.ref_text or "", *kind]
        return sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class VoiceChanges:
    """Fields of a voice to update. None leaves a field unchanged."""

    name: str | None = None
    backend: str | None = None
    lang: str | None = None
    ref_text: str | None = field(default=None, repr=False)
    family: str | None = None
    metadata: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A row of `cache`: audio that answers the same request again."""

    voice_id: str
    cache_key: str
    sha256: str
    size_bytes: int
    synth_ms: int


@dataclass(frozen=True, slots=True)
class StoredConsent:
    """A recording of the consent of a speaker.

    Attributes:
        lang: Language of the recording, a BCP 47 tag as the client sent it.
        sha256: Digest of the recording as it is stored, a canonical WAV file.
    """

    consent_id: str
    account_id: str
    name: str
    lang: str
    sha256: str
    created_at: datetime


# -- jobs ----------------------------------------------------------------------------------------------------

ReportKind = Literal["timing", "verification"]
"""What a worker can find out about speech: an `Alignment` or a `Verification`, both stored as JSON."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A validated job to submit.

    Attributes:
        flight_key: Two pending jobs of a voice with the same flight key are one job.
        char_count: Characters to charge.
        timestamps: When each character is spoken is stored, too. Such speech is not cached.
        keeps_timing: It stays when the job ends, and not only the words while it is spoken are needed.
        verify: The speech is compared with the text, and the report is stored. Such speech is not cached.
        traceparent: The span that it belongs to; None if tracing is off.
        reading: A `Reading` as JSON: the lexicon and takes that the cache key stands for. None: an empty one.
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
    sample_rate: int | None = None
    webhook_url: str | None = None
    timestamps: bool = False
    keeps_timing: bool = True
    verify: bool = False
    traceparent: str | None = None
    reading: str | None = field(default=None, repr=False)
    character_limit: int | None = None


@dataclass(frozen=True, slots=True)
class StoredJob:
    """A row of `jobs`. The text and its reading are removed when the job is final.

    Attributes:
        attempt: Number of claims so far.
        returned: Number of attempts that were released by servers that stopped.
        lease_expires: Monotonic time in seconds. None: no worker holds the job.
        error: Error code of the API, if the job failed.
        worker: The last worker that held the job; None while it waits.
        traceparent: The span that submitted it; None if tracing was off.
        timestamps: When each character is spoken is stored, too: `Store.get_report` returns it.
        verify: The speech is compared with the text; `Store.get_report` returns the result.
        reading: As for `NewJob`.
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
    created_at: datetime
    attempt: int = 0
    lease_expires: float | None = None
    audio_key: str | None = None
    audio_sha256: str | None = None
    audio_bytes: int | None = None
    synth_ms: int | None = None
    error: str | None = None
    completed_at: datetime | None = None
    text: str | None = field(default=None, repr=False)
    returned: int = 0
    worker: str | None = None
    traceparent: str | None = None
    timestamps: bool = False
    sample_rate: int | None = None
    verify: bool = False
    reading: str | None = field(default=None, repr=False)

    @property
    def reports(self) -> list[ReportKind]:
        """The reports that were requested. Speech that has any is not cached."""
        wanted: dict[ReportKind, bool] = {"timing": self.timestamps, "verification": self.verify}
        return [kind for kind, is_wanted in wanted.items() if is_wanted]

    @property
    def worker_kind(self) -> str:
        """Where the last attempt ran: "local" is a process of a server, and "remote" another machine."""
        return "local" if (self.worker or "").startswith("local-") else "remote"


@dataclass(frozen=True, slots=True)
class QueueState:
    """The pending jobs of a backend.

    Attributes:
        waiting: Jobs that no worker holds.
        running: Jobs with a lease.
        oldest_at: When the oldest of these jobs was submitted.
    """

    backend: str
    waiting: int
    running: int
    oldest_at: datetime


@dataclass(frozen=True, slots=True)
class Quota:
    """The characters of a billing period: of a key with a limit or of its account, whichever has fewer left."""

    used: int
    limit: int

    @property
    def left(self) -> int:
        return max(0, self.limit - self.used)


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """An accepted job.

    Attributes:
        is_new: False if it is a duplicate pending job, or the job of a repeated request.
        quota: What the request left of the limit. None: there is no limit, or the request was a repeated one.
    """

    job: StoredJob
    is_new: bool
    quota: Quota | None = None


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How many jobs may be pending."""

    pending: int
    pending_per_account: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that a worker holds for one attempt.

    Attributes:
        lease_s: Time without a heartbeat after which the claim ends. None: as in the settings.
        is_preparation: The job has no text: the attempt stores the prompt of the voice, and has no audio.
    """

    job: StoredJob
    voice: StoredVoice
    lease_s: float | None = None
    is_preparation: bool = False


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """The end of an attempt: audio that is already in storage, or an error code of the API."""

    audio_key: str | None = None
    audio_sha256: str | None = None
    audio_bytes: int | None = None
    synth_ms: int | None = None
    error: str | None = None


class FinishStatus(StrEnum):
    """What `Store.finish` did with the result of an attempt."""

    DONE = "done"  # the job was pending with this attempt, and is now final
    ALREADY = "already"  # the job was final before: nothing changed
    STALE = "stale"  # another attempt holds the job, or the lease has expired
    GONE = "gone"  # the row was deleted


@dataclass(frozen=True, slots=True)
class ReapResult:
    """Ids of the jobs that went back to the queue, and of those that failed, because their leases expired."""

    requeued: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class JobProgress:
    """The progress of a pending job.

    Attributes:
        step: "waiting", "loading", "preparing" or "speaking".
        fraction: Completed part of the step, 0 to 1. None: unknown.
    """

    step: str
    fraction: float | None = None


@dataclass(frozen=True, slots=True)
class WebhookCall:
    """A webhook that is due, with the key that signs it."""

    job: StoredJob
    url: str
    tries: int
    signing_key: bytes = field(repr=False)


# -- billing -------------------------------------------------------------------------------------------------

ENTITLED: Final = frozenset({"trialing", "active", "past_due"})
"""Statuses of a subscription that give access."""
UNSETTLED: Final = frozenset({"incomplete", "unpaid", "paused"})
"""Statuses of a subscription that gives access once it is paid."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One item of a subscription, as Stripe has it now.

    Attributes:
        checkout_id: The checkout that began it, if it was one of ours.
    """

    subscription_id: str
    customer_id: str
    status: str
    price_id: str
    period_start: datetime
    period_end: datetime
    is_ending: bool
    created_at: datetime
    checkout_id: str | None = None


@dataclass(frozen=True, slots=True)
class CustomerState:
    """A customer as Stripe has it now, with every item of every subscription."""

    email: str | None = field(repr=False)
    is_deleted: bool
    subscriptions: tuple[Subscription, ...]


@dataclass(frozen=True, slots=True)
class PaymentSession:
    """A Checkout Session at Stripe.

    Attributes:
        url: The page on which it is paid. None: it is not open.
        checkout_id: The checkout that it belongs to. None: it is not one of ours.
    """

    session_id: str
    url: str | None = field(repr=False)
    checkout_id: str | None


@dataclass(frozen=True, slots=True)
class PaymentEvent:
    """A webhook of Stripe.

    Attributes:
        object_id: What it is about.
        customer_id: The customer, if it names one.
        charge_id: The charge, if it is a dispute or a warning.
    """

    event_id: str
    type: str
    object_id: str | None = None
    customer_id: str | None = None
    charge_id: str | None = None


@dataclass(frozen=True, slots=True)
class StoredCustomer:
    """A row of `customers`.

    Attributes:
        account_id: None: the customer has not paid yet.
        checkout_id: The last checkout, which alone may have an open session.
        is_ending: The subscription ends with its period.
        version: Increases with every write of what Stripe said.
    """

    customer_id: str
    account_id: str | None
    email: str | None = field(repr=False)
    checkout_id: str | None
    subscription_id: str | None
    status: str | None
    price_id: str | None
    is_ending: bool
    version: int
    synced_at: datetime | None

    @property
    def is_entitled(self) -> bool:
        """Whether the subscription gives access."""
        return self.status in ENTITLED

    @property
    def is_subscribed(self) -> bool:
        """Whether there is a subscription that is or may yet be paid: another one would be a second."""
        return self.is_entitled or self.status in UNSETTLED

    @property
    def is_former(self) -> bool:
        """Whether a subscription ended, and no account is left: what Stripe has of the payer is for no one else."""
        return self.account_id is None and self.subscription_id is not None and not self.is_subscribed


@dataclass(frozen=True, slots=True)
class StoredSubscription:
    """What is stored of a customer's subscription, and of the account that it opens, if there is one."""

    customer_id: str
    account_id: str | None
    subscription_id: str | None
    status: str | None
    price_id: str | None
    is_ending: bool
    plan: str | None
    period_start: datetime | None
    period_end: datetime | None
    suspended_at: datetime | None


@dataclass(frozen=True, slots=True)
class StoredCheckout:
    """A row of `checkouts`: one attempt of a browser to buy a plan.

    Attributes:
        tries: Part of the idempotency key with which its session is created.
        account_id: The account that its key is for. None: not paid, or the account existed before and needs proof.
        shown_at: When its key was created and shown.
    """

    checkout_id: str
    email: str = field(repr=False)
    plan: str
    browser_sha256: bytes = field(repr=False)
    tries: int
    customer_id: str | None
    session_id: str | None
    account_id: str | None
    created_at: datetime
    paid_at: datetime | None
    shown_at: datetime | None
    key_id: str | None


class CheckoutState(StrEnum):
    """What the success page of a checkout shows."""

    WAITING = "waiting"  # not paid yet, as far as Stripe says
    READY = "ready"  # its key can be shown
    NEEDS_CONFIRMATION = "needs_confirmation"  # the account existed before: the email address must be confirmed
    SHOWN = "shown"  # its key was shown
    EXPIRED = "expired"  # there is no such checkout, or it was paid more than an hour ago
    WRONG_BROWSER = "wrong_browser"  # another browser began it


@dataclass(frozen=True, slots=True)
class MeterBatch:
    """Characters of a customer in an hour, to report to Stripe; `batch_id` makes repeating that harmless."""

    batch_id: str
    customer_id: str
    hour: datetime
    characters: int
    first_sent_at: datetime


# -- blobs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A blob in a listing."""

    path: str
    size_bytes: int
    modified_at: datetime
