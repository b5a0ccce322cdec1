"""Jobs whose times are sent while they are spoken, and not kept."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0017"
down_revision: Final = "0016"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("keeps_timing", sa.Boolean, nullable=False, server_default=sa.true()))
