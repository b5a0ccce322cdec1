"""Marks of the storage, and blobs that no row refers to."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0002"
down_revision: Final = "0001"

SEQUENCE: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "storage_marks",
        sa.Column("seq", SEQUENCE, nullable=False),
        sa.Column("token", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_storage_marks"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "strays",
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("first_seen", sa.Float(), nullable=False),
        sa.Column("last_seen", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("path", name="pk_strays"),
    )
