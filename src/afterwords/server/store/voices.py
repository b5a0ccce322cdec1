"""Voices, their cache entries, and the tombstones of deleted voices."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import datetime
from itertools import groupby

from sqlalchemy import Connection, bindparam, delete, insert, select, union_all, update

from afterwords.models import new_id
from afterwords.server.cache_key import job_path
from afterwords.server.records import Actor, AuditAction, CacheEntry, Idempotency, StoredVoice, VoiceChanges
from afterwords.server.store import audit, idempotency, usage
from afterwords.server.store.locks import lock_account, lock_account_of_voice
from afterwords.server.store.schema import IS_PENDING, accounts, cache, jobs, tombstones, voices
from afterwords.server.store.statements import Query

_NAMES = [field.name for field in fields(StoredVoice)]
_CACHE_COLUMNS = [cache.c[field.name] for field in fields(CacheEntry)]
_SELECT = select(*[voices.c[name] for name in _NAMES])
_GET = Query(_SELECT.where(voices.c.voice_id == bindparam("voice_id")))
_GET_OWN = Query(
    _SELECT.where(voices.c.voice_id == bindparam("voice_id"), voices.c.account_id == bindparam("account_id"))
)
_GET_CACHED = Query(
    select(*_CACHE_COLUMNS).where(
        cache.c.voice_id == bindparam("voice_id"), cache.c.cache_key == bindparam("cache_key")
    )
)


def add(
    connection: Connection,
    voice: StoredVoice,
    *,
    request: Idempotency | None = None,
    quota_bytes: int | None = None,
    now: datetime,
) -> StoredVoice:
    lock_account(connection, account_id=voice.account_id)
    if request and (before := find_repeated(connection, request)):
        return before
    if voice.home_id is not None:
        if row := connection.execute(_SELECT.where(voices.c.home_id == voice.home_id)).first():
            return StoredVoice(*row)
        taken = union_all(
            select(voices.c.voice_id).where(voices.c.voice_id == voice.voice_id),
            select(tombstones.c.voice_id).where(tombstones.c.voice_id == voice.voice_id),
        )
        if connection.execute(taken).first():
            voice = replace(voice, voice_id=new_id())
    values = {name: getattr(voice, name) for name in _NAMES} | {"metadata": dict(voice.metadata)}
    connection.execute(insert(voices).inline(), values)
    if voice.home_id is None:  # the recording of a home voice is not stored a second time
        check_quota(connection, voice.account_id, quota_bytes=quota_bytes)
    if request:
        idempotency.add(connection, request, now=now, voice_id=voice.voice_id)
    return voice


def check_quota(connection: Connection, account_id: str, *, quota_bytes: int | None) -> None:
    """Check what an account stores, including this transaction.

    Raises:
        QuotaExceededError: The quota is exceeded. The transaction must be rolled back.
    """
    if quota_bytes is None:
        return
    stored = select(accounts.c.stored_bytes).where(accounts.c.account_id == account_id)
    stored_bytes = connection.execute(stored).scalar_one()
    if stored_bytes > quota_bytes:
        raise usage.storage_exceeded(stored_bytes=stored_bytes, quota_bytes=quota_bytes)


def find_repeated(connection: Connection, request: Idempotency) -> StoredVoice | None:
    before = idempotency.find(connection, request)
    return get(connection, before.voice_id) if before and before.voice_id else None


def get(connection: Connection, voice_id: str, *, account_id: str | None = None) -> StoredVoice | None:
    if account_id is None:
        row = _GET(connection, voice_id=voice_id)
    else:
        row = _GET_OWN(connection, voice_id=voice_id, account_id=account_id)
    return StoredVoice(*row) if row else None


def find_by_name(connection: Connection, name: str, *, account_id: str) -> list[StoredVoice]:
    is_named = (voices.c.account_id == account_id, voices.c.name == name)
    return [StoredVoice(*row) for row in connection.execute(_SELECT.where(*is_named).order_by(voices.c.seq).limit(2))]


def list_voices(
    connection: Connection, *, account_id: str, limit: int | None, after: str | None, shows_home: bool
) -> list[StoredVoice]:
    statement = _SELECT.where(voices.c.account_id == account_id).order_by(voices.c.seq).limit(limit)
    if not shows_home:
        statement = statement.where(voices.c.home_id.is_(None))
    if after is not None:  # an unknown id gives NULL, and so no rows
        seen = select(voices.c.seq).where(voices.c.voice_id == after, voices.c.account_id == account_id)
        statement = statement.where(voices.c.seq > seen.scalar_subquery())
    return [StoredVoice(*row) for row in connection.execute(statement)]


def update_voice(
    connection: Connection, voice_id: str, changes: VoiceChanges, *, account_id: str
) -> StoredVoice | None:
    lock_account(connection, account_id=account_id)
    before = get(connection, voice_id, account_id=account_id)
    values = {field.name: getattr(changes, field.name) for field in fields(changes)}
    values = {name: value for name, value in values.items() if value is not None}
    if before is None or not values:
        return before
    if "metadata" in values:
        values["metadata"] = dict(values["metadata"])
    connection.execute(update(voices).where(voices.c.voice_id == voice_id).values(values))
    after = get(connection, voice_id, account_id=account_id)
    if after and (after.ref_text, after.lang) != (before.ref_text, before.lang):
        # Pending jobs still use the old transcript: their audio must not be cached or shared.
        connection.execute(delete(cache).where(cache.c.voice_id == voice_id))
        connection.execute(update(jobs).where(jobs.c.voice_id == voice_id, IS_PENDING).values(flight_key=None))
    return after


def delete_voice(
    connection: Connection, voice_id: str, *, account_id: str, actor: Actor, now: datetime
) -> list[str] | None:
    """Delete a voice. Foreign keys delete its other rows."""
    lock_account(connection, account_id=account_id)
    if get(connection, voice_id, account_id=account_id) is None:
        return None
    rows = select(jobs.c.job_id, jobs.c.attempt, jobs.c.audio_key).where(jobs.c.voice_id == voice_id)
    found: set[str] = set()
    for job_id, attempt, audio_key in connection.execute(rows):
        # Interrupted attempts may have written their audio, too.
        found.update(job_path(job_id, number) for number in range(1, max(1, attempt) + 1))
        found.update({audio_key} if audio_key else ())
    paths = sorted(found)
    connection.execute(insert(tombstones).values(voice_id=voice_id, deleted_at=now, audio_paths=paths))
    reserved = (
        select(jobs.c.spending_id, jobs.c.period, jobs.c.char_count)
        .where(jobs.c.voice_id == voice_id, IS_PENDING)
        .order_by(jobs.c.spending_id, jobs.c.period)
        .with_for_update(key_share=True)  # a job that fails meanwhile is refunded there
    )
    for (spending_id, period), of_period in groupby(connection.execute(reserved).all(), key=lambda row: row[:2]):
        characters = sum(row.char_count for row in of_period)
        usage.refund(connection, spending_id=spending_id, period=period, characters=characters)
    connection.execute(delete(voices).where(voices.c.voice_id == voice_id))
    audit.add(connection, AuditAction.VOICE_DELETED, voice_id, account_id=account_id, actor=actor, now=now)
    return paths


def list_unpurged(connection: Connection) -> list[tuple[str, list[str]]]:
    rows = connection.execute(
        select(tombstones.c.voice_id, tombstones.c.audio_paths)
        .where(tombstones.c.purged_at.is_(None))
        .order_by(tombstones.c.deleted_at)
    )
    return [(voice_id, paths or []) for voice_id, paths in rows]


def mark_purged(connection: Connection, voice_id: str, *, now: datetime) -> None:
    connection.execute(
        update(tombstones)
        .where(tombstones.c.voice_id == voice_id, tombstones.c.purged_at.is_(None))
        .values(purged_at=now, audio_paths=None)
    )


def get_cached(connection: Connection, voice_id: str, cache_key: str) -> CacheEntry | None:
    row = _GET_CACHED(connection, voice_id=voice_id, cache_key=cache_key)
    return CacheEntry(*row) if row else None


def delete_cached(connection: Connection, entry: CacheEntry) -> None:
    lock_account_of_voice(connection, voice_id=entry.voice_id)
    is_entry = [column == getattr(entry, column.name) for column in _CACHE_COLUMNS]
    connection.execute(delete(cache).where(*is_entry))
