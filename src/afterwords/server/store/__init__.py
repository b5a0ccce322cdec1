"""The database: SQLAlchemy Core."""

from afterwords.server.store.store import SqlStore

__all__ = ["SqlStore"]
