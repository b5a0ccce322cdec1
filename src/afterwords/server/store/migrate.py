"""The versions of the schema, and the migrations between them: the same for every database.

Alembic is imported only to migrate, so that a server on an up-to-date database, or a new one, starts without it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from sqlalchemy import Column, Connection, MetaData, PrimaryKeyConstraint, String, Table, insert, inspect, select

from afterwords.errors import ServerSetupError, pip_install
from afterwords.server.store.schema import metadata, server

HEAD: Final = "0021"
"""The schema version of this release."""
MIGRATIONS: Final = Path(__file__).parent / "migrations"
SECRET_BYTES: Final = 32

alembic_version: Final = Table(  # as Alembic makes it
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


def find_version(connection: Connection) -> str | None:
    """Return the schema version of a database. None: it has no schema."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(select(alembic_version.c.version_num)).scalar()


def upgrade(connection: Connection) -> bool:
    """Run the missing migrations in the transaction of the connection. Return whether there was no schema.

    In a new SQLite database, the tables are created at once. Postgres runs the migrations, for its triggers.

    Raises:
        ServerSetupError: A later version of afterwords has changed the schema.
    """
    found = find_version(connection)
    if found is None and connection.dialect.name == "sqlite":
        metadata.create_all(connection, checkfirst=False)
        alembic_version.create(connection, checkfirst=False)
        connection.execute(insert(alembic_version).values(version_num=HEAD))
    else:
        _run_migrations(connection, found)
    if found is None:
        connection.execute(insert(server).values(secret=os.urandom(SECRET_BYTES)))
    return found is None


def _run_migrations(connection: Connection, found: str | None) -> None:
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(MIGRATIONS))
    if found and found not in {revision.revision for revision in script.walk_revisions()}:
        raise newer_database(found)
    environment = EnvironmentContext(Config(), script)
    environment.configure(connection=connection, fn=lambda now, _: script._upgrade_revs("head", now))
    environment.run_migrations()


def check_version(version: str | None, *, what: str = "The database") -> None:
    """Raise ServerSetupError unless a schema is that of this version."""
    if version is not None and version > HEAD:
        raise newer_database(version)
    if version != HEAD:
        raise ServerSetupError(
            f"{what} has schema {version or '(none)'}, and this version needs {HEAD}.", code="older_database"
        )


def newer_database(version: str) -> ServerSetupError:
    """Return the error for a schema that this version does not know."""
    return ServerSetupError(
        f"The database has schema {version}, but this version supports up to {HEAD}.",
        code="newer_database",
        hint=f"install a newer afterwords: {pip_install(options='--upgrade')}",
    )
