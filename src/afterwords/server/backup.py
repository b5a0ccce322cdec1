"""A whole server in one file, and back: the database, and every blob that its rows name.

The file is a plain tar: a header, the blobs, the database, and last a manifest with the size and SHA-256 of each. The
database is copied first, in one step and while servers write on; what its rows name does not change afterwards, and a
voice that is deleted before its recording is copied is deleted from the copy as well. Blobs pass one at a time.

Called by `afterwords backup` and `afterwords restore`.
"""

from __future__ import annotations

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
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection

from afterwords import __version__, disk
from afterwords.errors import AfterwordsError, DatabaseUnavailableError, FileError, InvalidInputError, ServerSetupError
from afterwords.server.app_state import open_storage, open_store
from afterwords.server.ports import Blobs
from afterwords.server.services.ownership import Ownership, database_id, is_server_path
from afterwords.server.settings import Settings
from afterwords.server.store import garbage
from afterwords.server.store.migrate import prepare
from afterwords.server.store.presence import Presence
from afterwords.server.store.sqlite import connect, engine_for, raw, translate_error

FORMAT: Final = 1
HEADER: Final = "afterwords-backup.json"
DATABASE: Final = "afterwords.db"
MANIFEST: Final = "manifest.json"
BLOBS: Final = "blobs/"
PATIENCE_S: Final = 10
_VOICES: Final = "SELECT count(*) FROM voices WHERE ref_audio_key NOT LIKE 'home/%'"
"""Those of the home are in its library, and no part of the server."""
_MUST_BE_THERE: Final = (
    "SELECT ref_audio_key, ref_sha256 FROM voices WHERE ref_audio_key NOT LIKE 'home/%' "
    "UNION ALL SELECT audio_key, audio_sha256 FROM jobs WHERE status = 'ready' AND audio_key IS NOT NULL"
)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a backup holds.

    Attributes:
        lost: paths of recordings and job audio that rows name and the storage did not have whole.
    """

    n_voices: int
    n_files: int
    size_bytes: int
    lost: tuple[str, ...] = ()


# -- backup ---------------------------------------------------------------------------------------------------


async def back_up(settings: Settings, file: Path) -> Contents:
    """Write a backup of the server with these settings, which may be running; for its owner alone (0600).

    Raises:
        FileError: there is no server's database.
        DatabaseUnavailableError, StorageUnavailableError: it can't be read at the moment.
        StorageFullError, FileError: an existing file was kept.
    """
    source = open_store(settings).path
    if not source.is_file():
        raise FileError.unreadable(source, why="there is no database of a server")
    blobs = open_storage(settings)
    with disk.storing(file), tempfile.TemporaryDirectory(prefix=".afterwords-backup-", dir=file.parent) as scratch:
        copy, part = Path(scratch, DATABASE), Path(scratch, "part")
        for new in (copy, part):
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with _reading(source) as live, _reading(copy) as rows:
            raw(live).backup(raw(rows))
            with part.open("r+b") as out:
                contents = await _write(out, blobs, live=live, rows=rows, copy=copy)
                out.flush()
                os.fsync(out.fileno())
        part.replace(file)
        disk.sync_folder(file.parent)
    return contents


async def _write(out: Any, blobs: Blobs, *, live: Connection, rows: Connection, copy: Path) -> Contents:
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
        missing = [path for path, _ in raw(rows).execute(_MUST_BE_THERE) if BLOBS + path not in files]
        lost = sorted(garbage.find_known_paths(live, missing))
        gone = [(path,) for path in missing if path not in lost]  # deleted since the database was copied
        raw(rows).executemany("DELETE FROM voices WHERE ref_audio_key = ?", gone)
        raw(rows).execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (n_voices,) = raw(rows).execute(_VOICES).fetchone()
        with copy.open("rb") as database:
            tar.addfile(_member(DATABASE, copy.stat().st_size), database)
        files[DATABASE] = {"size": copy.stat().st_size, "sha256": _digest(copy)}
        n_files = sum(name.startswith(BLOBS) for name in files)
        add(MANIFEST, json.dumps({"files": files, "lost": lost}).encode())
    return Contents(n_voices, n_files, sum(facts["size"] for facts in files.values()), tuple(lost))


def _member(name: str, size_bytes: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size_bytes, 0o600, int(time.time())
    return member


def _digest(path: Path) -> str:
    digest = sha256()
    for piece in disk.read_pieces(path):
        digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _reading(path: Path) -> Iterator[Connection]:
    """Connect to a database as it is, whatever its schema."""
    engine = engine_for(path)
    try:
        with contextlib.closing(connect(engine, busy_timeout_s=PATIENCE_S)) as connection:
            yield connection
    except Exception as error:
        refusal = translate_error(error, path)
        if refusal is error:
            raise
        raise refusal from error
    finally:
        engine.dispose()


# -- restore --------------------------------------------------------------------------------------------------


async def restore(settings: Settings, file: Path, *, replace: bool = False) -> Contents:
    """Make the server with these settings what a backup holds. Everything is verified before anything is changed.

    The storage becomes the restored database's own. What else lies in it is not removed here.

    Args:
        settings: where database and storage are; the server must not run.
        file: a backup.
        replace: whether a server that has voices or keys may be replaced.

    Raises:
        InvalidInputError: it is no backup, or was cut or altered.
        ServerSetupError: a later version of afterwords made it.
        ServerSetupError: a server uses the database.
        ServerSetupError: there is a server already, and `replace` is not set.
        StorageFullError, StorageUnavailableError: the server is as it was.
    """
    path = open_store(settings).path
    disk.make_folder(path.parent)
    presence = Presence(path)
    try:
        if presence.enter() > 1:
            raise ServerSetupError(code="server_running")
        with (
            disk.storing(path),
            tempfile.TemporaryDirectory(prefix=".afterwords-restore-", dir=path.parent) as scratch,
        ):
            database = Path(scratch, DATABASE)
            contents, files = _verified(file, database)
            blobs = open_storage(settings)
            if not replace:
                await _check_is_empty(path, blobs, files)
            new = await _put_blobs(file, blobs, files)
            try:
                _put_database(database, path)
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
        presence.leave()
    return contents


@contextmanager
def _opened(file: Path) -> Iterator[Iterator[tuple[str, Any]]]:
    """Open a backup: the name and content of each member, in order."""
    if not file.is_file():
        raise FileError.unreadable(file, why="it is not a file" if file.exists() else "there is no such file")
    try:
        with tarfile.open(file, "r:") as tar:
            yield ((member.name, tar.extractfile(member) if member.isreg() else None) for member in tar)
    except (tarfile.TarError, EOFError) as error:
        raise InvalidInputError.for_backup(file, why="it is no tar file, or it was cut") from error


def _verified(file: Path, database: Path) -> tuple[Contents, dict[str, str]]:
    """Check every byte of a backup, and take the database out; returns the digest of each blob by its path."""
    found: dict[str, dict[str, Any]] = {}
    manifest: Any = None
    with _opened(file) as members:
        for name, content in members:
            if content is None or name in found or not _is_expected(name, is_first=not found):
                raise InvalidInputError.for_backup(
                    file, why="it is no backup of afterwords, or its parts are out of order"
                )
            if name == MANIFEST:
                manifest = _parsed(file, content.read())
                break
            digest, size = sha256(), 0
            with database.open("xb") if name == DATABASE else contextlib.nullcontext() as target:
                while piece := content.read(disk.BLOCK_BYTES):
                    digest.update(piece)
                    size += len(piece)
                    if name == HEADER:
                        _check_format(file, piece)
                    elif target is not None:
                        target.write(piece)
            found[name] = {"size": size, "sha256": digest.hexdigest()}
    if manifest is None or not database.is_file():
        raise InvalidInputError.for_backup(file, why="its end is missing")
    if manifest.get("files") != found:
        raise InvalidInputError.for_backup(file, why="its parts are not the ones that its manifest names")
    digests = {name.removeprefix(BLOBS): facts["sha256"] for name, facts in found.items() if name.startswith(BLOBS)}
    n_voices = _check_database(file, database, digests, lost=frozenset(manifest.get("lost", ())))
    size_bytes = sum(facts["size"] for facts in found.values())
    return Contents(n_voices, len(digests), size_bytes, tuple(manifest.get("lost", ()))), digests


def _is_expected(name: str, *, is_first: bool) -> bool:
    if is_first:
        return name == HEADER
    return name in (DATABASE, MANIFEST) or (name.startswith(BLOBS) and is_server_path(name.removeprefix(BLOBS)))


def _parsed(file: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidInputError.for_backup(file, why="its manifest can't be read")
    return value


def _check_format(file: Path, header: bytes) -> None:
    if _parsed(file, header).get("format") != FORMAT:
        raise InvalidInputError.for_backup(file, why="another version of afterwords made it")


def _check_database(file: Path, database: Path, digests: dict[str, str], *, lost: frozenset[str]) -> int:
    """See that the database is whole and has the audio that it names; bring it up to date. Returns its voices."""
    database.chmod(0o600)
    try:
        with _reading(database) as rows:
            is_whole = raw(rows).execute("PRAGMA integrity_check").fetchone() == ("ok",)
            wanted = dict(raw(rows).execute(_MUST_BE_THERE).fetchall())
            (n_voices,) = raw(rows).execute(_VOICES).fetchone()
        prepare(database)
        with _reading(database) as rows:
            raw(rows).execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except (sqlite3.Error, DatabaseUnavailableError) as error:
        raise InvalidInputError.for_backup(file, why="its database can't be read") from error
    if not is_whole or any(digests.get(path) != digest for path, digest in wanted.items() if path not in lost):
        raise InvalidInputError.for_backup(file, why="its database names audio that it does not hold")
    return int(n_voices)


async def _check_is_empty(path: Path, blobs: Blobs, files: dict[str, str]) -> None:
    """See that nothing would be replaced; what an earlier restore of the same file left does not count."""
    n_voices = n_keys = n_files = 0
    if path.is_file() and path.stat().st_size:
        try:
            with _reading(path) as rows:
                (n_voices,) = raw(rows).execute(_VOICES).fetchone()
                (n_keys,) = raw(rows).execute("SELECT count(*) FROM keys").fetchone()
        except (sqlite3.Error, DatabaseUnavailableError):
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
    """Write all blobs; returns those that were not there. If one can't be written, those are removed again."""
    new: list[str] = []
    try:
        with _opened(file) as members:
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
        with contextlib.suppress(AfterwordsError):  # the sweep finds what can't be removed now
            await blobs.delete(*new)
        raise
    return new


def _put_database(database: Path, path: Path) -> None:
    """Put the restored database in the place of the one that is there, with nothing of its log left."""
    with disk.locked(
        path.with_name(f"{path.name}.lock"), timeout_s=PATIENCE_S, busy=ServerSetupError(code="server_running")
    ):
        if path.is_file():
            with contextlib.suppress(sqlite3.Error, DatabaseUnavailableError), _reading(path) as rows:
                raw(rows).execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for ending in ("-wal", "-shm"):  # SQLite would apply an old log to the new file
            path.with_name(path.name + ending).unlink(missing_ok=True)
        database.replace(path)
        disk.sync_folder(path.parent)
