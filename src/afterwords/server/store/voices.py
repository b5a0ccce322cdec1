"""Voices, what is cached of them, and what is left of them once they are deleted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, union_all, update

from afterwords.errors import StorageQuotaExceededError
from afterwords.models import new_id
from afterwords.server.cache_key import job_path
from afterwords.server.ports import CacheEntry, Idempotency, StoredVoice, VoiceChanges
from afterwords.server.store import idempotency, usage
from afterwords.server.store.schema import IS_PENDING, accounts, cache, jobs, tombstones, voices
from afterwords.server.store.sqlite import Lookup

_NAMES = [field.name for field in fields(StoredVoice)]
_CHANGEABLE = [field.name for field in fields(VoiceChanges)]
VOICE = [voices.c[name] for name in _NAMES]
_ANY = select(*VOICE).where(voices.c.voice_id == bindparam("voice_id"))
_BY_ID = Lookup(_ANY)
_OWN = Lookup(_ANY.where(voices.c.account_id == bindparam("account_id")))
_NAMED = (
    select(*VOICE)
    .where(voices.c.account_id == bindparam("account_id"), voices.c.name == bindparam("name"))
    .order_by(voices.c.seq)
    .limit(2)
)
_AT_HOME = select(*VOICE).where(voices.c.home_id == bindparam("home_id"))
_TAKEN = union_all(
    select(voices.c.voice_id).where(voices.c.voice_id == bindparam("voice_id")),
    select(tombstones.c.voice_id).where(tombstones.c.voice_id == bindparam("voice_id")),
)
_KEEP = insert(voices).inline()
_STORED = select(accounts.c.stored_bytes).where(accounts.c.account_id == bindparam("account_id"))
_CACHED = Lookup(
    select(*[cache.c[field.name] for field in fields(CacheEntry)]).where(
        cache.c.voice_id == bindparam("voice_id"), cache.c.cache_key == bindparam("cache_key")
    )
)


def add(
    connection: Connection,
    voice: StoredVoice,
    *,
    asked: Idempotency | None = None,
    quota_bytes: int | None = None,
    now: datetime,
) -> StoredVoice:
    if asked and (before := replayed(connection, asked)):
        return before
    if voice.home_id is not None:
        if kept := connection.execute(_AT_HOME, {"home_id": voice.home_id}).first():
            return StoredVoice(*kept)
        if connection.execute(_TAKEN, {"voice_id": voice.voice_id}).first():
            voice = replace(voice, voice_id=new_id())
    connection.execute(_KEEP, {name: getattr(voice, name) for name in _NAMES} | {"metadata": dict(voice.metadata)})
    if voice.home_id is None:  # what is at home is not stored a second time
        check_quota(connection, voice.account_id, quota_bytes=quota_bytes)
    if asked:
        idempotency.keep(connection, asked, now=now, voice_id=voice.voice_id)
    return voice


def check_quota(connection: Connection, account_id: str, *, quota_bytes: int | None) -> None:
    """See that an account has not stored too much, with what this transaction adds.

    Raises:
        StorageQuotaExceededError: it has; the transaction must be undone.
    """
    if quota_bytes is None:
        return
    stored_bytes = connection.execute(_STORED, {"account_id": account_id}).scalar_one()
    if stored_bytes > quota_bytes:
        raise StorageQuotaExceededError(stored_bytes=stored_bytes, quota_bytes=quota_bytes)


def replayed(connection: Connection, asked: Idempotency) -> StoredVoice | None:
    before = idempotency.find(connection, asked)
    return by_id(connection, before.voice_id) if before and before.voice_id else None


def by_id(connection: Connection, voice_id: str) -> StoredVoice | None:
    """A voice of any account."""
    return _stored(_BY_ID(connection, voice_id=voice_id))


def get(connection: Connection, voice_id: str, *, account_id: str) -> StoredVoice | None:
    return _stored(_OWN(connection, voice_id=voice_id, account_id=account_id))


def named(connection: Connection, name: str, *, account_id: str) -> list[StoredVoice]:
    return [StoredVoice(*row) for row in connection.execute(_NAMED, {"account_id": account_id, "name": name})]


def page(
    connection: Connection, *, account_id: str, limit: int | None, after: str | None, shows_home: bool
) -> list[StoredVoice]:
    statement = select(*VOICE).where(voices.c.account_id == account_id).order_by(voices.c.seq).limit(limit)
    if not shows_home:
        statement = statement.where(voices.c.home_id.is_(None))
    if after is not None:  # an unknown one is NULL, after which nothing comes
        seen = select(voices.c.seq).where(voices.c.voice_id == after, voices.c.account_id == account_id)
        statement = statement.where(voices.c.seq > seen.scalar_subquery())
    return [StoredVoice(*row) for row in connection.execute(statement)]


def change(connection: Connection, voice_id: str, changes: VoiceChanges, *, account_id: str) -> StoredVoice | None:
    before = get(connection, voice_id, account_id=account_id)
    wanted = {name: value for name in _CHANGEABLE if (value := getattr(changes, name)) is not None}
    if before is None or not wanted:
        return before
    if "metadata" in wanted:
        wanted["metadata"] = dict(wanted["metadata"])
    connection.execute(update(voices).where(voices.c.voice_id == voice_id).values(wanted))
    after = get(connection, voice_id, account_id=account_id)
    if after and (after.ref_text, after.lang) != (before.ref_text, before.lang):
        _forget_spoken(connection, voice_id)
    return after


def _forget_spoken(connection: Connection, voice_id: str) -> None:
    """Drop the cache; what is being spoken the old way is neither cached nor given to others."""
    connection.execute(delete(cache).where(cache.c.voice_id == voice_id))
    connection.execute(update(jobs).where(jobs.c.voice_id == voice_id, IS_PENDING).values(flight_key=None))


def remove(connection: Connection, voice_id: str, *, account_id: str, now: datetime) -> list[str] | None:
    """Delete a voice, and by its foreign keys all rows that belong to it; returns where its jobs' audio may lie."""
    if get(connection, voice_id, account_id=account_id) is None:
        return None
    paths = _job_paths(connection, voice_id)
    connection.execute(insert(tombstones).values(voice_id=voice_id, deleted_at=now, audio_paths=paths))
    reserved = (
        select(jobs.c.spending_id, jobs.c.period, func.sum(jobs.c.char_count))
        .where(jobs.c.voice_id == voice_id, IS_PENDING)
        .group_by(jobs.c.spending_id, jobs.c.period)
    )
    for spending_id, period, characters in connection.execute(reserved).all():
        usage.give_back(connection, spending_id=spending_id, period=period, characters=characters)
    connection.execute(delete(voices).where(voices.c.voice_id == voice_id))
    return paths


def _job_paths(connection: Connection, voice_id: str) -> list[str]:
    """Of every attempt: one that was cut off may have written its audio, too."""
    rows = connection.execute(
        select(jobs.c.job_id, jobs.c.attempt, jobs.c.audio_key).where(jobs.c.voice_id == voice_id)
    )
    paths: set[str] = set()
    for job_id, attempt, audio_key in rows:
        paths.update(job_path(job_id, number) for number in range(1, max(1, attempt) + 1))
        paths.update({audio_key} if audio_key else ())
    return sorted(paths)


def unpurged(connection: Connection) -> list[tuple[str, list[str]]]:
    rows = connection.execute(
        select(tombstones.c.voice_id, tombstones.c.audio_paths)
        .where(tombstones.c.purged_at.is_(None))
        .order_by(tombstones.c.deleted_at)
    )
    return [(voice_id, paths or []) for voice_id, paths in rows]


def purged(connection: Connection, voice_id: str, *, now: datetime) -> None:
    connection.execute(
        update(tombstones)
        .where(tombstones.c.voice_id == voice_id, tombstones.c.purged_at.is_(None))
        .values(purged_at=now, audio_paths=None)
    )


def cached(connection: Connection, voice_id: str, cache_key: str) -> CacheEntry | None:
    row = _CACHED(connection, voice_id=voice_id, cache_key=cache_key)
    return CacheEntry(*row) if row else None


def uncache(connection: Connection, entry: CacheEntry) -> None:
    is_it = [cache.c[field.name] == getattr(entry, field.name) for field in fields(CacheEntry)]
    connection.execute(delete(cache).where(*is_it))


def _stored(row: Sequence[Any] | None) -> StoredVoice | None:
    return StoredVoice(*row) if row else None
