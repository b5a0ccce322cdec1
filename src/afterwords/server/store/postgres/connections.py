"""Connections to Postgres: settings, the check that it is still the same database, and errors.

Connections use the driver's autocommit mode: a read is one statement, and a transaction sends BEGIN itself.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from afterwords.errors import AfterwordsError, DatabaseUnavailableError, ServerSetupError, StorageFullError

N_CONNECTIONS: Final = 8
"""Connections of a server process."""
CONNECT_TIMEOUT_S: Final = 2
STATEMENT_TIMEOUT_S: Final = 1.5
IDLE_TIMEOUT_S: Final = 10.0
"""How long a transaction of a server that hangs holds its locks."""
RECYCLE_S: Final = 1800
"""Age at which a connection is replaced, so that none outlives a change of the network unnoticed."""
_SETTINGS: Final[dict[str, Any]] = {
    "application_name": "afterwords",
    "client_encoding": "utf8",
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 2,
    "tcp_user_timeout": 1000 * CONNECT_TIMEOUT_S,
}
_IDENTIFY: Final = "SELECT version_num, secret FROM alembic_version, server"
_NO_SPACE: Final = "53100"
_CONFLICTS: Final = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: the transaction was rolled back, and may be repeated."""
_UNAVAILABLE_CLASSES: Final = frozenset({"08", "25", "3D", "40", "53", "55", "57", "58", "XX"})
_UNAVAILABLE: Final = frozenset({"28000", "28P01", "42501", "42P01"})
"""Login refused, permission denied, no such table: another database took the place of the one that was opened."""
_STARTING: Final = (
    "starting up",
    "shutting down",
    "recovery mode",
    "too many",
    "connection slots",
    "not yet accepting",
)


def timeouts(seconds: float, *, scope: str) -> str:
    """Return statements that limit how long a statement runs or waits for a lock."""
    values = {
        "statement_timeout": seconds,
        "lock_timeout": seconds,
        "idle_in_transaction_session_timeout": max(IDLE_TIMEOUT_S, seconds),
    }
    return "; ".join(f"SET {scope} {name} = {round(1000 * value)}" for name, value in values.items())


@dataclass(slots=True)
class Identity:
    """What a connection must find in the database, once it was opened."""

    version: str = ""
    secret: bytes = field(default=b"", repr=False)


def engine_for(url: URL, identity: Identity) -> Engine:
    """Return an engine with a pool. Its errors hide the parameters, which may be texts."""
    engine = create_engine(
        url,
        connect_args=_SETTINGS,
        isolation_level="AUTOCOMMIT",
        use_native_hstore=False,
        pool_size=N_CONNECTIONS,
        max_overflow=0,
        pool_timeout=STATEMENT_TIMEOUT_S,
        pool_recycle=RECYCLE_S,
        pool_use_lifo=True,
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def check(driver: Any, _: object) -> None:
        try:
            driver.autocommit = True
            if is_pooled(driver):
                driver.prepare_threshold = None
            else:
                driver.execute(timeouts(STATEMENT_TIMEOUT_S, scope="SESSION"), prepare=False)
            if identity.version:
                found = driver.execute(_IDENTIFY).fetchone()
                if found is None or (found[0], bytes(found[1])) != (identity.version, identity.secret):
                    raise DatabaseUnavailableError
        except BaseException:
            driver.close()
            raise

    return engine


def connect(engine: Engine) -> psycopg.Connection[Any]:
    """Return a connection that does not belong to the pool."""
    _, options = engine.dialect.create_connect_args(engine.url)
    return psycopg.connect(**options, **_SETTINGS, autocommit=True)


def is_pooled(driver: psycopg.Connection[Any]) -> bool:
    """Return whether a pooler such as pgbouncer is in between: it reports a process id that is not the backend's.

    Behind one, sessions have no state: no prepared statements, no settings, no LISTEN.
    """
    row = driver.execute("SELECT pg_backend_pid()").fetchone()
    return row is None or row[0] != driver.info.backend_pid


def abort(driver: psycopg.Connection[Any]) -> None:
    """Break a connection from another thread: what waits for its answer fails at once."""
    with contextlib.suppress(OSError, psycopg.Error), socket.fromfd(driver.fileno(), 0, 0) as other:
        other.shutdown(socket.SHUT_RDWR)


def is_conflict(error: BaseException) -> bool:
    """Return whether the database rolled the transaction back in favor of another one."""
    cause = _cause(error)
    return isinstance(cause, psycopg.Error) and cause.sqlstate in _CONFLICTS


def is_disconnect(error: BaseException) -> bool:
    """Return whether the connection is broken."""
    cause = _cause(error)
    is_closing = isinstance(cause, psycopg.Error) and (cause.sqlstate or "08")[:3] in ("08", "080", "57P")
    return is_closing and isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError)


def translate_error(error: BaseException) -> BaseException:
    """Return the API error for an error of the database, and any other error unchanged."""
    cause = _cause(error)
    translated: AfterwordsError | None = None
    if isinstance(cause, PoolTimeoutError):
        translated = DatabaseUnavailableError()
    elif isinstance(cause, psycopg.Error):
        state = cause.sqlstate
        if state == _NO_SPACE:
            translated = StorageFullError.for_path("the database")
        elif state is None:
            if isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError):
                translated = DatabaseUnavailableError()
        elif state[:2] in _UNAVAILABLE_CLASSES or state in _UNAVAILABLE:
            translated = DatabaseUnavailableError()
    if translated is None:
        return error
    translated.__cause__ = error
    return translated


def start_error(error: BaseException, url: URL) -> BaseException:
    """Return the error for a database that can't be opened, with what to do."""
    cause = _cause(error)
    if isinstance(cause, PoolTimeoutError | DatabaseUnavailableError):
        cause = psycopg.OperationalError("no answer in time")
    if not isinstance(cause, psycopg.Error):
        return error
    place = f"{url.host or 'the local socket'}:{url.port or 5432}"
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    reason = lines[0] if lines else type(cause).__name__
    reason = reason.rpartition("FATAL:")[2].strip() or reason
    is_refused = "FATAL:" in str(cause) and not any(word in str(cause) for word in _STARTING)
    if is_refused or isinstance(cause, psycopg.ProgrammingError):
        return ServerSetupError(f"Postgres at {place} refuses the connection: {reason}.", code="database_refused")
    return DatabaseUnavailableError(
        f"Postgres at {place} does not answer: {reason}.", hint="start it, or correct AFTERWORDS_DATABASE_URL."
    )


def _cause(error: BaseException) -> BaseException | None:
    return error.orig if isinstance(error, DBAPIError) else error
