"""Locks of accounts: a write first locks its account, so that the writes of an account run one after the other.

So limits and quotas are exact, a repeated request finds the first one, and no two writes wait for each other. Only
claims lock no account: they skip locked jobs.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import bindparam, select

from afterwords.server.store.schema import accounts, jobs, server, voices
from afterwords.server.store.statements import RowLock

_ACCOUNT = select(accounts.c.account_id)
lock_server: Final = RowLock(select(server.c.server_id), of=server)
_TERMS = [accounts.c[name] for name in ("plan", "suspended_at", "period_start", "period_end", "stored_bytes")]
lock_account: Final = RowLock(select(*_TERMS).where(accounts.c.account_id == bindparam("account_id")), of=accounts)
"""Its `read` returns what `jobs.submit` needs of the account."""
lock_open_account: Final = RowLock(
    _ACCOUNT.where(accounts.c.account_id == bindparam("account_id"), accounts.c.closed_at.is_(None)), of=accounts
)
"""Its `read` returns None if the account was closed since the request was authenticated."""
lock_account_of_job: Final = RowLock(
    _ACCOUNT.join(jobs, jobs.c.account_id == accounts.c.account_id).where(jobs.c.job_id == bindparam("job_id")),
    of=accounts,
)
lock_account_of_voice: Final = RowLock(
    _ACCOUNT.join(voices, voices.c.account_id == accounts.c.account_id).where(
        voices.c.voice_id == bindparam("voice_id")
    ),
    of=accounts,
)
