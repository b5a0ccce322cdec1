"""The one thread that writes: whatever has queued up while it wrote goes into the next transaction together.

Apart from the database so that what a unit of work is, and when it is too late for one, can be read in one place.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from asyncio import AbstractEventLoop, Future
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Final

from sqlalchemy import Connection

from afterwords.errors import DatabaseUnavailableError, StorageFullError
from afterwords.server.store.reserve import Reserve
from afterwords.server.store.sqlite import Line, is_busy, named, raw

BATCH_MAX: Final = 256


@dataclass(eq=False, slots=True)
class Unit:
    """Work that is done as a whole or not at all, and who waits for it.

    Attributes:
        deadline: by `time.monotonic()`; later than that it is not begun any more.
        is_outside: it can't run within a transaction.
        is_freeing: what it removes is worth the last room on the disk.
    """

    work: Callable[[Connection], Any]
    loop: AbstractEventLoop
    future: Future[Any]
    deadline: float
    is_outside: bool = False
    is_freeing: bool = False
    result: Any = None
    error: BaseException | None = None
    has_begun: bool = False
    _taken: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> bool:
        """Decide what becomes of it; only the first to ask may, the writer or whoever waits."""
        return self._taken.acquire(blocking=False)

    def begin(self) -> bool:
        """Whether to do it: in time, and still wanted."""
        if not self.has_begun:
            self.has_begun = not self.is_late and self.take()
        return self.has_begun

    @property
    def is_late(self) -> bool:
        """Nobody waits for it any more."""
        return time.monotonic() >= self.deadline or (self._taken.locked() and not self.has_begun)

    def settle(self) -> None:
        """Tell whoever waits, on their loop."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Writer:
    """Takes units until it is stopped; nothing that happens to one of them ends it."""

    def __init__(self, line: Line, reserve: Reserve) -> None:
        self._line = line
        self._reserve = reserve
        self._queue: SimpleQueue[Unit | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="afterwords-store", daemon=True)
        self._thread.start()

    def put(self, unit: Unit) -> None:
        self._queue.put(unit)

    def stop(self) -> None:
        """Finish what is queued, and end; blocks."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            batch, is_last = self._next_batch()
            try:
                self._serve(batch)
            except BaseException as error:  # noqa: BLE001 - an edge: the thread must outlive whatever a batch meets
                _fail(batch, error)
            _tell(batch)
        self._line.close()

    def _next_batch(self) -> tuple[list[Unit], bool]:
        batch: list[Unit] = []
        unit = self._queue.get()
        while unit is not None:
            batch.append(unit)
            if len(batch) == BATCH_MAX:
                return batch, False
            try:
                unit = self._queue.get_nowait()
            except Empty:
                return batch, False
        return batch, True

    def _serve(self, batch: list[Unit]) -> None:
        self._commit([unit for unit in batch if not unit.is_outside])
        if full := _without_room(batch):
            self._begin_log_again()
            self._commit_alone(full)
        if freeing := [unit for unit in _without_room(full) if unit.is_freeing]:
            self._reserve.give()
            self._commit_alone(freeing)
        for unit in batch:
            if unit.is_outside and unit.begin():
                self._run_outside(unit)

    def _commit_alone(self, units: Iterable[Unit]) -> None:
        """Do units once more: one that needs little room may have failed with one that needs much."""
        for unit in units:
            unit.error = None
            self._commit([unit])

    def _commit(self, units: list[Unit]) -> None:
        """Do units in one transaction. Only after COMMIT does any of them count as done."""
        if not units:
            return
        try:
            connection = self._begun(units)
            if connection is None:
                _fail(units, DatabaseUnavailableError())
                return
            for unit in units:
                if unit.begin():
                    self._do(connection, unit)
            raw(connection).execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 - whatever it is, the callers are told and the next batch begins
            _fail(units, self._recovered(error))

    def _begun(self, units: Iterable[Unit]) -> Connection | None:
        """Begin a transaction once no other process writes; None if by then nobody waits any more."""
        while True:
            try:
                connection = self._line.connection()
                raw(connection).execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
                if all(unit.is_late for unit in units):
                    return None
            else:
                return connection

    def _do(self, connection: Connection, unit: Unit) -> None:
        driver = raw(connection)
        driver.execute("SAVEPOINT unit")
        try:
            unit.result = unit.work(connection)
        except BaseException as error:
            unit.error = named(error, self._line.path)
            if isinstance(unit.error, DatabaseUnavailableError) or not driver.in_transaction:
                raise  # SQLite has rolled back all units, or will
            driver.execute("ROLLBACK TO unit")
        driver.execute("RELEASE unit")

    def _run_outside(self, unit: Unit) -> None:
        try:
            unit.result = unit.work(self._line.connection())
        except BaseException as error:  # noqa: BLE001 - it goes to the one who asked
            unit.error = self._recovered(error)

    def _begin_log_again(self) -> None:
        """Write the log from its start again: where the disk is full, the room it has is all there is."""
        with contextlib.suppress(sqlite3.Error, DatabaseUnavailableError):
            raw(self._line.connection()).execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    def _recovered(self, error: BaseException) -> BaseException:
        """Leave no transaction open, and no connection that may be broken; returns what to tell."""
        with contextlib.suppress(Exception):
            driver = raw(self._line.connection())
            if driver.in_transaction:
                driver.execute("ROLLBACK")
        refusal = named(error, self._line.path)
        if not isinstance(refusal, StorageFullError) and not is_busy(error):
            self._line.close()
        return refusal


def _without_room(units: Iterable[Unit]) -> list[Unit]:
    return [unit for unit in units if isinstance(unit.error, StorageFullError)]


def _fail(units: Iterable[Unit], error: BaseException) -> None:
    for unit in units:
        unit.has_begun = unit.has_begun or unit.take()
        unit.error = error


def _tell(batch: Iterable[Unit]) -> None:
    """Give every unit's outcome to its loop, with one call for each loop."""
    loops: dict[AbstractEventLoop, list[Unit]] = {}
    for unit in batch:
        if not unit.has_begun and unit.take():
            unit.error = DatabaseUnavailableError()
        loops.setdefault(unit.loop, []).append(unit)
    for loop, units in loops.items():
        with contextlib.suppress(RuntimeError):  # it was closed: nobody waits any more
            loop.call_soon_threadsafe(_settle, units)


def _settle(units: Iterable[Unit]) -> None:
    for unit in units:
        unit.settle()
