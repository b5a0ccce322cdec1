"""Everything specific to SQLite: connections, the check that the file is still the same one, errors.

Connections use the driver's autocommit mode: a read is one statement, and the writer sends BEGIN itself.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from afterwords import disk
from afterwords.errors import DatabaseUnavailableError, StorageFullError
from afterwords.server.store.column_types import PAGE_BYTES

_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_UNAVAILABLE: Final = _BUSY | {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOMEM,
}
_MAYBE_FULL: Final = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
_SETTINGS: Final = (
    "foreign_keys = ON",
    "synchronous = FULL",  # an accepted job survives a power cut
    "secure_delete = ON",
    "temp_store = MEMORY",  # no text in temporary files, and no need for them on a full disk
)
_IDENTIFY: Final = "SELECT version_num, secret FROM alembic_version, server"


def engine_for(path: Path) -> Engine:
    """Return an engine without a pool for an existing file. Its errors hide the parameters, which may be texts."""
    uri = f"file:{quote(os.fsencode(path))}?mode=rw"
    return create_engine(
        "sqlite+pysqlite://",
        creator=lambda: sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False),
        poolclass=NullPool,
        paramstyle="named",  # as `statements` passes parameters
        hide_parameters=True,
    )


def connect(engine: Engine, *, busy_timeout_s: float) -> Connection:
    """Connect. A statement waits up to `busy_timeout_s` for a lock."""
    connection = engine.connect()
    try:
        for setting in (f"busy_timeout = {round(busy_timeout_s * 1000)}", *_SETTINGS):
            raw(connection).execute(f"PRAGMA {setting}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def raw(connection: Connection) -> sqlite3.Connection:
    """Return the underlying connection of the driver."""
    found = connection.connection.dbapi_connection
    assert isinstance(found, sqlite3.Connection)
    return found


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """The place of a database file on the disk, and what was created with it."""

    device: int
    inode: int
    version: str
    secret: bytes = field(repr=False)


@dataclass(slots=True)
class VerifiedConnection:
    """A connection for one thread, which is renewed after the file was away.

    Rows written to a file that was moved or deleted would be lost, and a new empty file would pass for the lost one.
    Another file in its place is not opened either: SQLite would write the remaining log into it.
    """

    engine: Engine
    path: Path
    identity: FileIdentity
    busy_timeout_s: float
    _connection: Connection | None = None

    def connection(self) -> Connection:
        """Return the connection, after checking that the file is the same one.

        Raises:
            DatabaseUnavailableError: The file is missing, empty, or another one.
            sqlite3.Error, DBAPIError: The file can't be read at the moment.
        """
        try:
            found = os.stat(self.path)  # noqa: PTH116 - half the time of Path.stat, on every read
        except OSError:
            found = None
        is_same = (
            found and found.st_size and (found.st_ino, found.st_dev) == (self.identity.inode, self.identity.device)
        )
        if not is_same:
            self.close()
            raise DatabaseUnavailableError
        if self._connection is None:
            connection = connect(self.engine, busy_timeout_s=self.busy_timeout_s)
            try:
                if raw(connection).execute(_IDENTIFY).fetchone() != (self.identity.version, self.identity.secret):
                    raise DatabaseUnavailableError
            except BaseException as error:
                connection.close()
                if isinstance(error, sqlite3.Error) and _code(error) == sqlite3.SQLITE_ERROR:  # no such table
                    raise DatabaseUnavailableError from error
                raise
            self._connection = connection
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error, DBAPIError):
                self._connection.close()
            self._connection = None


def is_busy(error: BaseException) -> bool:
    """Return whether the database is locked, so that a retry may succeed."""
    cause = _cause(error)
    return cause is not None and _code(cause) in _BUSY


def translate_error(error: BaseException, path: Path) -> BaseException:
    """Return the API error for an error of the database, and any other error unchanged."""
    cause = _cause(error)
    if cause is None:
        return error
    code = _code(cause)
    translated = error
    if code == sqlite3.SQLITE_FULL or (code in _MAYBE_FULL and _is_full(path)):
        translated = StorageFullError.for_path("the database")
    elif code in _UNAVAILABLE or code in _MAYBE_FULL or (code is None and "closed" in str(cause)):
        translated = DatabaseUnavailableError()
    if translated is not error:
        translated.__cause__ = error
    return translated


def _cause(error: BaseException) -> sqlite3.Error | None:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return cause if isinstance(cause, sqlite3.Error) else None


def _code(error: sqlite3.Error) -> int | None:
    """Return the primary result code. None: the driver itself refused, for example on a closed connection."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _is_full(path: Path) -> bool:
    """Return whether the database can't grow. SQLite reports quotas and file size limits as I/O errors."""
    wal = path.with_name(f"{path.name}-wal")
    try:
        end = max((file.stat().st_size for file in (path, wal) if file.exists()), default=0)
        with tempfile.TemporaryFile(dir=path.parent, buffering=0) as probe:
            probe.seek(end)
            for _ in range(2):  # the first write may fit in part
                probe.write(bytes(PAGE_BYTES))
    except OSError as error:
        return isinstance(disk.write_error(error, path, why=""), StorageFullError)
    return False
