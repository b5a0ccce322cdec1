"""Jobs for workers: claim with a lease, renew, finish, release, retry, reap."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Float,
    Integer,
    Row,
    Select,
    Update,
    and_,
    bindparam,
    func,
    not_,
    or_,
    select,
    update,
)

from afterwords.models import JobStatus
from afterwords.server.records import AttemptResult, Claim, FinishStatus, ReapResult, ReportKind, StoredJob
from afterwords.server.store import billing, preparations, voices
from afterwords.server.store.jobs import JOB, end, ending, get
from afterwords.server.store.locks import lock_account_of_job
from afterwords.server.store.schema import IS_PENDING, jobs, turns
from afterwords.server.store.statements import Insert, Query

_BACKENDS = jobs.c.backend.in_(bindparam("backends", expanding=True))
_WAITS = (IS_PENDING, jobs.c.lease_expires.is_(None))
# Jobs of a voice that is being prepared wait until it is ready, or until its worker has lost its lease.
_OTHER_VOICES = and_(jobs.c.voice_id.not_in(bindparam("voices", expanding=True)), ~preparations.IS_BEING_PREPARED)
_WAITING = select(jobs.c.seq).where(*_WAITS, _BACKENDS).limit(1)
_WAITING_OF_OTHERS = _WAITING.where(_OTHER_VOICES)  # a statement of its own, since no index has the voice


def _select_next(*conditions: ColumnElement[bool]) -> Select[tuple[int, str]]:
    oldest = (
        select(func.min(jobs.c.seq).label("seq"), jobs.c.account_id)
        .where(*_WAITS, _BACKENDS, *conditions)
        .group_by(jobs.c.account_id)
        .subquery()
    )
    return (
        select(oldest.c.seq, oldest.c.account_id)
        .outerjoin(turns, turns.c.account_id == oldest.c.account_id)
        .order_by(func.coalesce(turns.c.turn, 0), oldest.c.seq)
        .limit(1)
    )


_NEXT = _select_next()
_NEXT_OF_OTHERS = _select_next(_OTHER_VOICES)
_UNLOCKED = select(jobs.c.seq).where(*_WAITS).with_for_update(of=jobs, skip_locked=True)
_ANY_UNLOCKED = (
    _UNLOCKED.outerjoin(turns, turns.c.account_id == jobs.c.account_id)
    .where(_BACKENDS, _OTHER_VOICES)
    .order_by(func.coalesce(turns.c.turn, 0), jobs.c.seq)
    .limit(1)
)
_START = (
    update(jobs)
    .values(
        attempt=jobs.c.attempt + 1,
        lease_expires=bindparam("expires"),
        lease_s=bindparam("length_s"),
        worker=bindparam("claimed_by"),
        timing=None,  # of an earlier attempt
        verification=None,
    )
    .returning(*JOB)
)
_CLAIM = _START.where(jobs.c.seq == _UNLOCKED.where(jobs.c.seq == bindparam("which")).scalar_subquery())
_CLAIM_ANY = _START.where(jobs.c.seq == _ANY_UNLOCKED.scalar_subquery())
_CLAIMED = select(*JOB).where(
    IS_PENDING, jobs.c.lease_expires > bindparam("monotonic"), jobs.c.worker == bindparam("claimed_by")
)
_LAST_TURN = Query(select(func.max(turns.c.turn)))
_SET_TURN = Insert(turns, turns.c.keys(), key=("account_id",), update=lambda new: {"turn": new.turn})

_IS_HELD = (
    jobs.c.job_id == bindparam("which"),
    jobs.c.attempt == bindparam("number"),
    jobs.c.lease_expires.is_not(None),
    IS_PENDING,
)
_RENEW = update(jobs).where(*_IS_HELD).values(lease_expires=bindparam("expires"), lease_s=bindparam("length_s"))
_REQUEUE = update(jobs).where(*_IS_HELD).values(lease_expires=None, worker=None)
_RELEASE = _REQUEUE.values(returned=jobs.c.returned + 1)
_SET_REPORT: dict[ReportKind, Update] = {
    "timing": update(jobs).where(*_IS_HELD, jobs.c.timestamps).values(timing=bindparam("found")),
    "verification": update(jobs).where(*_IS_HELD, jobs.c.verify).values(verification=bindparam("found")),
}
_HAS_ATTEMPTS = jobs.c.attempt - jobs.c.returned < bindparam("max_attempts")
_FAIL_HELD = ending(JobStatus.FAILED, error=bindparam("code")).where(*_IS_HELD)

_NUMBER: ColumnElement[int] = bindparam("number", type_=Integer)
_IS_CURRENT = (
    jobs.c.job_id == bindparam("which"),
    IS_PENDING,
    or_(_NUMBER.is_(None), jobs.c.attempt == _NUMBER),
    or_(jobs.c.lease_expires > bindparam("monotonic"), jobs.c.attempt == 0),  # 0: completed without a claim
)
_FAIL = ending(JobStatus.FAILED, error=bindparam("code")).where(*_IS_CURRENT)
_READY = ending(
    JobStatus.READY,
    audio_key=bindparam("path"),
    audio_sha256=bindparam("sha256"),
    audio_bytes=bindparam("size_bytes"),
    synth_ms=bindparam("took_ms"),
).where(*_IS_CURRENT)

_IS_EXPIRED = and_(
    IS_PENDING,
    jobs.c.lease_expires.is_not(None),
    or_(
        jobs.c.lease_expires <= bindparam("monotonic"),
        # The clock was set back between starts. The clocks of two servers may differ a little.
        jobs.c.lease_expires > bindparam("monotonic", type_=Float) + 2 * jobs.c.lease_s,
    ),
)
_EXPIRED = select(jobs.c.seq).where(_IS_EXPIRED).limit(1)
_REAPED = select(jobs.c.seq).with_for_update(skip_locked=True)
_REQUEUE_EXPIRED = (
    update(jobs)
    .where(jobs.c.seq.in_(_REAPED.where(_IS_EXPIRED, _HAS_ATTEMPTS)))
    .values(lease_expires=None, worker=None)
    .returning(jobs.c.job_id)
)
_FAIL_EXPIRED = ending(JobStatus.FAILED, error="worker_lost").where(
    jobs.c.seq.in_(_REAPED.where(_IS_EXPIRED, not_(_HAS_ATTEMPTS)))
)


def is_any_waiting(
    connection: Connection, backends: Sequence[str], skip_voices: Sequence[str], *, monotonic: float
) -> bool:
    return _first(connection, _WAITING, _WAITING_OF_OTHERS, backends, skip_voices, monotonic=monotonic) is not None


def claim(
    connection: Connection,
    *,
    backends: Sequence[str],
    lease_s: float,
    worker: str,
    skip_voices: Sequence[str],
    monotonic: float,
) -> Claim | None:
    found = _first(connection, _NEXT, _NEXT_OF_OTHERS, backends, skip_voices, monotonic=monotonic)
    if found is None:
        return None
    values: dict[str, Any] = {
        "which": found.seq,
        "expires": monotonic + lease_s,
        "length_s": lease_s,
        "claimed_by": worker,
    }
    row = connection.execute(_CLAIM, values).first()
    if row is None:  # another server claims this job right now
        del values["which"]
        values |= {"backends": list(backends), "voices": list(skip_voices), "monotonic": monotonic}
        row = connection.execute(_CLAIM_ANY, values).first()
    if row is None:
        return None
    job = StoredJob(*row)
    (last_turn,) = _LAST_TURN(connection) or [None]
    _SET_TURN(connection, {"account_id": job.account_id, "turn": (last_turn or 0) + 1})
    voice = voices.get(connection, job.voice_id)
    return Claim(job, voice) if voice else None


def find_claimed(connection: Connection, worker: str, *, monotonic: float) -> Claim | None:
    row = connection.execute(_CLAIMED, {"monotonic": monotonic, "claimed_by": worker}).first()
    if row is None:
        return preparations.find_claimed(connection, worker, monotonic=monotonic)
    voice = voices.get(connection, row.voice_id)
    return Claim(StoredJob(*row), voice) if voice else None


def _first(
    connection: Connection,
    any_voice: Select[Any],
    other_voices: Select[Any],
    backends: Sequence[str],
    skip_voices: Sequence[str],
    *,
    monotonic: float,
) -> Row[Any] | None:
    if not skip_voices and not preparations.is_any_running(connection, backends, monotonic=monotonic):
        return connection.execute(any_voice, {"backends": list(backends)}).first()
    values = {"backends": list(backends), "voices": list(skip_voices), "monotonic": monotonic}
    return connection.execute(other_voices, values).first()


def heartbeat(connection: Connection, job_id: str, attempt: int, *, lease_s: float, monotonic: float) -> bool:
    values = {"which": job_id, "number": attempt, "expires": monotonic + lease_s, "length_s": lease_s}
    if connection.execute(_RENEW, values).rowcount == 1:
        return True
    return preparations.heartbeat(connection, job_id, attempt, lease_s=lease_s, monotonic=monotonic)


def finish(
    connection: Connection,
    job_id: str,
    attempt: int | None,
    result: AttemptResult,
    *,
    quota_bytes: int | None = None,
    has_meter: bool = False,
    now: datetime,
    monotonic: float,
) -> FinishStatus:
    lock_account_of_job(connection, job_id=job_id)
    values = {"which": job_id, "number": attempt, "monotonic": monotonic}
    if result.audio_key is None:
        ended = end(connection, _FAIL, {**values, "code": result.error}, now=now, monotonic=monotonic)
    else:
        audio = {
            "path": result.audio_key,
            "sha256": result.audio_sha256,
            "size_bytes": result.audio_bytes,
            "took_ms": result.synth_ms,
        }
        ended = end(connection, _READY, values | audio, now=now, monotonic=monotonic)
        if ended and (ready := get(connection, job_id)):
            voices.check_quota(connection, ready.account_id, quota_bytes=quota_bytes)
            if has_meter:
                billing.meter(connection, ready.account_id, ready.char_count, now=now)
    if ended:
        return FinishStatus.DONE
    job = get(connection, job_id)
    if job is None:
        return FinishStatus.GONE
    return FinishStatus.ALREADY if job.status.is_final else FinishStatus.STALE


def save_report(connection: Connection, job_id: str, attempt: int, kind: ReportKind, report: str) -> bool:
    return connection.execute(_SET_REPORT[kind], {"which": job_id, "number": attempt, "found": report}).rowcount == 1


def release(connection: Connection, job_id: str, attempt: int) -> bool:
    if connection.execute(_RELEASE, {"which": job_id, "number": attempt}).rowcount == 1:
        return True
    return preparations.release(connection, job_id, attempt)


def retry(
    connection: Connection,
    job_id: str,
    attempt: int,
    *,
    error: str,
    max_attempts: int,
    now: datetime,
    monotonic: float,
) -> JobStatus | None:
    held = {"which": job_id, "number": attempt}
    requeued = connection.execute(_REQUEUE.where(_HAS_ATTEMPTS), {**held, "max_attempts": max_attempts})
    if requeued.rowcount == 1:
        return JobStatus.PENDING
    if end(connection, _FAIL_HELD, {**held, "code": error}, now=now, monotonic=monotonic):
        return JobStatus.FAILED
    return preparations.retry(connection, job_id, attempt, max_attempts=max_attempts)


def is_any_expired(connection: Connection, *, monotonic: float) -> bool:
    return connection.execute(_EXPIRED, {"monotonic": monotonic}).first() is not None


def reap(connection: Connection, *, max_attempts: int, now: datetime, monotonic: float) -> ReapResult:
    values = {"monotonic": monotonic, "max_attempts": max_attempts}
    requeued = connection.execute(_REQUEUE_EXPIRED, values).scalars().all()
    failed = end(connection, _FAIL_EXPIRED, values, now=now, monotonic=monotonic)
    return ReapResult(tuple(requeued), tuple(failed))
