"""Voices that are to be prepared for their backends."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

from afterwords.server.store.column_types import ID, UtcTime

revision: Final = "0013"
down_revision: Final = "0012"


def upgrade() -> None:
    op.create_table(
        "preparations",
        sa.Column("voice_id", ID, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("backend", sa.Text, nullable=False),
        sa.Column("created_at", UtcTime, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("returned", sa.Integer, nullable=False, server_default="0"),
        sa.Column("worker", sa.Text),
        sa.Column("lease_s", sa.Float),
        sa.Column("lease_expires", sa.Float),
        sa.ForeignKeyConstraint(
            ["voice_id"], ["voices.voice_id"], name="fk_preparations_voice_id_voices", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("voice_id", name="pk_preparations"),
        sa.UniqueConstraint("job_id", name="uq_preparations_job_id"),
    )
