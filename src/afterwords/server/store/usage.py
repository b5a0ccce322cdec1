"""Usage per period and day (UTC). Characters are charged to the period and day in which their job was accepted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, Connection, bindparam, case, cast, func, select, update

from afterwords.errors import QuotaExceededError
from afterwords.models import DayUsage, Usage
from afterwords.server.records import Caller, Quota
from afterwords.server.settings import Plan
from afterwords.server.store.schema import accounts, usage
from afterwords.server.store.statements import Insert

_CHARGE = Insert(
    usage,
    ("spending_id", "account_id", "period", "day", "characters"),
    key=("spending_id", "period", "day"),
    update=lambda new: {"characters": usage.c.characters + new.characters},
)
_CHARGED: Final = bindparam("char_count", type_=BigInteger)
_REFUND = (
    update(usage)
    .where(
        usage.c.spending_id == bindparam("spending"),
        usage.c.period == bindparam("charged_period"),
        usage.c.day == bindparam("charged_day"),
        usage.c.characters >= bindparam("at_least", type_=BigInteger),
    )
    .values(characters=case((usage.c.characters > _CHARGED, usage.c.characters - _CHARGED), else_=0))
)


@dataclass(frozen=True, slots=True)
class Period:
    """The billing period of an account.

    Attributes:
        name: As in the column `period`: "2026-11", or "2026-11-14T09:30:00Z" of a subscription.
        end: Past, if the subscription was not asked for its next period yet.
    """

    name: str
    start: datetime
    end: datetime

    def seconds_left(self, now: datetime) -> int:
        """Return the seconds until it ends, at least one."""
        return max(1, math.ceil((self.end - now).total_seconds()))


def period_of(start: datetime | None, end: datetime | None, *, now: datetime) -> Period:
    """Return the period of an account with these columns: that of its subscription, else the month of `now`, UTC."""
    if start is not None and end is not None:
        return Period(f"{start:%Y-%m-%dT%H:%M:%SZ}", start, end)
    month = datetime(now.year, now.month, 1, tzinfo=UTC)
    return Period(_month_of(now), month, datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC))


def _month_of(now: datetime) -> str:
    return f"{now.year:04}-{now.month:02}"


def current_period(connection: Connection, *, now: datetime) -> ColumnElement[str]:
    """Return the name of the period of an account as SQL, for queries over accounts."""
    start = accounts.c.period_start
    if connection.dialect.name == "sqlite":
        name = func.strftime("%Y-%m-%dT%H:%M:%SZ", start)
    else:
        name = func.to_char(func.timezone("UTC", start), 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
    return case((start.is_(None), _month_of(now)), else_=name)


def day_of(moment: datetime) -> str:
    """Return the day of a moment in the form of the column `day`."""
    return f"{moment:%Y-%m-%d}"


def charge(
    connection: Connection, *, spending_id: str, account_id: str, period: str, day: str, characters: int
) -> None:
    values = {
        "spending_id": spending_id,
        "account_id": account_id,
        "period": period,
        "day": day,
        "characters": characters,
    }
    _CHARGE(connection, values)


def refund(connection: Connection, *, spending_id: str, period: str, day: str, characters: int) -> None:
    """Subtract a charge from the period and day that it was charged to."""
    values = {"spending": spending_id, "charged_period": period, "char_count": characters}
    if not connection.execute(_REFUND, {**values, "charged_day": day, "at_least": characters}).rowcount:
        # Charges before migration 0014 are all on the first day of their month.
        connection.execute(_REFUND, {**values, "charged_day": f"{period}-01", "at_least": 0})


def get(connection: Connection, caller: Caller, *, plans: Mapping[str, Plan], now: datetime) -> Usage:
    is_own = usage.c.spending_id == caller.spending_id
    rows = connection.execute(
        select(
            accounts.c.plan,
            accounts.c.period_start,
            accounts.c.period_end,
            usage.c.day,
            _sum(usage.c.characters).label("account"),
            _sum(case((is_own, usage.c.characters), else_=0)).label("key"),
        )
        .outerjoin(
            usage,
            (usage.c.account_id == accounts.c.account_id) & (usage.c.period == current_period(connection, now=now)),
        )
        .where(accounts.c.account_id == caller.account_id)
        .group_by(accounts.c.account_id, usage.c.day)
        .order_by(usage.c.day)
    ).all()
    account, spent = rows[0], [row for row in rows if row.day is not None]
    by_account, by_key = sum(row.account for row in spent), sum(row.key for row in spent)
    is_of_key, quota = find_quota(caller.character_limit, by_key, plan_of(account.plan, plans).characters, by_account)
    period = period_of(account.period_start, account.period_end, now=now)
    days = [(row.day, row.key if is_of_key else row.account) for row in spent]
    return Usage(
        characters=by_key if is_of_key else by_account,
        limit=quota.limit if quota else None,
        plan=account.plan,
        period_start=period.start,
        period_end=period.end,
        days=tuple(
            DayUsage(day=date.fromisoformat(day), characters=characters) for day, characters in days if characters
        ),
    )


def _sum(characters: ColumnElement[int]) -> ColumnElement[Any]:
    return cast(func.sum(characters), BigInteger)


UNLIMITED: Final = Plan()
NOTHING: Final = Plan(characters=0)
"""The plan of accounts whose plan is not in the settings any more."""


def plan_of(name: str | None, plans: Mapping[str, Plan]) -> Plan:
    return UNLIMITED if name is None else plans.get(name, NOTHING)


def find_quota(
    key_limit: int | None, by_key: int, plan_limit: int | None, by_account: int
) -> tuple[bool, Quota | None]:
    """Return whether a key or its account has fewer characters left, and how many were used. None: no limit."""
    of_key = None if key_limit is None else Quota(by_key, key_limit)
    of_account = None if plan_limit is None else Quota(by_account, plan_limit)
    if of_key and (of_account is None or of_key.limit - by_key <= of_account.limit - by_account):
        return True, of_key
    return False, of_account


def characters_exceeded(
    quota: Quota,
    characters: int,
    *,
    plan_name: str | None,
    is_known: bool,
    period: Period,
    plans: Mapping[str, Plan],
    account_url: str | None,
    now: datetime,
) -> QuotaExceededError:
    """Return the error for a text that goes beyond the limit of a key, or of a plan, which may not be known."""
    used = f"has used {quota.used - characters:,} of"
    ends = f"the period ends on {period.end:%Y-%m-%d at %H:%M} UTC"
    sold = [plan.characters for plan in plans.values() if plan.price_id]
    if account_url is None:
        larger = ", and the server's operator can give it a larger plan"
    elif any(characters is None or characters > quota.limit for characters in sold):
        larger = f", and a larger plan is at {account_url}"
    else:
        larger = ""
    if plan_name is None:
        why, advice = f"The key {used} its {quota.limit:,} characters", ends
    elif is_known:
        why = f"The account {used} the {quota.limit:,} characters of its plan {plan_name}"
        advice = f"{ends}{larger}"
    else:
        why = f"The plan of the account, {plan_name}, is not in the settings of the server and allows no characters"
        advice = "its operator can correct this"
    return QuotaExceededError(
        f"{why}, and this text has {characters:,}; {advice}.",
        limit=quota.limit,
        retry_after_s=period.seconds_left(now),
    )


def storage_exceeded(*, stored_bytes: int, quota_bytes: int) -> QuotaExceededError:
    return QuotaExceededError(
        f"The account may store {quota_bytes / 1e6:,.0f} MB and has {stored_bytes / 1e6:,.1f} MB.",
        code="storage_quota_exceeded",
    )
