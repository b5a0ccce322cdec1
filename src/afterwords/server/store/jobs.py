"""Jobs for clients: submit, read, cancel. Also `end`, by which every job becomes final."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal,
    literal_column,
    select,
    update,
)
from sqlalchemy.sql.dml import ReturningUpdate

from afterwords.errors import LimitError, SubscriptionError, UnauthorizedError, VoiceNotFoundError
from afterwords.models import JobStatus
from afterwords.server.cache_key import cache_path, job_path
from afterwords.server.records import (
    Idempotency,
    NewJob,
    QueueLimits,
    QueueState,
    Quota,
    ReportKind,
    StoredJob,
    SubmittedJob,
)
from afterwords.server.settings import Plan
from afterwords.server.store import idempotency
from afterwords.server.store import usage as usage_rows
from afterwords.server.store.locks import lock_account, lock_account_of_job
from afterwords.server.store.schema import (
    IS_KEPT,
    IS_PENDING,
    cache,
    jobs,
    keys,
    preparations,
    usage,
    voices,
    webhooks,
)
from afterwords.server.store.statements import Insert, Query

_NEW_COLUMNS = [field.name for field in fields(NewJob) if field.name != "character_limit"]
JOB = [jobs.c[field.name] for field in fields(StoredJob)]
_SELECT = select(*JOB).where(jobs.c.job_id == bindparam("job_id"))
_GET = Query(_SELECT)
_GET_OWN = Query(_SELECT.where(jobs.c.account_id == bindparam("account_id")))
_INSERT = Insert(jobs, [*_NEW_COLUMNS, "status", "period", "created_at"])
_ADMISSION = Query(
    select(
        select(literal(1))
        .where(voices.c.voice_id == bindparam("voice_id"), voices.c.account_id == bindparam("account_id"), IS_KEPT)
        .scalar_subquery(),
        select(literal(1)).where(keys.c.key_id == bindparam("key_id"), keys.c.revoked_at.is_(None)).scalar_subquery(),
        select(jobs.c.job_id)
        .where(jobs.c.voice_id == bindparam("voice_id"), jobs.c.flight_key == bindparam("flight_key"), IS_PENDING)
        .scalar_subquery(),
        select(cast(func.sum(usage.c.characters), BigInteger))
        .where(usage.c.spending_id == bindparam("spending_id"), usage.c.period == bindparam("period"))
        .scalar_subquery(),
        select(cast(func.sum(usage.c.characters), BigInteger))
        .where(usage.c.account_id == bindparam("account_id"), usage.c.period == bindparam("period"))
        .scalar_subquery(),
        select(func.count())
        .select_from(jobs)
        .where(jobs.c.account_id == bindparam("account_id"), IS_PENDING)
        .scalar_subquery(),
        select(func.count()).select_from(jobs).where(IS_PENDING).scalar_subquery(),
    )
)
"""What decides on admission: the voice, the key, a duplicate job, characters of key and account, pending jobs."""


# -- final states --------------------------------------------------------------------------------------------

_CACHE = Insert(
    cache,
    cache.c.keys(),
    key=("voice_id", "cache_key"),
    update=lambda new: {name: new[name] for name in ("sha256", "size_bytes", "synth_ms", "created_at")},
)
_PREPARATION = Query(
    select(preparations.c.job_id).where(
        preparations.c.voice_id == bindparam("voice_id"), preparations.c.backend == bindparam("backend")
    )
)
_ADD_WEBHOOK = Insert(webhooks, webhooks.c.keys())


def ending(status: JobStatus, **values: Any) -> ReturningUpdate[Any]:
    """Return the UPDATE that makes jobs final, for `end`. The caller adds the condition."""
    values["timing"] = case((jobs.c.keeps_timing, jobs.c.timing), else_=None) if status is JobStatus.READY else None
    if status is not JobStatus.READY:
        values["verification"] = None
    return (
        update(jobs)
        .values(
            status=status, completed_at=bindparam("ended_at"), text=None, reading=None, lease_expires=None, **values
        )
        .returning(
            jobs.c.job_id,
            jobs.c.voice_id,
            jobs.c.backend,
            jobs.c.cache_key,
            jobs.c.flight_key,
            jobs.c.spending_id,
            jobs.c.period,
            jobs.c.created_at,
            jobs.c.char_count,
            jobs.c.webhook_url,
            jobs.c.timestamps,
            jobs.c.verify,
            jobs.c.audio_sha256,
            jobs.c.audio_bytes,
            jobs.c.synth_ms,
        )
    )


def end(
    connection: Connection,
    statement: ReturningUpdate[Any],
    values: Mapping[str, Any],
    *,
    now: datetime,
    monotonic: float,
) -> list[str]:
    """End jobs: refund them or fill the cache, and make their webhooks due. Return their ids.

    The UPDATE is conditional, so a job is refunded once and its webhook becomes due once.
    """
    rows = connection.execute(statement, {**values, "ended_at": now}).all()
    for row in sorted(rows, key=lambda row: (row.spending_id, row.created_at)):  # the order in which rows are locked
        if row.audio_sha256 is None:
            usage_rows.refund(
                connection,
                spending_id=row.spending_id,
                period=row.period,
                day=usage_rows.day_of(row.created_at),
                characters=row.char_count,
            )
        elif row.flight_key is not None and not (row.timestamps or row.verify):
            entry = {
                "voice_id": row.voice_id,
                "cache_key": row.cache_key,
                "sha256": row.audio_sha256,
                "size_bytes": row.audio_bytes or 0,
                "synth_ms": row.synth_ms or 0,
                "created_at": now,
            }
            _CACHE(connection, entry)
            if _PREPARATION(connection, voice_id=row.voice_id, backend=row.backend):  # not needed any more
                connection.execute(delete(preparations).where(preparations.c.voice_id == row.voice_id))
        if row.webhook_url is not None:
            webhook = {"job_id": row.job_id, "url": row.webhook_url, "tries": 0, "next_at": monotonic}
            _ADD_WEBHOOK(connection, webhook)
    return [row.job_id for row in rows]


# -- submit, read, cancel ------------------------------------------------------------------------------------

_CANCEL = ending(JobStatus.CANCELLED).where(
    jobs.c.job_id == bindparam("which"), jobs.c.account_id == bindparam("owner"), IS_PENDING
)
_MARK_AUDIO_LOST = (
    update(jobs)
    .where(jobs.c.job_id == bindparam("which"), jobs.c.status == JobStatus.READY)
    .values(
        status=JobStatus.FAILED,
        error="audio_lost",
        audio_key=None,
        audio_sha256=None,
        audio_bytes=None,
        timing=None,
        verification=None,
    )
    .returning(jobs.c.spending_id, jobs.c.period, jobs.c.created_at, jobs.c.char_count)
)


def submit(
    connection: Connection,
    job: NewJob,
    *,
    limits: QueueLimits,
    request: Idempotency | None,
    plans: Mapping[str, Plan],
    account_url: str | None = None,
    quota_bytes: int | None = None,
    now: datetime,
) -> SubmittedJob:
    terms = _lock(connection, job.account_id, plans=plans, now=now)
    before = idempotency.find(connection, request) if request else None
    if before and before.job_id and (stored := get(connection, before.job_id)):
        return SubmittedJob(stored, is_new=False)
    duplicate, quota = _admit(
        connection, job, terms, limits, quota_bytes=quota_bytes, plans=plans, account_url=account_url, now=now
    )
    if duplicate is None:
        values: dict[str, Any] = {name: getattr(job, name) for name in _NEW_COLUMNS}
        _INSERT(connection, values | {"status": JobStatus.PENDING, "period": terms.period.name, "created_at": now})
        usage_rows.charge(
            connection,
            spending_id=job.spending_id,
            account_id=job.account_id,
            period=terms.period.name,
            day=usage_rows.day_of(now),
            characters=job.char_count,
        )
    job_id = duplicate.job_id if duplicate else job.job_id
    if request and before:
        idempotency.set_job(connection, request, job_id)
    elif request:
        idempotency.add(connection, request, now=now, job_id=job_id)
    if duplicate:
        return SubmittedJob(duplicate, is_new=False, quota=quota)
    accepted = StoredJob(
        job_id=job.job_id,
        account_id=job.account_id,
        voice_id=job.voice_id,
        status=JobStatus.PENDING,
        lang=job.lang,
        backend=job.backend,
        cache_key=job.cache_key,
        char_count=job.char_count,
        speed=job.speed,
        seed=job.seed,
        response_format=job.response_format,
        created_at=now,
        text=job.text,
        timestamps=job.timestamps,
        sample_rate=job.sample_rate,
        verify=job.verify,
        reading=job.reading,
    )
    return SubmittedJob(accepted, is_new=True, quota=quota)


@dataclass(frozen=True, slots=True)
class _Terms:
    """What an account may use, while it is locked."""

    plan_name: str | None
    plan: Plan
    period: usage_rows.Period
    stored_bytes: int


def _lock(connection: Connection, account_id: str, *, plans: Mapping[str, Plan], now: datetime) -> _Terms:
    row = lock_account.read(connection, account_id=account_id)
    if row is None:
        raise UnauthorizedError
    plan_name, suspended_at, start, end, stored_bytes = row
    if suspended_at is not None:  # since the request was authenticated
        raise SubscriptionError
    period = usage_rows.period_of(start, end, now=now)
    return _Terms(plan_name, usage_rows.plan_of(plan_name, plans), period, stored_bytes)


def _admit(
    connection: Connection,
    job: NewJob,
    terms: _Terms,
    limits: QueueLimits,
    *,
    quota_bytes: int | None,
    plans: Mapping[str, Plan],
    account_url: str | None,
    now: datetime,
) -> tuple[StoredJob | None, Quota | None]:
    """Check the limits. Return the pending job that is a duplicate of a new one, and the characters after this one."""
    values = {
        "voice_id": job.voice_id,
        "account_id": job.account_id,
        "key_id": job.key_id,
        "flight_key": job.flight_key,
        "spending_id": job.spending_id,
        "period": terms.period.name,
    }
    has_voice, has_key, duplicate, by_key, by_account, n_own, n_all = _ADMISSION(connection, **values) or [None] * 7
    if not has_key:  # it was revoked since the request was authenticated
        raise UnauthorizedError
    if not has_voice:
        raise VoiceNotFoundError
    charged = 0 if duplicate else job.char_count
    is_of_key, quota = usage_rows.find_quota(
        job.character_limit, (by_key or 0) + charged, terms.plan.characters, (by_account or 0) + charged
    )
    if duplicate is not None:
        return get(connection, duplicate), quota
    if quota is not None and quota.used > quota.limit:
        raise usage_rows.characters_exceeded(
            quota,
            charged,
            plan_name=None if is_of_key else terms.plan_name,
            is_known=terms.plan is not usage_rows.NOTHING,
            period=terms.period,
            plans=plans,
            account_url=account_url,
            now=now,
        )
    if quota_bytes is not None and terms.stored_bytes >= quota_bytes:
        raise usage_rows.storage_exceeded(stored_bytes=terms.stored_bytes, quota_bytes=quota_bytes)
    own_limit = terms.plan.max_pending_jobs or limits.pending_per_account
    if n_own >= own_limit:
        raise LimitError(
            f"The account already has {own_limit:,} waiting jobs, which is its limit.",
            code="too_many_concurrent_requests",
            limit=own_limit,
            retry_after_s=1,
        )
    if n_all >= limits.pending:
        raise LimitError(
            f"The server already has {limits.pending:,} waiting jobs, which is its limit.",
            code="queue_full",
            limit=limits.pending,
            retry_after_s=5,
        )
    return None, quota


def find_repeated(connection: Connection, request: Idempotency) -> str | None:
    before = idempotency.find(connection, request)
    return before.job_id if before else None


def get(connection: Connection, job_id: str, *, account_id: str | None = None) -> StoredJob | None:
    if account_id is None:
        row = _GET(connection, job_id=job_id)
    else:
        row = _GET_OWN(connection, job_id=job_id, account_id=account_id)
    return StoredJob(*row) if row else None


def get_report(connection: Connection, job_id: str, kind: ReportKind) -> str | None:
    return connection.execute(select(jobs.c[kind]).where(jobs.c.job_id == job_id)).scalar()


def list_jobs(
    connection: Connection, *, account_id: str, status: JobStatus | None, limit: int | None, after: str | None
) -> list[StoredJob]:
    statement = select(*JOB).where(jobs.c.account_id == account_id).order_by(jobs.c.seq.desc()).limit(limit)
    if status is not None:
        statement = statement.where(jobs.c.status == status)
    if after is not None:  # an unknown id gives NULL, and so no rows
        seen = select(jobs.c.seq).where(jobs.c.job_id == after, jobs.c.account_id == account_id)
        statement = statement.where(jobs.c.seq < seen.scalar_subquery())
    return [StoredJob(*row) for row in connection.execute(statement)]


_QUEUE = (
    select(
        jobs.c.backend,
        func.count() - func.count(jobs.c.lease_expires),
        func.count(jobs.c.lease_expires),
        func.min(jobs.c.created_at),
    )
    .where(IS_PENDING)
    .group_by(jobs.c.backend)
)


def read_queue(connection: Connection) -> list[QueueState]:
    return [QueueState(*row) for row in connection.execute(_QUEUE)]


_SPOKEN = (
    select(jobs.c.synth_ms, jobs.c.char_count)
    .where(
        jobs.c.seq > select(func.max(jobs.c.seq)).scalar_subquery() - 1000,  # bounds the search
        jobs.c.backend == bindparam("backend"),
        jobs.c.synth_ms > literal_column("0"),  # imported jobs have 0
    )
    .order_by(jobs.c.seq.desc())
    .limit(20)
    .subquery()
)
_PACE = Query(select(func.sum(_SPOKEN.c.synth_ms), func.sum(_SPOKEN.c.char_count)))


def read_pace(connection: Connection, backend: str) -> float | None:
    synth_ms, characters = _PACE(connection, backend=backend) or (None, None)
    return int(synth_ms) / 1000 / int(characters) if synth_ms and characters else None


def cancel(
    connection: Connection, job_id: str, *, account_id: str, now: datetime, monotonic: float
) -> StoredJob | None:
    lock_account(connection, account_id=account_id)
    end(connection, _CANCEL, {"which": job_id, "owner": account_id}, now=now, monotonic=monotonic)
    return get(connection, job_id, account_id=account_id)


def remove(connection: Connection, job_id: str, *, account_id: str) -> list[str] | None:
    lock_account_of_job(connection, job_id=job_id)
    is_own = (jobs.c.job_id == job_id, jobs.c.account_id == account_id, jobs.c.status != JobStatus.PENDING)
    facts = (jobs.c.voice_id, jobs.c.cache_key, jobs.c.attempt, jobs.c.audio_key)
    row = connection.execute(select(*facts).where(*is_own)).first()
    if row is None:
        return None
    is_same = (cache.c.voice_id == row.voice_id, cache.c.cache_key == row.cache_key)
    connection.execute(delete(cache).where(*is_same))
    connection.execute(delete(jobs).where(jobs.c.job_id == job_id))
    attempts = (job_path(job_id, number) for number in range(1, max(1, row.attempt) + 1))
    return sorted({*attempts, cache_path(row.voice_id, row.cache_key), *filter(None, [row.audio_key])})


def mark_audio_lost(connection: Connection, job_id: str) -> None:
    lock_account_of_job(connection, job_id=job_id)
    for spending_id, period, created_at, characters in connection.execute(_MARK_AUDIO_LOST, {"which": job_id}).all():
        day = usage_rows.day_of(created_at)
        usage_rows.refund(connection, spending_id=spending_id, period=period, day=day, characters=characters)
