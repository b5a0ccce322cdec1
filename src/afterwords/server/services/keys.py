"""API keys: made once, shown once, kept as a digest."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from afterwords.errors import AfterwordsError, InvalidFieldError, KeyNotFoundError
from afterwords.models import Account, ApiKey, Usage
from afterwords.server.ports import Caller, NewKey, Scope, Store

PREFIX: Final = "aw_"
OVERLAP_MAX_S: Final = 30 * 86_400
SEEN_S: Final = 0.5
"""How long a key that was looked up counts as valid."""
SEEN_MAX: Final = 4096
SHOWN_CHARS: Final = 8
"""Of a key, to tell it from others: 30 of its 256 bits, which leave nothing to guess."""


@dataclass(frozen=True, slots=True)
class MintedKey:
    """A key in the one moment when it is known: `secret` is the key itself."""

    secret: str
    key: ApiKey

    def __repr__(self) -> str:
        return f"MintedKey({self.key!r})"


def digest(secret: str) -> bytes:
    """What is kept of a key. A plain SHA-256 is enough: 256 random bits can't be guessed."""
    return sha256(secret.encode()).digest()


class Keys:
    """The use-cases of keys. `account_id` None stands for the admin, who sees all."""

    def __init__(self, store: Store, *, on_cancelled: Callable[[Sequence[str]], None] = lambda _: None) -> None:
        self._store = store
        self._on_cancelled = on_cancelled
        self._seen: dict[bytes, tuple[Caller, float]] = {}
        self._used: set[str] = set()

    async def create(
        self,
        *,
        label: str | None = None,
        scopes: tuple[Scope, ...] = (),
        character_limit: int | None = None,
        account_id: str | None = None,
        for_key: str | None = None,
        is_home: bool = False,
        by: str | None = None,
    ) -> MintedKey:
        """Make a key for an account.

        Args:
            account_id: the account; None makes a new one, or takes that of `for_key`.
            for_key: the id of a key of the account.
            is_home: take the account that sees the voices of the home, which is made if there is none.
            by: the id of the key that asks, which makes keys with scopes for its own account; None is the admin.

        Raises:
            KeyNotFoundError, InvalidFieldError: there is no such key or account.
            KeyReplacedError, InsufficientScopeError, AdminRequiredError: the asking key may not.
        """
        secret = _mint()
        new = NewKey(
            sha256=digest(secret),
            label=label,
            scopes=tuple(sorted({scope.value for scope in scopes})),
            character_limit=character_limit,
            account_id=account_id,
            for_key=for_key,
            prefix=secret[:SHOWN_CHARS],
            is_home=is_home,
        )
        return MintedKey(secret, await self._store.add_key(new, by=by))

    async def caller(self, secret: str) -> Caller | None:
        """Whose key this is, if it is valid now. One that was revoked by another process may pass for half a second."""
        if not secret.startswith(PREFIX):
            return None
        sha256, now = digest(secret), time.monotonic()
        seen = self._seen.get(sha256)
        if seen and now < seen[1]:
            return seen[0]
        caller = await self._store.caller(sha256)
        if caller is None:
            self._seen.pop(sha256, None)
            return None
        if len(self._seen) >= SEEN_MAX:
            self._seen.clear()
        self._seen[sha256] = caller, now + SEEN_S
        self._used.add(caller.key_id)
        return caller

    async def note_use(self) -> None:
        """Write down which keys were used since the last time: one write a minute, not one a request."""
        used, self._used = self._used, set()
        if not used:
            return
        try:
            await self._store.keys_used(sorted(used))
        except AfterwordsError:
            self._used |= used
            raise

    async def accounts(self) -> Sequence[Account]:
        """All accounts, for the admin."""
        return await self._store.accounts()

    async def is_valid(self, sha256: bytes) -> bool:
        """Whether the key with this digest is valid at this moment."""
        return await self._store.caller(sha256) is not None

    async def list(self, *, account_id: str | None) -> list[ApiKey]:
        """The keys of an account, or all, oldest first."""
        return await self._store.keys(account_id=account_id)

    async def revoke(self, key_id: str, *, account_id: str | None, by: str | None = None) -> None:
        """Make a key useless at once, and cancel the jobs that it has pending; `by` is the id of the key that asks.

        Raises:
            KeyNotFoundError: there is no such key.
            KeyReplacedError, InsufficientScopeError: the asking key may only revoke itself.
        """
        cancelled = await self._store.revoke_key(key_id, account_id=account_id, by=by)
        self._seen.clear()
        if cancelled is None:
            raise KeyNotFoundError
        self._on_cancelled(cancelled)

    async def rotate(
        self, key_id: str, *, account_id: str | None, by: str | None = None, overlap_s: float = 0
    ) -> MintedKey:
        """Put a new key in the place of one, which stays valid for the overlap (seconds); `by` is the key that asks.

        Raises:
            KeyNotFoundError: there is no such key, or it is not valid any more.
            KeyReplacedError: the key, or the one that asks, was replaced before and is valid only for an overlap.
            InsufficientScopeError: the asking key may only rotate itself.
            InvalidFieldError: the overlap is negative or longer than 30 days.
        """
        if not 0 <= overlap_s <= OVERLAP_MAX_S:
            raise InvalidFieldError("overlap_s", rule=f"it must be 0 to {OVERLAP_MAX_S:,} seconds")
        secret = _mint()
        key = await self._store.rotate_key(
            key_id,
            account_id=account_id,
            by=by,
            sha256=digest(secret),
            prefix=secret[:SHOWN_CHARS],
            overlap_s=overlap_s,
        )
        self._seen.clear()
        if key is None:
            raise KeyNotFoundError
        return MintedKey(secret, key)

    async def usage(self, caller: Caller) -> Usage:
        """What was spent this calendar month, UTC."""
        return await self._store.usage(caller)


def _mint() -> str:
    return PREFIX + secrets.token_urlsafe(32)
