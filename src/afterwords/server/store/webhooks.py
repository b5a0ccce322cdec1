"""Webhooks that are due. Taking one puts it off, so that a crash delivers it later and two servers not both at once."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection, bindparam, delete, func, or_, select, update

from afterwords.server.ports import StoredJob, WebhookCall
from afterwords.server.store.jobs import JOB
from afterwords.server.store.schema import jobs, keys, webhooks

PAUSES_S: Final = (5, 30, 120, 600, 3600, 6 * 3600)
"""After each try; the last pause is also how long a webhook that was tried for the last time may still be settled."""
MAX_TRIES: Final = len(PAUSES_S) + 1
SIGNED_FOR: Final = b"afterwords webhook v1"

_IS_DUE = or_(
    webhooks.c.next_at <= bindparam("steady"),
    webhooks.c.next_at > bindparam("steady") + PAUSES_S[-1],  # the clock was set back between starts
)
_ANY = select(webhooks.c.job_id).where(_IS_DUE).limit(1)
_NUMBERED = (
    select(
        webhooks.c.job_id,
        func.row_number()
        .over(partition_by=jobs.c.account_id, order_by=(webhooks.c.next_at, jobs.c.seq))
        .label("number"),
    )
    .join(jobs, jobs.c.job_id == webhooks.c.job_id)
    .where(_IS_DUE)
    .subquery()
)
_DUE = (
    select(webhooks.c.url, webhooks.c.tries, keys.c.sha256, *JOB)
    .join(_NUMBERED, _NUMBERED.c.job_id == webhooks.c.job_id)
    .join(jobs, jobs.c.job_id == webhooks.c.job_id)
    .join(keys, keys.c.key_id == jobs.c.key_id)
    .where(_NUMBERED.c.number <= bindparam("per_account"))
    .order_by(_NUMBERED.c.number, webhooks.c.next_at, jobs.c.seq)
)
_EXHAUSTED = delete(webhooks).where(_IS_DUE, webhooks.c.tries >= MAX_TRIES)
_PUT_OFF = (
    update(webhooks)
    .where(webhooks.c.job_id == bindparam("which"))
    .values(tries=bindparam("number"), next_at=bindparam("later"))
)


def is_any_due(connection: Connection, *, steady: float) -> bool:
    return connection.execute(_ANY, {"steady": steady}).first() is not None


def due(
    connection: Connection, *, limit: int, per_account: int, allowed: Mapping[str, int], steady: float
) -> list[WebhookCall]:
    connection.execute(_EXHAUSTED, {"steady": steady})
    calls: list[WebhookCall] = []
    left = dict(allowed)
    for url, tries, sha256, *job in connection.execute(_DUE, {"steady": steady, "per_account": per_account}).all():
        stored = StoredJob(*job)
        n_left = left.get(stored.account_id, per_account)
        if not n_left or len(calls) == limit:
            continue
        left[stored.account_id] = n_left - 1
        pause_s = PAUSES_S[min(tries, len(PAUSES_S) - 1)]
        facts = {"which": stored.job_id, "number": tries + 1, "later": steady + pause_s}
        connection.execute(_PUT_OFF, facts)
        key = hmac.digest(sha256, SIGNED_FOR, hashlib.sha256)
        calls.append(WebhookCall(stored, url, tries + 1, signing_key=key))
    return calls


def settle(connection: Connection, job_id: str) -> None:
    connection.execute(delete(webhooks).where(webhooks.c.job_id == job_id))
