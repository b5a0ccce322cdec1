"""Copy all rows from one database to another, whatever the kinds of both."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, Table, bindparam, delete, func, insert, select, update

from afterwords.server.store.schema import accounts, consents, metadata, server, servers
from afterwords.server.store.statements import continue_sequence

BATCH: Final = 500
"""Rows in one statement."""
RECORDINGS: Final = 4
"""The same for recordings of consent: each has up to 6 MB."""
TABLES: Final = tuple(table for table in metadata.sorted_tables if table is not servers)
"""Tables after those that they refer to. The running servers of a database are not part of its content."""


def count_rows(connection: Connection) -> dict[str, int]:
    """Return the number of rows of each table but `server`, which every database has."""
    return {
        table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
        for table in TABLES
        if table is not server
    }


def copy_rows(source: Connection, target: Connection) -> dict[str, int]:
    """Replace all rows of a database, in its transaction, by those of another one. Return their numbers.

    Both have the schema of this version.
    """
    for table in reversed(TABLES):
        target.execute(delete(table))
    counts = {table.name: _copy_table(source, target, table) for table in TABLES}
    # Triggers have counted the bytes of rows that were already counted.
    stored = update(accounts).where(accounts.c.account_id == bindparam("account"))
    rows = source.execute(select(accounts.c.account_id, accounts.c.stored_bytes)).all()
    if rows:
        values = [{"account": account_id, "stored": n_bytes} for account_id, n_bytes in rows]
        target.execute(stored.values(stored_bytes=bindparam("stored")), values)
    del counts[server.name]
    return counts


def _copy_table(source: Connection, target: Connection, table: Table) -> int:
    n_rows = 0
    order = [column for column in (table.c.get("seq"),) if column is not None]
    n_at_once = RECORDINGS if table is consents else BATCH
    query = select(table).order_by(*order).execution_options(yield_per=n_at_once)
    for batch in source.execute(query).mappings().partitions():
        target.execute(insert(table), [dict(row) for row in batch])
        n_rows += len(batch)
    if order:
        continue_sequence(target, table)
    return n_rows
