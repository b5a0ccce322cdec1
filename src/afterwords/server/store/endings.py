"""How a job becomes final, whichever way: one conditional UPDATE, and what follows from it in the same transaction.

Whoever finds no row to update has come second, and nothing follows: so a charge is given back once, a webhook becomes
due once.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, update
from sqlalchemy.sql.dml import ReturningUpdate

from afterwords.models import JobStatus
from afterwords.server.store import usage
from afterwords.server.store.schema import cache, jobs, webhooks
from afterwords.server.store.sqlite import upsert

_NEW = upsert(cache).inline()
_CACHE = _NEW.on_conflict_do_update(
    index_elements=[cache.c.voice_id, cache.c.cache_key],
    set_={name: _NEW.excluded[name] for name in ("sha256", "size_bytes", "synth_ms", "created_at")},
)
_ANNOUNCE = insert(webhooks).inline()
_FACTS = [
    jobs.c[name]
    for name in (
        "job_id",
        "voice_id",
        "cache_key",
        "flight_key",
        "spending_id",
        "period",
        "char_count",
        "webhook_url",
        "audio_sha256",
        "audio_bytes",
        "synth_ms",
    )
]


def ending(status: JobStatus, **values: Any) -> ReturningUpdate[Any]:
    """The statement that makes jobs final; who uses it says which jobs, and `end` runs it."""
    return (
        update(jobs)
        .values(status=status, completed_at=bindparam("ended_at"), text=None, lease_expires=None, **values)
        .returning(*_FACTS)
    )


def end(
    connection: Connection, statement: ReturningUpdate[Any], facts: Mapping[str, Any], *, now: datetime, steady: float
) -> list[str]:
    """End jobs with all that follows; returns their ids."""
    rows = connection.execute(statement, {**facts, "ended_at": now}).all()
    for row in rows:
        if row.audio_sha256 is None:
            usage.give_back(connection, spending_id=row.spending_id, period=row.period, characters=row.char_count)
        elif row.flight_key is not None:
            connection.execute(_CACHE, _entry(row, now))
        if row.webhook_url is not None:
            connection.execute(_ANNOUNCE, {"job_id": row.job_id, "url": row.webhook_url, "tries": 0, "next_at": steady})
    return [row.job_id for row in rows]


def _entry(row: Row[Any], now: datetime) -> dict[str, Any]:
    return {
        "voice_id": row.voice_id,
        "cache_key": row.cache_key,
        "sha256": row.audio_sha256,
        "size_bytes": row.audio_bytes or 0,
        "synth_ms": row.synth_ms or 0,
        "created_at": now,
    }
