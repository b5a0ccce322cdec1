"""Plans and billing periods of accounts, customers with their subscriptions, checkouts, and usage per day."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

from afterwords.server.store.column_types import ID, UtcTime

revision: Final = "0014"
down_revision: Final = "0013"


def upgrade() -> None:
    op.add_column("server", sa.Column("reconciled_at", UtcTime))
    for column in (
        sa.Column("plan", sa.Text),
        sa.Column("period_start", UtcTime),
        sa.Column("period_end", UtcTime),
        sa.Column("suspended_at", UtcTime),
        sa.Column("closed_at", UtcTime),
    ):
        op.add_column("accounts", column)
    with op.batch_alter_table("customers") as customers:
        customers.alter_column("account_id", existing_type=ID, nullable=True)
        customers.add_column(sa.Column("email", sa.Text))
        customers.add_column(sa.Column("checkout_id", ID))
        customers.add_column(sa.Column("subscription_id", sa.Text))
        customers.add_column(sa.Column("status", sa.Text))
        customers.add_column(sa.Column("price_id", sa.Text))
        customers.add_column(sa.Column("is_ending", sa.Boolean, nullable=False, server_default=sa.false()))
        customers.add_column(sa.Column("version", sa.Integer, nullable=False, server_default="0"))
        customers.add_column(sa.Column("synced_at", UtcTime))
        customers.create_unique_constraint("uq_customers_email", ["email"])
    op.create_table(
        "checkouts",
        sa.Column("checkout_id", ID, nullable=False),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("browser_sha256", sa.LargeBinary, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
        sa.Column("customer_id", sa.Text),
        sa.Column("session_id", sa.Text),
        sa.Column("account_id", ID),
        sa.Column("begun_by_key_id", ID),
        sa.Column("created_at", UtcTime, nullable=False),
        sa.Column("paid_at", UtcTime),
        sa.Column("shown_at", UtcTime),
        sa.Column("key_id", ID),
        sa.PrimaryKeyConstraint("checkout_id", name="pk_checkouts"),
        sa.UniqueConstraint("session_id", name="uq_checkouts_session_id"),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.account_id"], name="fk_checkouts_account_id_accounts"),
        sa.ForeignKeyConstraint(["begun_by_key_id"], ["keys.key_id"], name="fk_checkouts_begun_by_key_id_keys"),
        sa.ForeignKeyConstraint(["key_id"], ["keys.key_id"], name="fk_checkouts_key_id_keys"),
    )
    op.create_index("ix_checkouts_email", "checkouts", ["email"])
    op.create_index("ix_checkouts_customer_id", "checkouts", ["customer_id"])
    op.create_index("ix_checkouts_created_at", "checkouts", ["created_at"])
    op.create_table(
        "stripe_events",
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("received_at", UtcTime, nullable=False),
        sa.PrimaryKeyConstraint("event_id", name="pk_stripe_events"),
    )
    op.create_index("ix_stripe_events_received_at", "stripe_events", ["received_at"])
    op.create_table(
        "meter_batches",
        sa.Column("batch_id", ID, nullable=False),
        sa.Column("customer_id", sa.Text, nullable=False),
        sa.Column("hour", UtcTime, nullable=False),
        sa.Column("characters", sa.BigInteger, nullable=False),
        sa.Column("first_sent_at", UtcTime),
        sa.PrimaryKeyConstraint("batch_id", name="pk_meter_batches"),
    )
    op.create_index(
        "ix_meter_batches_open",
        "meter_batches",
        ["customer_id", "hour"],
        unique=True,
        sqlite_where=sa.text("first_sent_at IS NULL"),
        postgresql_where=sa.text("first_sent_at IS NULL"),
    )
    if op.get_bind().dialect.name != "sqlite":  # which ignores lengths, and would have to rebuild the table
        op.alter_column("jobs", "period", existing_type=sa.String(7), type_=sa.String(20), existing_nullable=False)
    with op.batch_alter_table("usage") as usage:
        usage.alter_column("period", existing_type=sa.String(7), type_=sa.String(20), existing_nullable=False)
        usage.add_column(sa.Column("day", sa.String(10), nullable=False, server_default=""))
    op.execute("UPDATE usage SET day = period || '-01'")
    with op.batch_alter_table("usage") as usage:
        usage.alter_column("day", existing_type=sa.String(10), server_default=None, existing_nullable=False)
        usage.drop_constraint("pk_usage", type_="primary")
        usage.create_primary_key("pk_usage", ["spending_id", "period", "day"])
