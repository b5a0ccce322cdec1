"""Routes of keys, accounts and usage."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from afterwords.errors import InsufficientScopeError
from afterwords.models import Account, ApiKey, NewApiKey, Usage
from afterwords.server.auth import Credential, Identity, requires
from afterwords.server.routes.responses import (
    KeyId,
    caller_of,
    errors,
    identity_of,
    json_response,
    list_response,
    state_of,
)
from afterwords.server.routes.schemas import NewKeyBody, RotateBody
from afterwords.server.routing import DocumentedRoute
from afterwords.server.services.keys import MintedKey, digest
from afterwords.server.services.signing import signing_secret

router = APIRouter(route_class=DocumentedRoute, tags=["keys"])
CHANGE = errors(_403="insufficient_scope", _404="key_not_found", _409="key_replaced")
MINT = {201: {"model": NewApiKey}, **errors(_422="invalid_field"), **CHANGE}
ADMIN = errors(_401="unauthorized, admin_required")


@router.post("/v1/keys", status_code=201, responses={**MINT, **ADMIN})
@requires(Credential.USER_OR_ADMIN)
async def create_key(request: Request, body: NewKeyBody | None = None) -> Response:
    """Create a key and show it once: for a new account, or for that of `account_id` or `for_key`.

    The admin secret creates any key. A key without scopes and limit creates keys with scopes for its own account.
    """
    parameters = dict(body or NewKeyBody())
    return _minted_response(await state_of(request).keys.create(**parameters, by=identity_of(request).key_id))


@router.get("/v1/accounts", responses={200: {"model": list[Account]}, **ADMIN})
@requires(Credential.ADMIN)
async def list_accounts(request: Request) -> Response:
    """List all accounts, oldest first, with their keys, voices, storage and characters."""
    return list_response(await state_of(request).keys.list_accounts(), request=request)


@router.get("/v1/keys", responses={200: {"model": list[ApiKey]}})
@requires(Credential.USER_OR_ADMIN)
async def list_keys(request: Request) -> Response:
    """List the keys of the account, oldest first; for the admin, all keys."""
    keys = await state_of(request).keys.list(account_id=identity_of(request).account_id)
    return list_response(keys, request=request)


@router.delete("/v1/keys/{key_id}", status_code=204, responses=CHANGE)
@requires(Credential.USER_OR_ADMIN)
async def revoke_key(request: Request, key_id: KeyId) -> Response:
    """Revoke a key at once. A replaced key may revoke only itself during its overlap."""
    identity = _check_may_change(request, key_id)
    await state_of(request).keys.revoke(key_id, account_id=identity.account_id, by=identity.key_id)
    return Response(status_code=204)


@router.post("/v1/keys/{key_id}/rotate", status_code=201, responses=MINT)
@requires(Credential.USER_OR_ADMIN)
async def rotate_key(request: Request, key_id: KeyId, body: RotateBody | None = None) -> Response:
    """Replace a key with a new one. The old key stays valid for `overlap_s` seconds and can't be replaced again."""
    identity, overlap_s = _check_may_change(request, key_id), (body or RotateBody()).overlap_s
    keys = state_of(request).keys
    return _minted_response(
        await keys.rotate(key_id, account_id=identity.account_id, by=identity.key_id, overlap_s=overlap_s)
    )


@router.get("/v1/usage", responses={200: {"model": Usage}})
@requires(Credential.USER)
async def usage(request: Request) -> Response:
    """Return the characters of this billing period: of the key or of its account, whichever has fewer left.

    Without a limit they are those of the account. The period is a calendar month, UTC, without a subscription.
    """
    return json_response(await state_of(request).synthesis.get_usage(caller_of(request)))


def _check_may_change(request: Request, key_id: str) -> Identity:
    """Return who sent the request, unless it is a key with scopes and not this key."""
    identity = identity_of(request)
    if identity.caller and identity.caller.scopes and identity.key_id != key_id:
        raise InsufficientScopeError(
            "A key with scopes can't change other keys.", hint="use a key without scopes, or the admin secret."
        )
    return identity


def _minted_response(minted: MintedKey) -> Response:
    facts = minted.key.model_dump(include={"label", "created_at", "key_id", "account_id"})
    created = NewApiKey(api_key=minted.secret, webhook_secret=signing_secret(digest(minted.secret)), **facts)
    return json_response(created, 201)
