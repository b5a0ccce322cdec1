"""What the store needs of a database. Work is a plain function of a connection and its arguments."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection

P = ParamSpec("P")
T = TypeVar("T")
Work = Callable[Concatenate[Connection, P], T]


class Database(Protocol):
    """Atomic reads and writes.

    All raise DatabaseUnavailableError within 2 s if the database is locked or does not answer, and StorageFullError if
    its disk is full. They recover by themselves.

    Attributes:
        path: The file of the database. None: it is no file.
        secret: The bytes that were created with the database.
    """

    @property
    def path(self) -> Path | None: ...

    @property
    def secret(self) -> bytes: ...

    async def open(self) -> bool:
        """Connect, and migrate the schema under a lock. Return whether the database is new.

        Raises:
            ServerSetupError: The database refuses the connection, or a later version has changed the schema.
        """

    async def close(self) -> None: ...

    async def announce(self, *, monotonic: float) -> int:
        """Register this process as a server of the database until `leave`. Return the number of servers."""

    async def count_servers(self, *, monotonic: float) -> int:
        """Return the number of registered servers."""

    async def stay(self, *, monotonic: float) -> None:
        """Renew the registration of this process."""

    async def leave(self) -> None:
        """Remove the registration of this process."""

    def session(self, *, is_writing: bool = False) -> AbstractContextManager[Connection]:
        """Connect with one transaction, which sees one state of all rows, in this thread and without a deadline.

        The database need not be open.
        """

    def find_damage(self, connection: Connection) -> list[str]:
        """Return what is damaged."""

    def notify(self, message: str) -> None:
        """Send a message to the other servers, if the database can."""

    def listen(self, on_message: Callable[[str], None]) -> None:
        """Call `on_message` on this event loop with each message of another server, until `close`."""

    async def check(self, now: datetime) -> None:
        """Check that the database can be read and written."""

    async def read_time(self) -> float | None:
        """Return the time of the database in seconds since the epoch. None: it has the clock of this machine."""

    async def read(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read."""

    async def read_cached(self, key: tuple[str, ...], work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read, or return the last result for `key` if the database has not changed since."""

    async def read_long(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read what may take longer than 2 s."""

    async def write(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work in a transaction. An exception rolls it back."""

    async def free(self, work: Work[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that frees space: `write`, but if possible also on a full disk."""

    async def scrub(self) -> None:
        """Remove what was deleted from the files of the database, if the database can."""

    async def scrub_if_due(self) -> None:
        """Finish a `scrub` that could not be done before."""
