"""Creates and migrates the database file, one process at a time."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from afterwords import disk
from afterwords.errors import DatabaseUnavailableError
from afterwords.server.store.column_types import PAGE_BYTES
from afterwords.server.store.migrate import HEAD, upgrade
from afterwords.server.store.sqlite.connections import FileIdentity, connect, engine_for, raw

LOCK_TIMEOUT_S: Final = 60
BUSY_TIMEOUT_S: Final = 10


def prepare(path: Path) -> tuple[FileIdentity, bool]:
    """Create or migrate the database. Return its identity, and whether it is new.

    Raises:
        ServerSetupError: A later version has changed the schema.
        DatabaseUnavailableError: Another process holds the lock for too long.
    """
    if path.exists() and (identity := _identity(path)):
        return identity, False
    disk.make_folder(path.parent)
    lock = path.with_name(f"{path.name}.lock")
    with disk.lock(lock, timeout_s=LOCK_TIMEOUT_S, busy=DatabaseUnavailableError()):
        if path.exists() and (identity := _identity(path)):
            return identity, False
        is_new = _migrate(path)
        identity = _identity(path)
    if identity is None:
        raise DatabaseUnavailableError
    return identity, is_new


def _identity(path: Path) -> FileIdentity | None:
    """Return the identity of an up-to-date database. None: it must be migrated, or is locked."""
    try:
        with contextlib.closing(connect(engine_for(path), busy_timeout_s=0)) as connection:
            version = _version(connection)
            if version != HEAD:
                return None
            (secret,) = raw(connection).execute("SELECT secret FROM server").fetchone()
            file = path.stat()
            return FileIdentity(file.st_dev, file.st_ino, version, secret)
    except sqlite3.OperationalError:
        return None


def _version(connection: Connection) -> str | None:
    try:
        row = raw(connection).execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:  # no such table
            raise
        return None
    return row[0] if row else None


def _migrate(path: Path) -> bool:
    """Run the missing migrations in one transaction. Return whether there was no schema."""
    with disk.translate_errors(path), contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with contextlib.closing(connect(engine_for(path), busy_timeout_s=BUSY_TIMEOUT_S)) as connection:
        driver = raw(connection)
        driver.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        driver.execute("PRAGMA journal_mode = WAL")
        driver.execute("BEGIN IMMEDIATE")
        try:
            is_new = upgrade(connection)
        except BaseException:
            driver.rollback()
            raise
        driver.commit()
    return is_new
