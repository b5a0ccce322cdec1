"""When each character of a job is spoken."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

from afterwords.server.store.column_types import VanishingText

revision: Final = "0016"
down_revision: Final = "0015"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("timestamps", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("jobs", sa.Column("timing", VanishingText))
