"""Rows of recordings of consent."""

from __future__ import annotations

from dataclasses import fields
from typing import Final

from sqlalchemy import Connection, delete, func, insert, select, update

from afterwords.errors import QuotaExceededError, UnauthorizedError
from afterwords.server.records import StoredConsent
from afterwords.server.store.locks import lock_open_account
from afterwords.server.store.schema import consents

CONSENTS_MAX: Final = 20
"""Recordings of an account: each has up to 6 MB."""
_SELECT: Final = select(*(consents.c[field.name] for field in fields(StoredConsent)))


def add(connection: Connection, consent: StoredConsent, recording: bytes) -> None:
    account_id = consent.account_id
    if lock_open_account.read(connection, account_id=account_id) is None:  # since the request was authenticated
        raise UnauthorizedError
    counting = select(func.count()).where(consents.c.account_id == account_id)
    if connection.execute(counting).scalar_one() >= CONSENTS_MAX:
        why = f"The account has {CONSENTS_MAX} recordings of consent, which is the limit."
        raise QuotaExceededError(why, code="storage_quota_exceeded", hint="delete one that no voice needs any more.")
    values = {field.name: getattr(consent, field.name) for field in fields(consent)}
    connection.execute(insert(consents).values(**values, recording=recording))


def get(connection: Connection, consent_id: str, *, account_id: str) -> StoredConsent | None:
    is_it = (consents.c.consent_id == consent_id, consents.c.account_id == account_id)
    row = connection.execute(_SELECT.where(*is_it)).first()
    return StoredConsent(*row) if row else None


def read_recording(connection: Connection, consent_id: str, *, account_id: str) -> bytes | None:
    is_it = (consents.c.consent_id == consent_id, consents.c.account_id == account_id)
    recording: bytes | None = connection.execute(select(consents.c.recording).where(*is_it)).scalar()
    return recording


def list_consents(connection: Connection, *, account_id: str, limit: int, after: str | None) -> list[StoredConsent]:
    statement = _SELECT.where(consents.c.account_id == account_id).order_by(consents.c.seq.desc()).limit(limit)
    if after is not None:
        last = select(consents.c.seq).where(consents.c.consent_id == after, consents.c.account_id == account_id)
        statement = statement.where(consents.c.seq < last.scalar_subquery())
    return [StoredConsent(*row) for row in connection.execute(statement)]


def rename(connection: Connection, consent_id: str, *, account_id: str, name: str) -> bool:
    is_it = (consents.c.consent_id == consent_id, consents.c.account_id == account_id)
    return connection.execute(update(consents).where(*is_it).values(name=name)).rowcount == 1


def remove(connection: Connection, consent_id: str, *, account_id: str) -> bool:
    is_it = (consents.c.consent_id == consent_id, consents.c.account_id == account_id)
    return connection.execute(delete(consents).where(*is_it)).rowcount == 1
