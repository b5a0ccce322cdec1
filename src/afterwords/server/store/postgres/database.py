"""Postgres: every read and write runs in a thread, with a connection of the pool and a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

import psycopg
from sqlalchemy import URL, Connection, Engine, text, update
from sqlalchemy.exc import DBAPIError

from afterwords.errors import DatabaseUnavailableError, ServerSetupError
from afterwords.models import new_id
from afterwords.server.store import servers
from afterwords.server.store.database import Work
from afterwords.server.store.migrate import HEAD, find_version, upgrade
from afterwords.server.store.postgres.connections import (
    N_CONNECTIONS,
    STATEMENT_TIMEOUT_S,
    Identity,
    abort,
    connect,
    engine_for,
    is_conflict,
    is_disconnect,
    start_error,
    timeouts,
    translate_error,
)
from afterwords.server.store.postgres.listener import CHANNEL, Listener
from afterwords.server.store.schema import server

log = logging.getLogger("afterwords.server")

P = ParamSpec("P")
T = TypeVar("T")

DEADLINE_S: Final = 1.8
LONG_DEADLINE_S: Final = 30.0
MIGRATION_DEADLINE_S: Final = 600.0
SESSION_TIMEOUT_S: Final = 3600.0
SEND_PAUSE_S: Final = 0.01
"""Pause between messages to other servers. What is to be sent meanwhile is sent together."""
MIGRATION_LOCK: Final = 0x6166_7465_7277_6F72
"""Key of the advisory lock under which one server migrates; the bytes of "afterwor"."""
_SEND: Final = text(f"SELECT pg_notify('{CHANNEL}', message) FROM unnest(CAST(:messages AS text[])) AS message")
_WRITE: Final = f"BEGIN; {timeouts(STATEMENT_TIMEOUT_S, scope='LOCAL')}"
_READ_LONG: Final = f"BEGIN READ ONLY; {timeouts(LONG_DEADLINE_S, scope='LOCAL')}"
_READ_ALL: Final = f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {timeouts(SESSION_TIMEOUT_S, scope='LOCAL')}"
_WRITE_ALL: Final = f"BEGIN; {timeouts(SESSION_TIMEOUT_S, scope='LOCAL')}"
_MIGRATE: Final = f"BEGIN; {timeouts(MIGRATION_DEADLINE_S, scope='LOCAL')}"


class _Operation:
    """Work in a thread, which the event loop may give up."""

    def __init__(self) -> None:
        self.has_begun = False
        self._is_given_up = False
        self._driver: psycopg.Connection[Any] | None = None
        self._lock = threading.Lock()

    def begin(self, driver: psycopg.Connection[Any]) -> None:
        """Register the connection of the work.

        Raises:
            DatabaseUnavailableError: The event loop has given up.
        """
        with self._lock:
            if self._is_given_up:
                raise DatabaseUnavailableError
            self._driver = driver

    def end(self) -> None:
        with self._lock:
            self._driver = None

    def give_up(self) -> bool:
        """Break the connection, so that the work ends soon. Return whether it has not begun, and never will."""
        with self._lock:
            self._is_given_up = True
            if self._driver is not None:
                abort(self._driver)
            return not self.has_begun


class PostgresDatabase:
    """The port `Database` on Postgres. Transactions are READ COMMITTED: writes lock the rows that they depend on."""

    path = None

    def __init__(self, url: URL) -> None:
        self._url = url
        self._identity = Identity()
        self._engine: Engine | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._listener: Listener | None = None
        self._sender = new_id()[:8]
        self._messages: set[str] = set()
        self._sending: asyncio.Task[None] | None = None
        self._server_id: str | None = None
        self._renewed_at = 0.0

    @property
    def secret(self) -> bytes:
        if self._engine is None:
            raise DatabaseUnavailableError
        return self._identity.secret

    async def open(self) -> bool:
        self._identity = Identity()
        self._engine = engine_for(self._url, self._identity)
        self._threads = ThreadPoolExecutor(N_CONNECTIONS, thread_name_prefix="afterwords-store")
        try:
            is_new = False
            if not await self._run(self._identify):
                is_new = await self._run(self._migrate, begin=_MIGRATE, deadline_s=MIGRATION_DEADLINE_S)
        except BaseException as error:
            await self.close()
            if isinstance(error, ServerSetupError):
                raise
            original = error.__cause__ if isinstance(error, DatabaseUnavailableError) else error
            raise start_error(original or error, self._url) from original
        return is_new

    def _identify(self, connection: Connection) -> bool:
        """Read the identity of an up-to-date database. Return False if it must be migrated."""
        if connection.execute(text("SHOW server_encoding")).scalar() != "UTF8":
            raise ServerSetupError(
                "The encoding of the database is not UTF8.",
                code="database_refused",
                hint="create it with: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0.",
            )
        if find_version(connection) != HEAD:
            return False
        self._identity.secret = bytes(connection.execute(text("SELECT secret FROM server")).scalar_one())
        self._identity.version = HEAD
        return True

    def _migrate(self, connection: Connection) -> bool:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        is_new = False if find_version(connection) == HEAD else upgrade(connection)
        self._identify(connection)
        return is_new

    async def close(self) -> None:
        listener, self._listener = self._listener, None
        if listener:
            await asyncio.to_thread(listener.stop)
        sending, self._sending = self._sending, None
        if sending:
            sending.cancel()
            await asyncio.wait({sending})
        engine, self._engine = self._engine, None
        threads, self._threads = self._threads, None
        if threads:
            await asyncio.to_thread(threads.shutdown)
        if engine:
            engine.dispose()

    @contextlib.contextmanager
    def session(self, *, is_writing: bool = False) -> Iterator[Connection]:
        engine = engine_for(self._url, Identity())
        try:
            with engine.connect() as connection:
                driver: Any = connection.connection.dbapi_connection
                driver.execute(_WRITE_ALL if is_writing else _READ_ALL, prepare=False)
                yield connection
                driver.execute("COMMIT", prepare=False)
        except Exception as error:
            if translate_error(error) is error:
                raise
            raise start_error(error, self._url) from error
        finally:
            engine.dispose()

    def find_damage(self, connection: Connection) -> list[str]:  # noqa: ARG002 - Postgres checks its own files
        return []

    def notify(self, message: str) -> None:
        """Send a message in a transaction of its own: commits with a NOTIFY wait for each other."""
        self._messages.add(f"{self._sender} {message}")
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while self._messages:
            messages, self._messages = list(self._messages), set()
            try:
                with contextlib.suppress(DatabaseUnavailableError):  # the other servers poll
                    await self.read(_send, messages)
            except DBAPIError as error:  # the queue of messages is full, for example
                log.warning("other servers are not notified, and must poll error=%s", type(error.orig).__name__)
            await asyncio.sleep(SEND_PAUSE_S)

    def listen(self, on_message: Callable[[str], None]) -> None:
        engine, loop = self._engine, asyncio.get_running_loop()
        if engine is None:
            raise DatabaseUnavailableError

        def receive(payload: str) -> None:
            sender, _, message = payload.partition(" ")
            if sender != self._sender:
                with contextlib.suppress(RuntimeError):  # the loop was closed
                    loop.call_soon_threadsafe(on_message, message)

        self._listener = Listener(partial(connect, engine), receive)

    async def check(self, now: datetime) -> None:
        await self.write(lambda connection: connection.execute(update(server).values(checked_at=now)).close())

    async def read_time(self) -> float | None:
        return await self.read(
            lambda connection: float(
                connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
            )
        )

    async def announce(self, *, monotonic: float) -> int:
        self._server_id, self._renewed_at = new_id(), monotonic
        return await self.write(servers.enter, self._server_id, monotonic=monotonic)

    async def count_servers(self, *, monotonic: float) -> int:
        return await self.read(servers.count, monotonic=monotonic)

    async def stay(self, *, monotonic: float) -> None:
        if self._server_id is not None and not 0 <= monotonic - self._renewed_at < servers.RENEW_S:
            await self.write(servers.renew, self._server_id, monotonic=monotonic)
            self._renewed_at = monotonic

    async def leave(self) -> None:
        if self._server_id is not None:
            with contextlib.suppress(DatabaseUnavailableError):
                await self.write(servers.leave, self._server_id)
            self._server_id = None

    async def read(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(lambda connection: work(connection, *args, **kwargs))

    async def read_cached(self, key: tuple[str, ...], work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:  # noqa: ARG002
        return await self._run(lambda connection: work(connection, *args, **kwargs))

    async def read_long(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(
            lambda connection: work(connection, *args, **kwargs), begin=_READ_LONG, deadline_s=LONG_DEADLINE_S
        )

    async def write(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(lambda connection: work(connection, *args, **kwargs), begin=_WRITE)

    async def free(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.write(work, *args, **kwargs)

    async def scrub(self) -> None:
        """Do nothing: deleted rows leave the files when Postgres vacuums them."""

    async def scrub_if_due(self) -> None:
        """Do nothing."""

    async def _run(
        self, work: Callable[[Connection], T], *, begin: str | None = None, deadline_s: float = DEADLINE_S
    ) -> T:
        """Run work in a thread, and break its connection if the database does not answer in time.

        Args:
            begin: Begins the transaction. None: the work is one statement, or several independent ones.
            deadline_s: How long the work may take once it has begun.
        """
        if self._threads is None or self._engine is None:
            raise DatabaseUnavailableError
        operation = _Operation()
        until = time.monotonic() + DEADLINE_S
        perform = partial(_perform, self._engine, operation, work, begin=begin, until=until)
        future = asyncio.get_running_loop().run_in_executor(self._threads, perform)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # or asyncio logs it
        try:
            done, _ = await asyncio.wait({future}, timeout=DEADLINE_S)
            if not done and operation.has_begun and deadline_s > DEADLINE_S:
                done, _ = await asyncio.wait({future}, timeout=deadline_s)
        except asyncio.CancelledError:
            future.cancel()  # work that has begun is finished
            raise
        if not done and operation.give_up():
            raise DatabaseUnavailableError
        return await future


def _send(connection: Connection, messages: list[str]) -> None:
    connection.execute(_SEND, {"messages": messages})


def _perform(
    engine: Engine, operation: _Operation, work: Callable[[Connection], T], *, begin: str | None, until: float
) -> T:
    """Run work in this thread; repeat it if nothing was changed and another try may succeed in time."""
    was_stale = False
    while True:
        has_committed = False
        try:
            with engine.connect() as connection:
                driver: Any = connection.connection.dbapi_connection
                operation.begin(driver)
                try:
                    if begin:
                        driver.execute(begin, prepare=False)
                    operation.has_begun = True
                    result = work(connection)
                    if begin:
                        has_committed = True  # or not, if the answer is lost
                        driver.execute("COMMIT", prepare=False)
                    return result
                except BaseException:
                    if driver.closed or driver.broken:
                        connection.invalidate()
                    raise
                finally:
                    operation.end()
        except Exception as error:
            is_stale = is_disconnect(error) and not has_committed and not was_stale
            if time.monotonic() < until and (is_conflict(error) or is_stale):
                if is_stale:  # after a restart of Postgres, all connections of the pool are broken
                    was_stale = True
                    engine.dispose()
                continue
            translated = translate_error(error)
            if translated is error:
                raise
            raise translated from error
