"""Webhooks that are due. A claim delays a webhook, so that a crash delivers it later, and two servers don't both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection, bindparam, delete, func, or_, select, update

from afterwords.server.records import StoredJob, WebhookCall
from afterwords.server.services.signing import signing_key
from afterwords.server.store.jobs import JOB
from afterwords.server.store.schema import jobs, keys, webhooks

DELAYS_S: Final = (5, 30, 120, 600, 3600, 6 * 3600)
"""Delay after each try. During the last delay, the last try may still be settled."""
MAX_TRIES: Final = len(DELAYS_S) + 1

_IS_DUE = or_(
    webhooks.c.next_at <= bindparam("monotonic"),
    webhooks.c.next_at > bindparam("monotonic") + DELAYS_S[-1],  # the clock was set back between starts
)
_ANY_DUE = select(webhooks.c.job_id).where(_IS_DUE).limit(1)
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
    select(webhooks.c.url, webhooks.c.tries, webhooks.c.next_at, keys.c.sha256, *JOB)
    .join(_NUMBERED, _NUMBERED.c.job_id == webhooks.c.job_id)
    .join(jobs, jobs.c.job_id == webhooks.c.job_id)
    .join(keys, keys.c.key_id == jobs.c.key_id)
    .where(_NUMBERED.c.number <= bindparam("per_account"), _IS_DUE)
    .order_by(_NUMBERED.c.number, webhooks.c.next_at, jobs.c.seq)
    .with_for_update(of=webhooks, skip_locked=True)  # a claim waits for no lock while it holds others
)
_EXHAUSTED = select(webhooks.c.job_id).where(_IS_DUE, webhooks.c.tries >= MAX_TRIES)
_DELETE_EXHAUSTED = delete(webhooks).where(webhooks.c.job_id.in_(_EXHAUSTED.with_for_update(skip_locked=True)))
_DELAY = (
    update(webhooks)
    .where(webhooks.c.job_id == bindparam("which"), webhooks.c.next_at == bindparam("due"))  # not claimed meanwhile
    .values(tries=bindparam("number"), next_at=bindparam("later"))
)


def is_any_due(connection: Connection, *, monotonic: float) -> bool:
    return connection.execute(_ANY_DUE, {"monotonic": monotonic}).first() is not None


def claim(
    connection: Connection, *, limit: int, per_account: int, allowed: Mapping[str, int], monotonic: float
) -> list[WebhookCall]:
    connection.execute(_DELETE_EXHAUSTED, {"monotonic": monotonic})
    calls: list[WebhookCall] = []
    left = dict(allowed)
    values = {"monotonic": monotonic, "per_account": per_account}
    for url, tries, next_at, sha256, *job in connection.execute(_DUE, values).all():
        stored = StoredJob(*job)
        n_left = left.get(stored.account_id, per_account)
        if not n_left or len(calls) == limit:
            continue
        later = monotonic + DELAYS_S[min(tries, len(DELAYS_S) - 1)]
        delay = {"which": stored.job_id, "due": next_at, "number": tries + 1, "later": later}
        if connection.execute(_DELAY, delay).rowcount:
            left[stored.account_id] = n_left - 1
            calls.append(WebhookCall(stored, url, tries + 1, signing_key=signing_key(sha256)))
    return calls


def settle(connection: Connection, job_id: str) -> None:
    connection.execute(delete(webhooks).where(webhooks.c.job_id == job_id))
