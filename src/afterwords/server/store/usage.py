"""What is spent, in calendar months (UTC): characters are charged to the month in which a job was accepted."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import BigInteger, Connection, bindparam, case, func, select, update

from afterwords.models import Usage
from afterwords.server.ports import Caller
from afterwords.server.store.schema import usage
from afterwords.server.store.sqlite import Put, upsert

_NEW = upsert(usage).values({name: bindparam(name) for name in ("spending_id", "account_id", "period", "characters")})
_CHARGE = Put(
    _NEW.on_conflict_do_update(
        index_elements=[usage.c.spending_id, usage.c.period],
        set_={"characters": usage.c.characters + _NEW.excluded.characters},
    )
)
_SPENT: Final = bindparam("char_count", type_=BigInteger)
_REFUND = (
    update(usage)
    .where(usage.c.spending_id == bindparam("spending"), usage.c.period == bindparam("month"))
    .values(characters=case((usage.c.characters > _SPENT, usage.c.characters - _SPENT), else_=0))
)
_BY_KEY = select(usage.c.characters).where(
    usage.c.spending_id == bindparam("spending_id"), usage.c.period == bindparam("period")
)
_BY_ACCOUNT = select(func.sum(usage.c.characters)).where(
    usage.c.account_id == bindparam("account_id"), usage.c.period == bindparam("period")
)


def period_of(moment: datetime) -> str:
    """The month that a moment belongs to, as rows name it."""
    return f"{moment.year:04}-{moment.month:02}"


def bounds(moment: datetime) -> tuple[datetime, datetime]:
    """First moment of the month that a moment belongs to, and of the next."""
    start = datetime(moment.year, moment.month, 1, tzinfo=UTC)
    return start, datetime(moment.year + moment.month // 12, moment.month % 12 + 1, 1, tzinfo=UTC)


def seconds_left(moment: datetime) -> int:
    """Until the next month begins, at least one."""
    return max(1, math.ceil((bounds(moment)[1] - moment).total_seconds()))


def charge(connection: Connection, *, spending_id: str, account_id: str, period: str, characters: int) -> None:
    facts = {"spending_id": spending_id, "account_id": account_id, "period": period, "characters": characters}
    _CHARGE(connection, facts)


def give_back(connection: Connection, *, spending_id: str, period: str, characters: int) -> None:
    """Take a charge back from the month to which it went."""
    connection.execute(_REFUND, {"spending": spending_id, "month": period, "char_count": characters})


def spent(connection: Connection, caller: Caller, *, now: datetime) -> Usage:
    """What a caller has spent this month."""
    period = period_of(now)
    if caller.character_limit is None:
        used = connection.execute(_BY_ACCOUNT, {"account_id": caller.account_id, "period": period}).scalar()
    else:
        used = connection.execute(_BY_KEY, {"spending_id": caller.spending_id, "period": period}).scalar()
    start, end = bounds(now)
    return Usage(characters=used or 0, limit=caller.character_limit, period_start=start, period_end=end)
