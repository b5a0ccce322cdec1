"""Routes of keys, accounts and usage."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from afterwords.errors import InsufficientScopeError
from afterwords.models import Account, ApiKey, NewApiKey, Usage
from afterwords.server.auth import Credential, requires
from afterwords.server.routes.responses import (
    COMMON,
    KeyId,
    caller_of,
    errors,
    identity_of,
    json_response,
    list_response,
    state_of,
)
from afterwords.server.routes.schemas import NewKeyBody, RotateBody
from afterwords.server.services.keys import MintedKey, digest
from afterwords.server.services.signing import signing_secret

router = APIRouter(tags=["keys"])
FIELDS = errors(_422="invalid_field")


@router.post(
    "/v1/keys",
    status_code=201,
    responses={
        201: {"model": NewApiKey},
        **COMMON,
        **FIELDS,
        **errors(
            _401="unauthorized, admin_required", _403="insufficient_scope", _404="key_not_found", _409="key_replaced"
        ),
    },
)
@requires(Credential.USER_OR_ADMIN)
async def create_key(request: Request, body: NewKeyBody | None = None) -> Response:
    """Create a key and show it once: for a new account, or for that of `account_id` or `for_key`.

    The admin secret creates any key. A key without scopes and limit creates keys with scopes for its own account.
    """
    parameters = body or NewKeyBody()
    minted = await state_of(request).keys.create(
        label=parameters.label,
        scopes=tuple(parameters.scopes),
        character_limit=parameters.character_limit,
        account_id=parameters.account_id,
        for_key=parameters.for_key,
        by=identity_of(request).key_id,
    )
    return _minted_response(minted)


@router.get(
    "/v1/accounts", responses={200: {"model": list[Account]}, **COMMON, **errors(_401="unauthorized, admin_required")}
)
@requires(Credential.ADMIN)
async def list_accounts(request: Request) -> Response:
    """List all accounts, oldest first, with their keys, voices, storage and this month's characters."""
    return list_response(await state_of(request).keys.list_accounts(), request=request)


@router.get("/v1/keys", responses={200: {"model": list[ApiKey]}, **COMMON})
@requires(Credential.USER_OR_ADMIN)
async def list_keys(request: Request) -> Response:
    """List the keys of the account, oldest first; for the admin, all keys."""
    keys = await state_of(request).keys.list(account_id=identity_of(request).account_id)
    return list_response(keys, request=request)


@router.delete(
    "/v1/keys/{key_id}",
    status_code=204,
    responses={**COMMON, **errors(_403="insufficient_scope", _404="key_not_found", _409="key_replaced")},
)
@requires(Credential.USER_OR_ADMIN)
async def revoke_key(request: Request, key_id: KeyId) -> Response:
    """Revoke a key at once. A replaced key may revoke only itself during its overlap."""
    _check_may_change(request, key_id)
    identity = identity_of(request)
    await state_of(request).keys.revoke(key_id, account_id=identity.account_id, by=identity.key_id)
    return Response(status_code=204)


@router.post(
    "/v1/keys/{key_id}/rotate",
    status_code=201,
    responses={
        201: {"model": NewApiKey},
        **COMMON,
        **FIELDS,
        **errors(_403="insufficient_scope", _404="key_not_found", _409="key_replaced"),
    },
)
@requires(Credential.USER_OR_ADMIN)
async def rotate_key(request: Request, key_id: KeyId, body: RotateBody | None = None) -> Response:
    """Replace a key with a new one. The old key stays valid for `overlap_s` seconds and can't be replaced again."""
    _check_may_change(request, key_id)
    identity = identity_of(request)
    minted = await state_of(request).keys.rotate(
        key_id,
        account_id=identity.account_id,
        by=identity.key_id,
        overlap_s=(body or RotateBody()).overlap_s,
    )
    return _minted_response(minted)


@router.get("/v1/usage", responses={200: {"model": Usage}, **COMMON})
@requires(Credential.USER)
async def usage(request: Request) -> Response:
    """Return the characters of this calendar month, UTC: of the key if it has a limit, else of its account."""
    return json_response(await state_of(request).keys.get_usage(caller_of(request)))


def _check_may_change(request: Request, key_id: str) -> None:
    """Raise InsufficientScopeError if the caller's key has scopes and is not this key."""
    caller = identity_of(request).caller
    if caller and caller.scopes and caller.key_id != key_id:
        raise InsufficientScopeError(
            "A key with scopes can't change other keys.", hint="use a key without scopes, or the admin secret."
        )


def _minted_response(minted: MintedKey) -> Response:
    created = NewApiKey(
        api_key=minted.secret,
        label=minted.key.label,
        created_at=minted.key.created_at,
        key_id=minted.key.key_id,
        account_id=minted.key.account_id,
        webhook_secret=signing_secret(digest(minted.secret)),
    )
    return json_response(created, 201)
