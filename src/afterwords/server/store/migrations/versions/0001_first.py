"""The first schema."""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision: Final = "0001"
down_revision: Final = None

ID: Final = sa.String(36)
DIGEST: Final = sa.String(64)
TIME: Final = sa.DateTime(timezone=True)
SEQUENCE: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
PENDING: Final[dict[str, Any]] = {
    "sqlite_where": sa.text("status = 'pending'"),
    "postgresql_where": sa.text("status = 'pending'"),
}


def upgrade() -> None:
    _server()
    _accounts()
    _keys()
    _usage()
    _voices()
    _cache()
    _jobs()
    _idempotency()
    _webhooks()
    _tombstones()


def _server() -> None:
    op.create_table(
        "server",
        sa.Column("server_id", sa.Integer(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("checked_at", TIME),
        sa.PrimaryKeyConstraint("server_id", name="pk_server"),
    )


def _accounts() -> None:
    op.create_table(
        "accounts",
        sa.Column("account_id", ID, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("turn", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("account_id", name="pk_accounts"),
    )
    op.create_index("ix_accounts_turn", "accounts", ["turn"])


def _keys() -> None:
    op.create_table(
        "keys",
        sa.Column("seq", SEQUENCE, nullable=False),
        sa.Column("key_id", ID, nullable=False),
        sa.Column("account_id", ID, nullable=False),
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("label", sa.Text()),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("character_limit", sa.BigInteger()),
        sa.Column("spending_id", ID, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME),
        sa.Column("revoked_at", TIME),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.account_id"], name="fk_keys_account_id_accounts"),
        sa.PrimaryKeyConstraint("seq", name="pk_keys"),
        sa.UniqueConstraint("key_id", name="uq_keys_key_id"),
        sa.UniqueConstraint("sha256", name="uq_keys_sha256"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_keys_account_id", "keys", ["account_id"])


def _usage() -> None:
    op.create_table(
        "usage",
        sa.Column("spending_id", ID, nullable=False),
        sa.Column("period", sa.String(7), nullable=False),
        sa.Column("account_id", ID, nullable=False),
        sa.Column("characters", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.account_id"], name="fk_usage_account_id_accounts"),
        sa.PrimaryKeyConstraint("spending_id", "period", name="pk_usage"),
    )
    op.create_index("ix_usage_account_id_period", "usage", ["account_id", "period"])


def _voices() -> None:
    op.create_table(
        "voices",
        sa.Column("seq", SEQUENCE, nullable=False),
        sa.Column("voice_id", ID, nullable=False),
        sa.Column("account_id", ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("lang", sa.Text(), nullable=False),
        sa.Column("family", sa.Text()),
        sa.Column("ref_audio_key", sa.Text(), nullable=False),
        sa.Column("ref_sha256", DIGEST, nullable=False),
        sa.Column("ref_duration_s", sa.Float(), nullable=False),
        sa.Column("ref_sample_rate", sa.Integer(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("consent", sa.JSON(none_as_null=True)),
        sa.Column("provenance", sa.JSON(none_as_null=True)),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("ref_text", sa.LargeBinary()),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.account_id"], name="fk_voices_account_id_accounts"),
        sa.PrimaryKeyConstraint("seq", name="pk_voices"),
        sa.UniqueConstraint("voice_id", name="uq_voices_voice_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_voices_account_id_seq", "voices", ["account_id", "seq"])


def _cache() -> None:
    op.create_table(
        "cache",
        sa.Column("voice_id", ID, nullable=False),
        sa.Column("cache_key", DIGEST, nullable=False),
        sa.Column("sha256", DIGEST, nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("synth_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["voice_id"], ["voices.voice_id"], name="fk_cache_voice_id_voices", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("voice_id", "cache_key", name="pk_cache"),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("seq", SEQUENCE, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("account_id", ID, nullable=False),
        sa.Column("voice_id", ID, nullable=False),
        sa.Column("key_id", ID, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("lang", sa.Text(), nullable=False),
        sa.Column("backend", sa.Text(), nullable=False),
        sa.Column("cache_key", DIGEST, nullable=False),
        sa.Column("flight_key", DIGEST),
        sa.Column("speed", sa.Float(), nullable=False),
        sa.Column("seed", sa.BigInteger()),
        sa.Column("response_format", sa.String(16), nullable=False),
        sa.Column("webhook_url", sa.Text()),
        sa.Column("char_count", sa.Integer(), nullable=False),
        sa.Column("spending_id", ID, nullable=False),
        sa.Column("period", sa.String(7), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("returned", sa.Integer(), server_default="0", nullable=False),
        sa.Column("worker", sa.Text()),
        sa.Column("lease_s", sa.Float()),
        sa.Column("lease_expires", sa.Float()),
        sa.Column("audio_key", sa.Text()),
        sa.Column("audio_sha256", DIGEST),
        sa.Column("audio_bytes", sa.BigInteger()),
        sa.Column("synth_ms", sa.BigInteger()),
        sa.Column("error", sa.Text()),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("completed_at", TIME),
        sa.Column("text", sa.LargeBinary()),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.account_id"], name="fk_jobs_account_id_accounts"),
        sa.ForeignKeyConstraint(["key_id"], ["keys.key_id"], name="fk_jobs_key_id_keys"),
        sa.ForeignKeyConstraint(["voice_id"], ["voices.voice_id"], name="fk_jobs_voice_id_voices", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("seq", name="pk_jobs"),
        sa.UniqueConstraint("job_id", name="uq_jobs_job_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_account_id_seq", "jobs", ["account_id", "seq"])
    op.create_index("ix_jobs_account_id_status_seq", "jobs", ["account_id", "status", "seq"])
    op.create_index("ix_jobs_flight", "jobs", ["voice_id", "flight_key"], unique=True, **PENDING)
    op.create_index("ix_jobs_pending", "jobs", ["lease_expires", "account_id", "backend", "status"], **PENDING)
    op.create_index("ix_jobs_voice_id", "jobs", ["voice_id"])


def _idempotency() -> None:
    op.create_table(
        "idempotency",
        sa.Column("account_id", ID, nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("body_sha256", DIGEST, nullable=False),
        sa.Column("voice_id", ID),
        sa.Column("job_id", ID),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.account_id"], name="fk_idempotency_account_id_accounts"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name="fk_idempotency_job_id_jobs", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["voice_id"], ["voices.voice_id"], name="fk_idempotency_voice_id_voices", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("account_id", "route", "key", name="pk_idempotency"),
    )
    op.create_index("ix_idempotency_created_at", "idempotency", ["created_at"])
    op.create_index("ix_idempotency_job_id", "idempotency", ["job_id"])
    op.create_index("ix_idempotency_voice_id", "idempotency", ["voice_id"])


def _webhooks() -> None:
    op.create_table(
        "webhooks",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.job_id"], name="fk_webhooks_job_id_jobs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", name="pk_webhooks"),
    )
    op.create_index("ix_webhooks_next_at", "webhooks", ["next_at"])


def _tombstones() -> None:
    op.create_table(
        "tombstones",
        sa.Column("voice_id", ID, nullable=False),
        sa.Column("deleted_at", TIME, nullable=False),
        sa.Column("purged_at", TIME),
        sa.Column("audio_paths", sa.JSON(none_as_null=True)),
        sa.PrimaryKeyConstraint("voice_id", name="pk_tombstones"),
    )
