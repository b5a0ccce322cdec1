"""Jobs as those who asked for them see them: accepted within limits, looked at, cancelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, literal, select, update

from afterwords.errors import (
    QueueFullError,
    QuotaExceededError,
    StorageQuotaExceededError,
    TooManyConcurrentRequestsError,
    VoiceNotFoundError,
)
from afterwords.models import JobStatus
from afterwords.server.ports import Idempotency, Limits, NewJob, StoredJob, Submitted
from afterwords.server.store import endings, idempotency
from afterwords.server.store.schema import IS_PENDING, accounts, jobs, usage, voices
from afterwords.server.store.sqlite import Lookup, Put
from afterwords.server.store.usage import charge, give_back, period_of, seconds_left

_NAMES = [field.name for field in fields(StoredJob)]
_ASKED = [field.name for field in fields(NewJob) if field.name != "character_limit"]
JOB = [jobs.c[name] for name in _NAMES]
_ANY = select(*JOB).where(jobs.c.job_id == bindparam("job_id"))
_BY_ID = Lookup(_ANY)
_OWN = Lookup(_ANY.where(jobs.c.account_id == bindparam("account_id")))
_KEEP = Put(insert(jobs).values({name: bindparam(name) for name in [*_ASKED, "status", "period", "created_at"]}))
_STANDING = Lookup(
    select(
        select(literal(1))
        .where(voices.c.voice_id == bindparam("voice_id"), voices.c.account_id == bindparam("account_id"))
        .scalar_subquery(),
        select(jobs.c.job_id)
        .where(jobs.c.voice_id == bindparam("voice_id"), jobs.c.flight_key == bindparam("flight_key"), IS_PENDING)
        .scalar_subquery(),
        select(usage.c.characters)
        .where(usage.c.spending_id == bindparam("spending_id"), usage.c.period == bindparam("period"))
        .scalar_subquery(),
        select(func.count())
        .select_from(jobs)
        .where(jobs.c.account_id == bindparam("account_id"), IS_PENDING)
        .scalar_subquery(),
        select(func.count()).select_from(jobs).where(IS_PENDING).scalar_subquery(),
        select(accounts.c.stored_bytes).where(accounts.c.account_id == bindparam("account_id")).scalar_subquery(),
    )
)
"""Everything that decides whether a job is accepted: the voice, a twin under way; what is spent, waits, is stored."""


def submit(
    connection: Connection,
    job: NewJob,
    *,
    limits: Limits,
    asked: Idempotency | None,
    quota_bytes: int | None = None,
    now: datetime,
) -> Submitted:
    before = idempotency.find(connection, asked) if asked else None
    if before and before.job_id and (made := get(connection, before.job_id)):
        return Submitted(made, is_new=False)
    period = period_of(now)
    twin = _twin(connection, job, limits, quota_bytes=quota_bytes, period=period, now=now)
    if twin is None:
        _keep(connection, job, period=period, now=now)
    if asked and before:
        idempotency.name_job(connection, asked, twin.job_id if twin else job.job_id)
    elif asked:
        idempotency.keep(connection, asked, now=now, job_id=twin.job_id if twin else job.job_id)
    return Submitted(twin, is_new=False) if twin else Submitted(_accepted(job, now), is_new=True)


def _twin(
    connection: Connection, job: NewJob, limits: Limits, *, quota_bytes: int | None, period: str, now: datetime
) -> StoredJob | None:
    """The pending job that is the same; where there is none, see that no limit is reached."""
    facts = {
        "voice_id": job.voice_id,
        "account_id": job.account_id,
        "flight_key": job.flight_key,
        "spending_id": job.spending_id,
        "period": period,
    }
    has_voice, twin, used, n_own, n_all, stored_bytes = _STANDING(connection, **facts) or [None] * 6
    if not has_voice:
        raise VoiceNotFoundError
    if twin is not None:
        return get(connection, twin)
    limit, used = job.character_limit, used or 0
    if limit is not None and used + job.char_count > limit:
        raise QuotaExceededError(limit=limit, used=used, asked=job.char_count, retry_after_s=seconds_left(now))
    if quota_bytes is not None and stored_bytes >= quota_bytes:
        raise StorageQuotaExceededError(stored_bytes=stored_bytes, quota_bytes=quota_bytes)
    if n_own >= limits.pending_per_account:
        raise TooManyConcurrentRequestsError(limit=limits.pending_per_account)
    if n_all >= limits.pending:
        raise QueueFullError(limit=limits.pending)
    return None


def _keep(connection: Connection, job: NewJob, *, period: str, now: datetime) -> None:
    facts: dict[str, Any] = {name: getattr(job, name) for name in _ASKED}
    _KEEP(connection, facts | {"status": JobStatus.PENDING, "period": period, "created_at": now})
    charge(
        connection,
        spending_id=job.spending_id,
        account_id=job.account_id,
        period=period,
        characters=job.char_count,
    )


def _accepted(job: NewJob, now: datetime) -> StoredJob:
    return StoredJob(
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
        attempt=0,
        lease_expires=None,
        audio_key=None,
        audio_sha256=None,
        audio_bytes=None,
        synth_ms=None,
        error=None,
        created_at=now,
        completed_at=None,
        text=job.text,
    )


def get(connection: Connection, job_id: str, *, account_id: str | None = None) -> StoredJob | None:
    if account_id is None:
        return _stored(_BY_ID(connection, job_id=job_id))
    return _stored(_OWN(connection, job_id=job_id, account_id=account_id))


def page(
    connection: Connection, *, account_id: str, status: JobStatus | None, limit: int | None, after: str | None
) -> list[StoredJob]:
    statement = select(*JOB).where(jobs.c.account_id == account_id).order_by(jobs.c.seq.desc()).limit(limit)
    if status is not None:
        statement = statement.where(jobs.c.status == status)
    if after is not None:  # an unknown one is NULL, before which nothing comes
        seen = select(jobs.c.seq).where(jobs.c.job_id == after, jobs.c.account_id == account_id)
        statement = statement.where(jobs.c.seq < seen.scalar_subquery())
    return [StoredJob(*row) for row in connection.execute(statement)]


_CANCEL = endings.ending(JobStatus.CANCELLED).where(
    jobs.c.job_id == bindparam("which"), jobs.c.account_id == bindparam("whose"), IS_PENDING
)
_LOSE = (
    update(jobs)
    .where(jobs.c.job_id == bindparam("which"), jobs.c.status == JobStatus.READY)
    .values(status=JobStatus.FAILED, error="audio_lost", audio_key=None, audio_sha256=None, audio_bytes=None)
    .returning(jobs.c.spending_id, jobs.c.period, jobs.c.char_count)
)


def cancel(connection: Connection, job_id: str, *, account_id: str, now: datetime, steady: float) -> StoredJob | None:
    endings.end(connection, _CANCEL, {"which": job_id, "whose": account_id}, now=now, steady=steady)
    return get(connection, job_id, account_id=account_id)


def lose(connection: Connection, job_id: str) -> None:
    for spending_id, period, characters in connection.execute(_LOSE, {"which": job_id}).all():
        give_back(connection, spending_id=spending_id, period=period, characters=characters)


def _stored(row: Sequence[Any] | None) -> StoredJob | None:
    return StoredJob(*row) if row else None
