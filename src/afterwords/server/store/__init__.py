"""The rows: SQLAlchemy Core over SQLite, one writer with group commit."""
