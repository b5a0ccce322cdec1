"""One SQLite file, read on the event loop and written by one thread.

A point read costs less than the hop to a thread would. Both know units of work as plain functions over a
connection, so that another database can run the same ones in its own way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine

from afterwords.errors import DatabaseUnavailableError, StorageFullError
from afterwords.server.store.migrate import prepare
from afterwords.server.store.reserve import Reserve
from afterwords.server.store.sqlite import Identity, Line, engine_for, is_busy, named, raw
from afterwords.server.store.write_queue import Unit, Writer

T = TypeVar("T")
Work = Callable[[Connection], T]

WRITE_DEADLINE_S: Final = 1.8
READ_DEADLINE_S: Final = 1.5
SCRUB_DEADLINE_S: Final = 0.1
LOCK_SLICE_S: Final = 0.05
"""How long the writer waits for a lock before it looks whether anybody still wants it to."""
N_READ_THREADS: Final = 4
MEMORY_MAX: Final = 4096


class Database:
    """Reads and writes, each a whole step.

    All raise DatabaseUnavailableError within 2 s where the file is locked, away, another one, or no database, and
    StorageFullError where its disk is full; they work again by themselves once it is as it was.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine: Engine = engine_for(path)
        self._reserve = Reserve(path.with_name(f"{path.name}.reserve"))
        self._identity: Identity | None = None
        self._reader: Line | None = None
        self._writer: Writer | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._is_scrub_due = False
        self._memory: dict[tuple[str, ...], Any] = {}
        self._version: tuple[Connection, Any] | None = None

    @property
    def secret(self) -> bytes:
        if self._identity is None:
            raise DatabaseUnavailableError
        return self._identity.secret

    async def open(self) -> bool:
        """Make the file if there is none, bring its schema up to date, and connect; True if it was new.

        Raises:
            NewerDatabaseError: a later version has changed the schema.
        """
        try:
            identity, is_new = await asyncio.to_thread(prepare, self.path)
            await asyncio.to_thread(self._reserve.make)
        except BaseException as error:
            refusal = named(error, self.path)
            if refusal is error:
                raise
            raise refusal from error
        self._identity = identity
        self._threads = ThreadPoolExecutor(N_READ_THREADS, thread_name_prefix="afterwords-read")
        self._reader = Line(self._engine, self.path, identity, patience_s=0)
        self._writer = Writer(Line(self._engine, self.path, identity, patience_s=LOCK_SLICE_S), self._reserve)
        return is_new

    async def close(self) -> None:
        """Finish what is queued, and disconnect."""
        writer, self._writer = self._writer, None
        reader, self._reader = self._reader, None
        if writer:
            await asyncio.to_thread(writer.stop)
        if reader:
            reader.close()
        if self._threads:
            self._threads.shutdown(wait=False)
        self._engine.dispose()

    async def check(self, work: Work[Any]) -> None:
        """See that it can be read, and written by this."""
        await self.read(lambda connection: raw(connection).execute("SELECT 1 FROM server").fetchone())
        await self.write(work)

    async def read(self, work: Work[T], *, memo: tuple[str, ...] | None = None) -> T:
        """Read at once; where that is not possible, in a thread that waits.

        With a `memo`, what was read under that name stands as long as nobody, here or elsewhere, has written anything:
        SQLite counts that, and asking it costs a tenth of the reading.
        """
        reader = self._reader
        if reader is None:
            raise DatabaseUnavailableError
        try:
            connection = reader.connection()
            return work(connection) if memo is None else self._remembered(connection, work, memo)
        except Exception as error:
            if is_busy(error):
                pass
            elif (refusal := named(error, self.path)) is error:
                raise
            else:
                reader.close()
                raise refusal from error
        try:
            return await asyncio.wait_for(self.read_long(work), WRITE_DEADLINE_S)
        except TimeoutError:
            raise DatabaseUnavailableError from None

    def _remembered(self, connection: Connection, work: Work[T], memo: tuple[str, ...]) -> T:
        version = (connection, raw(connection).execute("PRAGMA data_version").fetchone())
        if version != self._version or len(self._memory) >= MEMORY_MAX:
            self._version = version
            self._memory.clear()
        if memo not in self._memory:
            self._memory[memo] = work(connection)
        found: T = self._memory[memo]
        return found

    async def read_long(self, work: Work[T]) -> T:
        """Read what may take a while, without holding up the event loop."""
        if self._reader is None:
            raise DatabaseUnavailableError
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read_patiently, work)

    def _read_patiently(self, work: Work[T]) -> T:
        if self._identity is None or self._reader is None:
            raise DatabaseUnavailableError
        line = Line(self._engine, self.path, self._identity, patience_s=READ_DEADLINE_S)
        try:
            return work(line.connection())
        except Exception as error:
            refusal = named(error, self.path)
            if refusal is error:
                raise
            raise refusal from error
        finally:
            line.close()

    async def write(self, work: Work[T], *, is_freeing: bool = False) -> T:
        """Have work done in a transaction; what it raises undoes it and nothing else.

        On a full disk, work that frees room gets what was held in reserve for it.
        """
        result: T = await self._queued(work, deadline_s=WRITE_DEADLINE_S, is_freeing=is_freeing)
        return result

    async def scrub(self) -> None:
        """Take what was removed out of the log, too, and see that there is a reserve.

        Where others keep the log busy, or the disk is full, `scrub_if_due` does it later.
        """
        self._is_scrub_due = True
        await self.scrub_if_due()

    async def scrub_if_due(self) -> None:
        if not self._is_scrub_due:
            return
        try:
            self._is_scrub_due = not await self._queued(self._scrubbed, deadline_s=SCRUB_DEADLINE_S, is_outside=True)
        except (DatabaseUnavailableError, StorageFullError):
            self._is_scrub_due = True

    def _scrubbed(self, connection: Connection) -> bool:
        busy, _, _ = raw(connection).execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy and self._reserve.make()

    async def _queued(
        self, work: Work[Any], *, deadline_s: float, is_outside: bool = False, is_freeing: bool = False
    ) -> Any:
        if self._writer is None:
            raise DatabaseUnavailableError
        loop = asyncio.get_running_loop()
        unit = Unit(work, loop, loop.create_future(), time.monotonic() + deadline_s, is_outside, is_freeing)
        timer = loop.call_later(deadline_s, _give_up, unit)
        self._writer.put(unit)
        try:
            return await unit.future
        finally:
            timer.cancel()
            unit.take()  # whoever was cancelled wants it no more


def _give_up(unit: Unit) -> None:
    """Answer whoever waits, unless it has begun: then only its end tells whether it was done."""
    if unit.take():
        unit.error = DatabaseUnavailableError()
        unit.settle()
