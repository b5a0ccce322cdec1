"""Accounts: their list, their plans, and their end."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    ScalarSelect,
    Table,
    cast,
    delete,
    func,
    or_,
    select,
    update,
)

from afterwords.errors import ConflictError
from afterwords.models import Account
from afterwords.server.records import Actor, AuditAction
from afterwords.server.settings import Plan
from afterwords.server.store import audit, billing
from afterwords.server.store import keys as key_rows
from afterwords.server.store.locks import lock_account
from afterwords.server.store.schema import accounts, cache, consents, customers, jobs, keys, usage, voices
from afterwords.server.store.usage import current_period, period_of, plan_of

_REFERENCE_BYTES = voices.c.ref_duration_s * voices.c.ref_sample_rate * 2  # mono, 16-bit


def list_accounts(connection: Connection, *, plans: Mapping[str, Plan], now: datetime) -> list[Account]:
    is_valid = keys.c.revoked_at.is_(None) & or_(keys.c.expires_at.is_(None), keys.c.expires_at > now)
    is_current = usage.c.period == current_period(connection, now=now)
    statement = (
        select(
            accounts,
            customers.c.customer_id,
            customers.c.status,
            _per_account(func.count(), keys, is_valid).label("keys"),
            _per_account(func.count(), voices).label("voices"),
            _per_account(cast(func.sum(usage.c.characters), BigInteger), usage, is_current).label("characters"),
            _per_account(func.sum(_REFERENCE_BYTES), voices, voices.c.home_id.is_(None)).label("references"),
            _per_account(cast(func.sum(jobs.c.audio_bytes), BigInteger), jobs).label("audio"),
            _per_account(
                cast(func.sum(cache.c.size_bytes), BigInteger), voices, voices.c.voice_id == cache.c.voice_id
            ).label("cached"),
        )
        .outerjoin_from(accounts, customers)
        .order_by(accounts.c.created_at, _per_account(func.min(keys.c.seq), keys))
    )
    found = []
    for row in connection.execute(statement):
        period = period_of(row.period_start, row.period_end, now=now)
        found.append(
            Account(
                account_id=row.account_id,
                created_at=row.created_at,
                plan=row.plan,
                keys=row.keys,
                voices=row.voices,
                characters=row.characters or 0,
                limit=plan_of(row.plan, plans).characters,
                period_start=period.start,
                period_end=period.end,
                storage_bytes=round((row.references or 0) + (row.audio or 0) + (row.cached or 0)),
                suspended_at=row.suspended_at,
                closed_at=row.closed_at,
                customer_id=row.customer_id,
                subscription=row.status,
            )
        )
    return found


def _per_account(figure: ColumnElement[Any], table: Table, *conditions: ColumnElement[bool]) -> ScalarSelect[Any]:
    """Return a subquery of one figure per account, for a query over accounts."""
    is_own = table.c.account_id == accounts.c.account_id
    return select(figure).where(is_own, *conditions).correlate(accounts).scalar_subquery()


def count_plans(connection: Connection) -> dict[str, int]:
    statement = select(accounts.c.plan, func.count().label("n")).group_by(accounts.c.plan)
    return {row.plan: row.n for row in connection.execute(statement.where(accounts.c.plan.is_not(None)))}


def set_plan(connection: Connection, account_id: str, plan: str | None, *, actor: Actor, now: datetime) -> bool:
    # A look at Stripe locks the customer before the account, too.
    connection.execute(select(customers).where(customers.c.account_id == account_id).with_for_update())
    lock_account(connection, account_id=account_id)
    is_own = accounts.c.account_id == account_id
    row = connection.execute(select(accounts.c.closed_at).where(is_own)).first()
    if row is None:
        return False
    if row.closed_at is not None:
        raise ConflictError("The account is closed.", hint="create another one: afterwords keys create")
    values: dict[str, Any] = {"plan": plan}
    customer = billing.find_customer(connection, account_id=account_id)
    if customer is not None and customer.is_subscribed:  # the next look at Stripe would undo the change
        raise ConflictError(
            f"The plan of this account is that of its subscription {customer.subscription_id}.",
            hint="change or cancel the subscription at Stripe.",
        )
    if customer is None or customer.synced_at is not None:  # likewise: there is no subscription
        billing.detach_customer(connection, account_id)
        values |= {"suspended_at": None, "period_start": None, "period_end": None}
    connection.execute(update(accounts).where(is_own).values(values))
    audit.add(connection, AuditAction.PLAN_CHANGED, account_id, account_id=account_id, actor=actor, now=now)
    return True


def close(
    connection: Connection, account_id: str, *, actor: Actor, now: datetime, monotonic: float
) -> list[str] | None:
    """Close an account: revoke its keys. Return the ids of the cancelled jobs. None: there is no such account."""
    billing.detach_customer(connection, account_id)  # first: a look at Stripe locks the customer before the account
    lock_account(connection, account_id=account_id)
    is_own = accounts.c.account_id == account_id
    row = connection.execute(select(accounts.c.closed_at).where(is_own)).first()
    if row is None:
        return None
    if account_id == key_rows.get_home_account(connection):
        raise ConflictError(
            "This account sees the voices of the library on this machine, so it can't be closed.",
            hint="revoke its keys: afterwords keys revoke",
        )
    if row.closed_at is None:
        connection.execute(update(accounts).where(is_own).values(closed_at=now))
        connection.execute(delete(consents).where(consents.c.account_id == account_id))
        audit.add(connection, AuditAction.ACCOUNT_CLOSED, account_id, account_id=account_id, actor=actor, now=now)
    cancelled: list[str] = []
    valid = select(keys.c.key_id).where(keys.c.account_id == account_id, keys.c.revoked_at.is_(None))
    for key_id in connection.execute(valid).scalars().all():
        cancelled += (
            key_rows.revoke(
                connection, key_id, account_id=account_id, by=None, actor=actor, now=now, monotonic=monotonic
            )
            or ()
        )
    return cancelled
