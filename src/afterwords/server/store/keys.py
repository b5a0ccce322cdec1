"""Accounts and their keys, of which only digests are kept."""

from __future__ import annotations

from datetime import datetime, timedelta
from hmac import compare_digest
from typing import Any

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from afterwords.errors import InsufficientScopeError, KeyReplacedError
from afterwords.models import ApiKey, new_id
from afterwords.server.ports import Caller, NewKey
from afterwords.server.store.schema import accounts, keys
from afterwords.server.store.sqlite import Lookup

_SHOWN = [keys.c[name] for name in ApiKey.model_fields]
_BY_DIGEST = Lookup(
    select(
        keys.c.sha256,
        keys.c.revoked_at,
        keys.c.expires_at,
        keys.c.account_id,
        keys.c.key_id,
        keys.c.spending_id,
        keys.c.scopes,
        keys.c.character_limit,
    ).where(keys.c.sha256 == bindparam("sha256"))
)
_KEEP = insert(keys).inline()


def add(connection: Connection, key: NewKey, *, now: datetime) -> ApiKey:
    account_id = key.account_id
    if account_id is None:
        account_id = new_id()
        connection.execute(insert(accounts).values(account_id=account_id, created_at=now))
    key_id = new_id()
    return _keep(connection, key, key_id, account_id=account_id, spending_id=key_id, now=now)


def caller(connection: Connection, sha256: bytes, *, now: datetime) -> Caller | None:
    row = _BY_DIGEST(connection, sha256=sha256)
    if row is None or not compare_digest(row[0], sha256) or not _is_valid(row[1], row[2], now):
        return None
    return Caller(row[3], row[4], row[5], frozenset(row[6].split()), row[7])


def all_of(connection: Connection, *, account_id: str | None) -> list[ApiKey]:
    statement = select(*_SHOWN).order_by(keys.c.seq)
    if account_id is not None:
        statement = statement.where(keys.c.account_id == account_id)
    return [_shown(row) for row in connection.execute(statement)]


def revoke(connection: Connection, key_id: str, *, account_id: str | None, by: str | None, now: datetime) -> bool:
    row = _found(connection, key_id, account_id)
    if row is None:
        return False
    _check_may_change(connection, key_id, by=by)
    if row.revoked_at is None:
        connection.execute(update(keys).where(keys.c.key_id == key_id).values(revoked_at=now))
    return True


def rotate(
    connection: Connection,
    key_id: str,
    *,
    account_id: str | None,
    by: str | None,
    sha256: bytes,
    overlap_s: float,
    now: datetime,
) -> ApiKey | None:
    old = _found(connection, key_id, account_id)
    if old is None or not _is_valid(old.revoked_at, old.expires_at, now):
        return None
    _check_may_change(connection, key_id, by=by)
    if old.expires_at is not None:
        raise KeyReplacedError
    expires_at = now + timedelta(seconds=overlap_s)
    connection.execute(update(keys).where(keys.c.key_id == key_id).values(expires_at=expires_at))
    new = NewKey(sha256, old.label, tuple(old.scopes.split()), old.character_limit)
    return _keep(connection, new, new_id(), account_id=old.account_id, spending_id=old.spending_id, now=now)


def _check_may_change(connection: Connection, key_id: str, *, by: str | None) -> None:
    """Refuse a key that would gain by changing another one: a longer life, more scopes, a higher limit.

    It is looked up here, in the transaction, since what the request was admitted with may be half a second old.
    """
    if by is None or by == key_id:
        return
    asking = _found(connection, by, None)
    if asking is None or asking.expires_at is not None:
        raise KeyReplacedError
    if asking.scopes or asking.character_limit is not None:
        raise InsufficientScopeError("of a key without scopes and limit")


def _keep(
    connection: Connection, key: NewKey, key_id: str, *, account_id: str, spending_id: str, now: datetime
) -> ApiKey:
    facts = {
        "key_id": key_id,
        "account_id": account_id,
        "sha256": key.sha256,
        "label": key.label,
        "scopes": " ".join(key.scopes),
        "character_limit": key.character_limit,
        "spending_id": spending_id,
        "created_at": now,
    }
    connection.execute(_KEEP, facts)
    return ApiKey(
        key_id=key_id, label=key.label, scopes=key.scopes, created_at=now, character_limit=key.character_limit
    )


def _found(connection: Connection, key_id: str, account_id: str | None) -> Row[Any] | None:
    statement = select(keys).where(keys.c.key_id == key_id)
    if account_id is not None:
        statement = statement.where(keys.c.account_id == account_id)
    return connection.execute(statement).first()


def _is_valid(revoked_at: datetime | None, expires_at: datetime | None, now: datetime) -> bool:
    return revoked_at is None and (expires_at is None or now < expires_at)


def _shown(row: Row[Any]) -> ApiKey:
    facts = row._asdict()
    return ApiKey(**{**facts, "scopes": tuple(facts["scopes"].split())})
