"""The rows: SQLAlchemy Core over SQLite, one writer with group commit."""

from afterwords.server.store.store import SqlStore

__all__ = ["SqlStore"]
