"""Customers of Stripe, checkouts with the keys that they show, events, and characters to report to a meter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, and_, delete, exists, func, insert, or_, select, text, update

from afterwords.errors import ConflictError
from afterwords.models import ApiKey, new_id
from afterwords.server.records import (
    ENTITLED,
    Actor,
    AuditAction,
    CustomerState,
    MeterBatch,
    NewKey,
    StoredCheckout,
    StoredCustomer,
    StoredSubscription,
    Subscription,
)
from afterwords.server.store import audit
from afterwords.server.store import keys as key_rows
from afterwords.server.store.locks import lock_account, lock_open_account, lock_server
from afterwords.server.store.schema import accounts, checkouts, customers, keys, meter_batches, server, stripe_events
from afterwords.server.store.statements import Insert

EVENT_AGE: Final = timedelta(days=35)
"""How long events are known: longer than Stripe repeats them, which is 30 days by hand."""
CHECKOUT_AGE: Final = timedelta(days=2)
"""How long unpaid checkouts are kept: Stripe's sessions expire after 24 hours."""

_CUSTOMER: Final = [customers.c[field.name] for field in fields(StoredCustomer)]
_SUBSCRIPTION: Final = fields(StoredSubscription)
_CHECKOUT: Final = [checkouts.c[field.name] for field in fields(StoredCheckout)]
_BIND = Insert(
    customers,
    ("customer_id", "email", "checkout_id"),
    key=("email",),
    update=lambda new: {"checkout_id": new.checkout_id},
)
_ADD_EVENT = Insert(
    stripe_events,
    stripe_events.c.keys(),
    key=("event_id",),
    update=lambda _: {"received_at": stripe_events.c.received_at},
)
_METER = Insert(
    meter_batches,
    ("batch_id", "customer_id", "hour", "characters"),
    key=("customer_id", "hour"),
    where=text("first_sent_at IS NULL"),
    update=lambda new: {"characters": meter_batches.c.characters + new.characters},
)


def expired(now: datetime) -> dict[Any, ColumnElement[bool]]:
    """Return which rows of the tables are not needed any more."""
    is_pending = exists().where(customers.c.customer_id == checkouts.c.customer_id, customers.c.status == "incomplete")
    return {
        stripe_events: stripe_events.c.received_at < now - EVENT_AGE,
        checkouts: and_(
            checkouts.c.paid_at.is_(None), checkouts.c.created_at < now - CHECKOUT_AGE, ~is_pending
        ),  # a bank debit takes days
        customers: and_(
            customers.c.account_id.is_(None),
            customers.c.subscription_id.is_(None),
            ~exists().where(checkouts.c.customer_id == customers.c.customer_id),
        ),
    }


# -- checkouts -----------------------------------------------------------------------------------------------


def begin_checkout(
    connection: Connection,
    *,
    email: str,
    plan: str,
    browser_sha256: bytes,
    account_id: str | None,
    key_id: str | None,
    since: datetime,
    is_only: bool,
    now: datetime,
) -> StoredCheckout:
    lock_server(connection)  # two clicks are one checkout
    of_browser = and_(checkouts.c.browser_sha256 == browser_sha256, checkouts.c.created_at >= since)
    is_same = and_(checkouts.c.email == email, checkouts.c.plan == plan)
    if is_only and connection.execute(_find_checkout(of_browser, ~is_same)).first() is not None:
        raise ConflictError(code="idempotency_conflict")
    is_own = checkouts.c.account_id.is_not_distinct_from(account_id)
    if account_id is None:  # one that was paid has got its account since
        is_own = or_(is_own, checkouts.c.paid_at.is_not(None))
    same = _find_checkout(
        of_browser,
        is_same,
        is_own,
        checkouts.c.begun_by_key_id.is_not_distinct_from(key_id),
        checkouts.c.shown_at.is_(None),
    )
    row = connection.execute(same.order_by(checkouts.c.created_at.desc()).limit(1)).first()
    if row is None:
        values = {
            "checkout_id": new_id(),
            "email": email,
            "plan": plan,
            "browser_sha256": browser_sha256,
            "account_id": account_id,
            "begun_by_key_id": key_id,
            "created_at": now,
        }
        row = connection.execute(insert(checkouts).values(values).returning(*_CHECKOUT)).one()
    return StoredCheckout(*row)


def get_checkout(connection: Connection, checkout_id: str) -> StoredCheckout | None:
    row = connection.execute(_find_checkout(checkouts.c.checkout_id == checkout_id)).first()
    return StoredCheckout(*row) if row else None


def bind_customer(connection: Connection, checkout_id: str, customer_id: str, *, email: str) -> StoredCustomer:
    lock_server(connection)  # as every write of an address: no two customers get the same one
    known = update(customers).where(customers.c.customer_id == customer_id).values(checkout_id=checkout_id)
    row = connection.execute(known.returning(*_CUSTOMER)).first()
    if row is None:
        former = find_customer(connection, email=email)
        if former is not None and former.is_former:
            connection.execute(update(customers).where(customers.c.email == email).values(email=None))
        _BIND(connection, {"customer_id": customer_id, "email": email, "checkout_id": checkout_id})
        row = connection.execute(select(*_CUSTOMER).where(customers.c.email == email)).one()
    customer = StoredCustomer(*row)
    of_checkout = checkouts.c.checkout_id == checkout_id
    connection.execute(update(checkouts).where(of_checkout).values(customer_id=customer.customer_id))
    return customer


def save_session(connection: Connection, checkout_id: str, session_id: str | None) -> bool:
    changed = update(checkouts).where(checkouts.c.checkout_id == checkout_id).values(session_id=session_id)
    if session_id is None:
        changed = changed.values(tries=checkouts.c.tries + 1)
    connection.execute(changed)
    is_last = select(checkouts.c.checkout_id).where(
        checkouts.c.checkout_id == checkout_id,
        customers.c.customer_id == checkouts.c.customer_id,
        customers.c.checkout_id == checkout_id,
    )
    return connection.execute(is_last).first() is not None


def mint(
    connection: Connection,
    checkout_id: str,
    key: NewKey,
    *,
    is_confirmed: bool,
    revokes_others: bool,
    since: datetime,
    actor: Actor,
    now: datetime,
    monotonic: float,
) -> tuple[ApiKey, list[str]] | None:
    account_id = _account_to_show(connection, checkout_id, is_confirmed=is_confirmed)
    if account_id is None or lock_open_account.read(connection, account_id=account_id) is None:
        return None
    of_checkout = checkouts.c.checkout_id == checkout_id
    claim = update(checkouts).where(
        of_checkout, checkouts.c.shown_at.is_(None), checkouts.c.paid_at >= since, _is_proven(now)
    )
    if not connection.execute(claim.values(shown_at=now, account_id=account_id)).rowcount:
        return None
    cancelled: list[str] = []
    if revokes_others:  # also those that other checkouts have not shown yet
        of_account = and_(checkouts.c.account_id == account_id, checkouts.c.shown_at.is_(None))
        connection.execute(update(checkouts).where(of_account).values(shown_at=now))
        cancelled = _revoke(
            connection, keys.c.account_id == account_id, account_id, actor=actor, now=now, monotonic=monotonic
        )
    minted = key_rows.insert_key(connection, key, account_id=account_id, actor=actor, now=now)
    connection.execute(update(checkouts).where(of_checkout).values(key_id=minted.key_id))
    return minted, cancelled


def _is_proven(now: datetime) -> ColumnElement[bool]:
    """Return whether the key with which a checkout was begun is still valid, if it was begun with one."""
    is_valid = exists().where(
        keys.c.key_id == checkouts.c.begun_by_key_id,
        keys.c.revoked_at.is_(None),
        or_(keys.c.expires_at.is_(None), keys.c.expires_at > now),
    )
    return or_(checkouts.c.begun_by_key_id.is_(None), is_valid)


def _revoke(
    connection: Connection,
    which: ColumnElement[bool],
    account_id: str,
    *,
    actor: Actor,
    now: datetime,
    monotonic: float,
) -> list[str]:
    """Revoke keys of an account, and return their cancelled jobs."""
    cancelled: list[str] = []
    for key_id in connection.execute(select(keys.c.key_id).where(which, keys.c.revoked_at.is_(None))).scalars().all():
        cancelled += (
            key_rows.revoke(
                connection, key_id, account_id=account_id, by=None, actor=actor, now=now, monotonic=monotonic
            )
            or ()
        )
    return cancelled


def _account_to_show(connection: Connection, checkout_id: str, *, is_confirmed: bool) -> str | None:
    """Return the account of a paid checkout, if it is proven that the browser may have a key of it."""
    account = func.coalesce(checkouts.c.account_id, customers.c.account_id) if is_confirmed else checkouts.c.account_id
    found = (
        select(account)
        .outerjoin_from(checkouts, customers, customers.c.customer_id == checkouts.c.customer_id)
        .where(checkouts.c.checkout_id == checkout_id)
    )
    account_id: str | None = connection.execute(found).scalar()
    return account_id


def reissue(
    connection: Connection, customer_id: str, key: NewKey, *, actor: Actor, now: datetime, monotonic: float
) -> tuple[ApiKey, list[str]] | None:
    """Return a new key in place of those of the customer's last paid checkout, and the cancelled jobs of these."""
    account_id = connection.execute(
        select(customers.c.account_id).where(customers.c.customer_id == customer_id)
    ).scalar()
    if account_id is None or lock_open_account.read(connection, account_id=account_id) is None:
        return None
    of_customer = _find_checkout(checkouts.c.customer_id == customer_id, checkouts.c.paid_at.is_not(None))
    row = connection.execute(of_customer.order_by(checkouts.c.paid_at.desc()).limit(1)).first()
    if row is None:  # the customer was imported, or subscribed in the Dashboard
        values = {"checkout_id": new_id(), "email": "", "plan": "", "browser_sha256": b"", "customer_id": customer_id}
        made = insert(checkouts).values(**values, created_at=now, paid_at=now)
        row = connection.execute(made.returning(*_CHECKOUT)).one()
    checkout = StoredCheckout(*row)
    spending = select(keys.c.spending_id).where(keys.c.key_id == checkout.key_id).scalar_subquery()
    rotated = keys.c.spending_id == spending
    cancelled = _revoke(connection, rotated, account_id, actor=actor, now=now, monotonic=monotonic)
    minted = key_rows.insert_key(connection, key, account_id=account_id, actor=actor, now=now)
    of_checkout = update(checkouts).where(checkouts.c.checkout_id == checkout.checkout_id)
    connection.execute(of_checkout.values(key_id=minted.key_id, account_id=account_id, shown_at=now))
    return minted, cancelled


def _find_checkout(*conditions: ColumnElement[bool]) -> Select[Any]:
    return select(*_CHECKOUT).where(*conditions)


# -- customers -----------------------------------------------------------------------------------------------


def find_customer(
    connection: Connection, *, customer_id: str | None = None, email: str | None = None, account_id: str | None = None
) -> StoredCustomer | None:
    names = {"customer_id": customer_id, "email": email, "account_id": account_id}
    conditions = [customers.c[name] == value for name, value in names.items() if value is not None]
    assert conditions
    row = connection.execute(select(*_CUSTOMER).where(*conditions)).first()
    return StoredCustomer(*row) if row else None


def list_due_customers(connection: Connection, *, again_s: float, now: datetime) -> list[str]:
    statement = (
        select(customers.c.customer_id)
        .join(accounts, accounts.c.account_id == customers.c.account_id)
        .where(
            customers.c.status.in_(sorted(ENTITLED)),
            accounts.c.period_end <= now,
            customers.c.synced_at < now - timedelta(seconds=again_s),
        )
        .order_by(customers.c.synced_at, customers.c.customer_id)
    )
    return list(connection.execute(statement).scalars())


def list_subscriptions(connection: Connection) -> list[StoredSubscription]:
    columns = [(customers.c if field.name in customers.c else accounts.c)[field.name] for field in _SUBSCRIPTION]
    rows = connection.execute(select(*columns).outerjoin_from(customers, accounts).order_by(customers.c.customer_id))
    return [StoredSubscription(*row) for row in rows]


def claim_reconcile(connection: Connection, *, again_s: float, now: datetime) -> bool:
    last = server.c.reconciled_at
    is_due = or_(last.is_(None), last <= now - timedelta(seconds=again_s), last > now)  # or the clock was set back
    return bool(connection.execute(update(server).where(is_due).values(reconciled_at=now)).rowcount)


def add_customer(connection: Connection, customer_id: str, *, email: str | None) -> None:
    lock_server(connection)
    if find_customer(connection, customer_id=customer_id) is not None:
        return
    is_taken = _is_taken(connection, email, customer_id)
    connection.execute(insert(customers).values(customer_id=customer_id, email=None if is_taken else email))


def _is_taken(connection: Connection, email: str | None, customer_id: str) -> bool:
    is_other = and_(customers.c.email == email, customers.c.customer_id != customer_id)
    return connection.execute(select(customers.c.customer_id).where(is_other)).first() is not None


def save_state(
    connection: Connection,
    customer_id: str,
    state: CustomerState,
    chosen: Subscription | None,
    *,
    plan: str | None,
    version: int,
    event_id: str | None,
    now: datetime,
) -> StoredCustomer | None:
    """Write what Stripe says of a customer, unless another look was written since. Return the row as it is then."""
    before = find_customer(connection, customer_id=customer_id)
    if before is None:
        return None
    values: dict[str, Any] = {"version": version + 1, "synced_at": now}
    if chosen is not None:
        names = ("subscription_id", "status", "price_id", "is_ending")
        values |= {name: getattr(chosen, name) for name in names}
    else:  # the subscription is still known, so that closing the account cancels it
        values |= {"status": "canceled" if state.is_deleted else None, "is_ending": False}
    if state.is_deleted:
        values["email"] = None
    elif state.email and state.email != before.email and not before.is_former:
        lock_server(connection)
        if not _is_taken(connection, state.email, customer_id):
            values["email"] = state.email
    same = update(customers).where(customers.c.customer_id == customer_id, customers.c.version == version)
    row = connection.execute(same.values(values).returning(*_CUSTOMER)).first()
    if row is None:
        return None
    customer = StoredCustomer(*row)
    if state.is_deleted:
        connection.execute(update(checkouts).where(checkouts.c.customer_id == customer_id).values(email=""))
    if event_id is not None:
        add_event(connection, event_id, now=now)
    if chosen is not None and customer.is_entitled:
        _give_access(connection, customer, chosen, plan=plan, now=now)
    elif customer.account_id is not None:
        lock_account(connection, account_id=customer.account_id)
        _set_suspended(connection, customer.account_id, is_suspended=True, now=now)
    return find_customer(connection, customer_id=customer_id)


def _give_access(
    connection: Connection, customer: StoredCustomer, chosen: Subscription, *, plan: str | None, now: datetime
) -> None:
    """Open the account of a customer, and create it if there is none: then the checkout that paid may show a key."""
    of_checkout = and_(checkouts.c.checkout_id == chosen.checkout_id, checkouts.c.customer_id == customer.customer_id)
    is_open = accounts.c.closed_at.is_(None)
    own = select(accounts.c.account_id).where(accounts.c.account_id == customer.account_id, is_open)
    account_id: str | None = connection.execute(own).scalar()
    proven: str | None = None
    if account_id is None:
        has_access = exists().where(
            customers.c.account_id == accounts.c.account_id, customers.c.status.in_(sorted(ENTITLED))
        )
        begun_by = (  # the account that was signed in when the checkout began
            select(accounts.c.account_id)
            .join(checkouts, checkouts.c.account_id == accounts.c.account_id)
            .where(of_checkout, is_open, ~has_access, _is_proven(now))
        )
        account_id = connection.execute(begun_by).scalar()
        if account_id is None:
            account_id = new_id()
            connection.execute(insert(accounts).values(account_id=account_id, created_at=now))
            connection.execute(update(checkouts).where(of_checkout).values(begun_by_key_id=None))
        else:
            detach_customer(connection, account_id)  # one that was deleted at Stripe
        proven = account_id
        is_own = customers.c.customer_id == customer.customer_id
        connection.execute(update(customers).where(is_own).values(account_id=account_id))
    lock_account(connection, account_id=account_id)
    connection.execute(
        update(accounts)
        .where(accounts.c.account_id == account_id)
        .values(plan=plan, period_start=chosen.period_start, period_end=chosen.period_end)
    )
    _set_suspended(connection, account_id, is_suspended=False, now=now)
    paid = update(checkouts).where(of_checkout, checkouts.c.paid_at.is_(None)).values(paid_at=now)
    if proven is not None:
        paid = paid.values(account_id=proven)
    connection.execute(paid)


def _set_suspended(connection: Connection, account_id: str, *, is_suspended: bool, now: datetime) -> None:
    action = AuditAction.ACCOUNT_SUSPENDED if is_suspended else AuditAction.ACCOUNT_RESUMED
    is_other = accounts.c.suspended_at.is_(None) if is_suspended else accounts.c.suspended_at.is_not(None)
    changed = update(accounts).where(accounts.c.account_id == account_id, is_other)
    if connection.execute(changed.values(suspended_at=now if is_suspended else None)).rowcount:
        audit.add(connection, action, account_id, account_id=account_id, actor=Actor("stripe"), now=now)


def detach_customer(connection: Connection, account_id: str) -> None:
    of_account = customers.c.account_id == account_id
    connection.execute(update(customers).where(of_account).values(account_id=None, email=None))


# -- events and meters ---------------------------------------------------------------------------------------


def has_event(connection: Connection, event_id: str) -> bool:
    return connection.execute(select(stripe_events).where(stripe_events.c.event_id == event_id)).first() is not None


def add_event(connection: Connection, event_id: str, *, now: datetime) -> None:
    _ADD_EVENT(connection, {"event_id": event_id, "received_at": now})


def meter(connection: Connection, account_id: str, characters: int, *, now: datetime) -> None:
    """Add characters of a finished job to the batch of its hour, if the account has a customer."""
    customer = find_customer(connection, account_id=account_id)
    if customer is not None and characters:
        hour = now.replace(minute=0, second=0, microsecond=0)
        values = {"batch_id": new_id(), "customer_id": customer.customer_id, "hour": hour, "characters": characters}
        _METER(connection, values)


def close_meter_batches(connection: Connection, *, limit: int, now: datetime) -> Sequence[MeterBatch]:
    is_open = meter_batches.c.first_sent_at.is_(None)
    connection.execute(update(meter_batches).where(is_open).values(first_sent_at=now))
    columns = [meter_batches.c[field.name] for field in fields(MeterBatch)]
    oldest = select(*columns).order_by(meter_batches.c.first_sent_at, meter_batches.c.batch_id).limit(limit)
    return [MeterBatch(*row) for row in connection.execute(oldest)]


def delete_meter_batch(connection: Connection, batch_id: str) -> None:
    connection.execute(delete(meter_batches).where(meter_batches.c.batch_id == batch_id))
