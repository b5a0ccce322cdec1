"""Usage per period and day (UTC). Characters are charged to the period and day in which their job was accepted."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import BigInteger, Connection, bindparam, case, cast, func, select, update

from afterwords.errors import QuotaExceededError
from afterwords.models import Usage
from afterwords.server.records import Caller
from afterwords.server.store.schema import usage
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
    )
    .values(characters=case((usage.c.characters > _CHARGED, usage.c.characters - _CHARGED), else_=0))
)


def period_of(moment: datetime) -> str:
    """Return the month of a moment in the form of the column `period`."""
    return f"{moment.year:04}-{moment.month:02}"


def bounds(moment: datetime) -> tuple[datetime, datetime]:
    """Return the first moment of the month, and of the next one."""
    start = datetime(moment.year, moment.month, 1, tzinfo=UTC)
    return start, datetime(moment.year + moment.month // 12, moment.month % 12 + 1, 1, tzinfo=UTC)


def seconds_left(moment: datetime) -> int:
    """Return the seconds until the next month, at least one."""
    return max(1, math.ceil((bounds(moment)[1] - moment).total_seconds()))


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
    values = {"spending": spending_id, "charged_period": period, "charged_day": day, "char_count": characters}
    connection.execute(_REFUND, values)


def get(connection: Connection, caller: Caller, *, now: datetime) -> Usage:
    statement = select(cast(func.sum(usage.c.characters), BigInteger))
    if caller.character_limit is None:
        statement = statement.where(usage.c.account_id == caller.account_id)
    else:
        statement = statement.where(usage.c.spending_id == caller.spending_id)
    used = connection.execute(statement.where(usage.c.period == period_of(now))).scalar()
    start, end = bounds(now)
    return Usage(characters=used or 0, limit=caller.character_limit, period_start=start, period_end=end)


def storage_exceeded(*, stored_bytes: int, quota_bytes: int) -> QuotaExceededError:
    return QuotaExceededError(
        f"The account may store {quota_bytes / 1e6:,.0f} MB and has {stored_bytes / 1e6:,.1f} MB.",
        code="storage_quota_exceeded",
    )
