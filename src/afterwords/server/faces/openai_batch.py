"""vLLM-Omni's `/v1/audio/speech/batch`: several texts in one request, each a job of its own."""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Final, Literal, TypeAlias

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from afterwords.audio.encoding import Encoding
from afterwords.errors import AfterwordsError, SynthesisError
from afterwords.models import JobStatus, Seed, SpeechFormat, Speed, new_id
from afterwords.server.auth import Credential, requires
from afterwords.server.faces.openai import SpeechBody, VoiceRef, parse_speech
from afterwords.server.records import Scope
from afterwords.server.routes.audio import STREAM_WAIT_S, ChunkedAudioResponse, StoredAudio, encode_whole
from afterwords.server.routes.responses import caller_of, errors, state_of
from afterwords.server.routes.schemas import RequestBody, ResponseBody
from afterwords.server.routing import DocumentedRoute
from afterwords.server.services.synthesis import AcceptedJob, CachedSpeech

log = logging.getLogger("afterwords.server")
router = APIRouter(route_class=DocumentedRoute, tags=["OpenAI"])

ITEMS_MAX: Final = 32
AHEAD: Final = 4
"""Items that have a job at once: one is sent, the others are spoken meanwhile."""


class SpeechBatchBody(RequestBody):
    """Texts, and parameters for those that have none of their own. Other fields are ignored."""

    items: list[SpeechBody] = Field(
        min_length=1, max_length=ITEMS_MAX, description="Texts with their parameters, as for `/v1/audio/speech`."
    )
    voice: str | VoiceRef | None = Field(default=None, description="Name, ID or alias of a voice of the account.")
    speaker: str | None = Field(default=None, description="The same, if `voice` is absent.")
    model: str | None = Field(default=None, description="A backend, or a model of OpenAI.")
    response_format: SpeechFormat | None = Field(default=None, strict=False, description="Format; omitted: wav.")
    speed: Speed | None = Field(default=None, description="Speaking rate, 1 is the voice's own.")
    language: str | None = Field(default=None, description="Code or English name of the language, or Auto.")
    seed: Seed | None = Field(default=None, description="Makes a sampled result reproducible.")
    sample_rate: int | None = Field(default=None, description="Sample rate in Hz; omitted: that of the backend.")


class SpeechBatchUsage(ResponseBody):
    """Characters of a text, as tokens."""

    input_tokens: int = Field(description="Characters of the text.")
    output_tokens: int = Field(default=0, description="0.")
    total_tokens: int = Field(description="Characters of the text.")


class SpeechBatchResult(ResponseBody):
    """The speech of one text, or why there is none."""

    index: int = Field(description="Position of the text.")
    status: Literal["success", "error"] = Field(description="`success` or `error`.")
    audio_data: str | None = Field(default=None, description="The audio in base64.")
    media_type: str | None = Field(default=None, description="Media type of the audio.")
    error: str | None = Field(default=None, description="What is wrong.")
    usage: SpeechBatchUsage | None = Field(default=None, description="Characters of the text.")


class SpeechBatchResults(ResponseBody):
    """The results of all texts, in their order."""

    id: str = Field(description="ID of the batch, which is not stored.")
    results: list[SpeechBatchResult] = Field(description="The results.")
    total: int = Field(description="Number of texts.")
    succeeded: int = Field(description="Number of texts that were spoken.")
    failed: int = Field(description="Number of texts that were not.")


Submitted: TypeAlias = tuple[CachedSpeech | AcceptedJob, Encoding] | AfterwordsError


@router.post(
    "/v1/audio/speech/batch",
    responses={
        200: {"model": SpeechBatchResults},
        **errors(_400="missing_field, invalid_json, bad_request, invalid_host", _422="invalid_field"),
    },
)
@requires(Credential.USER, Scope.SYNTHESIZE)
async def speak_batch(request: Request, body: SpeechBatchBody) -> Response:
    """Speak several texts, as vLLM-Omni's API does. The results are sent one by one; one that fails ends no other."""
    shared = {name: getattr(body, name) for name in SpeechBatchBody.model_fields if name != "items"}
    shared["response_format"] = body.response_format or SpeechFormat.WAV
    items = []
    for item in body.items:
        has_voice = item.voice is not None or item.speaker is not None
        missing = {name for name in shared if getattr(item, name) is None}
        missing -= {"voice", "speaker"} if has_voice else set()
        items.append(item.model_copy(update={name: shared[name] for name in missing}))
    batch = _Batch(request, items)
    return ChunkedAudioResponse(batch.results(), 200, {}, "application/json", close=batch.close)


class _Batch:
    """The texts of a batch: jobs are submitted a few ahead of the result that is sent."""

    def __init__(self, request: Request, items: Sequence[SpeechBody]) -> None:
        self._request = request
        self._items = items
        self._submitted: deque[asyncio.Task[Submitted]] = deque()

    async def results(self) -> AsyncGenerator[bytes, None]:
        """Yield the body of the response; it holds one result at a time."""
        n_succeeded = n_submitted = 0
        yield f'{{"id":"speech-batch-{new_id()}","results":['.encode()
        for index in range(len(self._items)):
            while n_submitted < len(self._items) and len(self._submitted) < AHEAD:
                submitting = asyncio.create_task(self._submit(self._items[n_submitted]))
                self._submitted.append(submitting)
                await asyncio.wait({submitting})  # not cancelled: `close` cancels the job
                n_submitted += 1
            result = await self._wait(index, self._submitted[0].result())
            self._submitted.popleft()
            n_succeeded += result.status == "success"
            yield (b"," if index else b"") + result.model_dump_json().encode()
        total = len(self._items)
        yield f'],"total":{total},"succeeded":{n_succeeded},"failed":{total - n_succeeded}}}'.encode()

    async def _submit(self, item: SpeechBody) -> Submitted:
        try:
            if item is not self._items[0]:  # the request counts for the first
                state_of(self._request).authenticator.check_rate(caller_of(self._request))
            options, _, encoding = await parse_speech(self._request, item)
            result = await state_of(self._request).synthesis.submit(caller_of(self._request), options, listen=True)
        except AfterwordsError as error:
            return error
        if isinstance(result, AcceptedJob) and result.listener:
            result.listener.close()
        return result, encoding

    async def _wait(self, index: int, submitted: Submitted) -> SpeechBatchResult:
        try:
            if isinstance(submitted, AfterwordsError):
                raise submitted
            result, encoding = submitted
            audio = await self._open(result)
            try:
                is_as_stored = encoding == Encoding(SpeechFormat.WAV)
                data = await (
                    audio.reader.read(0, audio.reader.size_bytes)
                    if is_as_stored
                    else encode_whole(self._request, audio, encoding)
                )
            finally:
                audio.reader.close()
        except AfterwordsError as error:
            return SpeechBatchResult(index=index, status="error", error=error.message)
        n_characters = len(self._items[index].input)
        return SpeechBatchResult(
            index=index,
            status="success",
            audio_data=b64encode(data).decode(),
            media_type=encoding.media_type,
            usage=SpeechBatchUsage(input_tokens=n_characters, total_tokens=n_characters),
        )

    async def _open(self, result: CachedSpeech | AcceptedJob) -> StoredAudio:
        if isinstance(result, CachedSpeech):
            return StoredAudio(result.audio, result.entry.voice_id, result.entry.sha256)
        synthesis, caller = state_of(self._request).synthesis, caller_of(self._request)
        job = await synthesis.get_job(caller, result.job.job_id, wait_s=STREAM_WAIT_S)
        if result.is_new:
            await synthesis.end_stream(caller, job.job_id, is_whole=True)
        if job.status is not JobStatus.READY:
            raise SynthesisError.for_backend(job.backend, why=job.error or f"it was {job.status}")
        return StoredAudio(await synthesis.open_audio(job), job.voice_id, job.audio_sha256 or "")

    async def close(self, _is_complete: bool) -> None:
        """Cancel the jobs whose results were not sent."""
        synthesis, caller = state_of(self._request).synthesis, caller_of(self._request)
        for submitting in self._submitted:
            await asyncio.wait({submitting})
            if submitting.exception() or isinstance(submitted := submitting.result(), AfterwordsError):
                continue
            result, _ = submitted
            if isinstance(result, CachedSpeech):
                result.audio.close()
            elif result.is_new:
                try:
                    await synthesis.end_stream(caller, result.job.job_id, is_whole=False)
                except AfterwordsError as error:  # the others must be cancelled, too
                    log.warning("a text of a batch was not cancelled code=%s", error.code)
