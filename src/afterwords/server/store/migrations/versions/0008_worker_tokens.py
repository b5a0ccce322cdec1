"""Tokens of remote workers."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

from afterwords.server.store.column_types import ID, SEQUENCE, UtcTime

revision: Final = "0008"
down_revision: Final = "0007"


def upgrade() -> None:
    op.create_table(
        "worker_tokens",
        sa.Column("seq", SEQUENCE, nullable=False),
        sa.Column("token_id", ID, nullable=False),
        sa.Column("sha256", sa.LargeBinary, nullable=False),
        sa.Column("label", sa.Text),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("created_at", UtcTime, nullable=False),
        sa.Column("revoked_at", UtcTime),
        sa.PrimaryKeyConstraint("seq", name="pk_worker_tokens"),
        sa.UniqueConstraint("token_id", name="uq_worker_tokens_token_id"),
        sa.UniqueConstraint("sha256", name="uq_worker_tokens_sha256"),
        sqlite_autoincrement=True,
    )
