"""Bytes stored per account, updated by triggers: exact with several writers, and rolled back with them.

Databases also fire triggers for rows that a foreign key deletes. When a voice is deleted, its row is removed before its
cache rows, so the trigger of the voice subtracts them.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0006"
down_revision: Final = "0005"

REFERENCE: Final = "2 * CAST(round({0}.ref_duration_s * {0}.ref_sample_rate) AS INTEGER)"  # mono, 16-bit
ADD: Final = "UPDATE accounts SET stored_bytes = stored_bytes + ({what}) WHERE account_id = {whose}"
OWNER: Final = "(SELECT account_id FROM voices WHERE voice_id = {0}.voice_id)"
CACHED: Final = "coalesce((SELECT sum(size_bytes) FROM cache WHERE voice_id = OLD.voice_id), 0)"
TRIGGERS: Final = {
    "AFTER INSERT ON voices": (REFERENCE.format("NEW"), "NEW.account_id"),
    "AFTER UPDATE OF ref_duration_s, ref_sample_rate ON voices": (
        f"{REFERENCE.format('NEW')} - {REFERENCE.format('OLD')}",
        "NEW.account_id",
    ),
    "BEFORE DELETE ON voices": (f"-{REFERENCE.format('OLD')} - {CACHED}", "OLD.account_id"),
    "AFTER UPDATE OF audio_bytes ON jobs": (
        "coalesce(NEW.audio_bytes, 0) - coalesce(OLD.audio_bytes, 0)",
        "NEW.account_id",
    ),
    "AFTER DELETE ON jobs": ("-coalesce(OLD.audio_bytes, 0)", "OLD.account_id"),
    "AFTER INSERT ON cache": ("NEW.size_bytes", OWNER.format("NEW")),
    "AFTER UPDATE OF size_bytes ON cache": ("NEW.size_bytes - OLD.size_bytes", OWNER.format("NEW")),
    "AFTER DELETE ON cache": ("-OLD.size_bytes", OWNER.format("OLD")),
}


def upgrade() -> None:
    op.add_column("accounts", sa.Column("stored_bytes", sa.BigInteger, nullable=False, server_default="0"))
    op.execute(
        f"""
        UPDATE accounts SET stored_bytes =
            coalesce((SELECT sum({REFERENCE.format("voices")}) FROM voices
                WHERE voices.account_id = accounts.account_id), 0)
            + coalesce((SELECT sum(audio_bytes) FROM jobs WHERE jobs.account_id = accounts.account_id), 0)
            + coalesce((SELECT sum(size_bytes) FROM cache JOIN voices USING (voice_id)
                WHERE voices.account_id = accounts.account_id), 0)
        """
    )
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for number, (event, (what, whose)) in enumerate(TRIGGERS.items(), start=1):
        name, statement = f"stored_bytes_{number}", ADD.format(what=what, whose=whose)
        if is_sqlite:
            op.execute(f"CREATE TRIGGER {name} {event} BEGIN {statement}; END")
            continue
        row = "OLD" if "DELETE" in event else "NEW"
        body = f"BEGIN {statement}; RETURN {row}; END"
        op.execute(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")
        op.execute(f"CREATE TRIGGER {name} {event} FOR EACH ROW EXECUTE FUNCTION {name}()")
