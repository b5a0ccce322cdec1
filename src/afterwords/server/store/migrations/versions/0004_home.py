"""The account and the voices of the home folder."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0004"
down_revision: Final = "0003"

ID: Final = sa.String(36)


def upgrade() -> None:
    op.add_column("server", sa.Column("home_account_id", ID))
    op.add_column("voices", sa.Column("home_id", ID))
    op.create_index("ix_voices_home_id", "voices", ["home_id"], unique=True)
