"""The writer thread: tasks that queue up during one transaction share the next one. `Database` owns it."""

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
from afterwords.server.store.sqlite.connections import VerifiedConnection, is_busy, raw, translate_error
from afterwords.server.store.sqlite.disk_reserve import DiskReserve

BATCH_MAX: Final = 256


@dataclass(eq=False, slots=True)
class WriteTask:
    """Atomic work, and the future that awaits it.

    Attributes:
        deadline: Time of `time.monotonic()` after which the task is not started.
        is_outside: The work can't run in a transaction.
        is_freeing: The work may use the disk reserve.
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
        """Claim the right to decide the outcome. Only the first call, by the writer or the waiting side, succeeds."""
        return self._taken.acquire(blocking=False)

    def begin(self) -> bool:
        """Return whether to run the task: it is in time, and still awaited."""
        if not self.has_begun:
            self.has_begun = not self.is_late and self.take()
        return self.has_begun

    @property
    def is_late(self) -> bool:
        """Whether the task is past its deadline or no longer awaited."""
        return time.monotonic() >= self.deadline or (self._taken.locked() and not self.has_begun)

    def settle(self) -> None:
        """Resolve the future. Call this on its event loop."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Writer:
    """Runs tasks until `stop`. No failure of a task ends the thread."""

    def __init__(self, connection: VerifiedConnection, reserve: DiskReserve) -> None:
        self._connection = connection
        self._reserve = reserve
        self._queue: SimpleQueue[WriteTask | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="afterwords-store", daemon=True)
        self._thread.start()

    def put(self, task: WriteTask) -> None:
        self._queue.put(task)

    def stop(self) -> None:
        """Finish the queued tasks, and end the thread. This call blocks."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_last = False
        while not is_last:
            batch: list[WriteTask] = []
            task = self._queue.get()
            while task is not None:
                batch.append(task)
                if len(batch) == BATCH_MAX:
                    break
                try:
                    task = self._queue.get_nowait()
                except Empty:
                    break
            is_last = task is None
            try:
                self._run_batch(batch)
            except BaseException as error:  # noqa: BLE001 - an edge: the thread must survive any failure
                _fail(batch, error)
            _settle(batch)
        self._connection.close()

    def _run_batch(self, batch: list[WriteTask]) -> None:
        self._commit([task for task in batch if not task.is_outside])
        if full := _without_space(batch):
            with contextlib.suppress(sqlite3.Error, DatabaseUnavailableError):
                # Restart the log: on a full disk it can reuse its own space, but not grow.
                raw(self._connection.connection()).execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            self._commit_each(full)
        if freeing := [task for task in _without_space(full) if task.is_freeing]:
            self._reserve.release()
            self._commit_each(freeing)
        for task in batch:
            if task.is_outside and task.begin():
                try:
                    task.result = task.work(self._connection.connection())
                except BaseException as error:  # noqa: BLE001 - the task reports it to its caller
                    task.error = self._recover(error)

    def _commit_each(self, tasks: Iterable[WriteTask]) -> None:
        """Retry tasks one by one: a task that needs little space may have failed with one that needs much."""
        for task in tasks:
            task.error = None
            self._commit([task])

    def _commit(self, tasks: list[WriteTask]) -> None:
        """Run tasks in one transaction. None of them is done before COMMIT."""
        if not tasks:
            return
        try:
            connection = self._begin(tasks)
            if connection is None:
                _fail(tasks, DatabaseUnavailableError())
                return
            driver = raw(connection)
            for task in tasks:
                if not task.begin():
                    continue
                driver.execute("SAVEPOINT unit")
                try:
                    task.result = task.work(connection)
                except BaseException as error:
                    task.error = translate_error(error, self._connection.path)
                    if isinstance(task.error, DatabaseUnavailableError) or not driver.in_transaction:
                        raise  # SQLite has rolled back all tasks, or will
                    driver.execute("ROLLBACK TO unit")
                driver.execute("RELEASE unit")
            driver.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 - the tasks report it to their callers
            _fail(tasks, self._recover(error))

    def _begin(self, tasks: Iterable[WriteTask]) -> Connection | None:
        """Begin a transaction when no other process writes. Return None if all tasks are late by then."""
        while True:
            try:
                connection = self._connection.connection()
                raw(connection).execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
                if all(task.is_late for task in tasks):
                    return None
            else:
                return connection

    def _recover(self, error: BaseException) -> BaseException:
        """Roll back, close a connection that may be broken, and return the error for the callers."""
        with contextlib.suppress(Exception):
            driver = raw(self._connection.connection())
            if driver.in_transaction:
                driver.execute("ROLLBACK")
        translated = translate_error(error, self._connection.path)
        if not isinstance(translated, StorageFullError) and not is_busy(error):
            self._connection.close()
        return translated


def _without_space(tasks: Iterable[WriteTask]) -> list[WriteTask]:
    return [task for task in tasks if isinstance(task.error, StorageFullError)]


def _fail(tasks: Iterable[WriteTask], error: BaseException) -> None:
    for task in tasks:
        task.has_begun = task.has_begun or task.take()
        task.error = error


def _settle(batch: Iterable[WriteTask]) -> None:
    """Settle every task on its event loop, with one call per loop."""
    loops: dict[AbstractEventLoop, list[WriteTask]] = {}
    for task in batch:
        if not task.has_begun and task.take():
            task.error = DatabaseUnavailableError()
        loops.setdefault(task.loop, []).append(task)
    for loop, tasks in loops.items():

        def settle(tasks: list[WriteTask] = tasks) -> None:
            for task in tasks:
                task.settle()

        with contextlib.suppress(RuntimeError):  # the loop was closed: nothing awaits the tasks
            loop.call_soon_threadsafe(settle)
