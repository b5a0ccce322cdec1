"""The database. Adapters live in `store/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from afterwords.models import Account, Alias, ApiKey, JobStatus, Usage
from afterwords.server.records import (
    AttemptResult,
    AuditEntry,
    CacheEntry,
    Caller,
    Claim,
    CustomerState,
    FinishStatus,
    Idempotency,
    MeterBatch,
    NewJob,
    NewKey,
    QueueLimits,
    QueueState,
    ReapResult,
    ReportKind,
    StoredCheckout,
    StoredConsent,
    StoredCustomer,
    StoredJob,
    StoredSubscription,
    StoredVoice,
    SubmittedJob,
    Subscription,
    VoiceChanges,
    WebhookCall,
    WorkerToken,
)


class Store(Protocol):
    """The database. Every method is one transaction, which is rolled back if it raises.

    Rows of another account are treated as missing. All methods raise DatabaseUnavailableError within 2 s if the
    database is locked or does not answer, and StorageFullError if its disk is full.
    """

    async def open(self) -> bool:
        """Connect, and migrate the schema under a lock. Return whether the database is new."""

    async def close(self) -> None: ...

    async def announce(self) -> int:
        """Register this process as a server of the database until `close`. Return the number of servers."""

    async def count_servers(self) -> int:
        """Return the number of servers that use the database now."""

    def subscribe(self, *, on_waiting: Callable[[], None], on_final: Callable[[str], None]) -> None:
        """Call back on this event loop when another server adds a job, or ends one with this id.

        Calls may be missing, and some databases make none: callers also poll.
        """

    async def check(self) -> None:
        """Check that the database can be read and written."""

    async def secret(self) -> bytes:
        """Return the 32 random bytes that were created with the database. They sign worker tokens."""

    # keys

    async def add_key(self, key: NewKey, *, by: str | None = None) -> ApiKey:
        """Store a key, and create an account if it names none.

        Args:
            by: Id of the requesting key, which may only create keys with scopes for its own account. None: the admin.

        Raises:
            NotFoundError, InvalidRequestError: The key, account or plan does not exist, or belongs to another account.
            ConflictError: The requesting key was rotated, and is valid only for its overlap.
            InsufficientScopeError: The requesting key has scopes or a limit.
            UnauthorizedError: The new key has no scopes, or the requesting key was revoked.
        """

    async def mark_keys_used(self, key_ids: Sequence[str]) -> None:
        """Set the time of last use of these keys to now."""

    async def list_accounts(self) -> list[Account]:
        """Return all accounts, oldest first, with their usage in their billing period."""

    async def count_plans(self) -> dict[str, int]:
        """Return how many accounts have each plan that any account has."""

    async def set_plan(self, account_id: str, plan: str | None) -> bool:
        """Set the plan of an account. Return False if there is no such account.

        Raises:
            InvalidRequestError, ConflictError: There is no such plan; the account is closed, or has a subscription.
        """

    async def close_account(self, account_id: str) -> list[str] | None:
        """Close an account and revoke its keys. Return the ids of the cancelled jobs; None: there is no such account.

        Raises:
            ConflictError: The account sees the voices of the home folder.
        """

    async def get_home_account(self) -> str | None:
        """Return the account that sees the voices of the home folder. None: no key was created for it."""

    async def find_caller(self, sha256: bytes) -> Caller | None:
        """Return the key with this digest if it is neither revoked nor expired."""

    async def find_caller_by_id(self, key_id: str) -> Caller | None:
        """Return the key with this ID if it is neither revoked nor expired."""

    async def list_keys(self, *, account_id: str | None) -> list[ApiKey]:
        """Return the keys of an account, or all keys, oldest first."""

    async def revoke_key(self, key_id: str, *, account_id: str | None, by: str | None = None) -> list[str] | None:
        """Revoke a key, cancel its pending jobs, and drop its webhooks.

        Args:
            by: Id of the requesting key. None: the admin.

        Returns:
            Ids of the cancelled jobs. None: the key does not exist.

        Raises:
            ConflictError: The requesting key is another one, and valid only for its overlap.
            InsufficientScopeError: The requesting key is another one, and has scopes or a limit.
        """

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
        """Add a key with the label, scopes, limit and spending of a valid one, which expires after the overlap.

        Args:
            by: Id of the requesting key. None: the admin.

        Raises:
            ConflictError: The key, or the requesting key, was rotated before.
            InsufficientScopeError: The requesting key is another one, and has scopes or a limit.
        """

    async def get_usage(self, caller: Caller) -> Usage:
        """Return the usage in the current period: of the key or the account, whichever has fewer characters left."""

    # tokens of remote workers

    async def add_worker_token(self, sha256: bytes, *, label: str | None, prefix: str) -> WorkerToken:
        """Store the digest of a token."""

    async def list_worker_tokens(self) -> list[WorkerToken]:
        """Return all tokens, oldest first."""

    async def find_worker_token(self, sha256: bytes) -> str | None:
        """Return the id of the token with this digest if it is not revoked."""

    async def is_worker_token_valid(self, token_id: str) -> bool:
        """Return whether a token exists and is not revoked."""

    async def revoke_worker_token(self, token_id: str) -> bool:
        """Revoke a token. Return False if there is none with this id."""

    async def list_audit(self, *, limit: int | None) -> list[AuditEntry]:
        """Return the audit log, newest first. Its entries are written with the actions, for the current `ACTOR`."""

    # voices and cache

    async def add_voice(
        self, voice: StoredVoice, *, idempotency: Idempotency | None = None, prepare: bool = False
    ) -> StoredVoice:
        """Store a voice, and queue its preparation if it needs one.

        A repeated request returns the voice that it created before.

        A home voice is stored once: if its row exists, that row is returned. It gets another id if its own is taken.

        Raises:
            ConflictError: The idempotency key was used with another body.
            QuotaExceededError: The account would exceed its storage quota.
            UnauthorizedError: The account was closed.
        """

    async def find_repeated_voice(self, idempotency: Idempotency) -> StoredVoice | None:
        """Return the voice that the same request created before.

        Raises:
            ConflictError: The idempotency key was used with another body.
        """

    async def get_voice(self, voice_id: str, *, account_id: str) -> StoredVoice | None: ...

    async def find_voices(self, name: str, *, account_id: str) -> list[StoredVoice]:
        """Return the voices of an account with exactly this name, oldest first, at most two."""

    async def find_by_alias(self, alias: str, *, account_id: str) -> StoredVoice | None:
        """Return the voice of an account that has this alias."""

    async def list_aliases(self, *, account_id: str) -> list[Alias]:
        """Return the aliases of an account, sorted."""

    async def add_consent(self, consent: StoredConsent, recording: bytes) -> None:
        """Add a recording of consent. Raises QuotaExceededError if the account has too many."""

    async def get_consent(self, consent_id: str, *, account_id: str) -> StoredConsent | None: ...

    async def read_consent(self, consent_id: str, *, account_id: str) -> bytes | None:
        """Return the recording."""

    async def list_consents(self, *, account_id: str, limit: int, after: str | None) -> list[StoredConsent]:
        """Return the recordings of an account, newest first."""

    async def rename_consent(self, consent_id: str, *, account_id: str, name: str) -> bool:
        """Return False if the account has no such recording."""

    async def remove_consent(self, consent_id: str, *, account_id: str) -> bool:
        """Delete a recording. Return False if the account has no such recording."""

    async def set_alias(self, alias: str, voice_id: str, *, account_id: str) -> bool:
        """Add or change an alias, which ends with its voice. Return False if the account has no such voice."""

    async def remove_alias(self, alias: str, *, account_id: str) -> bool:
        """Remove an alias. Return False if the account has none of this name."""

    async def list_voices(self, *, account_id: str, limit: int | None, after: str | None) -> list[StoredVoice]:
        """Return voices of an account, oldest first, starting after the voice with the id `after`."""

    async def find_family(self, family: str, *, account_id: str) -> list[StoredVoice]:
        """Return the voices of an account with this family, oldest first."""

    async def update_voice(
        self, voice_id: str, changes: VoiceChanges, *, account_id: str, prepare: bool = False
    ) -> StoredVoice | None:
        """Update a voice. Another transcript or language removes its cache entries.

        Args:
            prepare: With another transcript, language or backend, the voice has to be prepared.
        """

    async def delete_voice(self, voice_id: str, *, account_id: str) -> list[str] | None:
        """Delete a voice with its jobs, cache and idempotency rows, refund its pending jobs, and add a tombstone.

        The voice is gone at once, its rows in several transactions, so that none locks the account for long.

        Returns:
            Paths of the audio of its jobs. Its other blobs are below `voice_prefix`. None: the voice does not exist.
        """

    async def find_deleted(self, voice_ids: Sequence[str]) -> set[str]:
        """Return which of these voices have been deleted within 30 days."""

    async def list_unpurged(self) -> Mapping[str, Sequence[str]]:
        """Return the deleted voices that may still have blobs, with the paths of the audio of their jobs.

        Finishes a deletion first that a crash has interrupted.
        """

    async def mark_purged(self, voice_id: str) -> None:
        """Record that the blobs of a deleted voice are gone."""

    async def get_cached(self, voice_id: str, cache_key: str) -> CacheEntry | None: ...

    async def delete_cached(self, entry: CacheEntry) -> None:
        """Delete a cache entry unless it was replaced in the meantime."""

    # jobs

    async def submit(self, job: NewJob, *, limits: QueueLimits, idempotency: Idempotency | None = None) -> SubmittedJob:
        """Add a job and charge its characters.

        A repeated request returns its job. So does a request whose voice has a pending job with the same
        `flight_key`. Neither is charged.

        Raises:
            VoiceNotFoundError: The voice was deleted.
            UnauthorizedError, SubscriptionError: The key was revoked, or the account is suspended.
            QuotaExceededError, LimitError: A limit is reached.
            ConflictError: The idempotency key was used with another body.
        """

    async def find_repeated_job(self, idempotency: Idempotency) -> str | None:
        """Return the id of the job that the same request created before. A cached answer creates none.

        Raises:
            ConflictError: The idempotency key was used with another body.
        """

    async def get_job(self, job_id: str, *, account_id: str | None = None) -> StoredJob | None:
        """Return a job of an account, or of any account."""

    async def list_jobs(
        self, *, account_id: str, status: JobStatus | None, limit: int | None, after: str | None
    ) -> list[StoredJob]:
        """Return jobs of an account, newest first, starting after the job with the id `after`."""

    async def claim(
        self, *, backends: Sequence[str], lease_s: float, worker: str, skip_voices: Sequence[str] = ()
    ) -> Claim | None:
        """Claim the next waiting job of these backends, except for these voices, for a new attempt.

        The account that was served longest ago is first, then its oldest job. Two processes never claim the same job.
        Jobs whose voice another worker prepares for their backend are skipped while its lease lasts.
        """

    async def find_claimed(self, worker: str) -> Claim | None:
        """Return a claim that a worker holds, and whose lease has not expired."""

    async def claim_preparation(
        self,
        *,
        backends: Sequence[str],
        lease_s: float,
        worker: str,
        max_attempts: int,
        skip_voices: Sequence[str] = (),
    ) -> Claim | None:
        """Claim a voice to prepare for one of these backends, unless a pending job prepares it.

        Preparations without attempts left are removed. `heartbeat`, `release` and `retry` also take preparations.
        """

    async def get_preparation(self, job_id: str) -> Claim | None:
        """Return the last claim of a preparation, whose lease may have expired. None: it has ended."""

    async def end_preparation(self, job_id: str, attempt: int) -> None:
        """End a preparation that this attempt holds: the voice is ready. So does a finished job of its backend."""

    async def heartbeat(self, job_id: str, attempt: int, *, lease_s: float) -> bool:
        """Renew a lease. Return False if this attempt no longer holds the job: the worker must stop."""

    async def save_report(self, job_id: str, attempt: int, kind: ReportKind, report: str) -> bool:
        """Store what a worker found out about the speech. Return False if this attempt no longer holds the job."""

    async def get_report(self, job_id: str, kind: ReportKind) -> str | None:
        """Return a report of a job. Failed and cancelled jobs have none."""

    async def finish(self, job_id: str, attempt: int | None, result: AttemptResult) -> FinishStatus:
        """End a job by one conditional UPDATE, and apply what follows from it in the same transaction.

        A ready job adds a cache entry; a failed one is refunded. Both lose their text and make a webhook due.

        Args:
            attempt: The attempt that must hold the job. None: the current one.

        Raises:
            QuotaExceededError: The audio would exceed the storage quota of the account.
        """

    async def read_queue(self) -> list[QueueState]:
        """Return the pending jobs of each backend that has any."""

    async def read_pace(self, backend: str) -> float | None:
        """Return the seconds of work per character of a backend's last 20 jobs, of any account.

        None: it has spoken none of the last 1,000 jobs.
        """

    async def cancel(self, job_id: str, *, account_id: str) -> StoredJob | None:
        """Cancel a job if it is pending, and refund it. Return the job as it is now."""

    async def release(self, job_id: str, attempt: int) -> bool:
        """Put a job back into the queue without counting this attempt, because the worker stops."""

    async def retry(self, job_id: str, attempt: int, *, error: str, max_attempts: int) -> JobStatus | None:
        """Put a job back into the queue, or fail it with the error code if no attempts are left.

        Return the new status. None: this attempt does not hold the job.
        """

    async def reap(self, *, max_attempts: int) -> ReapResult:
        """Put jobs with expired leases back into the queue, and fail those without attempts left (`worker_lost`).

        A lease that ends later than it could have been granted for has expired: the clock was set back.
        """

    async def remove_job(self, job_id: str, *, account_id: str) -> list[str] | None:
        """Delete a final job, and the cached audio of its text. Its characters stay charged.

        Returns:
            Paths of the audio, for the caller to delete. None: the account has no such job.
        """

    async def mark_audio_lost(self, job_id: str) -> None:
        """Fail a ready job whose audio is missing or altered (`audio_lost`)."""

    # billing

    async def begin_checkout(
        self,
        *,
        email: str,
        plan: str,
        browser_sha256: bytes,
        account_id: str | None,
        key_id: str | None = None,
        since: datetime,
        is_only: bool = False,
    ) -> StoredCheckout:
        """Add a checkout of the account that is signed in, or return the same one, begun since, that has no key yet.

        Args:
            is_only: The cookie of the browser is that of an idempotency key.

        Raises:
            ConflictError: The idempotency key was used for another address or plan since.
        """

    async def get_checkout(self, checkout_id: str) -> StoredCheckout | None: ...

    async def bind_customer(self, checkout_id: str, customer_id: str, *, email: str) -> StoredCustomer:
        """Make a checkout the last one of a customer, or of another one who has the address. Return that customer."""

    async def save_session(self, checkout_id: str, session_id: str | None) -> bool:
        """Store the session of a checkout, and return whether it is still the last one of its customer.

        None: the next session needs another idempotency key.
        """

    async def mint_checkout_key(
        self,
        checkout_id: str,
        key: NewKey,
        *,
        since: datetime,
        is_confirmed: bool = False,
        revokes_others: bool = False,
    ) -> tuple[ApiKey, list[str]] | None:
        """Store the one key of a checkout that was paid since.

        Args:
            is_confirmed: The address of the customer is confirmed, so the key may be for an account that existed.
            revokes_others: Revoke the earlier keys of the account.

        Returns:
            The key, and the ids of the cancelled jobs. None: the checkout has a key already, or may not get one, for
            instance because the key that began it was revoked.
        """

    async def reissue_key(self, customer_id: str, key: NewKey) -> tuple[ApiKey, list[str]] | None:
        """Revoke the key of a customer's last paid checkout with those that replaced it, and store another one.

        Returns:
            The key, and the ids of the cancelled jobs. None: the customer has no account.
        """

    async def find_customer(
        self, *, customer_id: str | None = None, email: str | None = None, account_id: str | None = None
    ) -> StoredCustomer | None:
        """Return the customer with all of these."""

    async def list_due_customers(self, *, again_s: float) -> list[str]:
        """Return the ids of customers whose period has ended, and that were read more than `again_s` ago."""

    async def list_subscriptions(self) -> list[StoredSubscription]:
        """Return what is stored of the subscription of each customer, also of one who has none."""

    async def claim_reconcile(self, *, again_s: float) -> bool:
        """Return whether no process that shares the database has claimed this within `again_s`."""

    async def add_customer(self, customer_id: str, *, email: str | None) -> None:
        """Store a customer that began no checkout here, without the address if another one has it."""

    async def save_customer_state(
        self,
        customer_id: str,
        state: CustomerState,
        chosen: Subscription | None,
        *,
        plan: str | None,
        version: int,
        event_id: str | None = None,
    ) -> StoredCustomer | None:
        """Store what Stripe says of a customer, with the event that was the reason to look.

        An entitled customer gets an account, or theirs is opened; the account of another one is suspended.

        Args:
            chosen: The subscription that decides. None: the customer has none of our prices.
            version: The version of the customer before the look. None is returned, and nothing stored, if it changed.
        """

    async def detach_customer(self, account_id: str) -> None:
        """Separate an account that is closed from its customer, and forget the address, which gets another one."""

    async def has_event(self, event_id: str) -> bool:
        """Return whether the effect of an event is stored."""

    async def add_event(self, event_id: str) -> None:
        """Store an event that has no other effect."""

    async def close_meter_batches(self, *, limit: int) -> Sequence[MeterBatch]:
        """Add no more characters to the batches there are, and return the oldest ones."""

    async def delete_meter_batch(self, batch_id: str) -> None:
        """Remove a batch: it was reported or given up."""

    # webhooks and housekeeping

    async def claim_webhooks(
        self, *, limit: int, per_account: int = 4, allowed: Mapping[str, int] | None = None
    ) -> list[WebhookCall]:
        """Claim webhooks that are due, longest due first. Each is due again later unless it is settled.

        Args:
            limit: Maximum in total.
            per_account: Maximum per account. The first webhook of every account precedes the second of any.
            allowed: Lower maximum of some accounts.
        """

    async def settle_webhook(self, job_id: str) -> None:
        """Remove a webhook: it was delivered or given up."""

    async def find_known_paths(self, paths: Sequence[str]) -> set[str]:
        """Return the paths that rows refer to: references, audio of jobs, cache entries, prompts of known voices."""

    async def find_strays(self, paths: Sequence[str], *, grace_s: float) -> set[str]:
        """Return the paths that no row refers to, and that this database first saw so at least `grace_s` ago."""

    async def add_mark(self, token: str) -> None:
        """Store a token before it is written into the storage. The last 32 are kept."""

    async def has_mark(self, token: str) -> bool:
        """Return whether this database wrote the token. A copy or an older backup of the database did not."""

    async def delete_expired(self) -> None:
        """Delete idempotency rows and preparations that no worker has after a day, unpaid checkouts after two days,
        tombstones of purged voices after 30 days, events of Stripe after 35 days, audit entries after 400 days, and
        old strays."""
