"""Bringing the file into being and its schema up to date, by one process at a time.

Alembic loads only if there is something to do: a server that starts on a database in order need not pay for it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from afterwords import disk
from afterwords.errors import DatabaseUnavailableError, NewerDatabaseError
from afterwords.server.store.column_types import PAGE_BYTES
from afterwords.server.store.sqlite import Identity, connect, engine_for, raw

HEAD: Final = "0006"
"""The schema that this version reads and writes."""
MIGRATIONS: Final = Path(__file__).parent / "migrations"
LOCK_TIMEOUT_S: Final = 60
PATIENCE_S: Final = 10
SECRET_BYTES: Final = 32


def prepare(path: Path) -> tuple[Identity, bool]:
    """See that there is a database with the present schema; returns how to know it, and whether it was made now.

    Raises:
        NewerDatabaseError: a later version has changed the schema.
        DatabaseUnavailableError: another process has kept it locked.
    """
    if path.exists() and (identity := _identity(path)):
        return identity, False
    disk.make_folder(path.parent)
    lock = path.with_name(f"{path.name}.lock")
    with disk.locked(lock, timeout_s=LOCK_TIMEOUT_S, busy=DatabaseUnavailableError()):
        if path.exists() and (identity := _identity(path)):
            return identity, False
        is_new = _migrate(path)
        identity = _identity(path)
    if identity is None:
        raise DatabaseUnavailableError
    return identity, is_new


def _identity(path: Path) -> Identity | None:
    """What the file says of itself; None where there is something to migrate, or to wait for."""
    try:
        with contextlib.closing(connect(engine_for(path), patience_s=0)) as connection:
            version = _version(connection)
            if version != HEAD:
                return None
            (secret,) = raw(connection).execute("SELECT secret FROM server").fetchone()
            file = path.stat()
            return Identity(file.st_dev, file.st_ino, version, secret)
    except sqlite3.OperationalError:
        return None


def _version(connection: Connection) -> str | None:
    """Its schema; None where it has none yet."""
    try:
        row = raw(connection).execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:  # no such table
            raise
        return None
    return row[0] if row else None


def _migrate(path: Path) -> bool:
    """Do all migrations that are missing, in one transaction; True if there was no schema."""
    with disk.storing(path), contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with contextlib.closing(connect(engine_for(path), patience_s=PATIENCE_S)) as connection:
        driver = raw(connection)
        driver.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        driver.execute("PRAGMA journal_mode = WAL")
        driver.execute("BEGIN IMMEDIATE")
        try:
            is_new = _version(connection) is None
            _upgrade(connection)
            if is_new:
                driver.execute("INSERT INTO server (secret) VALUES (?)", [os.urandom(SECRET_BYTES)])
        except BaseException:
            driver.rollback()
            raise
        driver.commit()
    return is_new


def _upgrade(connection: Connection) -> None:
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(MIGRATIONS))
    found = _version(connection)
    if found and found not in {revision.revision for revision in script.walk_revisions()}:
        raise NewerDatabaseError(found=found, known=HEAD)
    environment = EnvironmentContext(Config(), script)
    environment.configure(connection=connection, fn=lambda now, _: script._upgrade_revs("head", now))
    environment.run_migrations()
