"""Work on whole databases: migrate, check, and copy between SQLite and Postgres. Called by `afterwords db`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from afterwords.errors import FileError, ServerSetupError
from afterwords.server.app_state import open_store
from afterwords.server.clock import SystemClock
from afterwords.server.settings import Settings
from afterwords.server.store.copy import copy_rows, count_rows
from afterwords.server.store.database import Database
from afterwords.server.store.migrate import HEAD, check_version, find_version
from afterwords.server.store.store import open_database


@dataclass(frozen=True, slots=True)
class DatabaseState:
    """What a check found.

    Attributes:
        version: Version of the schema. None: there is none.
        problems: What is damaged. Empty: nothing.
        counts: Number of rows of each table, if the schema is that of this version.
    """

    version: str | None
    problems: tuple[str, ...] = ()
    counts: dict[str, int] | None = None

    @property
    def is_current(self) -> bool:
        """Whether the schema is that of this version."""
        return self.version == HEAD


async def migrate(settings: Settings) -> DatabaseState:
    """Create or migrate the database of a server. Return its state before.

    Raises:
        ServerSetupError: The database refuses the connection, or a later version has changed the schema.
        DatabaseUnavailableError: The database does not answer.
    """
    store = open_store(settings)
    path = store.path
    before = DatabaseState(None) if path and not path.exists() else await asyncio.to_thread(_inspect, store.database)
    try:
        await store.open()
    finally:
        await store.close()
    return before


async def check(settings: Settings) -> DatabaseState:
    """Check the database of a server without changing it.

    Raises:
        FileError: There is no database.
        ServerSetupError: It refuses the connection.
        DatabaseUnavailableError: It does not answer.
    """
    return await asyncio.to_thread(_inspect, open_store(settings).database)


def _inspect(database: Database) -> DatabaseState:
    check_exists(database)
    with database.session() as connection:
        version = find_version(connection)
        if version != HEAD:
            return DatabaseState(version)
        return DatabaseState(version, tuple(database.find_damage(connection)), count_rows(connection))


async def copy(source_url: str, target_url: str) -> dict[str, int]:
    """Copy all rows from a database to an empty one, which then has its identity, too. Return their numbers.

    Servers of both must be stopped. Audio is not copied: it stays in its storage.

    Raises:
        InvalidOptionError: A URL is malformed.
        FileError: There is no database to copy.
        ServerSetupError: A database is in use or refuses the connection, the target has rows, or the source has the
            schema of another version.
        DatabaseUnavailableError: A database does not answer.
    """
    source, target = (open_database(url, folder=Path.cwd()) for url in (source_url, target_url))
    state = await asyncio.to_thread(_inspect, source)
    check_version(state.version, what="The source")
    async with _alone(source), _alone(target):
        return await asyncio.to_thread(_copy, source, target)


def _copy(source: Database, target: Database) -> dict[str, int]:
    with source.session() as rows, target.session(is_writing=True) as new:
        if n_rows := sum(count_rows(new).values()):
            raise ServerSetupError(
                f"The target already has {n_rows:,} rows.", code="server_not_empty", hint="name an empty database."
            )
        return copy_rows(rows, new)


@asynccontextmanager
async def _alone(database: Database) -> AsyncIterator[None]:
    """Open a database that no server uses, and keep servers from being restored or copied meanwhile."""
    try:
        await database.open()
        await announce_alone(database, message="A running server uses the database.")
        yield
    finally:
        await database.leave()
        await database.close()


async def announce_alone(database: Database, *, message: str = "") -> None:
    """Register this process as a server of the database.

    Raises:
        ServerSetupError: It has one already; `message` says so.
    """
    if await database.announce(monotonic=await database.read_time() or SystemClock().monotonic()) > 1:
        raise ServerSetupError(message, code="server_running")


def check_exists(database: Database) -> None:
    """Raise FileError if the file of a database is missing."""
    if database.path is not None and not database.path.is_file():
        raise FileError.unreadable(database.path, why="there is no database of a server")
