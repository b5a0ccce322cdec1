"""Prefix and time of last use of a key."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0003"
down_revision: Final = "0002"


def upgrade() -> None:
    op.add_column("keys", sa.Column("prefix", sa.String(16)))
    op.add_column("keys", sa.Column("used_at", sa.DateTime(timezone=True)))
