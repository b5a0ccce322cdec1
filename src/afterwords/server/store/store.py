"""The port `Store` over a database: each method runs one function of this package as a transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from afterwords.errors import InvalidOptionError, InvalidRequestError, MissingExtraError
from afterwords.models import Account, Alias, ApiKey, JobStatus, Usage
from afterwords.server.ports import Clock
from afterwords.server.records import (
    ACTOR,
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
from afterwords.server.settings import Plan, without_secrets
from afterwords.server.store import (
    accounts,
    audit,
    billing,
    consents,
    garbage,
    jobs,
    keys,
    leases,
    preparations,
    usage,
    voices,
    webhooks,
    worker_tokens,
)
from afterwords.server.store.database import Database

POSTGRES: Final = frozenset({"postgresql", "postgres", "postgresql+psycopg"})
"""Schemes of Postgres; hosting services print `postgres`."""
SHORT_LIST: Final = 100
"""Rows that are read on the event loop: this takes well under 10 ms."""
PAUSE_S: Final = 0.02
"""Pause between the transactions of a long deletion, in which other processes get the lock of a SQLite file."""


class SqlStore:
    """The port `Store` on a database.

    Args:
        url: A path, or `sqlite:///name.db`: relative to the folder unless the name is absolute; or `postgresql://…`.
        clock: The time.
        folder: Folder of the server.
        storage_quota_bytes: Storage quota of each account. None: unlimited.
        plans: The plans that accounts may have, by name.
        account_url: Where customers change their plan or renew it. None: no plan can be bought.
        shows_home: Whether voices of the home folder are visible. If not, their rows are kept.
        has_meter: Whether the characters of finished jobs are stored, to report them to Stripe.

    Raises:
        InvalidOptionError: The URL is malformed, or not that of a SQLite file or a Postgres database.
        MissingExtraError: The driver of Postgres is not installed.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        clock: Clock,
        folder: Path,
        storage_quota_bytes: int | None = None,
        plans: Mapping[str, Plan] | None = None,
        account_url: str | None = None,
        shows_home: bool = True,
        has_meter: bool = False,
    ) -> None:
        self._clock = clock
        self._shows_home = shows_home
        self._quota_bytes = storage_quota_bytes
        self._plans = plans or {}
        self._account_url = account_url
        self._has_meter = has_meter
        self.database = open_database(url, folder=folder)

    @property
    def path(self) -> Path | None:
        """The file of the database. None: it is no file."""
        return self.database.path

    def _times(self) -> dict[str, Any]:
        return {"now": self._clock.now(), "monotonic": self._clock.monotonic()}

    async def announce(self) -> int:
        return await self.database.announce(monotonic=self._clock.monotonic())

    async def count_servers(self) -> int:
        return await self.database.count_servers(monotonic=self._clock.monotonic())

    async def open(self) -> bool:
        """Connect, and migrate the schema. Return whether the database is new.

        Raises:
            ServerSetupError: The database refuses the connection, or a later version has changed the schema.
        """
        is_new = await self.database.open()
        await self._synchronize()
        return is_new

    async def _synchronize(self) -> None:
        if (time_s := await self.database.read_time()) is not None:
            self._clock.synchronize(time_s)

    async def close(self) -> None:
        await self.database.leave()
        await self.database.close()

    def subscribe(self, *, on_waiting: Callable[[], None], on_final: Callable[[str], None]) -> None:
        self.database.listen(lambda message: on_final(message) if message else on_waiting())

    def _notify_final(self, *job_ids: str) -> None:
        for job_id in job_ids:
            self.database.notify(job_id)

    async def check(self) -> None:
        await self.database.check(self._clock.now())

    async def secret(self) -> bytes:
        return self.database.secret

    # -- keys ------------------------------------------------------------------------------------------------

    async def add_key(self, key: NewKey, *, by: str | None = None) -> ApiKey:
        self._check_plan(key.plan)
        return await self.database.write(keys.add, key, by=by, actor=ACTOR.get(), now=self._clock.now())

    async def mark_keys_used(self, key_ids: Sequence[str]) -> None:
        await self.database.write(keys.mark_used, key_ids, now=self._clock.now())

    async def list_accounts(self) -> list[Account]:
        return await self.database.read_long(accounts.list_accounts, plans=self._plans, now=self._clock.now())

    async def count_plans(self) -> dict[str, int]:
        return await self.database.read_long(accounts.count_plans)

    async def set_plan(self, account_id: str, plan: str | None) -> bool:
        self._check_plan(plan)
        return await self.database.write(accounts.set_plan, account_id, plan, actor=ACTOR.get(), now=self._clock.now())

    async def close_account(self, account_id: str) -> list[str] | None:
        cancelled = await self.database.write(accounts.close, account_id, actor=ACTOR.get(), **self._times())
        self._notify_final(*(cancelled or ()))
        return cancelled

    def _check_plan(self, plan: str | None) -> None:
        if plan is not None and plan not in self._plans:
            raise InvalidRequestError.invalid_field("plan", rule=f"it must be one of {', '.join(self._plans)}")

    async def get_home_account(self) -> str | None:
        return await self.database.read_cached(("home account",), keys.get_home_account)

    async def find_caller(self, sha256: bytes) -> Caller | None:
        return await self.database.read(keys.find_caller, sha256, now=self._clock.now())

    async def find_caller_by_id(self, key_id: str) -> Caller | None:
        return await self.database.read(keys.find_caller_by_id, key_id, now=self._clock.now())

    async def list_keys(self, *, account_id: str | None) -> list[ApiKey]:
        return await self.database.read_long(keys.list_keys, account_id=account_id, now=self._clock.now())

    async def revoke_key(self, key_id: str, *, account_id: str | None, by: str | None = None) -> list[str] | None:
        cancelled = await self.database.write(
            keys.revoke, key_id, account_id=account_id, by=by, actor=ACTOR.get(), **self._times()
        )
        self._notify_final(*(cancelled or ()))
        return cancelled

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
        return await self.database.write(
            keys.rotate,
            key_id,
            account_id=account_id,
            by=by,
            sha256=sha256,
            prefix=prefix,
            overlap_s=overlap_s,
            actor=ACTOR.get(),
            now=self._clock.now(),
        )

    async def get_usage(self, caller: Caller) -> Usage:
        return await self.database.read(usage.get, caller, plans=self._plans, now=self._clock.now())

    # -- tokens of remote workers ----------------------------------------------------------------------------

    async def add_worker_token(self, sha256: bytes, *, label: str | None, prefix: str) -> WorkerToken:
        return await self.database.write(
            worker_tokens.add, sha256, label=label, prefix=prefix, actor=ACTOR.get(), now=self._clock.now()
        )

    async def list_worker_tokens(self) -> list[WorkerToken]:
        return await self.database.read(worker_tokens.list_all)

    async def find_worker_token(self, sha256: bytes) -> str | None:
        return await self.database.read(worker_tokens.find, sha256)

    async def is_worker_token_valid(self, token_id: str) -> bool:
        return await self.database.read(worker_tokens.is_valid, token_id)

    async def revoke_worker_token(self, token_id: str) -> bool:
        return await self.database.write(worker_tokens.revoke, token_id, actor=ACTOR.get(), now=self._clock.now())

    async def list_audit(self, *, limit: int | None) -> list[AuditEntry]:
        return await self.database.read_long(audit.list_newest, limit=limit)

    # -- voices and cache ------------------------------------------------------------------------------------

    async def add_voice(
        self, voice: StoredVoice, *, idempotency: Idempotency | None = None, prepare: bool = False
    ) -> StoredVoice:
        added = await self.database.write(
            voices.add,
            voice,
            request=idempotency,
            prepare=prepare,
            quota_bytes=self._quota_bytes,
            now=self._clock.now(),
        )
        if prepare:
            self.database.notify("")
        return added

    async def find_repeated_voice(self, idempotency: Idempotency) -> StoredVoice | None:
        return await self.database.read(voices.find_repeated, idempotency)

    async def get_voice(self, voice_id: str, *, account_id: str) -> StoredVoice | None:
        voice = await self.database.read_cached(
            ("voice", voice_id, account_id), voices.get, voice_id, account_id=account_id
        )
        return None if voice is None or self._is_hidden(voice) else voice

    async def find_voices(self, name: str, *, account_id: str) -> list[StoredVoice]:
        found = await self.database.read(voices.find_by_name, name, account_id=account_id)
        return [voice for voice in found if not self._is_hidden(voice)]

    def _is_hidden(self, voice: StoredVoice) -> bool:
        return voice.home_id is not None and not self._shows_home

    async def find_by_alias(self, alias: str, *, account_id: str) -> StoredVoice | None:
        voice = await self.database.read(voices.find_by_alias, alias, account_id=account_id)
        return None if voice is None or self._is_hidden(voice) else voice

    async def list_aliases(self, *, account_id: str) -> list[Alias]:
        return await self.database.read_long(voices.list_aliases, account_id=account_id)

    async def add_consent(self, consent: StoredConsent, recording: bytes) -> None:
        await self.database.write(consents.add, consent, recording)

    async def get_consent(self, consent_id: str, *, account_id: str) -> StoredConsent | None:
        return await self.database.read(consents.get, consent_id, account_id=account_id)

    async def read_consent(self, consent_id: str, *, account_id: str) -> bytes | None:
        return await self.database.read_long(consents.read_recording, consent_id, account_id=account_id)

    async def list_consents(self, *, account_id: str, limit: int, after: str | None) -> list[StoredConsent]:
        return await self.database.read(consents.list_consents, account_id=account_id, limit=limit, after=after)

    async def rename_consent(self, consent_id: str, *, account_id: str, name: str) -> bool:
        return await self.database.write(consents.rename, consent_id, account_id=account_id, name=name)

    async def remove_consent(self, consent_id: str, *, account_id: str) -> bool:
        is_removed = await self.database.free(consents.remove, consent_id, account_id=account_id)
        if is_removed:
            await self.database.scrub()
        return is_removed

    async def set_alias(self, alias: str, voice_id: str, *, account_id: str) -> bool:
        return await self.database.write(voices.set_alias, alias, voice_id, account_id=account_id)

    async def remove_alias(self, alias: str, *, account_id: str) -> bool:
        return await self.database.write(voices.remove_alias, alias, account_id=account_id)

    async def list_voices(self, *, account_id: str, limit: int | None, after: str | None) -> list[StoredVoice]:
        read = self.database.read if limit is not None and limit <= SHORT_LIST else self.database.read_long
        return await read(
            voices.list_voices, account_id=account_id, limit=limit, after=after, shows_home=self._shows_home
        )

    async def find_family(self, family: str, *, account_id: str) -> list[StoredVoice]:
        read = self.database.read_long
        return await read(voices.find_family, family, account_id=account_id, shows_home=self._shows_home)

    async def update_voice(
        self, voice_id: str, changes: VoiceChanges, *, account_id: str, prepare: bool = False
    ) -> StoredVoice | None:
        voice = await self.database.write(
            voices.update_voice, voice_id, changes, account_id=account_id, prepare=prepare, now=self._clock.now()
        )
        if prepare:
            self.database.notify("")
        if changes.ref_text is not None:
            await self.database.scrub()
        return voice

    async def delete_voice(self, voice_id: str, *, account_id: str) -> list[str] | None:
        has_more = await self.database.free(
            voices.delete_voice, voice_id, account_id=account_id, actor=ACTOR.get(), now=self._clock.now()
        )
        if has_more is None:
            return None
        if has_more:
            await self._delete_rows(voice_id)
        await self.database.scrub()
        return (await self.database.read(voices.list_unpurged, voice_id)).get(voice_id, [])

    async def _delete_rows(self, voice_id: str) -> None:
        while await self.database.free(voices.delete_rows, voice_id, now=self._clock.now()):
            await asyncio.sleep(PAUSE_S)

    async def find_deleted(self, voice_ids: Sequence[str]) -> set[str]:
        return await self.database.read(voices.find_deleted, voice_ids)

    async def list_unpurged(self) -> dict[str, list[str]]:
        for voice_id in await self.database.read(voices.list_unfinished):
            await self._delete_rows(voice_id)
        return await self.database.read(voices.list_unpurged)

    async def mark_purged(self, voice_id: str) -> None:
        await self.database.free(voices.mark_purged, voice_id, now=self._clock.now())
        await self.database.scrub_if_due()

    async def get_cached(self, voice_id: str, cache_key: str) -> CacheEntry | None:
        return await self.database.read_cached(("cached", voice_id, cache_key), voices.get_cached, voice_id, cache_key)

    async def delete_cached(self, entry: CacheEntry) -> None:
        await self.database.write(voices.delete_cached, entry)

    # -- jobs, for clients -----------------------------------------------------------------------------------

    async def submit(self, job: NewJob, *, limits: QueueLimits, idempotency: Idempotency | None = None) -> SubmittedJob:
        submitted = await self.database.write(
            jobs.submit,
            job,
            limits=limits,
            request=idempotency,
            plans=self._plans,
            account_url=self._account_url,
            quota_bytes=self._quota_bytes,
            now=self._clock.now(),
        )
        if submitted.is_new:
            self.database.notify("")
        return submitted

    async def find_repeated_job(self, idempotency: Idempotency) -> str | None:
        return await self.database.read(jobs.find_repeated, idempotency)

    async def get_job(self, job_id: str, *, account_id: str | None = None) -> StoredJob | None:
        return await self.database.read_cached(
            ("job", job_id, account_id or ""), jobs.get, job_id, account_id=account_id
        )

    async def list_jobs(
        self, *, account_id: str, status: JobStatus | None, limit: int | None, after: str | None
    ) -> list[StoredJob]:
        read = self.database.read if limit is not None and limit <= SHORT_LIST else self.database.read_long
        return await read(jobs.list_jobs, account_id=account_id, status=status, limit=limit, after=after)

    async def read_queue(self) -> list[QueueState]:
        return await self.database.read(jobs.read_queue)

    async def read_pace(self, backend: str) -> float | None:
        return await self.database.read(jobs.read_pace, backend)

    async def cancel(self, job_id: str, *, account_id: str) -> StoredJob | None:
        job = await self.database.write(jobs.cancel, job_id, account_id=account_id, **self._times())
        if job:
            self._notify_final(job_id)
        return job

    async def remove_job(self, job_id: str, *, account_id: str) -> list[str] | None:
        paths = await self.database.free(jobs.remove, job_id, account_id=account_id)
        if paths is not None:
            await self.database.scrub()
        return paths

    async def mark_audio_lost(self, job_id: str) -> None:
        await self.database.write(jobs.mark_audio_lost, job_id)

    # -- jobs, for workers -----------------------------------------------------------------------------------

    async def claim(
        self, *, backends: Sequence[str], lease_s: float, worker: str, skip_voices: Sequence[str] = ()
    ) -> Claim | None:
        monotonic = self._clock.monotonic()
        if not await self.database.read(leases.is_any_waiting, backends, skip_voices, monotonic=monotonic):
            return None
        return await self.database.write(
            leases.claim,
            backends=backends,
            lease_s=lease_s,
            worker=worker,
            skip_voices=skip_voices,
            monotonic=self._clock.monotonic(),
        )

    async def find_claimed(self, worker: str) -> Claim | None:
        return await self.database.read(leases.find_claimed, worker, monotonic=self._clock.monotonic())

    async def claim_preparation(
        self,
        *,
        backends: Sequence[str],
        lease_s: float,
        worker: str,
        max_attempts: int,
        skip_voices: Sequence[str] = (),
    ) -> Claim | None:
        monotonic = self._clock.monotonic()
        if not await self.database.read(preparations.is_any_waiting, backends, skip_voices, monotonic=monotonic):
            return None
        return await self.database.write(
            preparations.claim,
            backends=backends,
            lease_s=lease_s,
            worker=worker,
            skip_voices=skip_voices,
            max_attempts=max_attempts,
            monotonic=self._clock.monotonic(),
        )

    async def get_preparation(self, job_id: str) -> Claim | None:
        return await self.database.read(preparations.get, job_id)

    async def end_preparation(self, job_id: str, attempt: int) -> None:
        if await self.database.write(preparations.end, job_id, attempt):
            self.database.notify("")

    async def heartbeat(self, job_id: str, attempt: int, *, lease_s: float) -> bool:
        return await self.database.write(
            leases.heartbeat, job_id, attempt, lease_s=lease_s, monotonic=self._clock.monotonic()
        )

    async def save_report(self, job_id: str, attempt: int, kind: ReportKind, report: str) -> bool:
        return await self.database.write(leases.save_report, job_id, attempt, kind, report)

    async def get_report(self, job_id: str, kind: ReportKind) -> str | None:
        return await self.database.read(jobs.get_report, job_id, kind)

    async def finish(self, job_id: str, attempt: int | None, result: AttemptResult) -> FinishStatus:
        status = await self.database.write(
            leases.finish,
            job_id,
            attempt,
            result,
            quota_bytes=self._quota_bytes,
            has_meter=self._has_meter,
            **self._times(),
        )
        if status is FinishStatus.DONE:
            self._notify_final(job_id)
        return status

    async def release(self, job_id: str, attempt: int) -> bool:
        is_released = await self.database.write(leases.release, job_id, attempt)
        if is_released:
            self.database.notify("")
        return is_released

    async def retry(self, job_id: str, attempt: int, *, error: str, max_attempts: int) -> JobStatus | None:
        status = await self.database.write(
            leases.retry, job_id, attempt, error=error, max_attempts=max_attempts, **self._times()
        )
        if status is not None:
            self.database.notify("" if status is JobStatus.PENDING else job_id)
        return status

    async def reap(self, *, max_attempts: int) -> ReapResult:
        await self.database.scrub_if_due()
        await self._synchronize()  # this machine may have been suspended
        await self.database.stay(monotonic=self._clock.monotonic())
        if not await self.database.read(leases.is_any_expired, monotonic=self._clock.monotonic()):
            return ReapResult()
        reaped = await self.database.write(leases.reap, max_attempts=max_attempts, **self._times())
        self._notify_final(*reaped.failed)
        if reaped.requeued:
            self.database.notify("")
        return reaped

    # -- billing ---------------------------------------------------------------------------------------------

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
        return await self.database.write(
            billing.begin_checkout,
            email=email,
            plan=plan,
            browser_sha256=browser_sha256,
            account_id=account_id,
            key_id=key_id,
            since=since,
            is_only=is_only,
            now=self._clock.now(),
        )

    async def get_checkout(self, checkout_id: str) -> StoredCheckout | None:
        return await self.database.read(billing.get_checkout, checkout_id)

    async def bind_customer(self, checkout_id: str, customer_id: str, *, email: str) -> StoredCustomer:
        return await self.database.write(billing.bind_customer, checkout_id, customer_id, email=email)

    async def save_session(self, checkout_id: str, session_id: str | None) -> bool:
        return await self.database.write(billing.save_session, checkout_id, session_id)

    async def mint_checkout_key(
        self,
        checkout_id: str,
        key: NewKey,
        *,
        since: datetime,
        is_confirmed: bool = False,
        revokes_others: bool = False,
    ) -> tuple[ApiKey, list[str]] | None:
        minted = await self.database.write(
            billing.mint,
            checkout_id,
            key,
            is_confirmed=is_confirmed,
            revokes_others=revokes_others,
            since=since,
            actor=ACTOR.get(),
            **self._times(),
        )
        if minted is not None:
            self._notify_final(*minted[1])
        return minted

    async def reissue_key(self, customer_id: str, key: NewKey) -> tuple[ApiKey, list[str]] | None:
        reissued = await self.database.write(billing.reissue, customer_id, key, actor=ACTOR.get(), **self._times())
        if reissued is not None:
            self._notify_final(*reissued[1])
        return reissued

    async def find_customer(
        self, *, customer_id: str | None = None, email: str | None = None, account_id: str | None = None
    ) -> StoredCustomer | None:
        return await self.database.read(
            billing.find_customer, customer_id=customer_id, email=email, account_id=account_id
        )

    async def list_due_customers(self, *, again_s: float) -> list[str]:
        return await self.database.read_long(billing.list_due_customers, again_s=again_s, now=self._clock.now())

    async def list_subscriptions(self) -> list[StoredSubscription]:
        return await self.database.read_long(billing.list_subscriptions)

    async def claim_reconcile(self, *, again_s: float) -> bool:
        return await self.database.write(billing.claim_reconcile, again_s=again_s, now=self._clock.now())

    async def add_customer(self, customer_id: str, *, email: str | None) -> None:
        await self.database.write(billing.add_customer, customer_id, email=email)

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
        return await self.database.write(
            billing.save_state,
            customer_id,
            state,
            chosen,
            plan=plan,
            version=version,
            event_id=event_id,
            now=self._clock.now(),
        )

    async def detach_customer(self, account_id: str) -> None:
        await self.database.write(billing.detach_customer, account_id)

    async def has_event(self, event_id: str) -> bool:
        return await self.database.read(billing.has_event, event_id)

    async def add_event(self, event_id: str) -> None:
        await self.database.write(billing.add_event, event_id, now=self._clock.now())

    async def close_meter_batches(self, *, limit: int) -> Sequence[MeterBatch]:
        return await self.database.write(billing.close_meter_batches, limit=limit, now=self._clock.now())

    async def delete_meter_batch(self, batch_id: str) -> None:
        await self.database.write(billing.delete_meter_batch, batch_id)

    # -- webhooks and housekeeping ---------------------------------------------------------------------------

    async def claim_webhooks(
        self, *, limit: int, per_account: int = 4, allowed: Mapping[str, int] | None = None
    ) -> list[WebhookCall]:
        monotonic = self._clock.monotonic()
        if not await self.database.read(webhooks.is_any_due, monotonic=monotonic):
            return []
        return await self.database.write(
            webhooks.claim, limit=limit, per_account=per_account, allowed=allowed or {}, monotonic=monotonic
        )

    async def settle_webhook(self, job_id: str) -> None:
        await self.database.write(webhooks.settle, job_id)

    async def find_known_paths(self, paths: Sequence[str]) -> set[str]:
        return set(await self.database.read_long(garbage.find_known_paths, paths))

    async def find_strays(self, paths: Sequence[str], *, grace_s: float) -> set[str]:
        known = await self.find_known_paths(paths)
        unknown = [path for path in paths if path not in known]
        if not unknown:
            return set()
        return await self.database.free(garbage.add_strays, unknown, grace_s=grace_s, monotonic=self._clock.monotonic())

    async def add_mark(self, token: str) -> None:
        await self.database.free(garbage.add_mark, token)

    async def has_mark(self, token: str) -> bool:
        return await self.database.read(garbage.has_mark, token)

    async def delete_expired(self) -> None:
        while await self.database.free(garbage.delete_expired, **self._times()):
            await asyncio.sleep(PAUSE_S)
        await self.database.scrub()


def open_database(url: str | Path, *, folder: Path) -> Database:
    """Return the database with a URL; not connected yet.

    Raises:
        InvalidOptionError: The URL is malformed, or not that of a SQLite file or a Postgres database.
        MissingExtraError: The driver of Postgres is not installed.
    """
    parsed = None if isinstance(url, Path) else parse_url(url)
    if parsed is None or parsed.get_backend_name() == "sqlite":
        from afterwords.server.store.sqlite.database import SqliteDatabase

        return SqliteDatabase(folder / (url if parsed is None else str(parsed.database)))
    if find_spec("psycopg") is None:
        raise MissingExtraError.for_extra("postgres", purpose="A Postgres database")
    from afterwords.server.store.postgres.database import PostgresDatabase

    return PostgresDatabase(parsed)


def parse_url(url: str) -> URL:
    """Return the parts of a URL of a database, with the driver that is used.

    Raises:
        InvalidOptionError: It is malformed, or not that of a SQLite file or a Postgres database.
    """
    allowed = "sqlite:/// followed by the path of a file, or postgresql://user:password@host/database"
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise InvalidOptionError.for_option("AFTERWORDS_DATABASE_URL", value="not a URL", allowed=allowed) from None
    if parsed.drivername in POSTGRES and parsed.database:
        return parsed.set(drivername="postgresql+psycopg")
    is_file = parsed.database not in (None, "", ":memory:") and not (parsed.host or parsed.username or parsed.query)
    if parsed.get_backend_name() != "sqlite" or not is_file:
        raise InvalidOptionError.for_option("AFTERWORDS_DATABASE_URL", value=without_secrets(url), allowed=allowed)
    return parsed
