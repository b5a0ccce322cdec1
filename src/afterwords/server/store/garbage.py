"""Rows for housekeeping: blobs that no row refers to, the marks of the storage, and rows that expire."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from pathlib import PurePosixPath
from typing import Final

from sqlalchemy import Connection, and_, case, delete, func, insert, or_, select, tuple_

from afterwords.server.cache_key import cache_path, voice_prefix
from afterwords.server.store import billing
from afterwords.server.store.audit import AUDIT_AGE
from afterwords.server.store.preparations import IS_FREE
from afterwords.server.store.schema import (
    audit,
    cache,
    idempotency,
    jobs,
    preparations,
    storage_marks,
    strays,
    tombstones,
    voices,
)
from afterwords.server.store.statements import Insert

IDEMPOTENCY_AGE: Final = timedelta(days=1)
PREPARATION_AGE: Final = timedelta(days=1)
"""How long a voice waits to be prepared: perhaps no worker has its backend any more. Its first speech prepares it."""
TOMBSTONE_AGE: Final = timedelta(days=30)
STRAY_AGE_S: Final = 86_400.0
"""How long a stray stays in its table after it was last seen."""
N_MARKS: Final = 32
"""Marks that are kept. Servers that share the database may each have written one since the last was read."""
CHUNK: Final = 500
"""Values in one statement, and rows of a table that one transaction deletes."""

_ADD_STRAY = Insert(
    strays,
    strays.c.keys(),
    key=("path",),
    update=lambda new: {
        "first_seen": case(  # the clock may have been set back between starts
            (strays.c.first_seen > new.first_seen, new.first_seen), else_=strays.c.first_seen
        ),
        "last_seen": new.last_seen,
    },
)


def find_known_paths(connection: Connection, paths: Sequence[str]) -> dict[str, str | None]:
    """Return the paths that rows refer to, with their digests. Prompts contain their own digest."""
    known: dict[str, str | None] = {}
    for chunk in _chunks(paths):
        parts = [PurePosixPath(path).parts for path in chunk]
        of_voices = [part for part in parts if len(part) > 2 and part[0] == "voices"]
        voice_ids = sorted({part[1] for part in of_voices})
        prompts = {"/".join(part) for part in of_voices if part[2] == "prompts" and part[-1].endswith(".bin")}
        cache_keys = sorted({PurePosixPath(part[-1]).stem for part in of_voices if part[2] == "cache"})
        stems = {PurePosixPath(part[1]).stem for part in parts if len(part) == 2 and part[0] == "jobs"}
        job_ids = sorted(stems | {stem.rpartition("-")[0] for stem in stems})  # later attempts append their number
        job_rows = select(jobs.c.audio_key, jobs.c.audio_sha256).where(jobs.c.job_id.in_(job_ids))
        voice_rows = select(voices.c.voice_id, voices.c.ref_audio_key, voices.c.ref_sha256).where(
            voices.c.voice_id.in_(voice_ids)
        )
        cache_rows = select(cache.c.voice_id, cache.c.cache_key, cache.c.sha256).where(
            cache.c.voice_id.in_(voice_ids), cache.c.cache_key.in_(cache_keys)
        )
        found = {path: digest for path, digest in connection.execute(job_rows) if path}
        for voice_id, ref_audio_key, digest in connection.execute(voice_rows):
            found[ref_audio_key] = digest
            found |= {prompt: None for prompt in prompts if prompt.startswith(voice_prefix(voice_id))}
        for voice_id, cache_key, digest in connection.execute(cache_rows):
            found[cache_path(voice_id, cache_key)] = digest
        known |= {path: found[path] for path in chunk if path in found}
    return known


def add_strays(connection: Connection, paths: Sequence[str], *, grace_s: float, monotonic: float) -> set[str]:
    """Store paths that no row refers to. Return those that were first seen at least `grace_s` ago."""
    found: set[str] = set()
    for chunk in _chunks(paths):
        for path in sorted(chunk):  # in one order, so that two servers don't wait for each other
            _ADD_STRAY(connection, {"path": path, "first_seen": monotonic, "last_seen": monotonic})
        is_due = (strays.c.path.in_(chunk), strays.c.first_seen <= monotonic - grace_s)
        found |= set(connection.execute(select(strays.c.path).where(*is_due)).scalars())
    return found


def add_mark(connection: Connection, token: str) -> None:
    connection.execute(insert(storage_marks).values(token=token))
    newest = select(func.max(storage_marks.c.seq)).scalar_subquery()
    connection.execute(delete(storage_marks).where(storage_marks.c.seq <= newest - N_MARKS))


def has_mark(connection: Connection, token: str) -> bool:
    return connection.execute(select(storage_marks.c.seq).where(storage_marks.c.token == token)).first() is not None


def delete_expired(connection: Connection, *, now: datetime, monotonic: float) -> bool:
    """Delete rows that have expired. Return whether there may be more, for another transaction."""
    expired = {
        strays: or_(strays.c.last_seen < monotonic - STRAY_AGE_S, strays.c.last_seen > monotonic + STRAY_AGE_S),
        idempotency: idempotency.c.created_at < now - IDEMPOTENCY_AGE,
        tombstones: tombstones.c.purged_at < now - TOMBSTONE_AGE,
        audit: audit.c.at < now - AUDIT_AGE,
        preparations: and_(preparations.c.created_at < now - PREPARATION_AGE, IS_FREE),
        **billing.expired(now),
    }
    has_more = False
    for table, is_expired in expired.items():
        key = tuple_(*table.primary_key.columns)
        chunk = select(*table.primary_key.columns).where(is_expired).limit(CHUNK)
        deleted = connection.execute(delete(table).where(key.in_(chunk)), {"monotonic": monotonic})
        has_more |= deleted.rowcount == CHUNK
    return has_more


def _chunks(paths: Iterable[str]) -> Iterator[list[str]]:
    left = iter(paths)
    while chunk := list(islice(left, CHUNK)):
        yield chunk
