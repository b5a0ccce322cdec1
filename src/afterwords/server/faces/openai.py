"""OpenAI's speech API: `/v1/audio/*` and `/v1/models`, with the extra fields of vLLM-Omni that have a meaning here."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from pydantic import Field

from afterwords.audio.encoding import Encoding
from afterwords.errors import InvalidRequestError, NotFoundError
from afterwords.models import ConsentKind, Seed, SpeechFormat, Speed
from afterwords.server.auth import Credential, requires
from afterwords.server.faces.openai_consents import find_recorded
from afterwords.server.records import Scope, StoredVoice
from afterwords.server.routes.audio import Wrap, parse_encoding, speech_response
from afterwords.server.routes.responses import (
    BINARY,
    VoiceId,
    audio_content,
    caller_of,
    context_of,
    errors,
    identity_of,
    json_response,
    request_body,
    state_of,
)
from afterwords.server.routes.schemas import EMOTION, RequestBody, ResponseBody, VoiceListed
from afterwords.server.routes.timing import SpokenText, check_timing, word_times
from afterwords.server.routes.voices import CHANGE, FORM_MAX_BYTES, UPLOAD, register_from_form
from afterwords.server.routing import DocumentedRoute
from afterwords.server.services.synthesis import AcceptedJob, SynthesisRequest
from afterwords.server.services.voices import find_speaker, find_voice

router = APIRouter(route_class=DocumentedRoute, tags=["OpenAI"])

PCM_RATE: Final = 24_000
"""Sample rate of `pcm` in Hz, which has no header that could state another."""
MODELS: Final = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
"""Models of OpenAI, which stand for the backend of the voice; ids with a date do, too."""
MODEL: Final = re.compile(rf"({'|'.join(MODELS)})(-[0-9-]{{4,10}})?")
LANGUAGES: Final = {
    **{"english": "en", "chinese": "zh", "japanese": "ja", "korean": "ko", "spanish": "es"},
    **{"french": "fr", "german": "de", "italian": "it", "portuguese": "pt", "russian": "ru"},
}
_CLONING: Final = ("ref_audio", "ref_text", "references", "speaker_embedding")


class VoiceRef(RequestBody):
    """A voice by its ID."""

    id: str = Field(description="ID, name or alias of the voice.")


class SpeechBody(RequestBody):
    """Parameters of speech, as OpenAI and vLLM-Omni define them. Other fields are ignored."""

    input: str = Field(description="Text to speak, 1 to 5,000 characters.")
    voice: str | VoiceRef | None = Field(default=None, description="Name, ID or alias of a voice of the account.")
    speaker: str | None = Field(default=None, description="The same, if `voice` is absent.")
    model: str | None = Field(
        default=None, description="A backend, or a model of OpenAI, which stands for the backend of the voice."
    )
    response_format: SpeechFormat | None = Field(default=None, strict=False, description="Format; omitted: mp3.")
    speed: Speed | None = Field(default=None, description="Speaking rate, 1 is the voice's own.")
    stream_format: Literal["audio", "sse"] | None = Field(
        default=None, description="`audio` (default): the bytes of a file; `sse`: server-sent events with these bytes."
    )
    instructions: str | None = Field(default=None, description="Ignored: a cloned voice speaks as its recording does.")
    language: str | None = Field(default=None, description="Code or English name of the language, or Auto.")
    seed: Seed | None = Field(default=None, description="Makes a sampled result reproducible.")
    emotion: str | None = EMOTION
    sample_rate: int | None = Field(default=None, description="Sample rate in Hz; omitted: that of the backend.")
    ref_audio: Any = Field(default=None, description="Refused, as `ref_text`, `references` and `speaker_embedding`.")
    ref_text: Any = None
    references: Any = None
    speaker_embedding: Any = None
    word_timestamps: bool | None = Field(
        default=None, description="With `sse`: send events with the times of words; without it, refused."
    )


@router.post(
    "/v1/audio/speech",
    responses={
        200: {
            "content": {**audio_content(), "text/event-stream": {"schema": {"type": "string"}}},
            "description": "The audio while it is generated, or server-sent events with it.",
        },
        **errors(
            _400="missing_field, invalid_json, bad_request, invalid_host",
            _404="voice_not_found, model_not_found",
            _409="ambiguous_voice_name",
            _422="empty_text, unspeakable_text, text_too_long, control_character, invalid_unicode, unsupported_lang, "
            "invalid_field",
            _429="rate_limited, too_many_concurrent_requests, queue_full, quota_exceeded",
            _500="reference_missing, synthesis_failed, internal_error",
        ),
    },
)
@requires(Credential.USER, Scope.SYNTHESIZE)
async def create_speech(request: Request, body: SpeechBody) -> Response:
    """Speak a text with a voice of the account, as OpenAI's API does."""
    options, voice, encoding = await parse_speech(request, body)
    if body.word_timestamps:
        check_timing(request, voice, options)
    result = await state_of(request).synthesis.submit(caller_of(request), options, listen=True)
    if isinstance(result, AcceptedJob):
        context_of(request).job_id = result.job.job_id
        if encoding.format is SpeechFormat.FLAC and result.listener:
            # Some decoders refuse a header without the number of samples, which is known at the end.
            result.listener.close()
            result = replace(result, listener=None)
    spoken = (
        SpokenText(request, body.input, result) if body.word_timestamps and isinstance(result, AcceptedJob) else None
    )
    wrap = _make_events(len(body.input), spoken) if body.stream_format == "sse" else None
    is_tagged = encoding.format is not SpeechFormat.MP3  # players break at ID3 where they expect a frame
    return await speech_response(request, result, encoding, is_tagged=is_tagged, wrap=wrap)


async def parse_speech(request: Request, body: SpeechBody) -> tuple[SynthesisRequest, StoredVoice, Encoding]:
    """Return the parameters of speech as a request, its voice and its encoding.

    Raises:
        InvalidRequestError, NotFoundError, ConflictError: A field is invalid, or there is no such voice or model.
    """
    state, caller = state_of(request), caller_of(request)
    for field in _CLONING:
        if getattr(body, field) is not None:
            raise InvalidRequestError.invalid_field(field, rule="a voice is cloned when it is created")
    if body.word_timestamps and body.stream_format != "sse":
        raise InvalidRequestError.invalid_field("word_timestamps", rule="it needs the stream_format sse")
    name = body.voice.id if isinstance(body.voice, VoiceRef) else body.voice or body.speaker
    if name is None:
        raise InvalidRequestError.missing_field("voice")
    language = (body.language or "auto").lower()
    voice = await find_speaker(state.store, caller, name)
    options = SynthesisRequest(
        voice_id=voice.voice_id,
        text=body.input,
        lang=None if language == "auto" else LANGUAGES.get(language, language),
        backend=find_backend(body.model, state.dispatcher.backends),
        speed=1.0 if body.speed is None else body.speed,
        seed=body.seed,
        emotion=body.emotion,
        timestamps=bool(body.word_timestamps),
    )
    speech_format = body.response_format or SpeechFormat.MP3
    default = PCM_RATE if speech_format is SpeechFormat.PCM else None
    return options, voice, parse_encoding(speech_format, body.sample_rate or default)


def find_backend(model: str | None, backends: Mapping[str, Any]) -> str | None:
    """Return the backend that a model names; None is that of the voice.

    Raises:
        NotFoundError: There is no such model.
    """
    if model is None or MODEL.fullmatch(model):
        return None
    if model not in backends:
        names = ", ".join((*backends, *MODELS))
        raise NotFoundError(f"There is no such model; available: {names}.", code="model_not_found", param="model")
    return model


def _make_events(n_characters: int, spoken: SpokenText | None) -> Wrap:
    """Return what makes events of audio; those with the times of words come before the audio that follows them."""

    async def read_words(*, is_over: bool = False) -> bytes:
        if spoken is None:
            return b""
        await spoken.update(is_over=is_over)
        words = spoken.take_words()
        return _event({"type": "speech.audio.timestamps", "words": word_times(words)}) if words else b""

    async def wrap(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async with aclosing(chunks):
            async for chunk in chunks:
                if words := await read_words():
                    yield words
                yield _event({"type": "speech.audio.delta", "audio": b64encode(chunk).decode()})
        if words := await read_words(is_over=True):
            yield words
        usage = {"input_tokens": n_characters, "output_tokens": 0, "total_tokens": n_characters}
        yield _event({"type": "speech.audio.done", "usage": usage})

    return wrap


def _event(data: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


# -- lists ----------------------------------------------------------------------------------------------------


class OpenAIModel(ResponseBody):
    """A model."""

    id: str = Field(description="A backend, or a model of OpenAI.")
    object: Literal["model"] = Field(default="model", description="`model`.")
    created: int = Field(default=0, description="0.")
    owned_by: str = Field(default="afterwords", description="`afterwords`.")


class OpenAIModels(ResponseBody):
    """The models; `models` is what Open WebUI reads."""

    object: Literal["list"] = Field(default="list", description="`list`.")
    data: list[OpenAIModel] = Field(description="The backends, and the models of OpenAI that stand for any of them.")
    models: list[OpenAIModel] = Field(description="The same.")


class OpenAIVoice(ResponseBody):
    """A voice, as Open WebUI and Home Assistant read it."""

    id: str = Field(description="Name of the voice, or its ID where several voices have the name.")
    name: str = Field(description="Name of the voice.")
    voice_id: str | None = Field(description="ID of the voice; null without a key.")


class OpenAIVoices(ResponseBody):
    """The voices of an account, in the shapes that different clients read."""

    object: Literal["list"] = Field(default="list", description="`list`.")
    data: list[VoiceListed] = Field(description="The voices, as `GET /v1/voices` lists them; empty without a key.")
    voices: list[OpenAIVoice] = Field(description="The voices to choose from.")


class OpenAICreatedVoice(ResponseBody):
    """A new voice."""

    id: str = Field(description="ID of the voice.")
    object: Literal["audio.voice"] = Field(default="audio.voice", description="`audio.voice`.")
    type: Literal["audio_sample"] = Field(default="audio_sample", description="`audio_sample`.")
    name: str = Field(description="Name of the voice.")
    created_at: int = Field(description="When the voice was created, in seconds since 1970.")


class OpenAIDeletedVoice(ResponseBody):
    """A voice that was deleted."""

    id: str = Field(description="ID of the voice.")
    object: Literal["audio.voice.deleted"] = Field(default="audio.voice.deleted", description="`audio.voice.deleted`.")
    deleted: Literal[True] = Field(default=True, description="True.")


@router.get("/v1/models", responses={200: {"model": OpenAIModels}})
@router.get("/v1/audio/models", responses={200: {"model": OpenAIModels}})
@requires(Credential.LIST)
async def list_models(request: Request) -> Response:
    """List the backends as models of OpenAI's API."""
    models = [OpenAIModel(id=name) for name in (*state_of(request).dispatcher.backends, *MODELS)]
    return json_response(OpenAIModels(data=models, models=models))


@router.get("/v1/models/{model}", responses={200: {"model": OpenAIModel}, **errors(_404="model_not_found")})
@requires(Credential.LIST)
async def show_model(request: Request, model: Annotated[str, Path(description="ID of the model.")]) -> Response:
    """Return a model of OpenAI's API."""
    find_backend(model, state_of(request).dispatcher.backends)
    return json_response(OpenAIModel(id=model))


_FORM: Final = request_body(
    "multipart/form-data",
    {
        "type": "object",
        "required": ["name", "audio_sample"],
        "properties": {
            "name": {"type": "string", "maxLength": 200, "description": "Name of the voice."},
            "audio_sample": {**BINARY, "description": "Recording of 5 to 60 s, in the formats of `POST /v1/voices`."},
            "ref_text": {"type": "string", "description": "Transcript of the recording."},
            "consent": {
                "type": "string",
                "description": f"Consent: {', '.join(ConsentKind)}, or the ID of a recording of the speaker's consent.",
            },
        },
    },
)


@router.post(
    "/v1/audio/voices",
    responses={200: {"model": OpenAICreatedVoice}, **UPLOAD, **errors(_404="consent_not_found")},
    openapi_extra=_FORM,
)
@requires(Credential.USER, Scope.VOICES_WRITE, max_body_bytes=FORM_MAX_BYTES, is_upload=True)
async def create_voice(request: Request) -> Response:
    """Register a voice from a recording, as OpenAI's API does."""
    voice = await register_from_form(request, "audio_sample", find_recorded=partial(find_recorded, request))
    created_at = int(voice.created_at.timestamp())
    return json_response(OpenAICreatedVoice(id=voice.voice_id, name=voice.name, created_at=created_at))


@router.delete("/v1/audio/voices/{voice_id}", responses={200: {"model": OpenAIDeletedVoice}, **CHANGE})
@requires(Credential.USER, Scope.VOICES_WRITE)
async def delete_voice(request: Request, voice_id: VoiceId) -> Response:
    """Delete a voice with its recording, jobs and audio, as OpenAI's API does."""
    voice = await find_voice(state_of(request).store, caller_of(request), voice_id)
    await state_of(request).voices.delete(caller_of(request), voice.voice_id)
    return json_response(OpenAIDeletedVoice(id=voice.voice_id))


@router.get("/v1/audio/voices", responses={200: {"model": OpenAIVoices}})
@requires(Credential.LIST, Scope.VOICES_READ)
async def list_voices(request: Request) -> Response:
    """List the voices of the account for clients of OpenAI's API."""
    state, account_id = state_of(request), identity_of(request).account_id
    shown_id = account_id or state.settings.list_voices_of or ""
    found = await state.store.list_voices(account_id=shown_id, limit=None, after=None)
    n_named = Counter(voice.name for voice in found)
    voices = [
        OpenAIVoice(
            id=voice.name if n_named[voice.name] == 1 else voice.voice_id,
            name=voice.name,
            voice_id=voice.voice_id if account_id else None,
        )
        for voice in found
        if account_id or n_named[voice.name] == 1
    ]
    data = [VoiceListed.model_validate(voice) for voice in found] if account_id else []
    return json_response(OpenAIVoices(data=data, voices=voices))
