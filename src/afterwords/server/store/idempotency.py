"""Idempotency keys: a repeated request gets the result of the first one."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, select, update

from afterwords.errors import ConflictError
from afterwords.server.records import Idempotency
from afterwords.server.store.schema import idempotency
from afterwords.server.store.statements import Insert, Query

_IS_REQUEST = (
    idempotency.c.account_id == bindparam("account"),
    idempotency.c.route == bindparam("path"),
    idempotency.c.key == bindparam("name"),
)
_FIND = Query(select(idempotency.c.body_sha256, idempotency.c.voice_id, idempotency.c.job_id).where(*_IS_REQUEST))
_ADD = Insert(idempotency, idempotency.c.keys())
_SET_JOB = update(idempotency).where(*_IS_REQUEST).values(job_id=bindparam("job"))


class FirstRequest(NamedTuple):
    """What the first request with an idempotency key created."""

    voice_id: str | None
    job_id: str | None


def find(connection: Connection, request: Idempotency) -> FirstRequest | None:
    """Return the first request with the same key, if there was one.

    Raises:
        ConflictError: It had another body.
    """
    row = _FIND(connection, **_key(request))
    if row is None:
        return None
    body_sha256, voice_id, job_id = row
    if body_sha256 != request.body_sha256:
        raise ConflictError(code="idempotency_conflict")
    return FirstRequest(voice_id, job_id)


def add(
    connection: Connection,
    request: Idempotency,
    *,
    now: datetime,
    voice_id: str | None = None,
    job_id: str | None = None,
) -> None:
    """Store a first request with its result."""
    values = {
        "account_id": request.account_id,
        "route": request.route,
        "key": request.key,
        "body_sha256": request.body_sha256,
        "voice_id": voice_id,
        "job_id": job_id,
        "created_at": now,
    }
    _ADD(connection, values)


def set_job(connection: Connection, request: Idempotency, job_id: str) -> None:
    """Replace the job of a request whose first job was deleted."""
    connection.execute(_SET_JOB, {**_key(request), "job": job_id})


def _key(request: Idempotency) -> dict[str, Any]:
    return {"account": request.account_id, "path": request.route, "name": request.key}
