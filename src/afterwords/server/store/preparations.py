"""Preparations for workers: jobs without a text, which store the prompt of a voice before its first speech.

A row exists until its voice is prepared, or can't be. Housekeeping has nothing to do: an expired lease counts as none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Float, Row, bindparam, delete, exists, func, not_, or_, select, update

from afterwords.models import JobStatus, SpeechFormat
from afterwords.server.records import Claim, StoredJob
from afterwords.server.store import voices
from afterwords.server.store.schema import IS_PENDING, jobs, preparations
from afterwords.server.store.schema import voices as voice_rows
from afterwords.server.store.statements import Query

_ANY = Query(select(preparations.c.voice_id).limit(1))
_NOW: ColumnElement[float] = bindparam("monotonic", type_=Float)
IS_FREE = or_(
    preparations.c.lease_expires.is_(None),
    preparations.c.lease_expires <= _NOW,
    preparations.c.lease_expires > _NOW + 2 * preparations.c.lease_s,  # the clock was set back
)
_BACKENDS = preparations.c.backend.in_(bindparam("backends", expanding=True))
_WAITS = (
    IS_FREE,
    _BACKENDS,
    preparations.c.voice_id.not_in(bindparam("voices", expanding=True)),
    ~exists().where(  # otherwise that job prepares the voice
        jobs.c.voice_id == preparations.c.voice_id, jobs.c.backend == preparations.c.backend, IS_PENDING
    ),
)
_WAITING = select(preparations.c.job_id, preparations.c.attempt).where(*_WAITS).limit(1)
_ACCOUNT = (
    select(voice_rows.c.account_id)
    .join(preparations, preparations.c.voice_id == voice_rows.c.voice_id)
    .where(*_WAITS)
    .group_by(voice_rows.c.account_id)
    .order_by(func.random())
    .limit(1)
)
_NEXT = (
    _WAITING.join(voice_rows, voice_rows.c.voice_id == preparations.c.voice_id)
    .where(voice_rows.c.account_id == _ACCOUNT.scalar_subquery())
    .order_by(preparations.c.created_at)
)
_START = (
    update(preparations)
    .where(preparations.c.job_id == bindparam("which"), preparations.c.attempt == bindparam("before"), IS_FREE)
    .values(
        attempt=preparations.c.attempt + 1,
        lease_expires=bindparam("expires"),
        lease_s=bindparam("length_s"),
        worker=bindparam("claimed_by"),
    )
    .returning(*preparations.c)
)
_RUNNING = select(preparations.c.voice_id).where(not_(IS_FREE), _BACKENDS).limit(1)
IS_BEING_PREPARED = exists().where(  # the voice of a job, for its backend
    preparations.c.voice_id == jobs.c.voice_id, preparations.c.backend == jobs.c.backend, not_(IS_FREE)
)
_CLAIMED = select(*preparations.c).where(not_(IS_FREE), preparations.c.worker == bindparam("claimed_by"))
_GET = select(*preparations.c).where(preparations.c.job_id == bindparam("which"))

_IS_HELD = (
    preparations.c.job_id == bindparam("which"),
    preparations.c.attempt == bindparam("number"),
    preparations.c.lease_expires.is_not(None),
)
_HAS_ATTEMPTS = preparations.c.attempt - preparations.c.returned < bindparam("max_attempts")
_GIVE_UP = delete(preparations).where(IS_FREE, not_(_HAS_ATTEMPTS))
_RENEW = update(preparations).where(*_IS_HELD).values(lease_expires=bindparam("expires"), lease_s=bindparam("length_s"))
_REQUEUE = update(preparations).where(*_IS_HELD).values(lease_expires=None, worker=None)
_RELEASE = _REQUEUE.values(returned=preparations.c.returned + 1)
_END = delete(preparations).where(*_IS_HELD)


def is_any_waiting(
    connection: Connection, backends: Sequence[str], skip_voices: Sequence[str], *, monotonic: float
) -> bool:
    if _ANY(connection) is None:
        return False
    values = {"backends": list(backends), "voices": list(skip_voices), "monotonic": monotonic}
    return connection.execute(_WAITING, values).first() is not None


def is_any_running(connection: Connection, backends: Sequence[str], *, monotonic: float) -> bool:
    """Return whether a worker prepares a voice for one of these backends now."""
    if _ANY(connection) is None:
        return False
    return connection.execute(_RUNNING, {"backends": list(backends), "monotonic": monotonic}).first() is not None


def claim(
    connection: Connection,
    *,
    backends: Sequence[str],
    lease_s: float,
    worker: str,
    skip_voices: Sequence[str],
    max_attempts: int,
    monotonic: float,
) -> Claim | None:
    """Claim the oldest preparation of any account, so that many new voices of one account don't delay the others."""
    values: dict[str, Any] = {"monotonic": monotonic, "max_attempts": max_attempts}
    connection.execute(_GIVE_UP, values)
    values |= {"backends": list(backends), "voices": list(skip_voices)}
    found = connection.execute(_NEXT, values).first()
    if found is None:
        return None
    started = connection.execute(
        _START,
        {
            "which": found.job_id,
            "before": found.attempt,
            "monotonic": monotonic,
            "expires": monotonic + lease_s,
            "length_s": lease_s,
            "claimed_by": worker,
        },
    ).first()
    return _as_claim(connection, started) if started else None  # None: another server has just claimed it


def find_claimed(connection: Connection, worker: str, *, monotonic: float) -> Claim | None:
    row = connection.execute(_CLAIMED, {"monotonic": monotonic, "claimed_by": worker}).first()
    return _as_claim(connection, row) if row else None


def get(connection: Connection, job_id: str) -> Claim | None:
    row = connection.execute(_GET, {"which": job_id}).first()
    return _as_claim(connection, row) if row else None


def heartbeat(connection: Connection, job_id: str, attempt: int, *, lease_s: float, monotonic: float) -> bool:
    values = {"which": job_id, "number": attempt, "expires": monotonic + lease_s, "length_s": lease_s}
    return connection.execute(_RENEW, values).rowcount == 1


def release(connection: Connection, job_id: str, attempt: int) -> bool:
    return connection.execute(_RELEASE, {"which": job_id, "number": attempt}).rowcount == 1


def retry(connection: Connection, job_id: str, attempt: int, *, max_attempts: int) -> JobStatus | None:
    held = {"which": job_id, "number": attempt}
    requeued = connection.execute(_REQUEUE.where(_HAS_ATTEMPTS), {**held, "max_attempts": max_attempts})
    if requeued.rowcount == 1:
        return JobStatus.PENDING
    return JobStatus.FAILED if end(connection, job_id, attempt) else None


def end(connection: Connection, job_id: str, attempt: int) -> bool:
    return connection.execute(_END, {"which": job_id, "number": attempt}).rowcount == 1


def _as_claim(connection: Connection, row: Row[Any]) -> Claim | None:
    voice = voices.get(connection, row.voice_id)
    if voice is None:
        return None
    job = StoredJob(
        job_id=row.job_id,
        account_id=voice.account_id,
        voice_id=voice.voice_id,
        status=JobStatus.PENDING,
        lang=voice.lang,
        backend=row.backend,
        cache_key="",
        char_count=0,
        speed=1.0,
        seed=None,
        response_format=SpeechFormat.WAV,
        created_at=row.created_at,
        attempt=row.attempt,
        lease_expires=row.lease_expires,
        returned=row.returned,
        worker=row.worker,
    )
    return Claim(job, voice, is_preparation=True)
