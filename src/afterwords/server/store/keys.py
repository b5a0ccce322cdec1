"""Accounts, and their keys: only digests of keys are stored."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from hmac import compare_digest
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Row,
    Select,
    bindparam,
    cast,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)

from afterwords.errors import (
    ConflictError,
    InsufficientScopeError,
    InvalidRequestError,
    NotFoundError,
    UnauthorizedError,
)
from afterwords.models import ApiKey, JobStatus, new_id
from afterwords.server.records import Actor, AuditAction, Caller, NewKey
from afterwords.server.store import audit
from afterwords.server.store.jobs import end, ending
from afterwords.server.store.locks import lock_account, lock_open_account, lock_server
from afterwords.server.store.schema import IS_PENDING, accounts, jobs, keys, server, usage, webhooks
from afterwords.server.store.statements import Query
from afterwords.server.store.usage import current_period

_COLUMNS = [keys.c[name] for name in ApiKey.model_fields if name != "characters"]
_CALLER = select(
    keys.c.sha256,
    keys.c.revoked_at,
    keys.c.expires_at,
    keys.c.account_id,
    keys.c.key_id,
    keys.c.spending_id,
    keys.c.scopes,
    keys.c.character_limit,
    accounts.c.plan,
    accounts.c.suspended_at,
).join_from(keys, accounts)
_BY_DIGEST = Query(_CALLER.where(keys.c.sha256 == bindparam("sha256")))
_BY_ID = Query(_CALLER.where(keys.c.key_id == bindparam("key_id")))


def add(connection: Connection, key: NewKey, *, by: str | None, actor: Actor, now: datetime) -> ApiKey:
    requesting = _check_may_manage(connection, by) if by else None
    own = requesting.account_id if requesting else None
    account_id = key.account_id or own
    if key.for_key is not None:
        sibling = _find(connection, key.for_key, account_id)
        if sibling is None:
            raise NotFoundError(code="key_not_found")
        account_id = sibling.account_id
    if key.is_home:
        lock_server(connection)
        account_id = get_home_account(connection)
    if account_id is None:
        account_id = new_id()
        connection.execute(insert(accounts).values(account_id=account_id, created_at=now, plan=key.plan))
        if key.is_home:
            connection.execute(update(server).values(home_account_id=account_id))
    else:
        if key.plan is not None:
            raise InvalidRequestError.invalid_field("plan", rule="the account exists; `accounts set-plan` changes it")
        is_open = lock_open_account.read(connection, account_id=account_id) is not None
        if account_id != (own or account_id) or not is_open:
            raise InvalidRequestError.invalid_field("account_id", rule="there is no such account")
    if requesting and not key.scopes:
        raise UnauthorizedError(code="admin_required")
    return insert_key(connection, key, account_id=account_id, actor=actor, now=now)


def get_home_account(connection: Connection) -> str | None:
    account_id: str | None = connection.execute(select(server.c.home_account_id)).scalar()
    return account_id


def find_caller(connection: Connection, sha256: bytes, *, now: datetime) -> Caller | None:
    row = _BY_DIGEST(connection, sha256=sha256)
    return _caller(row, now=now) if row is not None and compare_digest(row[0], sha256) else None


def find_caller_by_id(connection: Connection, key_id: str, *, now: datetime) -> Caller | None:
    row = _BY_ID(connection, key_id=key_id)
    return _caller(row, now=now) if row is not None else None


def _caller(row: Sequence[Any], *, now: datetime) -> Caller | None:
    if not _is_valid(row[1], row[2], now):
        return None
    return Caller(row[3], row[4], row[5], frozenset(row[6].split()), row[7], row[8], row[9] is not None)


def mark_used(connection: Connection, key_ids: Sequence[str], *, now: datetime) -> None:
    connection.execute(update(keys).where(keys.c.key_id.in_(key_ids)).values(used_at=now))


def list_keys(connection: Connection, *, account_id: str | None, now: datetime) -> list[ApiKey]:
    is_spent = (usage.c.spending_id == keys.c.spending_id) & (usage.c.period == current_period(connection, now=now))
    spent = select(func.sum(usage.c.characters)).where(is_spent).correlate(accounts, keys).scalar_subquery()
    characters = cast(func.coalesce(spent, 0), BigInteger).label("characters")
    statement: Select[Any] = select(*_COLUMNS, characters).join_from(keys, accounts).order_by(keys.c.seq)
    if account_id is not None:
        statement = statement.where(keys.c.account_id == account_id)
    rows = (row._asdict() for row in connection.execute(statement))
    return [ApiKey(**{**row, "scopes": tuple(row["scopes"].split())}) for row in rows]


_CANCEL_ALL = ending(JobStatus.CANCELLED).where(jobs.c.key_id == bindparam("owner"), IS_PENDING)
_DELETE_WEBHOOKS = delete(webhooks).where(
    exists().where(jobs.c.job_id == webhooks.c.job_id, jobs.c.key_id == bindparam("owner"))
)


def revoke(
    connection: Connection,
    key_id: str,
    *,
    account_id: str | None,
    by: str | None,
    actor: Actor,
    now: datetime,
    monotonic: float,
) -> list[str] | None:
    row = _find(connection, key_id, account_id)
    if row is None:
        return None
    if by is not None and by != key_id:
        _check_may_manage(connection, by)
    lock_account(connection, account_id=row.account_id)
    if row.revoked_at is None:
        connection.execute(update(keys).where(keys.c.key_id == key_id).values(revoked_at=now))
        audit.add(connection, AuditAction.KEY_REVOKED, key_id, account_id=row.account_id, actor=actor, now=now)
    cancelled = end(connection, _CANCEL_ALL, {"owner": key_id}, now=now, monotonic=monotonic)
    connection.execute(_DELETE_WEBHOOKS, {"owner": key_id})
    return cancelled


def rotate(
    connection: Connection,
    key_id: str,
    *,
    account_id: str | None,
    by: str | None,
    sha256: bytes,
    prefix: str | None,
    overlap_s: float,
    actor: Actor,
    now: datetime,
) -> ApiKey | None:
    old = _find(connection, key_id, account_id)
    if old is None or not _is_valid(old.revoked_at, old.expires_at, now):
        return None
    if by is not None and by != key_id:
        _check_may_manage(connection, by)
    if old.expires_at is not None:
        raise ConflictError(code="key_replaced")
    if lock_open_account.read(connection, account_id=old.account_id) is None:
        return None
    expires_at = now + timedelta(seconds=overlap_s)
    connection.execute(update(keys).where(keys.c.key_id == key_id).values(expires_at=expires_at))
    new = NewKey(sha256, old.label, tuple(old.scopes.split()), old.character_limit, prefix=prefix)
    audit.add(connection, AuditAction.KEY_ROTATED, key_id, account_id=old.account_id, actor=actor, now=now)
    return insert_key(connection, new, account_id=old.account_id, spending_id=old.spending_id, actor=actor, now=now)


def _check_may_manage(connection: Connection, by: str) -> Row[Any]:
    """Return the requesting key if it may create and change other keys.

    Otherwise it could gain a longer life, more scopes or a higher limit. It is read in the transaction, since the
    caller of a request may be half a second old.
    """
    row = _find(connection, by, None)
    if row is not None and row.revoked_at is not None:
        raise UnauthorizedError
    if row is None or row.expires_at is not None:
        raise ConflictError(code="key_replaced")
    if row.scopes or row.character_limit is not None:
        raise InsufficientScopeError(
            "A key with scopes or a limit can't create or change other keys.",
            hint="use a key without scopes and limit, or the admin secret.",
        )
    return row


def insert_key(
    connection: Connection,
    key: NewKey,
    *,
    account_id: str,
    spending_id: str | None = None,
    actor: Actor,
    now: datetime,
) -> ApiKey:
    """Insert a key of an account that exists."""
    key_id = new_id()
    values = {
        "key_id": key_id,
        "account_id": account_id,
        "sha256": key.sha256,
        "label": key.label,
        "scopes": " ".join(key.scopes),
        "character_limit": key.character_limit,
        "spending_id": spending_id or key_id,
        "prefix": key.prefix,
        "created_at": now,
    }
    connection.execute(insert(keys).inline(), values)
    audit.add(connection, AuditAction.KEY_CREATED, key_id, account_id=account_id, actor=actor, now=now)
    return ApiKey(
        key_id=key_id,
        label=key.label,
        scopes=key.scopes,
        created_at=now,
        character_limit=key.character_limit,
        account_id=account_id,
        prefix=key.prefix,
    )


def _find(connection: Connection, key_id: str, account_id: str | None) -> Row[Any] | None:
    """Return a key, which no other transaction changes until this one ends."""
    statement = select(keys).where(keys.c.key_id == key_id).with_for_update(key_share=True)
    if account_id is not None:
        statement = statement.where(keys.c.account_id == account_id)
    return connection.execute(statement).first()


def _is_valid(revoked_at: datetime | None, expires_at: datetime | None, now: datetime) -> bool:
    return revoked_at is None and (expires_at is None or now < expires_at)
