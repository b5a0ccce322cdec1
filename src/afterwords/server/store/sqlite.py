"""All that is SQLite's own: how the file is connected to, when it is not the one it was, and what its errors mean.

The connections are in the driver's autocommit, so that a read is one statement and the writer says BEGIN itself.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import Connection, Engine, Insert, Select, create_engine
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from afterwords import disk
from afterwords.errors import DatabaseUnavailableError, StorageFullError
from afterwords.server.store.column_types import PAGE_BYTES

__all__ = ["Line", "Lookup", "Put", "connect", "engine_for", "is_busy", "named", "raw", "upsert"]

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
    "temp_store = MEMORY",  # no text in temporary files, and none needed when the disk is full
)
_WHO: Final = "SELECT version_num, secret FROM alembic_version, server"


def engine_for(path: Path) -> Engine:
    """An engine over a file that must be there already; its connections are not pooled.

    Errors hide the parameters, which may be texts.
    """
    uri = f"file:{quote(os.fsencode(path))}?mode=rw"
    return create_engine(
        "sqlite+pysqlite://",
        creator=lambda: sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None, check_same_thread=False),
        poolclass=NullPool,
        hide_parameters=True,
    )


def connect(engine: Engine, *, patience_s: float) -> Connection:
    """Connect; a statement waits at most so long for a lock."""
    connection = engine.connect()
    try:
        for setting in (f"busy_timeout = {round(patience_s * 1000)}", *_SETTINGS):
            raw(connection).execute(f"PRAGMA {setting}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def raw(connection: Connection) -> sqlite3.Connection:
    """The driver's connection beneath."""
    found = connection.connection.dbapi_connection
    assert isinstance(found, sqlite3.Connection)
    return found


_DIALECT: Final = SQLiteDialect_pysqlite(paramstyle="named")


class Lookup:
    """A query for one row that is asked at every request.

    It is compiled once and run on the driver's connection: 8 us, where the way through SQLAlchemy's result takes 45.
    """

    def __init__(self, statement: Select[Any]) -> None:
        compiled = statement.compile(dialect=_DIALECT)
        self._sql = str(compiled)
        self._constants = {name: value for name, value in compiled.params.items() if value is not None}
        types = [column.type.dialect_impl(_DIALECT) for column in statement.selected_columns]
        readers = [kind.result_processor(_DIALECT, None) for kind in types]
        self._readers = [(place, read) for place, read in enumerate(readers) if read is not None]

    def __call__(self, connection: Connection, **values: Any) -> list[Any] | None:
        """The row, its values as the columns' types give them; None if there is none."""
        row = raw(connection).execute(self._sql, self._constants | values).fetchone()
        if row is None:
            return None
        found = list(row)
        for place, read in self._readers:
            found[place] = read(found[place])
        return found


class Put:
    """A row that is written at every request: compiled once, as a Lookup is."""

    def __init__(self, statement: Insert) -> None:
        compiled = statement.compile(dialect=_DIALECT)
        self._sql = str(compiled)
        kinds = {name: bind.type.dialect_impl(_DIALECT) for name, bind in compiled.binds.items()}
        processors = {name: kind.bind_processor(_DIALECT) for name, kind in kinds.items()}
        self._writers = {name: write for name, write in processors.items() if write is not None}

    def __call__(self, connection: Connection, values: dict[str, Any]) -> None:
        """Write it; `values` has one for every column that the statement names."""
        for name, write in self._writers.items():
            values[name] = write(values[name])
        raw(connection).execute(self._sql, values)


@dataclass(frozen=True, slots=True)
class Identity:
    """By which a database is known again: where its file lies on the disk, and what was made with it."""

    device: int
    inode: int
    version: str
    secret: bytes = field(repr=False)

    @property
    def facts(self) -> tuple[str, bytes]:
        """What it says of itself."""
        return self.version, self.secret


@dataclass(slots=True)
class Line:
    """One connection for one thread, made anew after the file was away.

    Written through a descriptor that is still open, rows would go to a file that nobody finds again; made anew by
    itself, an empty database would pass for the lost one. Nor is another file in its place touched: SQLite would
    write the log that still lies there into it.
    """

    engine: Engine
    path: Path
    identity: Identity
    patience_s: float
    _connection: Connection | None = None

    def connection(self) -> Connection:
        """The connection, to the file that lies there now.

        Raises:
            DatabaseUnavailableError: the file is missing, empty, or another one.
            sqlite3.Error, DBAPIError: it can't be read at the moment.
        """
        try:
            found = os.stat(self.path)  # noqa: PTH116 - half the time of Path.stat, at every read
        except OSError:
            found = None
        is_it = found and found.st_size and (found.st_ino, found.st_dev) == (self.identity.inode, self.identity.device)
        if not is_it:
            self.close()
            raise DatabaseUnavailableError
        if self._connection is None:
            self._connection = self._verified()
        return self._connection

    def _verified(self) -> Connection:
        connection = connect(self.engine, patience_s=self.patience_s)
        try:
            row = raw(connection).execute(_WHO).fetchone()
            if row != self.identity.facts:
                raise DatabaseUnavailableError
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error) and _code(error) == sqlite3.SQLITE_ERROR:  # no such table
                raise DatabaseUnavailableError from error
            raise
        return connection

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error, DBAPIError):
                self._connection.close()
            self._connection = None


def is_busy(error: BaseException) -> bool:
    """Whether the database is locked, and trying again may help."""
    cause = _cause(error)
    return cause is not None and _code(cause) in _BUSY


def named(error: BaseException, path: Path) -> BaseException:
    """What an error means for whoever asked; one that isn't the database's stays as it is."""
    cause = _cause(error)
    if cause is None:
        return error
    code = _code(cause)
    refusal = error
    if code == sqlite3.SQLITE_FULL or (code in _MAYBE_FULL and _is_full(path)):
        refusal = StorageFullError("the database")
    elif code in _UNAVAILABLE or code in _MAYBE_FULL or (code is None and "closed" in str(cause)):
        refusal = DatabaseUnavailableError()
    if refusal is not error:
        refusal.__cause__ = error
    return refusal


def _cause(error: BaseException) -> sqlite3.Error | None:
    cause = error.orig if isinstance(error, DBAPIError) else error
    return cause if isinstance(cause, sqlite3.Error) else None


def _code(error: sqlite3.Error) -> int | None:
    """The primary result code; None where the driver itself refused, for example on a closed connection."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _is_full(path: Path) -> bool:
    """Whether nothing can be written where the database would grow: quotas and limits are I/O errors to SQLite."""
    wal = path.with_name(f"{path.name}-wal")
    try:
        end = max((file.stat().st_size for file in (path, wal) if file.exists()), default=0)
        with tempfile.TemporaryFile(dir=path.parent, buffering=0) as probe:
            probe.seek(end)
            for _ in range(2):  # the first piece may still fit partly
                probe.write(bytes(PAGE_BYTES))
    except OSError as error:
        return isinstance(disk.refusal(error, path, why=""), StorageFullError)
    return False
