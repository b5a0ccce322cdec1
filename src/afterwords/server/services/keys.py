"""API keys: created, returned once, and stored as a digest."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from afterwords.errors import AfterwordsError, InvalidRequestError, NotFoundError
from afterwords.models import Account, ApiKey
from afterwords.server.ports import Store
from afterwords.server.records import Caller, NewKey, Scope, WorkerToken

PREFIX: Final = "aw_"
WORKER_PREFIX: Final = "awp_"
OVERLAP_MAX_S: Final = 30 * 86_400
CALLER_TTL_S: Final = 0.5
"""How long a caller is cached."""
CALLERS_MAX: Final = 4096
SHOWN_CHARS: Final = 8
"""Characters of a key that are shown: 30 of its 256 bits."""


@dataclass(frozen=True, slots=True)
class MintedKey:
    """A new key with its secret, which is not stored."""

    secret: str
    key: ApiKey

    def __repr__(self) -> str:
        return f"MintedKey({self.key!r})"


def digest(secret: str) -> bytes:
    """Return the digest that is stored of a key. A plain SHA-256 is enough for 256 random bits."""
    return sha256(secret.encode()).digest()


class KeyService:
    """Creates, rotates and revokes keys. `account_id` None stands for the admin, who sees all accounts."""

    def __init__(self, store: Store, *, on_cancelled: Callable[[Sequence[str]], None] = lambda _: None) -> None:
        self._store = store
        self._on_cancelled = on_cancelled
        self._callers: dict[bytes, tuple[Caller, float]] = {}
        self._used: set[str] = set()

    async def create(
        self,
        *,
        label: str | None = None,
        scopes: Sequence[Scope] = (),
        character_limit: int | None = None,
        account_id: str | None = None,
        for_key: str | None = None,
        is_home: bool = False,
        plan: str | None = None,
        by: str | None = None,
    ) -> MintedKey:
        """Create a key for an account; see `NewKey`, and `Store.add_key` for the errors.

        Args:
            by: Id of the requesting key, which creates keys with scopes for its own account. None: the admin.
        """
        secret = PREFIX + secrets.token_urlsafe(32)
        new = NewKey(
            sha256=digest(secret),
            label=label,
            scopes=tuple(sorted({scope.value for scope in scopes})),
            character_limit=character_limit,
            account_id=account_id,
            for_key=for_key,
            prefix=secret[:SHOWN_CHARS],
            is_home=is_home,
            plan=plan,
        )
        return MintedKey(secret, await self._store.add_key(new, by=by))

    async def find_caller(self, secret: str, *, is_cached: bool = True) -> Caller | None:
        """Return the caller with this key if it is valid.

        Args:
            is_cached: Read a cached caller, so that a key that another process revoked passes for half a second.
        """
        if not secret.startswith(PREFIX):
            return None
        sha256, now = digest(secret), time.monotonic()
        cached = self._callers.get(sha256) if is_cached else None
        if cached and now < cached[1]:
            return cached[0]
        caller = await self._store.find_caller(sha256)
        if caller is None:
            self._callers.pop(sha256, None)
            return None
        if len(self._callers) >= CALLERS_MAX:
            self._callers.clear()
        self._callers[sha256] = caller, now + CALLER_TTL_S
        self._used.add(caller.key_id)
        return caller

    async def find_by_id(self, key_id: str) -> Caller | None:
        """Return the caller with the key of this ID if it is valid."""
        return await self._store.find_caller_by_id(key_id)

    async def save_use(self) -> None:
        """Store which keys were used since the last call. This is one write a minute instead of one per request."""
        used, self._used = self._used, set()
        if not used:
            return
        try:
            await self._store.mark_keys_used(sorted(used))
        except AfterwordsError:
            self._used |= used
            raise

    # -- tokens of remote workers

    async def create_worker_token(self, *, label: str | None = None) -> tuple[str, WorkerToken]:
        """Create a token of remote workers; return it, which is not stored, and its row."""
        secret = WORKER_PREFIX + secrets.token_urlsafe(32)
        return secret, await self._store.add_worker_token(digest(secret), label=label, prefix=secret[:SHOWN_CHARS])

    async def list_worker_tokens(self) -> Sequence[WorkerToken]:
        """Return all tokens of remote workers, oldest first."""
        return await self._store.list_worker_tokens()

    async def find_worker_token(self, secret: str) -> str | None:
        """Return the id of a valid token."""
        return await self._store.find_worker_token(digest(secret)) if secret.startswith(WORKER_PREFIX) else None

    async def is_worker_token_valid(self, token_id: str) -> bool:
        """Return whether a token is still valid."""
        return await self._store.is_worker_token_valid(token_id)

    async def revoke_worker_token(self, token_id: str) -> None:
        """Revoke a token: its workers stop within a second, and their jobs are given to others.

        Raises:
            NotFoundError: There is no such token.
        """
        if not await self._store.revoke_worker_token(token_id):
            raise NotFoundError(
                "There is no such worker token.",
                code="key_not_found",
                hint="`afterwords workers token list` lists the tokens.",
            )

    # -- accounts

    async def list_accounts(self) -> Sequence[Account]:
        return await self._store.list_accounts()

    async def find_by_digest(self, sha256: bytes) -> Caller | None:
        """Return the caller with the key with this digest if it is valid now."""
        return await self._store.find_caller(sha256)

    async def list(self, *, account_id: str | None) -> list[ApiKey]:
        """Return the keys of an account, or all keys, oldest first."""
        return await self._store.list_keys(account_id=account_id)

    async def revoke(self, key_id: str, *, account_id: str | None, by: str | None = None) -> None:
        """Revoke a key at once, and cancel its pending jobs; raises like `Store.revoke_key`, or NotFoundError."""
        cancelled = await self._store.revoke_key(key_id, account_id=account_id, by=by)
        self._callers.clear()
        if cancelled is None:
            raise NotFoundError(code="key_not_found")
        self._on_cancelled(cancelled)

    async def rotate(
        self, key_id: str, *, account_id: str | None, by: str | None = None, overlap_s: float = 0
    ) -> MintedKey:
        """Replace a key, which remains valid for `overlap_s` seconds; raises like `Store.rotate_key`.

        Raises:
            NotFoundError: The key does not exist or is no longer valid.
            InvalidRequestError: The overlap is negative or longer than 30 days.
        """
        if not 0 <= overlap_s <= OVERLAP_MAX_S:
            raise InvalidRequestError.invalid_field("overlap_s", rule=f"it must be 0 to {OVERLAP_MAX_S:,} seconds")
        secret = PREFIX + secrets.token_urlsafe(32)
        key = await self._store.rotate_key(
            key_id,
            account_id=account_id,
            by=by,
            sha256=digest(secret),
            prefix=secret[:SHOWN_CHARS],
            overlap_s=overlap_s,
        )
        self._callers.clear()
        if key is None:
            raise NotFoundError(code="key_not_found")
        return MintedKey(secret, key)
