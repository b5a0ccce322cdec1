"""Whether the speech of a job says its text."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

from afterwords.server.store.column_types import VanishingText

revision: Final = "0020"
down_revision: Final = "0019"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("verify", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("jobs", sa.Column("verification", VanishingText))
