"""Tokens of remote workers. Only digests are stored."""

from __future__ import annotations

from datetime import datetime
from hmac import compare_digest
from typing import Final

from sqlalchemy import Connection, insert, select, update

from afterwords.models import new_id
from afterwords.server.records import Actor, AuditAction, WorkerToken
from afterwords.server.store import audit
from afterwords.server.store.schema import worker_tokens

_COLUMNS: Final = [worker_tokens.c[name] for name in ("token_id", "label", "prefix", "created_at", "revoked_at")]
_IS_VALID: Final = worker_tokens.c.revoked_at.is_(None)


def add(
    connection: Connection, sha256: bytes, *, label: str | None, prefix: str, actor: Actor, now: datetime
) -> WorkerToken:
    token = WorkerToken(new_id(), label, prefix, now)
    values = {"token_id": token.token_id, "sha256": sha256, "label": label, "prefix": prefix, "created_at": now}
    connection.execute(insert(worker_tokens).values(values))
    audit.add(connection, AuditAction.WORKER_TOKEN_CREATED, token.token_id, actor=actor, now=now)
    return token


def list_all(connection: Connection) -> list[WorkerToken]:
    return [WorkerToken(*row) for row in connection.execute(select(*_COLUMNS).order_by(worker_tokens.c.seq))]


def find(connection: Connection, sha256: bytes) -> str | None:
    statement = select(worker_tokens.c.sha256, worker_tokens.c.token_id).where(worker_tokens.c.sha256 == sha256)
    row = connection.execute(statement.where(_IS_VALID)).first()
    return row.token_id if row is not None and compare_digest(row.sha256, sha256) else None


def is_valid(connection: Connection, token_id: str) -> bool:
    statement = select(worker_tokens.c.seq).where(worker_tokens.c.token_id == token_id, _IS_VALID)
    return connection.execute(statement).first() is not None


def revoke(connection: Connection, token_id: str, *, actor: Actor, now: datetime) -> bool:
    is_known = worker_tokens.c.token_id == token_id
    if connection.execute(update(worker_tokens).where(is_known, _IS_VALID).values(revoked_at=now)).rowcount:
        audit.add(connection, AuditAction.WORKER_TOKEN_REVOKED, token_id, actor=actor, now=now)
    return connection.execute(select(worker_tokens.c.seq).where(is_known)).first() is not None
