"""The lexicon and the takes as of the submission of a job, with which its text is read."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

from afterwords.server.store.column_types import VanishingText

revision: Final = "0021"
down_revision: Final = "0020"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("reading", VanishingText))
