"""Recordings of the consent of speakers."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

from afterwords.server.store.column_types import ID, SEQUENCE, UtcTime, VanishingBytes

revision: Final = "0018"
down_revision: Final = "0017"


def upgrade() -> None:
    op.create_table(
        "consents",
        sa.Column("seq", SEQUENCE, nullable=False),
        sa.Column("consent_id", ID, nullable=False),
        sa.Column("account_id", ID, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("lang", sa.String(35), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created_at", UtcTime, nullable=False),
        sa.Column("recording", VanishingBytes, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.account_id"], name="fk_consents_account_id_accounts"),
        sa.PrimaryKeyConstraint("seq", name="pk_consents"),
        sa.UniqueConstraint("consent_id", name="uq_consents_consent_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_consents_account_id_seq", "consents", ["account_id", "seq"])
