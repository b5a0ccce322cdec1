"""Further names of voices."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

from afterwords.server.store.column_types import ID

revision: Final = "0015"
down_revision: Final = "0014"


def upgrade() -> None:
    op.create_table(
        "aliases",
        sa.Column("account_id", ID, nullable=False),
        sa.Column("alias", sa.Text, nullable=False),
        sa.Column("voice_id", ID, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.account_id"], name="fk_aliases_account_id_accounts"),
        sa.ForeignKeyConstraint(
            ["voice_id"], ["voices.voice_id"], name="fk_aliases_voice_id_voices", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("account_id", "alias", name="pk_aliases"),
    )
    op.create_index("ix_aliases_voice_id", "aliases", ["voice_id"])
