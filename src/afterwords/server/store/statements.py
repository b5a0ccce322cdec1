"""Statements that many requests need, and what databases write differently.

Each is compiled once per database and runs on the connection of the driver: on SQLite a query for one row takes 8 us,
while SQLAlchemy's result takes 45 us.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any

from sqlalchemy import ColumnElement, Connection, Dialect, Select, Table, bindparam


class Query:
    """A query for one row."""

    def __init__(self, statement: Select[Any]) -> None:
        self._statement = statement
        self._compiled: dict[str, tuple[str, dict[str, Any], list[tuple[int, Any]]]] = {}

    def __call__(self, connection: Connection, **values: Any) -> list[Any] | None:
        """Return the row, converted by the column types."""
        found = self._compiled.get(connection.dialect.name) or self._compile(connection.dialect)
        sql, constants, readers = found
        driver: Any = connection.connection.dbapi_connection
        row = driver.execute(sql, constants | values).fetchone()
        if row is None:
            return None
        read_row = list(row)
        for place, read in readers:
            read_row[place] = read(read_row[place])
        return read_row

    def _compile(self, dialect: Dialect) -> tuple[str, dict[str, Any], list[tuple[int, Any]]]:
        compiled = self._statement.compile(dialect=dialect)
        constants = {name: value for name, value in compiled.params.items() if value is not None}
        types = [column.type.dialect_impl(dialect) for column in self._statement.selected_columns]
        readers = [kind.result_processor(dialect, None) for kind in types]
        found = str(compiled), constants, [(place, read) for place, read in enumerate(readers) if read is not None]
        self._compiled[dialect.name] = found
        return found


class Insert:
    """An INSERT of one row.

    Args:
        columns: The columns that every row has a value for.
        key: Columns of a unique key. A row whose key exists is updated instead.
        update: Returns the new values of that row from the columns of the one that was to be inserted.
    """

    def __init__(
        self,
        table: Table,
        columns: Iterable[str],
        *,
        key: Iterable[str] = (),
        update: Callable[[Any], Mapping[str, ColumnElement[Any]]] | None = None,
    ) -> None:
        self._table = table
        self._columns = list(columns)
        self._key = list(key)
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
                index_elements=self._key, set_=dict(self._update(statement.excluded))
            )
        compiled = statement.compile(dialect=dialect)
        kinds = {name: bind.type.dialect_impl(dialect) for name, bind in compiled.binds.items()}
        processors = {name: kind.bind_processor(dialect) for name, kind in kinds.items()}
        found = str(compiled), [(name, write) for name, write in processors.items() if write is not None]
        self._compiled[dialect.name] = found
        return found
