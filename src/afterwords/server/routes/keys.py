"""Keys and what they have spent."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from afterwords.errors import InsufficientScopeError
from afterwords.models import Account, ApiKey, NewApiKey, Usage
from afterwords.server.auth import Credential, requires
from afterwords.server.routes.responses import COMMON, KeyId, caller_of, errors, identity_of, json_response, state_of
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
    """Make a key, which is shown this once: for a new account, or for the one that `account_id` or `for_key` names.

    The admin secret makes any. A key without scopes and limit makes keys with scopes for its own account.
    """
    wanted = body or NewKeyBody()
    minted = await state_of(request).keys.create(
        label=wanted.label,
        scopes=tuple(wanted.scopes),
        character_limit=wanted.character_limit,
        account_id=wanted.account_id,
        for_key=wanted.for_key,
        by=identity_of(request).key_id,
    )
    return _shown_once(minted)


@router.get(
    "/v1/accounts", responses={200: {"model": list[Account]}, **COMMON, **errors(_401="unauthorized, admin_required")}
)
@requires(Credential.ADMIN)
async def list_accounts(request: Request) -> Response:
    """List all accounts with what they have and have spent this month, oldest first."""
    accounts = await state_of(request).keys.list_accounts()
    return JSONResponse(
        [account.model_dump(mode="json") for account in accounts], headers={"Cache-Control": "no-store"}
    )


@router.get("/v1/keys", responses={200: {"model": list[ApiKey]}, **COMMON})
@requires(Credential.USER_OR_ADMIN)
async def list_keys(request: Request) -> Response:
    """List the keys of the asking key's account; for the admin, all. Oldest first."""
    keys = await state_of(request).keys.list(account_id=identity_of(request).account_id)
    return JSONResponse([key.model_dump(mode="json") for key in keys], headers={"Cache-Control": "no-store"})


@router.delete(
    "/v1/keys/{key_id}",
    status_code=204,
    responses={**COMMON, **errors(_403="insufficient_scope", _404="key_not_found", _409="key_replaced")},
)
@requires(Credential.USER_OR_ADMIN)
async def revoke_key(request: Request, key_id: KeyId) -> Response:
    """Make a key useless at once. A key that was replaced and is in its overlap may only revoke itself."""
    await state_of(request).keys.revoke(
        _own(request, key_id),
        account_id=identity_of(request).account_id,
        by=identity_of(request).key_id,
    )
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
    """Put a new key in the place of one, which stays valid for `overlap_s` seconds and can't be replaced again."""
    minted = await state_of(request).keys.rotate(
        _own(request, key_id),
        account_id=identity_of(request).account_id,
        by=identity_of(request).key_id,
        overlap_s=(body or RotateBody()).overlap_s,
    )
    return _shown_once(minted)


@router.get("/v1/usage", responses={200: {"model": Usage}, **COMMON})
@requires(Credential.USER)
async def usage(request: Request) -> Response:
    """Tell what was spent this calendar month, UTC: by the key if it has a limit of its own, else by its account."""
    return json_response(await state_of(request).keys.get_usage(caller_of(request)))


def _own(request: Request, key_id: str) -> str:
    """A key that the asking one may change: itself, or, if it is not narrowed, any of its account."""
    caller = identity_of(request).caller
    if caller and caller.scopes and caller.key_id != key_id:
        raise InsufficientScopeError.for_scope("of a key without scopes")
    return key_id


def _shown_once(minted: MintedKey) -> Response:
    created = NewApiKey(
        api_key=minted.secret,
        label=minted.key.label,
        created_at=minted.key.created_at,
        key_id=minted.key.key_id,
        account_id=minted.key.account_id,
        webhook_secret=signing_secret(digest(minted.secret)),
    )
    return json_response(created, 201)
