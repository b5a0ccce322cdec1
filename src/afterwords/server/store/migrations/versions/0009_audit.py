"""A log of what was done to keys, worker tokens and voices."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

from afterwords.server.store.column_types import ID, SEQUENCE, UtcTime

revision: Final = "0009"
down_revision: Final = "0008"


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", SEQUENCE, nullable=False),
        sa.Column("at", UtcTime, nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("target_id", ID, nullable=False),
        sa.Column("account_id", ID),
        sa.Column("actor", ID, nullable=False),
        sa.Column("request_id", ID),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_at", "audit", ["at"])
