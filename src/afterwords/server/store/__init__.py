"""The rows: SQLAlchemy Core over SQLite, one writer with group commit."""

from afterwords.server.store.sql import SqlStore

__all__ = ["SqlStore"]
