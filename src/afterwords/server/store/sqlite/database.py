"""One SQLite file: reads run on the event loop, writes on one thread.

A point read costs less than the switch to a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, update

from afterwords.errors import DatabaseUnavailableError, StorageFullError
from afterwords.server.store.database import Work
from afterwords.server.store.schema import server
from afterwords.server.store.sqlite.connections import (
    FileIdentity,
    VerifiedConnection,
    connect,
    engine_for,
    is_busy,
    raw,
    translate_error,
)
from afterwords.server.store.sqlite.disk_reserve import DiskReserve
from afterwords.server.store.sqlite.opening import prepare
from afterwords.server.store.sqlite.presence import Presence
from afterwords.server.store.sqlite.write_queue import Writer, WriteTask

P = ParamSpec("P")
T = TypeVar("T")

WRITE_DEADLINE_S: Final = 1.8
READ_DEADLINE_S: Final = 1.5
SCRUB_DEADLINE_S: Final = 0.1
LOCK_SLICE_S: Final = 0.05
"""How long the writer waits for a lock before it checks whether its tasks are still wanted."""
SESSION_BUSY_S: Final = 10
N_READ_THREADS: Final = 4
CACHE_MAX: Final = 4096


class SqliteDatabase:
    """The port `Database` on a SQLite file, which is unavailable while it is locked, missing, replaced or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine: Engine = engine_for(path)
        self._presence = Presence(path)
        self._reserve = DiskReserve(path.with_name(f"{path.name}.reserve"))
        self._identity: FileIdentity | None = None
        self._reader: VerifiedConnection | None = None
        self._writer: Writer | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._is_scrub_due = False
        self._cache: dict[tuple[str, ...], Any] = {}
        self._version: tuple[Connection, Any] | None = None

    @property
    def secret(self) -> bytes:
        if self._identity is None:
            raise DatabaseUnavailableError
        return self._identity.secret

    async def open(self) -> bool:
        """Create the file if it is missing, migrate its schema, and connect. Return whether it is new."""
        try:
            identity, is_new = await asyncio.to_thread(prepare, self.path)
            await asyncio.to_thread(self._reserve.make)
        except BaseException as error:
            translated = translate_error(error, self.path)
            if translated is error:
                raise
            raise translated from error
        self._identity = identity
        self._threads = ThreadPoolExecutor(N_READ_THREADS, thread_name_prefix="afterwords-read")
        self._reader = VerifiedConnection(self._engine, self.path, identity, busy_timeout_s=0)
        connection = VerifiedConnection(self._engine, self.path, identity, busy_timeout_s=LOCK_SLICE_S)
        self._writer = Writer(connection, self._reserve)
        return is_new

    async def close(self) -> None:
        """Finish the queued writes, and disconnect."""
        writer, self._writer = self._writer, None
        reader, self._reader = self._reader, None
        if writer:
            await asyncio.to_thread(writer.stop)
        if reader:
            reader.close()
        if self._threads:
            self._threads.shutdown(wait=False)
        self._engine.dispose()

    async def announce(self, *, monotonic: float) -> int:  # noqa: ARG002 - the system releases the locks of the dead
        return await asyncio.to_thread(self._presence.enter)

    async def count_servers(self, *, monotonic: float) -> int:  # noqa: ARG002 - likewise
        return await asyncio.to_thread(self._presence.enter)

    async def stay(self, *, monotonic: float) -> None:
        """Do nothing: a process holds its lock until it ends."""

    async def leave(self) -> None:
        self._presence.leave()

    @contextlib.contextmanager
    def session(self, *, is_writing: bool = False) -> Iterator[Connection]:
        try:
            with contextlib.closing(connect(self._engine, busy_timeout_s=SESSION_BUSY_S)) as connection:
                raw(connection).execute("BEGIN IMMEDIATE" if is_writing else "BEGIN")
                yield connection
                raw(connection).execute("COMMIT")
        except Exception as error:
            translated = translate_error(error, self.path)
            if translated is error:
                raise
            raise translated from error

    def find_damage(self, connection: Connection) -> list[str]:
        driver = raw(connection)
        found = [str(row[0]) for row in driver.execute("PRAGMA integrity_check") if row[0] != "ok"]
        return found + [f"{row[0]}: a row without its {row[2]}" for row in driver.execute("PRAGMA foreign_key_check")]

    def notify(self, message: str) -> None:
        """Do nothing: other processes on this machine poll."""

    def listen(self, on_message: Callable[[str], None]) -> None:
        """Do nothing."""

    async def read_time(self) -> float | None:
        return None

    async def check(self, now: datetime) -> None:
        """Check that the database can be read and written."""
        await self.read(lambda connection: raw(connection).execute("SELECT 1 FROM server").fetchone())
        await self.write(lambda connection: connection.execute(update(server).values(checked_at=now)).close())

    async def read(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read on the event loop, or in a thread if the database is locked."""
        return await self._read(lambda connection: work(connection, *args, **kwargs), None)

    async def read_cached(self, key: tuple[str, ...], work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read, or return the last result for `key` if no process has written to the database since.

        SQLite counts the writes; the counter costs a tenth of a point read.
        """
        return await self._read(lambda connection: work(connection, *args, **kwargs), key)

    async def _read(self, work: Callable[[Connection], T], key: tuple[str, ...] | None) -> T:
        reader = self._reader
        if reader is None:
            raise DatabaseUnavailableError
        try:
            connection = reader.connection()
            if key is None:
                return work(connection)
            version = (connection, raw(connection).execute("PRAGMA data_version").fetchone())
            if version != self._version or len(self._cache) >= CACHE_MAX:
                self._version = version
                self._cache.clear()
            if key not in self._cache:
                self._cache[key] = work(connection)
            found: T = self._cache[key]
            return found
        except Exception as error:
            if not is_busy(error):
                translated = translate_error(error, self.path)
                if translated is error:
                    raise
                reader.close()
                raise translated from error
        try:
            return await asyncio.wait_for(self.read_long(work), WRITE_DEADLINE_S)
        except TimeoutError:
            raise DatabaseUnavailableError from None

    async def read_long(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read in a thread, so that a long read does not block the event loop."""
        identity = self._identity
        if self._reader is None or identity is None:
            raise DatabaseUnavailableError

        def run() -> T:
            connection = VerifiedConnection(self._engine, self.path, identity, busy_timeout_s=READ_DEADLINE_S)
            try:
                return work(connection.connection(), *args, **kwargs)
            except Exception as error:
                translated = translate_error(error, self.path)
                if translated is error:
                    raise
                raise translated from error
            finally:
                connection.close()

        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    async def write(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work in a transaction. An exception rolls back this work only."""
        result: T = await self._enqueue(lambda connection: work(connection, *args, **kwargs))
        return result

    async def free(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that frees space: `write`, but on a full disk it may use the disk reserve."""
        result: T = await self._enqueue(lambda connection: work(connection, *args, **kwargs), is_freeing=True)
        return result

    async def scrub(self) -> None:
        """Remove deleted content from the write-ahead log as well, and restore the disk reserve.

        If other processes keep the log busy, or the disk is full, `scrub_if_due` does it later.
        """
        self._is_scrub_due = True
        await self.scrub_if_due()

    async def scrub_if_due(self) -> None:
        if not self._is_scrub_due:
            return

        def truncate_log(connection: Connection) -> bool:
            busy, _, _ = raw(connection).execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return not busy and self._reserve.make()

        try:
            self._is_scrub_due = not await self._enqueue(truncate_log, deadline_s=SCRUB_DEADLINE_S, is_outside=True)
        except (DatabaseUnavailableError, StorageFullError):
            self._is_scrub_due = True

    async def _enqueue(
        self,
        work: Callable[[Connection], Any],
        *,
        deadline_s: float = WRITE_DEADLINE_S,
        is_outside: bool = False,
        is_freeing: bool = False,
    ) -> Any:
        if self._writer is None:
            raise DatabaseUnavailableError
        loop = asyncio.get_running_loop()
        task = WriteTask(work, loop, loop.create_future(), time.monotonic() + deadline_s, is_outside, is_freeing)

        def give_up() -> None:
            if task.take():  # a task that has begun is awaited: only its end shows whether it was done
                task.error = DatabaseUnavailableError()
                task.settle()

        timer = loop.call_later(deadline_s, give_up)
        self._writer.put(task)
        try:
            return await task.future
        finally:
            timer.cancel()
            task.take()  # if the caller was cancelled, the writer skips the task
