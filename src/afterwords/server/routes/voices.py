"""Routes of voices: register, list, show, update, delete, export, import."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from afterwords.audio.wav import REFERENCE_MAX_BYTES
from afterwords.errors import InvalidRequestError
from afterwords.library.bundle import BUNDLE_MAX_BYTES
from afterwords.models import BUNDLE_TYPE, ConsentKind
from afterwords.server.auth import Credential, requires
from afterwords.server.records import Scope, StoredVoice, VoiceChanges
from afterwords.server.routes.multipart import read_form
from afterwords.server.routes.responses import (
    BINARY,
    IdempotencyKey,
    VoiceId,
    caller_of,
    errors,
    json_response,
    list_response,
    request_body,
    state_of,
)
from afterwords.server.routes.schemas import StorableText, VoiceCreated, VoiceListed, VoicePatch, VoiceShown
from afterwords.server.routing import MULTIPART_OVERHEAD_BYTES, DocumentedRoute
from afterwords.server.services.voices import VoiceFields, find_voice
from afterwords.server.spool import open_spool

router = APIRouter(route_class=DocumentedRoute, tags=["voices"])

FORM_MAX_BYTES: Final = REFERENCE_MAX_BYTES + MULTIPART_OVERHEAD_BYTES
TEXT_FIELDS: Final = ("name", "backend", "ref_text", "lang", "family", "consent")
NOT_FOUND: Final = errors(_404="voice_not_found", _409="ambiguous_voice_name")
CHANGE: Final = errors(_404="voice_not_found", _409="ambiguous_voice_name, home_voice")
RECORDING: Final = (
    "file_too_large, too_short, too_long, silent_audio, non_finite_audio, not_wav, malformed_wav, no_fmt, truncated, "
    "empty_data, too_many_chunks, bad_channels, bad_sample_rate, bad_bits, bad_block_align, unsupported_encoding, "
    "bad_content_type, unsupported_audio, damaged_audio"
)
TEXTS: Final = "empty_text, text_too_long, control_character, invalid_unicode"
UPLOAD: Final = errors(
    _400="missing_field, invalid_multipart, bad_request, invalid_host",
    _409="idempotency_conflict",
    _422=f"{RECORDING}, invalid_name, invalid_field, invalid_backend, unsupported_lang, {TEXTS}",
)
_FORM: Final = request_body(
    "multipart/form-data",
    {
        "type": "object",
        "required": ["name", "ref_audio"],
        "properties": {
            "name": {"type": "string", "maxLength": 200, "description": "Name of the voice."},
            "ref_audio": {
                **BINARY,
                "description": "WAV, m4a, mp3, ogg, opus, flac, webm, amr or any other audio: "
                "5 to 60 s, at most 20 MiB.",
            },
            "ref_text": {"type": "string", "description": "Transcript of the recording."},
            "backend": {"type": "string", "description": "Default backend of the voice; omitted: the best."},
            "lang": {"type": "string", "default": "en", "description": "Language of the recording."},
            "family": {"type": "string", "description": "Groups voices of one speaker."},
            "consent": {"type": "string", "enum": list(ConsentKind), "description": "Consent of the speaker."},
        },
    },
)


@router.post("/v1/voices", status_code=201, responses={201: {"model": VoiceCreated}, **UPLOAD}, openapi_extra=_FORM)
@requires(Credential.USER, Scope.VOICES_WRITE, max_body_bytes=FORM_MAX_BYTES, is_upload=True)
async def create_voice(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Register a voice from a recording, which is stored as mono 16-bit WAV; the uploaded file is discarded."""
    return _created_response(await register_from_form(request, "ref_audio", idempotency_key=idempotency_key))


async def register_from_form(
    request: Request,
    file_field: str,
    *,
    idempotency_key: str | None = None,
    find_recorded: Callable[[str], Awaitable[dict[str, str] | None]] | None = None,
) -> StoredVoice:
    """Register a voice from a form.

    Args:
        file_field: The field with the recording.
        find_recorded: Returns facts about a recording of consent by its ID, which the field `consent` may have, too.
            They are kept as metadata.
    """
    state, caller = state_of(request), caller_of(request)
    with state.receiving.hold(caller.account_id), open_spool(state.settings.folder) as file:
        form = await read_form(
            request, file, max_file_bytes=REFERENCE_MAX_BYTES, file_field=file_field, fields=TEXT_FIELDS
        )
        for name, is_present in (("name", "name" in form.fields), (file_field, form.has_file)):
            if not is_present:
                raise InvalidRequestError.missing_field(name)
        consent = form.fields.get("consent") or None
        metadata: dict[str, Any] = {}
        if consent is not None and find_recorded and (recorded := await find_recorded(consent)):
            consent, metadata = ConsentKind.GRANTED, {"consent_recording": recorded}
        if consent is not None and consent not in set(ConsentKind):
            raise InvalidRequestError.invalid_field("consent", rule=f"it must be one of {', '.join(ConsentKind)}")
        chosen: dict[str, Any] = {"lang": form.fields.get("lang") or "en", "consent": consent and ConsentKind(consent)}
        fields = VoiceFields(**{**form.fields, **chosen}, metadata=metadata)
        async with state.uploading.slot(caller.account_id):
            file.seek(0)
            return await state.voices.register(caller, fields, file.read(), idempotency_key=idempotency_key)


@router.get("/v1/voices", responses={200: {"model": list[VoiceListed]}, **errors(_422="invalid_field")})
@requires(Credential.USER, Scope.VOICES_READ)
async def list_voices(
    request: Request,
    limit: Annotated[int | None, Query(ge=1, le=1000, description="Voices per page; omitted: all.")] = None,
    after: Annotated[StorableText | None, Query(max_length=64, description="Start after this voice_id.")] = None,
) -> Response:
    """List the voices of the account, oldest first. With a limit, a Link header leads to the next page."""
    voices = await state_of(request).store.list_voices(
        account_id=caller_of(request).account_id, limit=limit, after=after and after.lower()
    )
    items = [VoiceListed.model_validate(voice) for voice in voices]
    last_id = voices[-1].voice_id if voices else None
    return list_response(items, request=request, path="/v1/voices", limit=limit, last_id=last_id)


@router.get("/v1/voices/{voice_id}", responses={200: {"model": VoiceShown}, **NOT_FOUND})
@requires(Credential.USER, Scope.VOICES_READ)
async def show_voice(request: Request, voice_id: VoiceId) -> Response:
    """Return a voice with all its fields."""
    voice = await find_voice(state_of(request).store, caller_of(request), voice_id)
    return json_response(VoiceShown.model_validate(voice))


@router.patch(
    "/v1/voices/{voice_id}",
    responses={
        200: {"model": VoiceShown},
        **CHANGE,
        **errors(_422=f"invalid_field, invalid_name, invalid_backend, unsupported_lang, {TEXTS}"),
    },
)
@requires(Credential.USER, Scope.VOICES_WRITE)
async def change_voice(request: Request, voice_id: VoiceId, body: VoicePatch) -> Response:
    """Update fields of a voice. A new transcript or language clears its cached audio."""
    changes = VoiceChanges(**body.model_dump())
    changed = await state_of(request).voices.update(caller_of(request), voice_id, changes)
    return json_response(VoiceShown.model_validate(changed))


@router.delete("/v1/voices/{voice_id}", status_code=204, responses=CHANGE)
@requires(Credential.USER, Scope.VOICES_WRITE)
async def delete_voice(request: Request, voice_id: VoiceId) -> Response:
    """Delete a voice with its recording, jobs and audio."""
    await state_of(request).voices.delete(caller_of(request), voice_id)
    return Response(status_code=204)


@router.get(
    "/v1/voices/{voice_id}/export",
    responses={
        200: {"content": {BUNDLE_TYPE: {"schema": BINARY}}},
        **NOT_FOUND,
        **errors(_422="invalid_field", _500="reference_missing, internal_error"),
    },
)
@requires(Credential.USER, Scope.VOICES_READ)
async def export_voice(
    request: Request,
    voice_id: VoiceId,
    prompts: Annotated[bool, Query(description="Include the prompts of engines (version 2 of the format).")] = False,
) -> Response:
    """Export a voice as one portable file: recording, transcript, consent and their hashes."""
    voices = state_of(request).voices
    found_id, data = await voices.export_bundle(caller_of(request), voice_id, with_prompts=prompts)
    name = f'attachment; filename="{found_id}.afterwords"'
    return Response(data, media_type=BUNDLE_TYPE, headers={"Content-Disposition": name, "Cache-Control": "no-store"})


@router.post(
    "/v1/voices/import",
    status_code=201,
    responses={
        201: {"model": VoiceCreated},
        **UPLOAD,
        **errors(_422=f"invalid_bundle, unsupported_lang, invalid_name, invalid_field, file_too_large, {TEXTS}"),
    },
    openapi_extra=request_body(BUNDLE_TYPE),
)
@requires(Credential.USER, Scope.VOICES_WRITE, max_body_bytes=BUNDLE_MAX_BYTES, is_upload=True)
async def import_voice(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Import a voice from a file that `export` wrote, on this server or another."""
    state, caller = state_of(request), caller_of(request)
    with state.receiving.hold(caller.account_id), open_spool(state.settings.folder) as file:
        async for piece in request.stream():
            file.write(piece)
        async with state.uploading.slot(caller.account_id):
            file.seek(0)
            voice = await state.voices.import_bundle(caller, file.read(), idempotency_key=idempotency_key)
    return _created_response(voice)


def _created_response(voice: StoredVoice) -> Response:
    """Return a new voice, with its grade as a header: the body has only the fields of the hosted service."""
    headers = {"X-Reference-Grade": voice.ref_grade} if voice.ref_grade else None
    return json_response(VoiceCreated.model_validate(voice), 201, headers)
