"""The sample rate of the audio of a job, if the request names one."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0019"
down_revision: Final = "0018"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("sample_rate", sa.Integer))
