"""The audit log: what was done to keys, worker tokens, voices and accounts, and by which key. It has no content."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, insert, select

from afterwords.server.records import Actor, AuditAction, AuditEntry
from afterwords.server.store.schema import audit

AUDIT_AGE: Final = timedelta(days=400)
"""How long entries are kept: a year, and the time to look at it."""

_COLUMNS: Final = [audit.c[name] for name in ("at", "action", "target_id", "account_id", "actor", "request_id")]


def add(
    connection: Connection,
    action: AuditAction,
    target_id: str,
    *,
    account_id: str | None = None,
    actor: Actor,
    now: datetime,
) -> None:
    """Add an entry, in the transaction of the action."""
    values = {"at": now, "action": action, "target_id": target_id, "account_id": account_id}
    connection.execute(insert(audit).inline().values(**values, actor=actor.name, request_id=actor.request_id))


def list_newest(connection: Connection, *, limit: int | None) -> list[AuditEntry]:
    statement = select(*_COLUMNS).order_by(audit.c.seq.desc()).limit(limit)
    return [AuditEntry(*row) for row in connection.execute(statement)]
