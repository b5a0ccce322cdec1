"""How answers are made: audio in the format that was asked for, ranges, links, and what a route may answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, BinaryIO, Final, cast
from urllib.parse import quote

from fastapi import Header, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from afterwords.errors import InvalidFieldError, RangeNotSatisfiableError
from afterwords.models import SpeechFormat
from afterwords.server.gate import Admitted
from afterwords.server.ports import Caller
from afterwords.server.routes.shapes import ErrorBody
from afterwords.server.wiring import House

MEDIA_TYPES: Final = {
    SpeechFormat.WAV: "audio/wav",
    SpeechFormat.MP3: "audio/mpeg",
    SpeechFormat.OPUS: "audio/ogg",
    SpeechFormat.FLAC: "audio/flac",
    SpeechFormat.PCM: "audio/pcm",
}
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_IDEMPOTENCY_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", max_length=255, description="Makes repeating safe: same key, same answer."),
]


# -- what a request brings ------------------------------------------------------------------------------------


def house_of(request: Request) -> House:
    """The house that this router belongs to."""
    return cast(House, request.scope["afterwords"])


def base_url(request: Request) -> str:
    """Where links lead: the public URL, else the server's own address and the prefix of this router."""
    settings, scope = house_of(request).settings, request.scope
    if settings.public_url:
        return settings.public_url
    above = scope["path"].rsplit("/", scope["afterwords.exchange"].route.count("/"))[0]
    return settings.local_url + quote(above.removeprefix(scope.get("app_root_path", scope.get("root_path", ""))))


def admitted_to(request: Request) -> Admitted:
    """Who asks, as the guard found."""
    return cast(Admitted, request.scope["afterwords.exchange"].admitted)


def caller_of(request: Request) -> Caller:
    """The user who asks; the guard let nobody else in."""
    caller = admitted_to(request).caller
    assert caller is not None, "the route needs a user"
    return caller


def idempotency_key(value: str | None) -> str | None:
    """The Idempotency-Key header, checked."""
    if value is not None and not _IDEMPOTENCY_KEY.fullmatch(value):
        raise InvalidFieldError("Idempotency-Key", rule="it must have 1 to 255 visible ASCII characters")
    return value


# -- what an answer is ----------------------------------------------------------------------------------------


def json_response(body: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON body of one of our shapes, never kept by caches on the way."""
    return Response(
        body.model_dump_json(exclude_none=False),
        status,
        {"Cache-Control": "no-store", **(headers or {})},
        media_type="application/json",
    )


def list_response(
    items: list[dict[str, Any]], *, request: Request, path: str, limit: int | None, last_id: str | None
) -> Response:
    """A page of the list at this path; where there may be more, a Link header leads on."""
    response = JSONResponse(items, headers={"Cache-Control": "no-store"})
    if limit is not None and len(items) == limit and last_id is not None:
        query = request.url.include_query_params(after=last_id).query
        response.headers["Link"] = f'<{base_url(request)}{path}?{query}>; rel="next"'
    return response


async def audio_response(
    request: Request, wav: bytes, speech_format: SpeechFormat, *, etag: str, headers: Mapping[str, str]
) -> Response:
    """Audio in a format. A WAV can be had in parts (Range); the others are made anew each time, and come whole."""
    headers = {"Cache-Control": "private, no-store", **headers}
    if speech_format is not SpeechFormat.WAV:
        async with house_of(request).encoding:
            data = await asyncio.to_thread(encoded, wav, speech_format)
        return Response(data, 200, {**headers, "Accept-Ranges": "none"}, media_type=MEDIA_TYPES[speech_format])
    tag = f'"{etag}"'
    headers |= {"Accept-Ranges": "bytes", "ETag": tag}
    asked = request.headers.get("range")
    if asked is None or request.headers.get("if-range", tag) != tag:
        return Response(wav, 200, headers, media_type="audio/wav")
    first, last = _range(asked, len(wav))
    headers["Content-Range"] = f"bytes {first}-{last}/{len(wav)}"
    return Response(wav[first : last + 1], 206, headers, media_type="audio/wav")


def _range(asked: str, size: int) -> tuple[int, int]:
    """The first and last byte of a range; several at once are refused."""
    given = _RANGE.fullmatch(asked.strip())
    if given is None or given[1] == given[2] == "":
        raise RangeNotSatisfiableError(size_bytes=size)
    if not given[1]:
        first, last = max(0, size - int(given[2])), size - 1
        is_empty = int(given[2]) == 0
    else:
        first, last = int(given[1]), min(int(given[2] or size), size - 1)
        is_empty = first > last
    if is_empty:
        raise RangeNotSatisfiableError(size_bytes=size)
    return first, last


def encoded(wav: bytes, speech_format: SpeechFormat) -> bytes:
    """A WAV file that we wrote, in another format; what it says of itself comes along."""
    from io import BytesIO

    from afterwords.audio import Audio
    from afterwords.riff import read_wav
    from afterwords.wavchunks import read_info

    samples, sample_rate = read_wav(wav)
    return Audio(samples, sample_rate, read_info(BytesIO(wav))).to_bytes(speech_format)


async def encoded_stream(
    pcm: AsyncIterator[bytes], sample_rate: int, speech_format: SpeechFormat, tags: Mapping[str, str]
) -> AsyncIterator[bytes]:
    """PCM as it comes, in a format as far as it can be written by then."""
    import numpy as np

    from afterwords.audio import AudioWriter

    sink = _Sink()
    with AudioWriter(cast("BinaryIO", sink), format=speech_format, sample_rate=sample_rate, tags=dict(tags)) as writer:
        async for piece in pcm:
            samples = np.frombuffer(piece, "<i2").astype(np.float32) / np.float32(32768)
            await asyncio.to_thread(writer.write, samples)
            if ready := sink.take():
                yield ready
    if ready := sink.take():
        yield ready


class _Sink:
    """A file that is only written to, and emptied by who sends it on."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._n_bytes = 0

    def write(self, data: bytes, /) -> int:
        self._pieces.append(bytes(data))
        self._n_bytes += len(data)
        return len(data)

    def flush(self) -> None:
        pass

    def tell(self) -> int:
        return self._n_bytes

    def seekable(self) -> bool:
        return False

    def take(self) -> bytes:
        ready = b"".join(self._pieces)
        self._pieces.clear()
        return ready


# -- what the documentation says ------------------------------------------------------------------------------


def errors(**codes: str) -> dict[int | str, dict[str, Any]]:
    """The errors of a route: `_422="empty_text, text_too_long"` names the codes of a status."""
    return {
        int(status.removeprefix("_")): {"model": ErrorBody, "description": f"Codes: {names}."}
        for status, names in codes.items()
    }


COMMON: Final = errors(
    _400="bad_request, invalid_host, invalid_json",
    _401="unauthorized",
    _408="request_timeout",
    _413="request_too_large",
    _429="rate_limited, too_many_concurrent_requests",
    _500="internal_error",
    _503="database_unavailable, storage_unavailable, service_unavailable, not_opened",
    _507="storage_full",
)
"""What any route may answer."""


def audio_content(*formats: SpeechFormat) -> dict[str, Any]:
    """The content of an answer that is audio."""
    return {MEDIA_TYPES[name]: {"schema": {"type": "string", "format": "binary"}} for name in formats or SpeechFormat}
