"""Several tombstones per voice, since its rows are deleted in several transactions; an index of the names of voices."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from alembic import op

from afterwords.server.store.column_types import ID, SEQUENCE, UtcTime

revision: Final = "0010"
down_revision: Final = "0009"


def upgrade() -> None:
    def columns() -> list[sa.Column[Any]]:
        return [
            sa.Column("voice_id", ID, nullable=False),
            sa.Column("deleted_at", UtcTime, nullable=False),
            sa.Column("purged_at", UtcTime),
            sa.Column("audio_paths", sa.JSON(none_as_null=True)),
        ]

    old = sa.table("tombstones", *columns())
    rows = [dict(row) for row in op.get_bind().execute(sa.select(old).order_by(old.c.deleted_at)).mappings()]
    op.drop_table("tombstones")
    new = op.create_table(
        "tombstones",
        sa.Column("seq", SEQUENCE, nullable=False),
        *columns(),
        sa.PrimaryKeyConstraint("seq", name="pk_tombstones"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_tombstones_voice_id", "tombstones", ["voice_id"])
    op.create_index("ix_tombstones_purged_at", "tombstones", ["purged_at"])
    op.bulk_insert(new, rows)
    op.create_index("ix_voices_account_id_name", "voices", ["account_id", "name"])
