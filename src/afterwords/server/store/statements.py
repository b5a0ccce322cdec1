"""Statements that many requests need, and what databases write differently.

Each is compiled once per database and runs on the connection of the driver: on SQLite a query for one row takes 8 us,
while SQLAlchemy's result takes 45 us.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

from sqlalchemy import ColumnElement, Connection, Dialect, Select, Table, TextClause, bindparam, func, select


class Query:
    """A query for one row."""

    def __init__(self, statement: Select[Any]) -> None:
        self._statement = statement
        self._compiled: dict[str, tuple[str, dict[str, Any]]] = {}
        self._readers: dict[str, list[tuple[int, Any]]] = {}

    def __call__(self, connection: Connection, **values: Any) -> list[Any] | None:
        """Return the row, converted by the column types."""
        dialect = connection.dialect
        sql, constants = self._compiled.get(dialect.name) or self._compile(dialect)
        driver: Any = connection.connection.dbapi_connection
        cursor = driver.execute(sql, constants | values)
        row = cursor.fetchone()
        if row is None:
            return None
        found = list(row)
        readers = self._readers.get(dialect.name)
        if readers is None:
            readers = self._find_readers(dialect, cursor.description)
        for place, read in readers:
            found[place] = read(found[place])
        return found

    def _compile(self, dialect: Dialect) -> tuple[str, dict[str, Any]]:
        compiled = self._statement.compile(dialect=dialect)
        constants = {name: value for name, value in compiled.params.items() if value is not None}
        self._compiled[dialect.name] = str(compiled), constants
        return self._compiled[dialect.name]

    def _find_readers(self, dialect: Dialect, description: Sequence[Any]) -> list[tuple[int, Any]]:
        """Return the conversions of the columns, which depend on the types that the driver returns."""
        types = [column.type.dialect_impl(dialect) for column in self._statement.selected_columns]
        readers = [kind.result_processor(dialect, column[1]) for kind, column in zip(types, description, strict=True)]
        self._readers[dialect.name] = [(place, read) for place, read in enumerate(readers) if read is not None]
        return self._readers[dialect.name]


class Insert:
    """An INSERT of one row.

    Args:
        columns: The columns that every row has a value for.
        key: Columns of a unique key. A row whose key exists is updated instead.
        where: The condition of the unique key, if it is one of some rows only.
        update: Returns the new values of that row from the columns of the one that was to be inserted.
    """

    def __init__(
        self,
        table: Table,
        columns: Iterable[str],
        *,
        key: Iterable[str] = (),
        where: TextClause | None = None,
        update: Callable[[Any], Mapping[str, ColumnElement[Any]]] | None = None,
    ) -> None:
        self._table = table
        self._columns = list(columns)
        self._key = list(key)
        self._where = where
        self._update = update
        self._compiled: dict[str, tuple[str, list[tuple[str, Any]]]] = {}

    def __call__(self, connection: Connection, values: Mapping[str, Any]) -> None:
        """Insert the row."""
        sql, writers = self._compiled.get(connection.dialect.name) or self._compile(connection.dialect)
        values = dict(values)
        for name, write in writers:
            values[name] = write(values[name])
        driver: Any = connection.connection.dbapi_connection
        driver.execute(sql, values)

    def _compile(self, dialect: Dialect) -> tuple[str, list[tuple[str, Any]]]:
        insert = import_module(f"sqlalchemy.dialects.{dialect.name}").insert(self._table).inline()
        statement = insert.values({name: bindparam(name) for name in self._columns})
        if self._update is not None:
            statement = statement.on_conflict_do_update(
                index_elements=self._key, index_where=self._where, set_=dict(self._update(statement.excluded))
            )
        compiled = statement.compile(dialect=dialect)
        kinds = {name: bind.type.dialect_impl(dialect) for name, bind in compiled.binds.items()}
        processors = {name: kind.bind_processor(dialect) for name, kind in kinds.items()}
        found = str(compiled), [(name, write) for name, write in processors.items() if write is not None]
        self._compiled[dialect.name] = found
        return found


class RowLock:
    """A lock of the row that a query finds, until the transaction ends.

    Args:
        of: The table of the row.
    """

    def __init__(self, statement: Select[Any], *, of: Table) -> None:
        self._query = Query(statement.with_for_update(of=of, key_share=True))

    def __call__(self, connection: Connection, **values: Any) -> None:
        if connection.dialect.name != "sqlite":  # SQLite runs one writing transaction at a time
            self._query(connection, **values)

    def read(self, connection: Connection, **values: Any) -> list[Any] | None:
        """Lock the row and return it."""
        return self._query(connection, **values)


def continue_sequence(connection: Connection, table: Table) -> None:
    """Let the next row of a table follow those that were inserted with a `seq`. SQLite does so by itself."""
    if connection.dialect.name == "postgresql":
        last = select(func.max(table.c.seq)).scalar_subquery()
        sequence = func.pg_get_serial_sequence(table.name, "seq")
        connection.execute(select(func.setval(sequence, func.coalesce(last, 1), last.is_not(None))))
