"""Voices, their cache entries, and the tombstones of deleted voices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import datetime
from itertools import groupby
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, exists, insert, not_, select, union_all, update

from afterwords.errors import UnauthorizedError
from afterwords.models import Alias, new_id
from afterwords.server.cache_key import job_path
from afterwords.server.records import Actor, AuditAction, CacheEntry, Idempotency, StoredVoice, VoiceChanges
from afterwords.server.store import audit, idempotency, usage
from afterwords.server.store.locks import lock_account, lock_account_of_voice, lock_open_account
from afterwords.server.store.schema import (
    IS_KEPT,
    IS_PENDING,
    accounts,
    aliases,
    cache,
    jobs,
    preparations,
    tombstones,
    voices,
)
from afterwords.server.store.statements import Query

BATCH: Final = 500
"""Jobs, and cache entries, that one transaction deletes. This takes about 11 ms of CPU time, and a sync to the disk."""

_NAMES = [field.name for field in fields(StoredVoice) if field.name in voices.c]
_CACHE_COLUMNS = [cache.c[field.name] for field in fields(CacheEntry)]
_SELECT = select(
    *[voices.c[name] for name in _NAMES],
    exists().where(preparations.c.voice_id == voices.c.voice_id).label("is_preparing"),  # the last field
).where(IS_KEPT)
_GET = Query(_SELECT.where(voices.c.voice_id == bindparam("voice_id")))
_GET_OWN = Query(
    _SELECT.where(voices.c.voice_id == bindparam("voice_id"), voices.c.account_id == bindparam("account_id"))
)
_JOBS = (
    select(
        jobs.c.seq,
        jobs.c.job_id,
        jobs.c.attempt,
        jobs.c.audio_key,
        jobs.c.spending_id,
        jobs.c.period,
        jobs.c.created_at,
        jobs.c.char_count,
    )
    .where(jobs.c.voice_id == bindparam("voice"))
    .limit(bindparam("n_rows"))
)
_PENDING_JOBS = (
    _JOBS.where(IS_PENDING)
    .order_by(jobs.c.spending_id, jobs.c.created_at)
    .with_for_update(key_share=True)  # a job that fails meanwhile is refunded there
)
_FINAL_JOBS = _JOBS.where(not_(IS_PENDING))
_CACHED = select(cache.c.cache_key).where(cache.c.voice_id == bindparam("voice")).limit(BATCH)
_DELETE_CACHED = delete(cache).where(cache.c.voice_id == bindparam("voice"), cache.c.cache_key.in_(_CACHED))
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
    prepare: bool = False,
    quota_bytes: int | None = None,
    now: datetime,
) -> StoredVoice:
    if lock_open_account.read(connection, account_id=voice.account_id) is None:
        raise UnauthorizedError
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
    if prepare:
        _add_preparation(connection, voice, now=now)
    return replace(voice, is_preparing=prepare)


def _add_preparation(connection: Connection, voice: StoredVoice, *, now: datetime) -> None:
    row = insert(preparations).values(voice_id=voice.voice_id, job_id=new_id(), backend=voice.backend, created_at=now)
    connection.execute(row)


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


def find_by_alias(connection: Connection, alias: str, *, account_id: str) -> StoredVoice | None:
    is_alias = (aliases.c.account_id == account_id, aliases.c.alias == alias)
    row = connection.execute(_SELECT.join(aliases, aliases.c.voice_id == voices.c.voice_id).where(*is_alias)).first()
    return StoredVoice(*row) if row else None


def list_aliases(connection: Connection, *, account_id: str) -> list[Alias]:
    statement = (
        select(aliases.c.alias, voices.c.voice_id, voices.c.name.label("voice"))
        .join(voices, aliases.c.voice_id == voices.c.voice_id)
        .where(aliases.c.account_id == account_id, IS_KEPT)
        .order_by(aliases.c.alias)
    )
    return [Alias(**row) for row in connection.execute(statement).mappings()]


def set_alias(connection: Connection, alias: str, voice_id: str, *, account_id: str) -> bool:
    is_open = lock_open_account.read(connection, account_id=account_id) is not None
    if not is_open or get(connection, voice_id, account_id=account_id) is None:
        return False
    remove_alias(connection, alias, account_id=account_id)
    connection.execute(insert(aliases).values(account_id=account_id, alias=alias, voice_id=voice_id))
    return True


def remove_alias(connection: Connection, alias: str, *, account_id: str) -> bool:
    is_alias = (aliases.c.account_id == account_id, aliases.c.alias == alias)
    return connection.execute(delete(aliases).where(*is_alias)).rowcount > 0


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


def find_family(connection: Connection, family: str, *, account_id: str, shows_home: bool) -> list[StoredVoice]:
    statement = _SELECT.where(voices.c.account_id == account_id, voices.c.family == family).order_by(voices.c.seq)
    if not shows_home:
        statement = statement.where(voices.c.home_id.is_(None))
    return [StoredVoice(*row) for row in connection.execute(statement)]


def update_voice(
    connection: Connection,
    voice_id: str,
    changes: VoiceChanges,
    *,
    account_id: str,
    prepare: bool = False,
    now: datetime,
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
    has_other_prompt = after and (after.ref_text, after.lang) != (before.ref_text, before.lang)
    if has_other_prompt:
        connection.execute(delete(cache).where(cache.c.voice_id == voice_id))
        # Pending jobs use the old transcript: they must not be cached or shared.
        connection.execute(update(jobs).where(jobs.c.voice_id == voice_id, IS_PENDING).values(flight_key=None))
    if after and (after.backend, after.ref_text, after.lang) != (before.backend, before.ref_text, before.lang):
        connection.execute(delete(preparations).where(preparations.c.voice_id == voice_id))  # its worker stops
        if prepare:
            _add_preparation(connection, after, now=now)
        return replace(after, is_preparing=prepare)
    return after


def delete_voice(connection: Connection, voice_id: str, *, account_id: str, actor: Actor, now: datetime) -> bool | None:
    """Delete a voice, which no longer exists from then on, and the first of its rows.

    Returns:
        Whether there are more rows, for `delete_rows`. None: there is no such voice.
    """
    lock_account(connection, account_id=account_id)
    if get(connection, voice_id, account_id=account_id) is None:
        return None
    connection.execute(update(voices).where(voices.c.voice_id == voice_id).values(home_id=None, ref_text=None))
    connection.execute(delete(preparations).where(preparations.c.voice_id == voice_id))
    audit.add(connection, AuditAction.VOICE_DELETED, voice_id, account_id=account_id, actor=actor, now=now)
    return delete_rows(connection, voice_id, now=now)


def _charge_of(job: Any) -> tuple[str, str, str]:
    return job.spending_id, job.period, usage.day_of(job.created_at)


def delete_rows(connection: Connection, voice_id: str, *, now: datetime) -> bool:
    """Delete rows of a deleted voice, pending jobs first, and add a tombstone with their audio.

    Returns:
        Whether there are more rows, for another transaction: this one would lock the account for too long.
    """
    lock_account_of_voice(connection, voice_id=voice_id)
    found = connection.execute(_PENDING_JOBS, {"voice": voice_id, "n_rows": BATCH}).all()
    for (spending_id, period, day), charged in groupby(found, key=_charge_of):
        characters = sum(row.char_count for row in charged)
        usage.refund(connection, spending_id=spending_id, period=period, day=day, characters=characters)
    found = [*found, *connection.execute(_FINAL_JOBS, {"voice": voice_id, "n_rows": BATCH - len(found)})]
    paths: set[str] = set()
    for row in found:
        # Interrupted attempts may have written their audio, too.
        paths.update(job_path(row.job_id, number) for number in range(1, max(1, row.attempt) + 1))
        paths.update({row.audio_key} if row.audio_key else ())
    connection.execute(insert(tombstones).values(voice_id=voice_id, deleted_at=now, audio_paths=sorted(paths)))
    connection.execute(delete(jobs).where(jobs.c.seq.in_([row.seq for row in found])))
    if len(found) == BATCH or connection.execute(_DELETE_CACHED, {"voice": voice_id}).rowcount == BATCH:
        return True
    connection.execute(delete(voices).where(voices.c.voice_id == voice_id))
    return False


def list_unfinished(connection: Connection) -> list[str]:
    """Return the deleted voices with more rows: another transaction deletes them now, or a server has crashed."""
    statement = select(voices.c.voice_id).join(tombstones, tombstones.c.voice_id == voices.c.voice_id).distinct()
    return list(connection.execute(statement.where(tombstones.c.purged_at.is_(None))).scalars())


def find_deleted(connection: Connection, voice_ids: Sequence[str]) -> set[str]:
    return {*connection.scalars(select(tombstones.c.voice_id).where(tombstones.c.voice_id.in_(voice_ids)))}


def list_unpurged(connection: Connection, voice_id: str | None = None) -> dict[str, list[str]]:
    """Return the audio of deleted voices without rows, or of one voice, by voice."""
    statement = (
        select(tombstones.c.voice_id, tombstones.c.audio_paths)
        .where(tombstones.c.purged_at.is_(None), ~exists().where(voices.c.voice_id == tombstones.c.voice_id))
        .order_by(tombstones.c.seq)
    )
    if voice_id is not None:
        statement = statement.where(tombstones.c.voice_id == voice_id)
    unpurged: dict[str, list[str]] = {}
    for deleted, paths in connection.execute(statement):
        unpurged.setdefault(deleted, []).extend(paths or [])
    return unpurged


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
