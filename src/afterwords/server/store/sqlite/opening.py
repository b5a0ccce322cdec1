"""Creates and migrates the database file, one process at a time.

Alembic is imported only to migrate, so that a server on an up-to-date database starts without it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from afterwords import disk
from afterwords.errors import DatabaseUnavailableError, ServerSetupError, pip_install
from afterwords.server.store.column_types import PAGE_BYTES
from afterwords.server.store.sqlite.connections import FileIdentity, connect, engine_for, raw

HEAD: Final = "0006"
"""The schema version of this release."""
MIGRATIONS: Final = Path(__file__).parents[1] / "migrations"
LOCK_TIMEOUT_S: Final = 60
BUSY_TIMEOUT_S: Final = 10
SECRET_BYTES: Final = 32


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
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    with disk.translate_errors(path), contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    script = ScriptDirectory(str(MIGRATIONS))
    with contextlib.closing(connect(engine_for(path), busy_timeout_s=BUSY_TIMEOUT_S)) as connection:
        driver = raw(connection)
        driver.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        driver.execute("PRAGMA journal_mode = WAL")
        driver.execute("BEGIN IMMEDIATE")
        try:
            found = _version(connection)
            if found and found not in {revision.revision for revision in script.walk_revisions()}:
                raise ServerSetupError(
                    f"The database has schema {found}, but this version supports up to {HEAD}.",
                    code="newer_database",
                    hint=f"install a newer afterwords: {pip_install(options='--upgrade')}",
                )
            environment = EnvironmentContext(Config(), script)
            environment.configure(connection=connection, fn=lambda now, _: script._upgrade_revs("head", now))
            environment.run_migrations()
            if found is None:
                driver.execute("INSERT INTO server (secret) VALUES (?)", [os.urandom(SECRET_BYTES)])
        except BaseException:
            driver.rollback()
            raise
        driver.commit()
    return found is None
