"""Servers that share the database, and the order in which accounts are served, in a table that only claims write.

A claim would otherwise wait for other writes of the account, and they for the job that it holds.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0007"
down_revision: Final = "0006"

ID: Final = sa.String(36)


def upgrade() -> None:
    op.create_table(
        "servers",
        sa.Column("server_id", ID, nullable=False),
        sa.Column("seen_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("server_id", name="pk_servers"),
    )
    op.create_table(
        "turns",
        sa.Column("account_id", ID, nullable=False),
        sa.Column("turn", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.account_id"], name="fk_turns_account_id_accounts"),
        sa.PrimaryKeyConstraint("account_id", name="pk_turns"),
    )
    op.create_index("ix_turns_turn", "turns", ["turn"])
    op.execute("INSERT INTO turns (account_id, turn) SELECT account_id, turn FROM accounts WHERE turn > 0")
    op.drop_index("ix_accounts_turn", "accounts")
    op.drop_column("accounts", "turn")
