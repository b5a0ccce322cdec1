"""Back up a server into one file and restore it: the database, and every blob that its rows reference.

The file is a plain tar: a header, the blobs, the database, and last a manifest with the size and SHA-256 of each. The
database is copied first, in one step while servers keep writing; the blobs of its rows never change, and a voice that
is deleted before its recording is copied is also deleted from the copy. Blobs are copied one at a time.

The rows of Postgres are in the backup as a SQLite file, so that each can be restored into the other.

Called by `afterwords backup` and `afterwords restore`.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from afterwords import __version__, disk
from afterwords.errors import (
    AfterwordsError,
    DatabaseUnavailableError,
    FileError,
    InvalidInputError,
    ServerSetupError,
)
from afterwords.server.app_state import open_storage, open_store
from afterwords.server.databases import announce_alone, check_exists
from afterwords.server.ports import Blobs
from afterwords.server.services.ownership import Ownership, database_id, is_server_path
from afterwords.server.settings import Settings
from afterwords.server.store import garbage
from afterwords.server.store.copy import copy_rows
from afterwords.server.store.database import Database
from afterwords.server.store.migrate import check_version, find_version
from afterwords.server.store.sqlite.connections import connect, engine_for, raw, translate_error
from afterwords.server.store.sqlite.database import SqliteDatabase
from afterwords.server.store.sqlite.opening import prepare

FORMAT: Final = 1
HEADER: Final = "afterwords-backup.json"
DATABASE: Final = "afterwords.db"
MANIFEST: Final = "manifest.json"
BLOBS: Final = "blobs/"
BUSY_TIMEOUT_S: Final = 10
_VOICES: Final = "SELECT count(*) FROM voices WHERE ref_audio_key NOT LIKE 'home/%'"
"""Voices of the library are not part of a backup."""
_REFERENCED: Final = (
    "SELECT ref_audio_key, ref_sha256 FROM voices WHERE ref_audio_key NOT LIKE 'home/%' "
    "UNION ALL SELECT audio_key, audio_sha256 FROM jobs WHERE status = 'ready' AND audio_key IS NOT NULL"
)


@dataclass(frozen=True, slots=True)
class Contents:
    """Contents of a backup.

    Attributes:
        lost: Paths of recordings and job audio that rows reference, but that are missing or damaged in the storage.
    """

    n_voices: int
    n_files: int
    size_bytes: int
    lost: tuple[str, ...] = ()


# -- backup ---------------------------------------------------------------------------------------------------


async def back_up(settings: Settings, file: Path) -> Contents:
    """Write a backup of a server, which may be running, into a file of mode 0600.

    Raises:
        FileError: There is no database.
        DatabaseUnavailableError, StorageUnavailableError: Database or storage can't be read at the moment.
        StorageFullError, FileError: The file can't be written; an existing one was kept.
    """
    database = open_store(settings).database
    source = database.path
    check_exists(database)
    blobs = open_storage(settings)
    with (
        disk.translate_errors(file),
        tempfile.TemporaryDirectory(prefix=".afterwords-backup-", dir=file.parent) as scratch,
    ):
        copy, part = Path(scratch, DATABASE), Path(scratch, "part")
        for new in (copy, part):
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        if source is None:
            await asyncio.to_thread(_dump, database, copy)
        else:
            with _connect(source) as live, _connect(copy) as rows:
                raw(live).backup(raw(rows))
        with _connect(copy) as rows, part.open("r+b") as out:
            contents = await _write(out, blobs, database=database, rows=rows, copy=copy)
            out.flush()
            os.fsync(out.fileno())
        part.replace(file)
        disk.sync_folder(file.parent)
    return contents


def _dump(database: Database, copy: Path) -> None:
    """Copy all rows into a SQLite file."""
    with database.session() as live:
        check_version(find_version(live))
        prepare(copy)
        with SqliteDatabase(copy).session(is_writing=True) as rows:
            copy_rows(live, rows)


async def _write(out: Any, blobs: Blobs, *, database: Database, rows: Connection, copy: Path) -> Contents:
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        files: dict[str, dict[str, Any]] = {}

        def add(name: str, data: bytes) -> None:
            tar.addfile(_member(name, len(data)), io.BytesIO(data))
            files[name] = {"size": len(data), "sha256": sha256(data).hexdigest()}

        add(HEADER, json.dumps({"format": FORMAT, "afterwords": __version__}).encode())
        async for batch in blobs.listing():
            for path, digest in garbage.find_known_paths(
                rows, [blob.path for blob in batch if is_server_path(blob.path)]
            ).items():
                data = await blobs.get(path, sha256=digest)
                if data is not None:
                    add(BLOBS + path, data)
        missing = [path for path, _ in raw(rows).execute(_REFERENCED) if BLOBS + path not in files]
        with database.session() as live:
            lost = sorted(garbage.find_known_paths(live, missing))
        gone = [(path,) for path in missing if path not in lost]  # deleted since the database was copied
        raw(rows).executemany("DELETE FROM voices WHERE ref_audio_key = ?", gone)
        raw(rows).execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (n_voices,) = raw(rows).execute(_VOICES).fetchone()
        with copy.open("rb") as content:
            digest = file_digest(content, "sha256").hexdigest()
            content.seek(0)
            tar.addfile(_member(DATABASE, copy.stat().st_size), content)
        files[DATABASE] = {"size": copy.stat().st_size, "sha256": digest}
        n_files = sum(name.startswith(BLOBS) for name in files)
        add(MANIFEST, json.dumps({"files": files, "lost": lost}).encode())
    return Contents(n_voices, n_files, sum(facts["size"] for facts in files.values()), tuple(lost))


def _member(name: str, size_bytes: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size_bytes, 0o600, int(time.time())
    return member


@contextmanager
def _connect(path: Path) -> Iterator[Connection]:
    """Connect to a database of any schema version."""
    engine = engine_for(path)
    try:
        with contextlib.closing(connect(engine, busy_timeout_s=BUSY_TIMEOUT_S)) as connection:
            yield connection
    except Exception as error:
        translated = translate_error(error, path)
        if translated is error:
            raise
        raise translated from error
    finally:
        engine.dispose()


# -- restore --------------------------------------------------------------------------------------------------


async def restore(settings: Settings, file: Path, *, replace: bool = False) -> Contents:
    """Restore a server from a backup. Everything is verified before anything is changed.

    The storage then belongs to the restored database. Other files in it are not removed here.

    Args:
        settings: Settings of the server, which must not be running.
        replace: Whether to replace a server that has voices or keys.

    Raises:
        InvalidInputError: The file is not a backup, or is truncated or altered.
        ServerSetupError: A later version of afterwords wrote the backup, a server is running, or the server is not
            empty and `replace` is False.
        StorageFullError, StorageUnavailableError: The storage can't be written; the server is unchanged.
    """
    database = open_store(settings).database
    path = database.path
    if path is not None:
        disk.make_folder(path.parent)
    try:
        if path is None:
            await database.open()
        await announce_alone(database)
        with (
            disk.translate_errors(path or Path(tempfile.gettempdir())),
            tempfile.TemporaryDirectory(prefix=".afterwords-restore-", dir=path and path.parent) as scratch,
        ):
            rows = Path(scratch, DATABASE)
            contents, files = _verify(file, rows)
            blobs = open_storage(settings)
            if not replace:
                await _check_is_empty(database, blobs, files)
            new = await _put_blobs(file, blobs, files)
            try:
                if path is None:
                    await asyncio.to_thread(_load, rows, database)
                else:
                    _put_database(rows, path)
            except BaseException:
                await blobs.delete(*new)
                raise
        store = open_store(settings)
        try:
            await store.open()
            await Ownership(store, blobs, database_id(await store.secret())).adopt()
        finally:
            await store.close()
    finally:
        await database.leave()
        await database.close()
    return contents


def _load(rows: Path, database: Database) -> None:
    """Replace all rows of a database by those of a SQLite file."""
    with SqliteDatabase(rows).session() as restored, database.session(is_writing=True) as target:
        copy_rows(restored, target)


@contextmanager
def _open_members(file: Path) -> Iterator[Iterator[tuple[str, Any]]]:
    """Open a backup and yield name and content of its members, in order."""
    if not file.is_file():
        raise FileError.unreadable(file, why="it is not a file" if file.exists() else "there is no such file")
    try:
        with tarfile.open(file, "r:") as tar:
            yield ((member.name, tar.extractfile(member) if member.isreg() else None) for member in tar)
    except (tarfile.TarError, EOFError) as error:
        raise InvalidInputError.for_backup(file, why="it is not a tar file, or truncated") from error


def _verify(file: Path, database: Path) -> tuple[Contents, dict[str, str]]:
    """Check every byte of a backup, extract and migrate the database; return the digests of the blobs by path."""
    found: dict[str, dict[str, Any]] = {}
    manifest: Any = None
    with _open_members(file) as members:
        for name, content in members:
            is_known = name in (DATABASE, MANIFEST) or (
                name.startswith(BLOBS) and is_server_path(name.removeprefix(BLOBS))
            )
            if content is None or name in found or not (is_known if found else name == HEADER):
                raise InvalidInputError.for_backup(
                    file, why="it is not a backup of afterwords, or its parts are out of order"
                )
            if name == MANIFEST:
                manifest = _parse_json(file, content.read())
                break
            digest, size = sha256(), 0
            with database.open("xb") if name == DATABASE else contextlib.nullcontext() as target:
                while piece := content.read(disk.BLOCK_BYTES):
                    digest.update(piece)
                    size += len(piece)
                    if name == HEADER and _parse_json(file, piece).get("format") != FORMAT:
                        raise InvalidInputError.for_backup(file, why="another version of afterwords wrote it")
                    if target is not None:
                        target.write(piece)
            found[name] = {"size": size, "sha256": digest.hexdigest()}
    if manifest is None or not database.is_file():
        raise InvalidInputError.for_backup(file, why="its end is missing")
    if manifest.get("files") != found:
        raise InvalidInputError.for_backup(file, why="its parts differ from its manifest")
    digests = {name.removeprefix(BLOBS): facts["sha256"] for name, facts in found.items() if name.startswith(BLOBS)}
    lost = tuple(manifest.get("lost", ()))
    database.chmod(0o600)
    try:
        with _connect(database) as rows:
            is_intact = raw(rows).execute("PRAGMA integrity_check").fetchone() == ("ok",)
            referenced = dict(raw(rows).execute(_REFERENCED).fetchall())
            (n_voices,) = raw(rows).execute(_VOICES).fetchone()
        prepare(database)
        with _connect(database) as rows:
            raw(rows).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except (sqlite3.Error, DatabaseUnavailableError) as error:
        raise InvalidInputError.for_backup(file, why="its database can't be read") from error
    if not is_intact or any(digests.get(path) != digest for path, digest in referenced.items() if path not in lost):
        raise InvalidInputError.for_backup(file, why="its database references audio that is missing")
    size_bytes = sum(facts["size"] for facts in found.values())
    return Contents(n_voices, len(digests), size_bytes, lost), digests


def _parse_json(file: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidInputError.for_backup(file, why="its manifest can't be read")
    return value


async def _check_is_empty(database: Database, blobs: Blobs, files: dict[str, str]) -> None:
    """Raise ServerSetupError unless nothing would be replaced, except by an earlier restore of the same file."""
    n_voices = n_keys = n_files = 0
    if database.path is None or (database.path.is_file() and database.path.stat().st_size):
        try:
            with database.session() as rows:
                n_voices = rows.execute(text(_VOICES)).scalar_one()
                n_keys = rows.execute(text("SELECT count(*) FROM keys")).scalar_one()
        except (sqlite3.Error, DBAPIError, DatabaseUnavailableError):
            raise ServerSetupError(
                "A server is already here, and its database can't be read.", code="server_not_empty"
            ) from None
    async for batch in blobs.listing():
        n_files += sum(is_server_path(blob.path) and blob.path not in files for blob in batch)
    if n_voices or n_keys or n_files:
        raise ServerSetupError(
            f"A server is already here, with {n_voices} voices, {n_keys} keys, and {n_files} other files in storage.",
            code="server_not_empty",
        )


async def _put_blobs(file: Path, blobs: Blobs, files: dict[str, str]) -> list[str]:
    """Write all blobs, and return the new ones, which are removed again if one can't be written."""
    new: list[str] = []
    try:
        with _open_members(file) as members:
            for name, content in members:
                path = name.removeprefix(BLOBS)
                if not name.startswith(BLOBS) or await blobs.get(path, sha256=files[path]) is not None:
                    continue
                data = content.read()
                if sha256(data).hexdigest() != files[path]:
                    raise InvalidInputError.for_backup(file, why="it was altered while it was read")
                if not await blobs.exists(path):
                    new.append(path)
                await blobs.put(path, data)
    except BaseException:
        with contextlib.suppress(AfterwordsError):  # the sweep removes the rest
            await blobs.delete(*new)
        raise
    return new


def _put_database(database: Path, path: Path) -> None:
    """Replace the database and remove its write-ahead log."""
    with disk.lock(
        path.with_name(f"{path.name}.lock"), timeout_s=BUSY_TIMEOUT_S, busy=ServerSetupError(code="server_running")
    ):
        if path.is_file():
            with contextlib.suppress(sqlite3.Error, DatabaseUnavailableError), _connect(path) as rows:
                raw(rows).execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for ending in ("-wal", "-shm"):  # SQLite would apply an old log to the new file
            path.with_name(path.name + ending).unlink(missing_ok=True)
        database.replace(path)
        disk.sync_folder(path.parent)
