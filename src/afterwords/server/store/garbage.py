"""What the sweeper asks: which blobs belong to some row, whose the storage is, and which rows are old enough to go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from pathlib import PurePosixPath
from typing import Final

from sqlalchemy import Connection, bindparam, case, delete, func, insert, or_, select, update

from afterwords.server.cache_key import cache_path, voice_prefix
from afterwords.server.store.schema import (
    cache,
    idempotency,
    jobs,
    server,
    storage_marks,
    strays,
    tombstones,
    voices,
)
from afterwords.server.store.sqlite import upsert

IDEMPOTENCY_AGE: Final = timedelta(days=1)
TOMBSTONE_AGE: Final = timedelta(days=30)
STRAY_AGE_S: Final = 86_400.0
"""How long a stray that is not seen any more stays in its table."""
N_MARKS: Final = 32
"""Tokens that are kept: servers that share the database may each have written one since the last was read."""
CHUNK: Final = 500
"""Names in one statement; SQLite takes 32,766 of them, but plans longer."""

_JOBS = select(jobs.c.audio_key, jobs.c.audio_sha256).where(jobs.c.job_id.in_(bindparam("ids", expanding=True)))
_VOICES = select(voices.c.voice_id, voices.c.ref_audio_key, voices.c.ref_sha256).where(
    voices.c.voice_id.in_(bindparam("ids", expanding=True))
)
_CACHE = select(cache.c.voice_id, cache.c.cache_key, cache.c.sha256).where(
    cache.c.voice_id.in_(bindparam("ids", expanding=True)), cache.c.cache_key.in_(bindparam("keys", expanding=True))
)

_NEW_STRAY = upsert(strays)
_NOTE = _NEW_STRAY.on_conflict_do_update(
    index_elements=[strays.c.path],
    set_={
        "first_seen": case(  # the clock may have been set back between starts
            (strays.c.first_seen > _NEW_STRAY.excluded.first_seen, _NEW_STRAY.excluded.first_seen),
            else_=strays.c.first_seen,
        ),
        "last_seen": _NEW_STRAY.excluded.last_seen,
    },
)
_DUE = select(strays.c.path).where(
    strays.c.path.in_(bindparam("paths", expanding=True)), strays.c.first_seen <= bindparam("latest")
)


def known_paths(connection: Connection, paths: Sequence[str]) -> set[str]:
    return set(named(connection, paths))


def named(connection: Connection, paths: Sequence[str]) -> dict[str, str | None]:
    """Those of the paths that some row names, with the digest that it gives; prompts carry their own."""
    known: dict[str, str | None] = {}
    for chunk in _chunks(paths):
        found = _named_by_rows(connection, chunk)
        known |= {path: found[path] for path in chunk if path in found}
    return known


def _named_by_rows(connection: Connection, paths: Sequence[str]) -> dict[str, str | None]:
    parts = [PurePosixPath(path).parts for path in paths]
    of_voices = [part for part in parts if len(part) > 2 and part[0] == "voices"]
    voice_ids = sorted({part[1] for part in of_voices})
    prompts = {"/".join(part) for part in of_voices if part[2] == "prompts" and part[-1].endswith(".bin")}
    cache_keys = sorted({PurePosixPath(part[-1]).stem for part in of_voices if part[2] == "cache"})
    stems = {PurePosixPath(part[1]).stem for part in parts if len(part) == 2 and part[0] == "jobs"}
    job_ids = sorted(stems | {stem.rpartition("-")[0] for stem in stems})  # a later attempt's name ends in its number
    known = {path: digest for path, digest in connection.execute(_JOBS, {"ids": job_ids}) if path}
    for voice_id, ref_audio_key, digest in connection.execute(_VOICES, {"ids": voice_ids}):
        known[ref_audio_key] = digest
        known |= {prompt: None for prompt in prompts if prompt.startswith(voice_prefix(voice_id))}
    for voice_id, cache_key, digest in connection.execute(_CACHE, {"ids": voice_ids, "keys": cache_keys}):
        known[cache_path(voice_id, cache_key)] = digest
    return known


def note_strays(connection: Connection, paths: Sequence[str], *, grace_s: float, steady: float) -> set[str]:
    """Note paths that no row names; returns those that were first seen so at least the grace ago."""
    found: set[str] = set()
    for chunk in _chunks(paths):
        connection.execute(_NOTE, [{"path": path, "first_seen": steady, "last_seen": steady} for path in chunk])
        due = _DUE, {"paths": chunk, "latest": steady - grace_s}
        found |= {path for (path,) in connection.execute(*due)}
    return found


def add_mark(connection: Connection, token: str) -> None:
    """Keep a token before it is written into the storage."""
    connection.execute(insert(storage_marks).values(token=token))
    newest = select(func.max(storage_marks.c.seq)).scalar_subquery()
    connection.execute(delete(storage_marks).where(storage_marks.c.seq <= newest - N_MARKS))


def has_mark(connection: Connection, token: str) -> bool:
    return connection.execute(select(storage_marks.c.seq).where(storage_marks.c.token == token)).first() is not None


def forget_old(connection: Connection, *, now: datetime, steady: float) -> None:
    gone = or_(strays.c.last_seen < steady - STRAY_AGE_S, strays.c.last_seen > steady + STRAY_AGE_S)
    connection.execute(delete(strays).where(gone))
    connection.execute(delete(idempotency).where(idempotency.c.created_at < now - IDEMPOTENCY_AGE))
    connection.execute(delete(tombstones).where(tombstones.c.purged_at < now - TOMBSTONE_AGE))


def touch(connection: Connection, *, now: datetime) -> None:
    """Write something that nobody reads, to see whether it can be written."""
    connection.execute(update(server).values(checked_at=now))


def _chunks(paths: Iterable[str]) -> Iterator[list[str]]:
    left = iter(paths)
    while chunk := list(islice(left, CHUNK)):
        yield chunk
