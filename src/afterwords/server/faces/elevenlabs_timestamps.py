"""ElevenLabs' `with-timestamps`: speech with the times of its characters, as one object or as lines."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from afterwords.audio.encoding import Encoding
from afterwords.errors import AfterwordsError
from afterwords.models import Alignment, JobStatus, SpeechFormat
from afterwords.server.concurrency import while_connected
from afterwords.server.faces.elevenlabs import (
    DEFAULT_FORMAT,
    INVALID_SPEECH,
    SPEECH_RESPONSES,
    ElevenSpeechBody,
    OutputFormat,
    opened_by_xi_key,
    parse_speech,
)
from afterwords.server.records import Scope
from afterwords.server.routes.audio import STREAM_WAIT_S, Wrap, speech_response
from afterwords.server.routes.responses import VoiceId, caller_of, context_of, errors, state_of
from afterwords.server.routes.schemas import ResponseBody
from afterwords.server.routes.timing import SpokenText
from afterwords.server.routing import DocumentedRoute
from afterwords.server.services.synthesis import AcceptedJob
from afterwords.speech import in_given_text

router = APIRouter(route_class=DocumentedRoute, tags=["ElevenLabs"])

LINE_MAX_S: Final = 1.5
LINE_MAX_BYTES: Final = 48 * 1024
"""Audio in a line of `/stream/with-timestamps`: clients with aiohttp read lines of at most 128 KiB."""


class ElevenAlignment(ResponseBody):
    """When characters are spoken, in seconds from the start of the speech."""

    characters: list[str] = Field(description="Code points of the text.")
    character_start_times_seconds: list[float] = Field(description="Times at which they start.")
    character_end_times_seconds: list[float] = Field(description="Times at which they end.")


class ElevenTimedAudio(ResponseBody):
    """Audio, and the characters that are spoken in it."""

    audio_base64: str = Field(description="The audio, or a part of it.")
    alignment: ElevenAlignment = Field(description="The characters.")
    normalized_alignment: ElevenAlignment = Field(description="The same.")


_TIMED: Final = {
    **SPEECH_RESPONSES,
    200: {"model": ElevenTimedAudio, "description": "The audio; with `/stream`, one such object a line for each part."},
    422: errors(_422=f"{INVALID_SPEECH}, timestamps_unavailable")[422],
}


@router.post("/elevenlabs/v1/text-to-speech/{voice_id}/with-timestamps", responses=_TIMED)
@router.post("/elevenlabs/v1/text-to-speech/{voice_id}/stream/with-timestamps", responses=_TIMED)
@opened_by_xi_key(Scope.SYNTHESIZE)
async def speak_with_timestamps(
    request: Request, voice_id: VoiceId, body: ElevenSpeechBody, output_format: OutputFormat = DEFAULT_FORMAT
) -> Response:
    """Speak a text, and return the audio with the times of the characters.

    With `/stream`, it is sent while it is generated if the backend reports times, else once all of it was spoken.
    """
    synthesis, caller = state_of(request).synthesis, caller_of(request)
    options, encoding = await parse_speech(request, voice_id, body, output_format)
    result = await synthesis.submit(caller, replace(options, timestamps=True), listen=True)
    assert isinstance(result, AcceptedJob), "speech with timestamps is not cached"
    job_id = context_of(request).job_id = result.job.job_id
    is_streamed = request.url.path.endswith("/stream/with-timestamps")
    is_tagged = encoding.format is not SpeechFormat.MP3
    if is_streamed and "has_timing" in state_of(request).dispatcher.features.get(result.job.backend, ()):
        lines = _make_lines(SpokenText(request, body.text, result), encoding)
        response = await speech_response(request, result, encoding, is_tagged=is_tagged, wrap=lines)
        response.headers["Content-Type"] = "application/x-ndjson"
        return response
    if result.listener:  # the times are known at the end
        result.listener.close()
        result = replace(result, listener=None)
    try:
        job = await while_connected(request.receive, synthesis.get_job(caller, job_id, wait_s=STREAM_WAIT_S))
        if job.status is not JobStatus.READY and job.error != "timestamps_unavailable":
            return await speech_response(request, result, encoding)  # it raises what ended the job
        alignment = await synthesis.get_alignment(job)
    except BaseException as error:
        if result.is_new:
            await synthesis.end_stream(caller, job_id, is_whole=isinstance(error, AfterwordsError))
        raise
    spoken = "".join(alignment.characters)
    if spoken != body.text:
        words = in_given_text([*alignment.words], spoken, body.text)
        alignment = Alignment.from_words(body.text, words, alignment.end_s[-1])
    wrap = _make_lines(SpokenText(request, body.text, result), encoding) if is_streamed else _make_object(alignment)
    response = await speech_response(request, result, encoding, is_tagged=is_tagged, wrap=wrap)
    response.headers["Content-Type"] = "application/x-ndjson" if is_streamed else "application/json"
    return response


def _make_lines(spoken: SpokenText, encoding: Encoding) -> Wrap:
    """Return what makes lines of the audio, each with the characters that start in it, as far as they are known."""
    sample_bits = 8 if encoding.format in (SpeechFormat.MULAW, SpeechFormat.ALAW) else 16
    bytes_per_s = (encoding.bit_rate or sample_bits * (encoding.sample_rate or 0)) / 8
    step = min(int(LINE_MAX_S * bytes_per_s), LINE_MAX_BYTES)

    async def wrap(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        n_bytes = 0
        async with aclosing(chunks):
            async for chunk in chunks:
                for start in range(0, len(chunk), step):
                    audio = chunk[start : start + step]
                    n_bytes += len(audio)
                    await spoken.update()
                    yield _line(audio, spoken.take(n_bytes / bytes_per_s))
        await spoken.update(is_over=True)
        yield _line(b"", spoken.take())

    return wrap


def _line(audio: bytes, alignment: Alignment) -> bytes:
    return b'{"audio_base64":"' + b64encode(audio) + _alignment_json(alignment) + b"\n"


def _make_object(alignment: Alignment) -> Wrap:
    """Return what makes one JSON object of the audio and all characters."""

    async def wrap(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        rest = b""
        yield b'{"audio_base64":"'
        async with aclosing(chunks):
            async for chunk in chunks:
                audio = rest + chunk
                end = len(audio) // 3 * 3  # base64 of other lengths ends with padding
                yield b64encode(audio[:end])
                rest = audio[end:]
        yield b64encode(rest) + _alignment_json(alignment)

    return wrap


def _alignment_json(alignment: Alignment) -> bytes:
    """Return what follows the audio in an `ElevenTimedAudio`."""
    found = ElevenAlignment(
        characters=[*alignment.characters],
        character_start_times_seconds=[round(time_s, 3) for time_s in alignment.start_s],
        character_end_times_seconds=[round(time_s, 3) for time_s in alignment.end_s],
    ).model_dump()
    shown = json.dumps(found, separators=(",", ":"))  # ASCII, since clients also split lines at U+2028
    return f'","alignment":{shown},"normalized_alignment":{shown}}}'.encode()
