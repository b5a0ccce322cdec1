"""The span that submitted a job."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0012"
down_revision: Final = "0011"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("traceparent", sa.String(55)))
