"""OpenAI's `voice_consents`: recordings in which a speaker consents to be cloned, for the creation of voices.

Nothing checks what is said, or who says it: the recording is evidence that the account keeps, until it is deleted.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response
from pydantic import Field

from afterwords.errors import InvalidRequestError, NotFoundError
from afterwords.models import new_id, parse_id
from afterwords.server.auth import Credential, requires
from afterwords.server.records import Scope, StoredConsent
from afterwords.server.routes.multipart import read_form
from afterwords.server.routes.responses import BINARY, caller_of, errors, json_response, request_body, state_of
from afterwords.server.routes.schemas import RequestBody, ResponseBody, StorableText
from afterwords.server.routes.voices import RECORDING
from afterwords.server.routing import MULTIPART_OVERHEAD_BYTES, DocumentedRoute, parse_fields
from afterwords.server.spool import open_spool
from afterwords.text import check_name

router = APIRouter(route_class=DocumentedRoute, tags=["OpenAI"])

RECORDING_MAX_BYTES: Final = 10 << 20
PREFIX: Final = "cons_"
NOT_FOUND: Final = errors(_404="consent_not_found")
ConsentId = Annotated[str, Path(description="ID of the recording of consent.")]


class OpenAIConsentForm(RequestBody):
    """Text fields of the form of a recording of consent."""

    name: str = Field(description="Name of the recording, such as that of the speaker.")
    language: str = Field(
        max_length=35, pattern="^[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*$", description="Language, a BCP 47 tag."
    )


class OpenAIConsentChanges(RequestBody):
    """What can be changed of a recording of consent."""

    name: str = Field(description="Name of the recording.")


class OpenAIConsent(ResponseBody):
    """A recording of consent."""

    id: str = Field(description="ID of the recording.")
    object: Literal["audio.voice_consent"] = Field(default="audio.voice_consent", description="`audio.voice_consent`.")
    name: str = Field(description="Name of the recording.")
    language: str = Field(description="Language of the recording, a BCP 47 tag.")
    created_at: int = Field(description="When it was uploaded, in seconds since 1970.")


class OpenAIConsents(ResponseBody):
    """A page of recordings of consent."""

    object: Literal["list"] = Field(default="list", description="`list`.")
    data: list[OpenAIConsent] = Field(description="The recordings, newest first.")
    has_more: bool = Field(description="Whether there is a next page.")
    first_id: str | None = Field(description="ID of the first recording of the page.")
    last_id: str | None = Field(description="ID of the last one: the next page is after it.")


class OpenAIDeletedConsent(ResponseBody):
    """A recording of consent that was deleted."""

    id: str = Field(description="ID of the recording.")
    object: Literal["audio.voice_consent"] = Field(default="audio.voice_consent", description="`audio.voice_consent`.")
    deleted: Literal[True] = Field(default=True, description="True.")


_FORM: Final = request_body(
    "multipart/form-data",
    {
        "type": "object",
        "required": ["name", "language", "recording"],
        "properties": {
            **OpenAIConsentForm.model_json_schema()["properties"],
            "recording": {
                **BINARY,
                "description": "Recording of 5 to 60 s, at most 10 MiB, in the formats of `POST /v1/voices`.",
            },
        },
    },
)


def _show(consent: StoredConsent) -> OpenAIConsent:
    return OpenAIConsent(
        id=PREFIX + consent.consent_id,
        name=consent.name,
        language=consent.lang,
        created_at=int(consent.created_at.timestamp()),
    )


async def find_consent(request: Request, shown_id: str) -> StoredConsent:
    """Return a recording of consent of the account.

    Raises:
        NotFoundError: There is no such recording.
    """
    consent_id = parse_id(shown_id.removeprefix(PREFIX))
    account_id = caller_of(request).account_id
    found = await state_of(request).store.get_consent(consent_id, account_id=account_id) if consent_id else None
    if found is None:
        raise NotFoundError(code="consent_not_found", param="consent")
    return found


async def find_recorded(request: Request, shown_id: str) -> dict[str, str] | None:
    """Return what a voice keeps of the recording of consent with which it was created. None: it is not an ID.

    Raises:
        NotFoundError: There is no such recording.
    """
    if not shown_id.startswith(PREFIX):
        return None
    consent = await find_consent(request, shown_id)
    return {"id": PREFIX + consent.consent_id, "name": consent.name, "sha256": consent.sha256}


@router.post(
    "/v1/audio/voice_consents",
    responses={
        200: {"model": OpenAIConsent},
        **errors(
            _400="missing_field, invalid_multipart, bad_request, invalid_host",
            _422=f"{RECORDING}, invalid_name, invalid_field",
            _507="storage_quota_exceeded",
        ),
    },
    openapi_extra=_FORM,
)
@requires(
    Credential.USER,
    Scope.VOICES_WRITE,
    max_body_bytes=RECORDING_MAX_BYTES + MULTIPART_OVERHEAD_BYTES,
    is_upload=True,
)
async def create_consent(request: Request) -> Response:
    """Store a recording in which a speaker consents to be cloned. What is said is not checked."""
    state, caller = state_of(request), caller_of(request)
    with state.receiving.hold(caller.account_id), open_spool(state.settings.folder) as file:
        form = await read_form(
            request,
            file,
            max_file_bytes=RECORDING_MAX_BYTES,
            file_field="recording",
            fields=OpenAIConsentForm.model_fields,
        )
        fields = parse_fields(OpenAIConsentForm, form.fields, request)
        if not form.has_file:
            raise InvalidRequestError.missing_field("recording")
        async with state.uploading.slot(caller.account_id):
            file.seek(0)
            wav, facts = await state.voices.decoding.prepare(file.read())
    consent = StoredConsent(
        consent_id=new_id(),
        account_id=caller.account_id,
        name=check_name(fields.name),
        lang=fields.language,
        sha256=facts.sha256,
        created_at=state.voices.clock.now(),
    )
    await state.store.add_consent(consent, wav)
    return json_response(_show(consent))


@router.get("/v1/audio/voice_consents", responses={200: {"model": OpenAIConsents}, **errors(_422="invalid_field")})
@requires(Credential.USER, Scope.VOICES_READ)
async def list_consents(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=100, description="Recordings per page.")] = 20,
    after: Annotated[StorableText | None, Query(max_length=64, description="The last one of the page before.")] = None,
) -> Response:
    """List the recordings of consent of the account, newest first."""
    found = await state_of(request).store.list_consents(
        account_id=caller_of(request).account_id,
        limit=limit + 1,
        after=after and after.lower().removeprefix(PREFIX),
    )
    data = [_show(consent) for consent in found[:limit]]
    page = OpenAIConsents(
        data=data,
        has_more=len(found) > limit,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
    )
    return json_response(page)


@router.get("/v1/audio/voice_consents/{consent_id}", responses={200: {"model": OpenAIConsent}, **NOT_FOUND})
@requires(Credential.USER, Scope.VOICES_READ)
async def show_consent(request: Request, consent_id: ConsentId) -> Response:
    """Return a recording of consent, without its audio."""
    return json_response(_show(await find_consent(request, consent_id)))


@router.get(
    "/v1/audio/voice_consents/{consent_id}/audio",
    responses={200: {"content": {"audio/wav": {"schema": BINARY}}, "description": "A WAV file."}, **NOT_FOUND},
)
@requires(Credential.USER, Scope.VOICES_READ)
async def consent_audio(request: Request, consent_id: ConsentId) -> Response:
    """Return the audio of a recording of consent."""
    consent = await find_consent(request, consent_id)
    wav = await state_of(request).store.read_consent(consent.consent_id, account_id=consent.account_id)
    if wav is None:  # deleted meanwhile
        raise NotFoundError(code="consent_not_found", param="consent")
    return Response(wav, headers={"Cache-Control": "private, no-store"}, media_type="audio/wav")


@router.post(
    "/v1/audio/voice_consents/{consent_id}",
    responses={200: {"model": OpenAIConsent}, **NOT_FOUND, **errors(_422="invalid_name, invalid_field")},
)
@requires(Credential.USER, Scope.VOICES_WRITE)
async def rename_consent(request: Request, consent_id: ConsentId, body: OpenAIConsentChanges) -> Response:
    """Change the name of a recording of consent."""
    found, name = await find_consent(request, consent_id), check_name(body.name)
    await state_of(request).store.rename_consent(found.consent_id, account_id=found.account_id, name=name)
    return json_response(_show(await find_consent(request, consent_id)))


@router.delete("/v1/audio/voice_consents/{consent_id}", responses={200: {"model": OpenAIDeletedConsent}, **NOT_FOUND})
@requires(Credential.USER, Scope.VOICES_WRITE)
async def delete_consent(request: Request, consent_id: ConsentId) -> Response:
    """Delete a recording of consent. Voices that were created with it stay, with its digest in their metadata."""
    found = await find_consent(request, consent_id)
    await state_of(request).store.remove_consent(found.consent_id, account_id=found.account_id)
    return json_response(OpenAIDeletedConsent(id=PREFIX + found.consent_id))
