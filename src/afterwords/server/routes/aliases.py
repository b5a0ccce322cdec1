"""Routes of aliases: further names of voices, for programs that send names of their own."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from afterwords.errors import ConflictError, InvalidInputError, InvalidRequestError, NotFoundError, VoiceNotFoundError
from afterwords.models import Alias, parse_id
from afterwords.server.auth import Credential, requires
from afterwords.server.records import Scope
from afterwords.server.routes.responses import caller_of, errors, json_response, list_response, state_of
from afterwords.server.routes.schemas import AliasBody
from afterwords.server.routing import DocumentedRoute
from afterwords.server.services.voices import find_voice
from afterwords.text import check_name

router = APIRouter(route_class=DocumentedRoute, tags=["voices"])

AliasName = Annotated[str, Path(description="The name that programs send.")]


@router.get("/v1/aliases", responses={200: {"model": list[Alias]}})
@requires(Credential.USER, Scope.VOICES_READ)
async def list_aliases(request: Request) -> Response:
    """List the aliases of the account."""
    aliases = await state_of(request).store.list_aliases(account_id=caller_of(request).account_id)
    return list_response(aliases, request=request)


@router.put(
    "/v1/aliases/{alias}",
    responses={
        200: {"model": Alias},
        **errors(_404="voice_not_found", _409="ambiguous_voice_name, alias_taken", _422="invalid_field, invalid_name"),
    },
)
@requires(Credential.USER, Scope.VOICES_WRITE)
async def set_alias(request: Request, alias: AliasName, body: AliasBody) -> Response:
    """Add or change an alias: another name of a voice on the APIs of OpenAI and ElevenLabs. It ends with its voice."""
    store, caller = state_of(request).store, caller_of(request)
    alias = check_name(alias)
    if parse_id(alias):
        raise InvalidRequestError.invalid_field("alias", rule="it must not be an ID")
    if await store.find_voices(alias, account_id=caller.account_id):
        raise ConflictError(code="alias_taken")
    voice = await find_voice(store, caller, body.voice)
    if not await store.set_alias(alias, voice.voice_id, account_id=caller.account_id):
        raise VoiceNotFoundError
    return json_response(Alias(alias=alias, voice_id=voice.voice_id, voice=voice.name))


@router.delete("/v1/aliases/{alias}", status_code=204, responses=errors(_404="not_found"))
@requires(Credential.USER, Scope.VOICES_WRITE)
async def remove_alias(request: Request, alias: AliasName) -> Response:
    """Remove an alias; its voice stays."""
    is_removed = False
    with suppress(InvalidInputError):  # no alias has such a name
        name, account_id = check_name(alias), caller_of(request).account_id
        is_removed = await state_of(request).store.remove_alias(name, account_id=account_id)
    if not is_removed:
        raise NotFoundError("There is no such alias.", hint="`afterwords alias` lists the aliases.")
    return Response(status_code=204)
