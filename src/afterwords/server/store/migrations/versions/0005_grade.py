"""Grade of the recording of a voice."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0005"
down_revision: Final = "0004"


def upgrade() -> None:
    op.add_column("voices", sa.Column("ref_grade", sa.String(1)))
