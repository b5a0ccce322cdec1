"""The versions of the schema, and the migrations between them: the same for every database.

Alembic is imported only to migrate, so that a server on an up-to-date database starts without it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, insert, inspect, text

from afterwords.errors import ServerSetupError, pip_install
from afterwords.server.store.schema import server

HEAD: Final = "0017"
"""The schema version of this release."""
MIGRATIONS: Final = Path(__file__).parent / "migrations"
SECRET_BYTES: Final = 32


def find_version(connection: Connection) -> str | None:
    """Return the schema version of a database. None: it has no schema."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return version


def upgrade(connection: Connection) -> bool:
    """Run the missing migrations in the transaction of the connection. Return whether there was no schema.

    Raises:
        ServerSetupError: A later version of afterwords has changed the schema.
    """
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(MIGRATIONS))
    found = find_version(connection)
    if found and found not in {revision.revision for revision in script.walk_revisions()}:
        raise newer_database(found)
    environment = EnvironmentContext(Config(), script)
    environment.configure(connection=connection, fn=lambda now, _: script._upgrade_revs("head", now))
    environment.run_migrations()
    if found is None:
        connection.execute(insert(server).values(secret=os.urandom(SECRET_BYTES)))
    return found is None


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
