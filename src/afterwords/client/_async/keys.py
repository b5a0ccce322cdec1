"""The API keys of a server."""

from __future__ import annotations

from collections.abc import Sequence

from afterwords.client._async.session import AsyncSession
from afterwords.client.parsing import parse_model, parse_models
from afterwords.client.requests import Request, drop_none, resource_path
from afterwords.models import Account, ApiKey, NewApiKey


class AsyncKeys:
    """The API keys of a server: `client.keys`.

    The admin secret creates any key. A key without scopes and limit creates keys with scopes for its own account.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def create(
        self,
        *,
        label: str | None = None,
        scopes: Sequence[str] = (),
        character_limit: int | None = None,
        account_id: str | None = None,
        for_key: str | None = None,
        plan: str | None = None,
    ) -> NewApiKey:
        """Create a key, which is shown only here. The admin's new key gets a new account if none is given.

        Args:
            label: A name for the key.
            scopes: `voices:read`, `voices:write`, `synthesize`; empty for everything.
            character_limit: Characters that the key may spend in a month.
            account_id: The account of the key, which owns its voices.
            for_key: The ID of another key of that account, instead of `account_id`.
            plan: The plan of a new account.
        """
        options = drop_none(
            scopes=list(scopes) or None,
            character_limit=character_limit,
            account_id=account_id,
            for_key=for_key,
            plan=plan,
        )
        if options:
            await self._session.check_supports("keys with scopes, limits, plans or a given account")
        fields = {**drop_none(label=label), **options}
        request = Request("POST", "/v1/keys", json=fields, is_repeatable=False, is_admin=True)
        return parse_model(await self._session.request(request), NewApiKey)

    async def accounts(self) -> list[Account]:
        """Return all accounts with their limits and what they spent in this period. Requires the admin secret."""
        request = Request("GET", "/v1/accounts", is_admin=True, feature="listing accounts")
        return parse_models(await self._session.request(request), Account)

    async def list(self) -> list[ApiKey]:
        """Return the keys of this account; for the admin, all keys."""
        request = Request("GET", "/v1/keys", is_admin=True, feature="listing keys")
        return parse_models(await self._session.request(request), ApiKey)

    async def revoke(self, key_id: str) -> None:
        """Revoke a key at once."""
        path = resource_path("/v1/keys", key_id)
        await self._session.request(
            Request("DELETE", path, is_admin=True, missing_code="key_not_found", feature="revoking keys")
        )

    async def rotate(self, key_id: str, *, overlap_s: float = 0.0) -> NewApiKey:
        """Replace a key by a new one; the old key stays valid for `overlap_s` seconds."""
        request = Request(
            "POST",
            f"{resource_path('/v1/keys', key_id)}/rotate",
            json={"overlap_s": overlap_s},
            is_repeatable=False,
            is_admin=True,
            missing_code="key_not_found",
            feature="rotating keys",
        )
        return parse_model(await self._session.request(request), NewApiKey)
