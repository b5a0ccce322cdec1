"""ElevenLabs' API under `/elevenlabs`: speech, voices, models, the account and the history of its speech."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from typing import Annotated, Any, BinaryIO, Final, Literal, ParamSpec, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, Json, ValidationError, WithJsonSchema

from afterwords.audio.encoding import SAMPLE_RATES, Encoding
from afterwords.audio.wav import REFERENCE_MAX_BYTES
from afterwords.errors import AfterwordsError, InvalidRequestError, NotFoundError, QuotaExceededError
from afterwords.models import NAME_MAX_CHARS, ConsentKind, JobStatus, Seed, SpeechFormat, Speed
from afterwords.server.auth import Credential, requires
from afterwords.server.faces.openai import MODEL as OPENAI_MODEL
from afterwords.server.records import Scope, StoredJob, StoredVoice, VoiceChanges
from afterwords.server.routes.audio import StoredAudio, audio_response, job_headers, speech_response
from afterwords.server.routes.multipart import read_form
from afterwords.server.routes.responses import (
    BINARY,
    JobId,
    VoiceId,
    audio_content,
    caller_of,
    context_of,
    errors,
    json_response,
    list_response,
    request_body,
    state_of,
)
from afterwords.server.routes.schemas import ErrorBody, RequestBody, ResponseBody, StorableText
from afterwords.server.routes.voices import CHANGE, FORM_MAX_BYTES, NOT_FOUND, UPLOAD
from afterwords.server.routing import DocumentedRoute, error_headers, parse_fields
from afterwords.server.services.synthesis import AcceptedJob, SynthesisRequest
from afterwords.server.services.voices import VoiceFields, find_speaker, find_voice
from afterwords.server.spool import open_spool
from afterwords.text import MAX_REQUEST_CHARS

router = APIRouter(route_class=DocumentedRoute, tags=["ElevenLabs"])

DEFAULT_FORMAT: Final = "mp3_44100_128"
FORMATS: Final = {
    **{f"mp3_44100_{rate}": Encoding(SpeechFormat.MP3, 44_100, 1000 * rate) for rate in (32, 64, 96, 128, 192)},
    "mp3_22050_32": Encoding(SpeechFormat.MP3, 22_050, 32_000),
    "mp3_24000_48": Encoding(SpeechFormat.MP3, 24_000, 48_000),
    **{f"pcm_{rate}": Encoding(SpeechFormat.PCM, rate) for rate in SAMPLE_RATES},
    **{f"wav_{rate}": Encoding(SpeechFormat.WAV, rate) for rate in SAMPLE_RATES},
    **{f"opus_48000_{rate}": Encoding(SpeechFormat.OPUS, 48_000, 1000 * rate) for rate in (32, 64, 96, 128, 192)},
    "ulaw_8000": Encoding(SpeechFormat.MULAW, 8_000),
    "alaw_8000": Encoding(SpeechFormat.ALAW, 8_000),
}
"""Values of `output_format`: codec, sample rate in Hz, and bit rate in kbit/s."""
MODELS: Final = ("eleven_multilingual_v2", "eleven_turbo_v2_5", "eleven_flash_v2_5")
"""Models that are listed. Others of ElevenLabs stand for the backend of the voice, too."""
_MODEL: Final = re.compile(r"eleven_(?!v[34])\w+")  # with v3 and v4, clients use another API, for dialogues
_STATUSES: Final = {"unauthorized": "invalid_api_key"}
"""Codes of ours whose name at ElevenLabs is another one."""
UNLIMITED: Final = 2**53 - 1
"""Stands for no limit where the API has a number: the largest that JavaScript holds exactly."""

P = ParamSpec("P")


# -- errors ---------------------------------------------------------------------------------------------------


class ElevenErrorDetail(ResponseBody):
    """What ElevenLabs' SDKs show."""

    status: str = Field(description="Code of the error: that of ElevenLabs if it has one, else as in docs/api.md.")
    message: str = Field(description="The rule that was violated, in one sentence that never repeats the input.")
    param: str | None = Field(description="The invalid field, if there is one.")
    request_id: str = Field(description="ID of the request in the server log.")


class ElevenErrorNumber(ResponseBody):
    """What the Vercel AI SDK and Open WebUI show."""

    code: int = Field(description="The HTTP status.")
    message: str = Field(description="The same message.")


class ElevenError(ResponseBody):
    """The body of every error under `/elevenlabs`, in the two shapes that clients read."""

    detail: ElevenErrorDetail = Field(description="The error.")
    error: ElevenErrorNumber = Field(description="The same.")


async def answer_error(request: Request, error: AfterwordsError) -> Response:
    status = 422 if error.code == "missing_field" else error.http_status
    detail = ElevenErrorDetail(
        status=_STATUSES.get(error.code, error.code),
        message=error.message,
        param=error.param,
        request_id=context_of(request).request_id,
    )
    body = ElevenError(detail=detail, error=ElevenErrorNumber(code=status, message=error.message))
    headers = {**error_headers(error), "Request-Id": detail.request_id}
    if isinstance(error, QuotaExceededError):  # these clients would wait a minute, and try again
        headers.pop("Retry-After", None)
    return JSONResponse(body.model_dump(), status, headers)


def with_error_shape(responses: Mapping[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of responses with these errors."""
    return {
        status: {**response, "model": ElevenError} if response.get("model") is ErrorBody else response
        for status, response in responses.items()
    }


def opened_by_xi_key(
    scope: Scope | None = None, **limits: Any
) -> Callable[[Callable[P, Awaitable[Response]]], Callable[P, Awaitable[Response]]]:
    """Declare an endpoint with the key, the errors and the `request-id` of ElevenLabs."""
    declare = requires(Credential.XI_USER, scope, answer_error=answer_error, **limits)

    def decorate(endpoint: Callable[P, Awaitable[Response]]) -> Callable[P, Awaitable[Response]]:
        @wraps(endpoint)
        async def call(*args: P.args, **kwargs: P.kwargs) -> Response:
            response = await endpoint(*args, **kwargs)
            request = kwargs["request"]
            assert isinstance(request, Request)
            response.headers["Request-Id"] = context_of(request).request_id
            return response

        return declare(call)

    return decorate


# -- speech ---------------------------------------------------------------------------------------------------


class ElevenSpeechSettings(RequestBody):
    """Settings of a voice for one text. Other fields are ignored."""

    speed: Speed | None = Field(default=None, description="Speaking rate, 1 is the voice's own.")


class ElevenSpeechBody(RequestBody):
    """Parameters of speech, as ElevenLabs defines them. Other fields are ignored."""

    text: str = Field(description="Text to speak, 1 to 5,000 characters.")
    model_id: str | None = Field(
        default=None, description="A backend, or a model of ElevenLabs, which stands for the backend of the voice."
    )
    language_code: str | None = Field(default=None, description="Language of the text; omitted: that of the voice.")
    voice_settings: ElevenSpeechSettings | None = Field(default=None, description="Only `speed` is used.")
    seed: Seed | None = Field(default=None, description="Makes a sampled result reproducible.")


OutputFormat = Annotated[
    str,
    Query(
        description="Codec, sample rate in Hz, and bit rate in kbit/s.",
        json_schema_extra={"enum": [*FORMATS]},
    ),
]
INVALID_SPEECH: Final = (
    "missing_field, empty_text, unspeakable_text, text_too_long, control_character, invalid_unicode, unsupported_lang, "
    "invalid_field"
)
SPEECH_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "content": audio_content(*(encoding.format for encoding in FORMATS.values())),
        "description": "The audio while it is generated.",
    },
    **errors(
        _404="voice_not_found, model_not_found",
        _409="ambiguous_voice_name",
        _422=INVALID_SPEECH,
        _429="rate_limited, too_many_concurrent_requests, queue_full, quota_exceeded",
        _500="reference_missing, synthesis_failed, internal_error",
    ),
}


@router.post("/elevenlabs/v1/text-to-speech/{voice_id}", responses=SPEECH_RESPONSES)
@router.post("/elevenlabs/v1/text-to-speech/{voice_id}/stream", responses=SPEECH_RESPONSES)
@opened_by_xi_key(Scope.SYNTHESIZE)
async def speak(
    request: Request, voice_id: VoiceId, body: ElevenSpeechBody, output_format: OutputFormat = DEFAULT_FORMAT
) -> Response:
    """Speak a text with a voice of the account, as ElevenLabs' API does."""
    options, encoding = await parse_speech(request, voice_id, body, output_format)
    result = await state_of(request).synthesis.submit(caller_of(request), options, listen=True)
    if isinstance(result, AcceptedJob):
        context_of(request).job_id = result.job.job_id
    is_tagged = encoding.format is not SpeechFormat.MP3  # players break at ID3 where they expect a frame
    return await speech_response(request, result, encoding, is_tagged=is_tagged)


async def parse_speech(
    request: Request, voice_id: str, body: ElevenSpeechBody, output_format: str
) -> tuple[SynthesisRequest, Encoding]:
    """Return the parameters of speech as a request, and its encoding."""
    state = state_of(request)
    encoding = FORMATS.get(output_format)
    if encoding is None:
        raise InvalidRequestError.invalid_field("output_format", rule=f"it must be one of {', '.join(FORMATS)}")
    voice = await find_speaker(state.store, caller_of(request), voice_id)
    speed = body.voice_settings.speed if body.voice_settings else None
    options = SynthesisRequest(
        voice_id=voice.voice_id,
        text=body.text,
        lang=body.language_code or None,
        backend=find_backend(body.model_id, state.dispatcher.backends),
        speed=settings_of(voice).speed if speed is None else speed,
        seed=body.seed,
    )
    return options, encoding


def find_backend(model: str | None, backends: Mapping[str, Any]) -> str | None:
    """Return the backend that a model names; None is that of the voice.

    Raises:
        NotFoundError: There is no such model.
    """
    if model is None or _MODEL.fullmatch(model) or OPENAI_MODEL.fullmatch(model):
        return None
    if model not in backends:
        names = ", ".join((*backends, *MODELS))
        raise NotFoundError(f"There is no such model; available: {names}.", code="model_not_found", param="model_id")
    return model


# -- models ---------------------------------------------------------------------------------------------------


class ElevenLanguage(ResponseBody):
    """A language."""

    language_id: str = Field(description="Code of the language.")
    name: str = Field(description="The same.")


class ElevenModel(ResponseBody):
    """A model."""

    model_id: str = Field(description="A backend, or a model of ElevenLabs.")
    name: str = Field(description="The same.")
    description: str = Field(description="What it stands for.")
    can_do_text_to_speech: Literal[True] = Field(default=True, description="True.")
    can_do_voice_conversion: Literal[False] = Field(default=False, description="False.")
    can_be_finetuned: Literal[False] = Field(default=False, description="False.")
    can_use_style: Literal[False] = Field(default=False, description="False.")
    can_use_speaker_boost: Literal[False] = Field(default=False, description="False.")
    serves_pro_voices: Literal[False] = Field(default=False, description="False.")
    requires_alpha_access: Literal[False] = Field(default=False, description="False.")
    token_cost_factor: float = Field(default=1, description="1.")
    max_characters_request_free_user: int = Field(default=MAX_REQUEST_CHARS, description="Longest text.")
    max_characters_request_subscribed_user: int = Field(default=MAX_REQUEST_CHARS, description="Longest text.")
    maximum_text_length_per_request: int = Field(default=MAX_REQUEST_CHARS, description="Longest text.")
    languages: list[ElevenLanguage] = Field(description="Languages that it speaks.")


@router.get("/elevenlabs/v1/models", responses={200: {"model": list[ElevenModel]}})
@opened_by_xi_key()
async def list_models(request: Request) -> Response:
    """List the backends, and the models of ElevenLabs that stand for that of the voice."""
    backends = state_of(request).dispatcher.backends
    spoken = {name: (languages, "A backend.") for name, languages in backends.items()}
    spoken |= dict.fromkeys(MODELS, (frozenset[str]().union(*backends.values()), "The backend of the voice."))
    models = [
        ElevenModel(
            model_id=name,
            name=name,
            description=description,
            languages=[ElevenLanguage(language_id=code, name=code) for code in sorted(languages)],
        )
        for name, (languages, description) in spoken.items()
    ]
    return list_response(models, request=request)


# -- voices ---------------------------------------------------------------------------------------------------


class ElevenSettings(ResponseBody):
    """Settings of a voice: those of texts that come without any."""

    stability: float = Field(default=0.5, description="Kept; it has no meaning here.")
    similarity_boost: float = Field(default=0.75, description="Kept; it has no meaning here.")
    style: float = Field(default=0, description="Kept; it has no meaning here.")
    use_speaker_boost: bool = Field(default=True, description="Kept; it has no meaning here.")
    speed: float = Field(default=1, description="Speaking rate, 1 is the voice's own.")


Share = Annotated[float, Field(ge=0, le=1)]


class ElevenSettingsChanges(ElevenSpeechSettings):
    """Settings of a voice to change; those that are omitted stay. Other fields are ignored."""

    stability: Share | None = Field(default=None, description="0 to 1; it has no meaning here.")
    similarity_boost: Share | None = Field(default=None, description="0 to 1; it has no meaning here.")
    style: Share | None = Field(default=None, description="0 to 1; it has no meaning here.")
    use_speaker_boost: bool | None = Field(default=None, description="It has no meaning here.")


class ElevenFineTuning(ResponseBody):
    """Fine-tuning, which there is none of."""

    is_allowed_to_fine_tune: Literal[False] = Field(default=False, description="False.")
    state: dict[str, str] = Field(default={}, description="Empty.")


class ElevenVoice(ResponseBody):
    """A voice."""

    voice_id: str = Field(description="ID of the voice.")
    name: str = Field(description="Name of the voice.")
    category: Literal["cloned"] = Field(default="cloned", description="`cloned`.")
    labels: dict[str, str] = Field(description="Labels of the voice, and its language.")
    description: str | None = Field(description="Description of the voice.")
    settings: ElevenSettings = Field(default=ElevenSettings(), description="Settings.")
    fine_tuning: ElevenFineTuning = Field(default=ElevenFineTuning(), description="Fine-tuning.")
    preview_url: None = Field(default=None, description="Null.")
    is_owner: Literal[True] = Field(default=True, description="True.")
    created_at_unix: int = Field(description="When the voice was created, in seconds since 1970.")


class ElevenVoices(ResponseBody):
    """The voices of an account."""

    voices: list[ElevenVoice] = Field(description="The voices, oldest first.")


class ElevenVoicesPage(ResponseBody):
    """A page of voices."""

    voices: list[ElevenVoice] = Field(description="The voices of this page.")
    has_more: bool = Field(description="Whether there is a next page.")
    total_count: int = Field(description="Voices on all pages.")
    next_page_token: str | None = Field(description="Token of the next page.")


class ElevenVoiceForm(RequestBody):
    """Text fields of the form of a voice. Other fields are ignored."""

    name: str = Field(description="Name of the voice.")
    description: str | None = Field(default=None, description="Description of the voice.")
    labels: Json[dict[str, str] | None] = Field(default=None, description="Labels as a JSON object.")


class ElevenNewVoiceForm(ElevenVoiceForm):
    """Text fields of the form of a new voice. Other fields are ignored."""

    lang: str | None = Field(
        default=None, description="Language of the recording, two letters; omitted: the label `language`, or en."
    )
    ref_text: str | None = Field(default=None, description="Transcript of the recording.")
    consent: Annotated[ConsentKind | None, WithJsonSchema({"type": "string", "enum": [*ConsentKind]})] = Field(
        default=None, strict=False, description="Consent of the speaker."
    )


F = TypeVar("F", bound=ElevenVoiceForm)


class ElevenVoiceAdded(ResponseBody):
    """A new voice."""

    voice_id: str = Field(description="ID of the voice.")
    requires_verification: Literal[False] = Field(default=False, description="False.")


class ElevenDone(ResponseBody):
    """A success."""

    status: Literal["ok"] = Field(default="ok", description="`ok`.")


def _form(kind: type[ElevenVoiceForm], files: str) -> dict[str, Any]:
    """Document a form with text fields and files."""
    schema = kind.model_json_schema()
    schema["properties"]["files"] = {"type": "array", "items": BINARY, "description": files}
    return request_body("multipart/form-data", schema)


def settings_of(voice: StoredVoice) -> ElevenSettings:
    """Return the settings that were stored for a voice, or else the defaults: its metadata may have anything."""
    try:
        changes = ElevenSettingsChanges.model_validate(voice.metadata.get("voice_settings", {}))
    except ValidationError:
        return ElevenSettings()
    return ElevenSettings(**changes.model_dump(exclude_none=True))


def _show_voice(voice: StoredVoice) -> ElevenVoice:
    labels, description = voice.metadata.get("labels"), voice.metadata.get("description")
    texts = {str(name): str(text) for name, text in labels.items()} if isinstance(labels, dict) else {}
    return ElevenVoice(
        voice_id=voice.voice_id,
        name=voice.name,
        labels={"language": voice.lang, **texts},
        description=None if description is None else str(description),
        settings=settings_of(voice),
        created_at_unix=int(voice.created_at.timestamp()),
    )


async def _list_voices(request: Request) -> list[StoredVoice]:
    account_id = caller_of(request).account_id
    return await state_of(request).store.list_voices(account_id=account_id, limit=None, after=None)


@router.get("/elevenlabs/v1/voices", responses={200: {"model": ElevenVoices}})
@opened_by_xi_key(Scope.VOICES_READ)
async def list_voices(request: Request) -> Response:
    """List the voices of the account, oldest first."""
    return json_response(ElevenVoices(voices=[_show_voice(voice) for voice in await _list_voices(request)]))


@router.get("/elevenlabs/v2/voices", responses={200: {"model": ElevenVoicesPage}, **errors(_422="invalid_field")})
@opened_by_xi_key(Scope.VOICES_READ)
async def search_voices(
    request: Request,
    page_size: Annotated[int, Query(ge=1, le=100, description="Voices per page.")] = 10,
    next_page_token: Annotated[str, Query(pattern="^[0-9]{1,9}$", description="Token of the page before.")] = "0",
    search: Annotated[str, Query(max_length=NAME_MAX_CHARS, description="Text in name, description or labels.")] = "",
    sort: Annotated[Literal["name", "created_at_unix"], Query(description="Order.")] = "created_at_unix",
    sort_direction: Annotated[Literal["asc", "desc"], Query(description="Direction of the order.")] = "desc",
    category: Annotated[str, Query(max_length=NAME_MAX_CHARS, description="Category.")] = "cloned",
) -> Response:
    """List the voices of the account that have a text, a page at a time. All of them are `cloned`."""
    found = []
    for voice in map(_show_voice, await _list_voices(request)):
        texts = (voice.name, voice.description or "", *voice.labels.values())
        if category == voice.category and any(search.casefold() in text.casefold() for text in texts):
            found.append(voice)
    if sort == "name":
        found.sort(key=lambda voice: (voice.name.casefold(), voice.voice_id))
    if sort_direction == "desc":
        found.reverse()
    start = int(next_page_token)
    end = start + page_size
    page = ElevenVoicesPage(
        voices=found[start:end],
        has_more=end < len(found),
        total_count=len(found),
        next_page_token=str(end) if end < len(found) else None,
    )
    return json_response(page)


@router.post(
    "/elevenlabs/v1/voices/add",
    responses={200: {"model": ElevenVoiceAdded}, **UPLOAD},
    openapi_extra=_form(ElevenNewVoiceForm, "Recordings in the formats of `POST /v1/voices`; the first one is used."),
)
@opened_by_xi_key(Scope.VOICES_WRITE, max_body_bytes=FORM_MAX_BYTES, is_upload=True)
async def add_voice(request: Request) -> Response:
    """Clone a voice from the first file, which must last 5 to 60 s; other files are ignored."""
    state, caller = state_of(request), caller_of(request)
    with state.receiving.hold(caller.account_id), open_spool(state.settings.folder) as file:
        texts, has_file = await _read_form(request, file, ElevenNewVoiceForm)
        if not has_file:
            raise InvalidRequestError.missing_field("files")
        language = (texts.labels or {}).get("language", "")
        fields = VoiceFields(
            name=texts.name,
            lang=texts.lang or (language if len(language) == 2 else "en"),
            ref_text=texts.ref_text,
            consent=texts.consent,
            metadata=_metadata_of(texts),
        )
        async with state.uploading.slot(caller.account_id):
            file.seek(0)
            voice = await state.voices.register(caller, fields, file.read())
    return json_response(ElevenVoiceAdded(voice_id=voice.voice_id))


async def _read_form(request: Request, file: BinaryIO, kind: type[F]) -> tuple[F, bool]:
    """Return the text fields of a form, and whether it has files, of which the first is written to `file`."""
    form = await read_form(
        request,
        file,
        max_file_bytes=REFERENCE_MAX_BYTES,
        file_field="files",
        fields=kind.model_fields,
        has_more_files=True,
    )
    return parse_fields(kind, form.fields, request), form.has_file


def _metadata_of(form: ElevenVoiceForm) -> dict[str, Any]:
    """Return the fields of a form that only ElevenLabs' API has."""
    return form.model_dump(include={"description", "labels"}, exclude_none=True)


@router.post(
    "/elevenlabs/v1/voices/{voice_id}/edit",
    responses={200: {"model": ElevenDone}, **UPLOAD, **CHANGE},
    openapi_extra=_form(ElevenVoiceForm, "Refused: a recording can't be changed."),
)
@opened_by_xi_key(Scope.VOICES_WRITE, max_body_bytes=FORM_MAX_BYTES, is_upload=True)
async def edit_voice(request: Request, voice_id: VoiceId) -> Response:
    """Change name, description and labels of a voice; those that are omitted stay."""
    state, caller = state_of(request), caller_of(request)
    with state.receiving.hold(caller.account_id), open_spool(state.settings.folder) as file:
        texts, has_file = await _read_form(request, file, ElevenVoiceForm)
    if has_file:
        raise InvalidRequestError.invalid_field("files", rule="a recording can't be changed; add another voice")
    voice = await find_voice(state.store, caller, voice_id)
    changes = VoiceChanges(name=texts.name, metadata={**voice.metadata, **_metadata_of(texts)})
    await state.voices.update(caller, voice.voice_id, changes)
    return json_response(ElevenDone())


@router.get("/elevenlabs/v1/voices/settings/default", responses={200: {"model": ElevenSettings}})
@opened_by_xi_key()
async def show_default_settings(request: Request) -> Response:  # noqa: ARG001 - the decorator reads it
    """Return the settings of a voice without settings of its own."""
    return json_response(ElevenSettings())


@router.get("/elevenlabs/v1/voices/{voice_id}/settings", responses={200: {"model": ElevenSettings}, **NOT_FOUND})
@opened_by_xi_key(Scope.VOICES_READ)
async def show_settings(request: Request, voice_id: VoiceId) -> Response:
    """Return the settings of a voice."""
    return json_response(settings_of(await find_speaker(state_of(request).store, caller_of(request), voice_id)))


@router.post(
    "/elevenlabs/v1/voices/{voice_id}/settings/edit",
    responses={200: {"model": ElevenDone}, **CHANGE, **errors(_422="invalid_field")},
)
@opened_by_xi_key(Scope.VOICES_WRITE)
async def edit_settings(request: Request, voice_id: VoiceId, body: ElevenSettingsChanges) -> Response:
    """Change the settings of a voice, with which it speaks unless a text comes with others."""
    state, caller = state_of(request), caller_of(request)
    voice = await find_voice(state.store, caller, voice_id)
    settings = {**settings_of(voice).model_dump(), **body.model_dump(exclude_none=True)}
    changes = VoiceChanges(metadata={**voice.metadata, "voice_settings": settings})
    await state.voices.update(caller, voice.voice_id, changes)
    return json_response(ElevenDone())


@router.get("/elevenlabs/v1/voices/{voice_id}", responses={200: {"model": ElevenVoice}, **NOT_FOUND})
@opened_by_xi_key(Scope.VOICES_READ)
async def show_voice(request: Request, voice_id: VoiceId) -> Response:
    """Return a voice by its ID, name or alias."""
    return json_response(_show_voice(await find_speaker(state_of(request).store, caller_of(request), voice_id)))


@router.delete("/elevenlabs/v1/voices/{voice_id}", responses={200: {"model": ElevenDone}, **CHANGE})
@opened_by_xi_key(Scope.VOICES_WRITE)
async def delete_voice(request: Request, voice_id: VoiceId) -> Response:
    """Delete a voice with its recording, jobs and audio."""
    await state_of(request).voices.delete(caller_of(request), voice_id)
    return json_response(ElevenDone())


# -- the account ----------------------------------------------------------------------------------------------


class ElevenOverage(ResponseBody):
    """Characters beyond the limit, which are never charged."""

    amount: str = Field(default="0", description="0.")
    currency: Literal["usd"] = Field(default="usd", description="`usd`.")


class ElevenSubscription(ResponseBody):
    """Plan and characters of the account. Where ElevenLabs has a number and there is no limit, it is 2^53 - 1."""

    tier: str = Field(description="Plan of the account, or `unlimited`.")
    status: str = Field(
        description="`trialing`, `active` or `past_due`; without a subscription `active` with a plan, and else `free`."
    )
    character_count: int = Field(description="Characters used in this billing period.")
    character_limit: int = Field(description="Characters allowed in it.")
    next_character_count_reset_unix: int = Field(description="End of the period, in seconds since 1970.")
    max_credit_limit_extension: int = Field(default=0, description="0.")
    can_extend_character_limit: Literal[False] = Field(default=False, description="False.")
    allowed_to_extend_character_limit: Literal[False] = Field(default=False, description="False.")
    voice_slots_used: int = Field(description="Voices of the account.")
    voice_limit: int = Field(default=UNLIMITED, description="Unlimited.")
    voice_add_edit_counter: int = Field(default=0, description="0.")
    can_extend_voice_limit: Literal[False] = Field(default=False, description="False.")
    can_use_instant_voice_cloning: Literal[True] = Field(default=True, description="True.")
    can_use_professional_voice_cloning: Literal[False] = Field(default=False, description="False.")
    professional_voice_limit: int = Field(default=0, description="0.")
    professional_voice_slots_used: int = Field(default=0, description="0.")
    professional_voice_slots_used_in_workspace: int = Field(default=0, description="0.")
    current_overage: ElevenOverage = Field(default=ElevenOverage(), description="Characters beyond the limit.")
    open_invoices: list[str] = Field(default=[], description="Empty.")
    has_open_invoices: Literal[False] = Field(default=False, description="False.")


class ElevenUser(ResponseBody):
    """The account of the key."""

    user_id: str = Field(description="ID of the account.")
    workspace_id: str = Field(description="The same.")
    subscription: ElevenSubscription = Field(description="Plan and characters.")
    created_at: int = Field(description="When the first key of the account was created, in seconds since 1970.")
    seat_type: Literal["workspace_admin"] = Field(default="workspace_admin", description="`workspace_admin`.")
    is_new_user: Literal[False] = Field(default=False, description="False.")
    can_use_delayed_payment_methods: Literal[False] = Field(default=False, description="False.")
    is_onboarding_completed: Literal[True] = Field(default=True, description="True.")
    is_onboarding_checklist_completed: Literal[True] = Field(default=True, description="True.")


async def _read_subscription(request: Request) -> ElevenSubscription:
    state, caller = state_of(request), caller_of(request)
    usage = await state.synthesis.get_usage(caller)
    customer = await state.store.find_customer(account_id=caller.account_id) if state.billing else None
    return ElevenSubscription(
        tier=usage.plan or "unlimited",
        status=(customer.status if customer and customer.is_entitled else None) or ("active" if usage.plan else "free"),
        character_count=usage.characters,
        character_limit=UNLIMITED if usage.limit is None else usage.limit,
        next_character_count_reset_unix=int(usage.period_end.timestamp()),
        voice_slots_used=len(await _list_voices(request)),
    )


@router.get("/elevenlabs/v1/user/subscription", responses={200: {"model": ElevenSubscription}})
@opened_by_xi_key()
async def show_subscription(request: Request) -> Response:
    """Return plan and characters of the account."""
    return json_response(await _read_subscription(request))


@router.get("/elevenlabs/v1/user", responses={200: {"model": ElevenUser}})
@opened_by_xi_key()
async def show_user(request: Request) -> Response:
    """Return the account of the key."""
    account_id = caller_of(request).account_id
    keys = await state_of(request).keys.list(account_id=account_id)
    user = ElevenUser(
        user_id=account_id,
        workspace_id=account_id,
        subscription=await _read_subscription(request),
        created_at=int(keys[0].created_at.timestamp()),
    )
    return json_response(user)


# -- history --------------------------------------------------------------------------------------------------


class ElevenHistoryItem(ResponseBody):
    """A job that is ready."""

    history_item_id: str = Field(description="ID of the job.")
    request_id: str = Field(description="The same.")
    voice_id: str = Field(description="ID of its voice.")
    voice_name: str | None = Field(description="Name of its voice.")
    voice_category: Literal["cloned"] = Field(default="cloned", description="`cloned`.")
    model_id: str = Field(description="Its backend.")
    text: None = Field(default=None, description="Null: the text of a job is removed when it ends.")
    date_unix: int = Field(description="When it was submitted, in seconds since 1970.")
    character_count_change_from: int = Field(default=0, description="0.")
    character_count_change_to: int = Field(description="Characters of its text.")
    content_type: Literal["audio/mpeg"] = Field(default="audio/mpeg", description="`audio/mpeg`.")
    state: Literal["created"] = Field(default="created", description="`created`.")
    source: Literal["TTS"] = Field(default="TTS", description="`TTS`.")


class ElevenHistory(ResponseBody):
    """A page of the history."""

    history: list[ElevenHistoryItem] = Field(description="Jobs, newest first.")
    has_more: bool = Field(description="Whether there is a next page.")
    last_history_item_id: str | None = Field(description="The last job that was looked at: the next page is after it.")


def _show_job(job: StoredJob, voice_name: str | None) -> ElevenHistoryItem:
    return ElevenHistoryItem(
        history_item_id=job.job_id,
        request_id=job.job_id,
        voice_id=job.voice_id,
        voice_name=voice_name,
        model_id=job.backend,
        date_unix=int(job.created_at.timestamp()),
        character_count_change_to=job.char_count,
    )


async def _find_spoken(request: Request, job_id: str) -> StoredJob:
    """Return a job that is ready.

    Raises:
        NotFoundError: There is no such job, or it is not ready.
    """
    job = await state_of(request).synthesis.get_job(caller_of(request), job_id)
    if job.status is not JobStatus.READY:
        raise NotFoundError(code="job_not_found")
    return job


@router.get("/elevenlabs/v1/history", responses={200: {"model": ElevenHistory}, **errors(_422="invalid_field")})
@opened_by_xi_key(Scope.SYNTHESIZE)
async def list_history(
    request: Request,
    page_size: Annotated[int, Query(ge=1, le=1000, description="Jobs per page.")] = 100,
    start_after_history_item_id: Annotated[
        StorableText | None, Query(max_length=64, description="The last job of the page before.")
    ] = None,
    voice_id: Annotated[str | None, Query(max_length=64, description="Leave out jobs of other voices.")] = None,
) -> Response:
    """List the jobs of the account that are ready, newest first. Speech from the cache makes no job."""
    after = start_after_history_item_id
    found = await state_of(request).store.list_jobs(
        account_id=caller_of(request).account_id,
        status=JobStatus.READY,
        limit=page_size + 1,
        after=after and after.lower(),
    )
    names = {voice.voice_id: voice.name for voice in await _list_voices(request)}
    jobs = found[:page_size]
    page = ElevenHistory(
        history=[_show_job(job, names.get(job.voice_id)) for job in jobs if voice_id in (None, job.voice_id)],
        has_more=len(found) > page_size,
        last_history_item_id=jobs[-1].job_id if jobs else None,
    )
    return json_response(page)


@router.get(
    "/elevenlabs/v1/history/{job_id}", responses={200: {"model": ElevenHistoryItem}, **errors(_404="job_not_found")}
)
@opened_by_xi_key(Scope.SYNTHESIZE)
async def show_history_item(request: Request, job_id: JobId) -> Response:
    """Return a job that is ready."""
    job = await _find_spoken(request, job_id)
    voice = await find_voice(state_of(request).store, caller_of(request), job.voice_id)
    return json_response(_show_job(job, voice.name))


@router.get(
    "/elevenlabs/v1/history/{job_id}/audio",
    responses={
        200: {"content": audio_content(SpeechFormat.MP3), "description": "The audio."},
        **errors(_404="job_not_found", _500="audio_lost, internal_error"),
    },
)
@opened_by_xi_key(Scope.SYNTHESIZE)
async def history_audio(request: Request, job_id: JobId) -> Response:
    """Return the audio of a job as MP3 with 128 kbit/s."""
    job = await _find_spoken(request, job_id)
    reader = await state_of(request).synthesis.open_audio(job)
    audio = StoredAudio(reader, job.voice_id, job.audio_sha256 or "")
    return await audio_response(request, audio, FORMATS[DEFAULT_FORMAT], job_headers(job))


@router.delete(
    "/elevenlabs/v1/history/{job_id}", responses={200: {"model": ElevenDone}, **errors(_404="job_not_found")}
)
@opened_by_xi_key(Scope.SYNTHESIZE)
async def delete_history_item(request: Request, job_id: JobId) -> Response:
    """Delete a job with its audio, also from the cache, and its times. Its characters stay counted."""
    job = await _find_spoken(request, job_id)
    await state_of(request).voices.delete_speech(caller_of(request), job)
    return json_response(ElevenDone())
