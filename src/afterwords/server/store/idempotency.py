"""Requests that may come twice: what the first one made is the answer to the second."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, insert, select, update

from afterwords.errors import IdempotencyConflictError
from afterwords.server.ports import Idempotency
from afterwords.server.store.schema import idempotency
from afterwords.server.store.sqlite import Lookup

_IS_IT = (
    idempotency.c.account_id == bindparam("account"),
    idempotency.c.route == bindparam("path"),
    idempotency.c.key == bindparam("name"),
)
_FIND = Lookup(select(idempotency.c.body_sha256, idempotency.c.voice_id, idempotency.c.job_id).where(*_IS_IT))
_KEEP = insert(idempotency).inline()
_NAME_JOB = update(idempotency).where(*_IS_IT).values(job_id=bindparam("job"))


class Repeat(NamedTuple):
    """What a request made when it came first: a voice, a job, or nothing."""

    voice_id: str | None
    job_id: str | None


def find(connection: Connection, asked: Idempotency) -> Repeat | None:
    """What the same request made before; None if it comes for the first time.

    Raises:
        IdempotencyConflictError: the key came before with another body.
    """
    row = _FIND(connection, **_name(asked))
    if row is None:
        return None
    body_sha256, voice_id, job_id = row
    if body_sha256 != asked.body_sha256:
        raise IdempotencyConflictError
    return Repeat(voice_id, job_id)


def keep(
    connection: Connection,
    asked: Idempotency,
    *,
    now: datetime,
    voice_id: str | None = None,
    job_id: str | None = None,
) -> None:
    """Note a request that comes for the first time, with what it made."""
    facts = {
        "account_id": asked.account_id,
        "route": asked.route,
        "key": asked.key,
        "body_sha256": asked.body_sha256,
        "voice_id": voice_id,
        "job_id": job_id,
        "created_at": now,
    }
    connection.execute(_KEEP, facts)


def name_job(connection: Connection, asked: Idempotency, job_id: str) -> None:
    """Note another job for a request whose first one is gone."""
    connection.execute(_NAME_JOB, {**_name(asked), "job": job_id})


def job_of(connection: Connection, asked: Idempotency) -> str | None:
    """The job that the same request made before."""
    before = find(connection, asked)
    return before.job_id if before else None


def _name(asked: Idempotency) -> dict[str, Any]:
    return {"account": asked.account_id, "path": asked.route, "name": asked.key}
