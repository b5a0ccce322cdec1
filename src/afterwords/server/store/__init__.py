"""The database: SQLAlchemy Core on SQLite, one writer thread with group commit."""

from afterwords.server.store.store import SqlStore

__all__ = ["SqlStore"]
