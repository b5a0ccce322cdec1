"""The servers that share a database: each renews its row, and a row that was not renewed is that of a dead server."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, delete, func, or_, select

from afterwords.server.store.schema import servers
from afterwords.server.store.statements import Insert

RENEW_S: Final = 5.0
"""Interval of renewals."""
ALIVE_S: Final = 20.0
"""How long a row counts after its last renewal."""

_RENEW = Insert(servers, servers.c.keys(), key=("server_id",), update=lambda new: {"seen_at": new.seen_at})


def renew(connection: Connection, server_id: str, *, monotonic: float) -> None:
    _RENEW(connection, {"server_id": server_id, "seen_at": monotonic})


def leave(connection: Connection, server_id: str) -> None:
    connection.execute(delete(servers).where(servers.c.server_id == server_id))


def enter(connection: Connection, server_id: str, *, monotonic: float) -> int:
    """Register a server, and forget dead ones. Return the number of servers."""
    is_dead = or_(servers.c.seen_at < monotonic - ALIVE_S, servers.c.seen_at > monotonic + ALIVE_S)
    connection.execute(delete(servers).where(is_dead))
    renew(connection, server_id, monotonic=monotonic)
    return count(connection, monotonic=monotonic)


def count(connection: Connection, *, monotonic: float) -> int:
    is_alive = servers.c.seen_at.between(monotonic - ALIVE_S, monotonic + ALIVE_S)
    return connection.execute(select(func.count()).select_from(servers).where(is_alive)).scalar_one()
