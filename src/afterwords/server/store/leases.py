"""Jobs as workers see them: claimed for one attempt with a lease, renewed, finished, given back, reaped."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, bindparam, func, or_, select, update

from afterwords.models import JobStatus
from afterwords.server.ports import Claim, Finished, Outcome, Reaped, StoredJob
from afterwords.server.store import voices
from afterwords.server.store.endings import end, ending
from afterwords.server.store.jobs import JOB, get
from afterwords.server.store.schema import IS_PENDING, accounts, jobs

_BACKENDS = jobs.c.backend.in_(bindparam("backends", expanding=True))
_WAITS = (IS_PENDING, jobs.c.lease_expires.is_(None))
_OTHER_VOICES = jobs.c.voice_id.not_in(bindparam("voices", expanding=True))
_WAITING = select(jobs.c.seq).where(*_WAITS, _BACKENDS).limit(1)
_WAITING_OF_OTHERS = _WAITING.where(_OTHER_VOICES)  # apart, since no index has the voice


def _next(*which: ColumnElement[bool]) -> Select[tuple[int, str]]:
    oldest = (
        select(func.min(jobs.c.seq).label("seq"), jobs.c.account_id)
        .where(*_WAITS, _BACKENDS, *which)
        .group_by(jobs.c.account_id)
        .subquery()
    )
    return (
        select(oldest.c.seq, oldest.c.account_id)
        .join(accounts, accounts.c.account_id == oldest.c.account_id)
        .order_by(accounts.c.turn, oldest.c.seq)
        .limit(1)
    )


_NEXT = _next()
_NEXT_OF_OTHERS = _next(_OTHER_VOICES)
_TAKE = (
    update(jobs)
    .where(jobs.c.seq == bindparam("which"), *_WAITS)
    .values(
        attempt=jobs.c.attempt + 1,
        lease_expires=bindparam("expires"),
        lease_s=bindparam("length_s"),
        worker=bindparam("who"),
    )
    .returning(*JOB)
)
_others = accounts.alias()
_SERVE = (
    update(accounts)
    .where(accounts.c.account_id == bindparam("whose"))
    .values(turn=select(func.max(_others.c.turn) + 1).scalar_subquery())
)

_IS_HELD = (
    jobs.c.job_id == bindparam("which"),
    jobs.c.attempt == bindparam("number"),
    jobs.c.lease_expires.is_not(None),
    IS_PENDING,
)
_RENEW = update(jobs).where(*_IS_HELD).values(lease_expires=bindparam("expires"), lease_s=bindparam("length_s"))
_RELEASE = update(jobs).where(*_IS_HELD).values(lease_expires=None, worker=None)
_UNDO = _RELEASE.values(returned=jobs.c.returned + 1)
_MAY_GO_ON = jobs.c.attempt - jobs.c.returned < bindparam("max_attempts")
_USE_UP = ending(JobStatus.FAILED, error=bindparam("code")).where(*_IS_HELD)

_IS_RIGHT = (
    jobs.c.job_id == bindparam("which"),
    IS_PENDING,
    or_(bindparam("number").is_(None), jobs.c.attempt == bindparam("number")),
    or_(jobs.c.lease_expires > bindparam("steady"), jobs.c.attempt == 0),  # 0: brought though nobody claimed it
)
_FAIL = ending(JobStatus.FAILED, error=bindparam("code")).where(*_IS_RIGHT)
_READY = ending(
    JobStatus.READY,
    audio_key=bindparam("path"),
    audio_sha256=bindparam("sha256"),
    audio_bytes=bindparam("size_bytes"),
    synth_ms=bindparam("took_ms"),
).where(*_IS_RIGHT)

_IS_DEAD = and_(
    IS_PENDING,
    jobs.c.lease_expires.is_not(None),
    or_(
        jobs.c.lease_expires <= bindparam("steady"),
        jobs.c.lease_expires > bindparam("steady") + jobs.c.lease_s,  # the clock was set back between starts
    ),
)
_DEAD = select(jobs.c.seq).where(_IS_DEAD).limit(1)
_REQUEUE = update(jobs).where(_IS_DEAD, _MAY_GO_ON).values(lease_expires=None, worker=None).returning(jobs.c.job_id)
_BURY = ending(JobStatus.FAILED, error="worker_lost").where(_IS_DEAD)


def is_any_waiting(connection: Connection, backends: Sequence[str], except_voices: Sequence[str]) -> bool:
    return _first(connection, _WAITING, _WAITING_OF_OTHERS, backends, except_voices) is not None


def claim(
    connection: Connection,
    *,
    backends: Sequence[str],
    lease_s: float,
    worker: str,
    except_voices: Sequence[str],
    steady: float,
) -> Claim | None:
    found = _first(connection, _NEXT, _NEXT_OF_OTHERS, backends, except_voices)
    if found is None:
        return None
    facts = {"which": found.seq, "expires": steady + lease_s, "length_s": lease_s, "who": worker}
    row = connection.execute(_TAKE, facts).first()
    if row is None:
        return None
    connection.execute(_SERVE, {"whose": found.account_id})
    job = StoredJob(*row)
    voice = voices.by_id(connection, job.voice_id)
    return Claim(job, voice) if voice else None


def _first(
    connection: Connection, any_voice: Select[Any], other: Select[Any], backends: Sequence[str], voices: Sequence[str]
) -> Row[Any] | None:
    """The first row of any voice, or of another than these where there are some."""
    if not voices:
        return connection.execute(any_voice, {"backends": list(backends)}).first()
    return connection.execute(other, {"backends": list(backends), "voices": list(voices)}).first()


def heartbeat(connection: Connection, job_id: str, attempt: int, *, lease_s: float, steady: float) -> bool:
    facts = {"which": job_id, "number": attempt, "expires": steady + lease_s, "length_s": lease_s}
    return connection.execute(_RENEW, facts).rowcount == 1


def finish(
    connection: Connection,
    job_id: str,
    attempt: int | None,
    outcome: Outcome,
    *,
    quota_bytes: int | None = None,
    now: datetime,
    steady: float,
) -> Finished:
    facts = {"which": job_id, "number": attempt, "steady": steady}
    if outcome.audio_key is None:
        done = end(connection, _FAIL, {**facts, "code": outcome.error}, now=now, steady=steady)
    else:
        audio = {
            "path": outcome.audio_key,
            "sha256": outcome.audio_sha256,
            "size_bytes": outcome.audio_bytes,
            "took_ms": outcome.synth_ms,
        }
        done = end(connection, _READY, facts | audio, now=now, steady=steady)
        if done and (ended := get(connection, job_id)):
            voices.check_quota(connection, ended.account_id, quota_bytes=quota_bytes)
    if done:
        return Finished.DONE
    job = get(connection, job_id)
    if job is None:
        return Finished.GONE
    return Finished.ALREADY if job.status.is_final else Finished.STALE


def give_back(connection: Connection, job_id: str, attempt: int) -> bool:
    return connection.execute(_UNDO, {"which": job_id, "number": attempt}).rowcount == 1


def retry(
    connection: Connection,
    job_id: str,
    attempt: int,
    *,
    error: str,
    max_attempts: int,
    now: datetime,
    steady: float,
) -> JobStatus | None:
    held = {"which": job_id, "number": attempt}
    again = connection.execute(_RELEASE.where(_MAY_GO_ON), {**held, "max_attempts": max_attempts})
    if again.rowcount == 1:
        return JobStatus.PENDING
    done = end(connection, _USE_UP, {**held, "code": error}, now=now, steady=steady)
    return JobStatus.FAILED if done else None


def is_any_dead(connection: Connection, *, steady: float) -> bool:
    return connection.execute(_DEAD, {"steady": steady}).first() is not None


def reap(connection: Connection, *, max_attempts: int, now: datetime, steady: float) -> Reaped:
    requeued = connection.execute(_REQUEUE, {"steady": steady, "max_attempts": max_attempts}).scalars().all()
    failed = end(connection, _BURY, {"steady": steady}, now=now, steady=steady)
    return Reaped(tuple(requeued), tuple(failed))
