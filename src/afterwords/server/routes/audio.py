"""Answers that are audio: read from storage, encoded or spoken piece by piece while they are sent.

A response holds one piece at a time, whatever the length of the audio, and stops when its client disconnects.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from afterwords.errors import InvalidRequestError
from afterwords.models import SpeechFormat
from afterwords.server.disconnects import while_connected
from afterwords.server.ports import BlobReader
from afterwords.server.routes.responses import MEDIA_TYPES, caller_of, exchange_of, state_of
from afterwords.server.spool import MemoryReader
from afterwords.server.threads import in_thread

if TYPE_CHECKING:
    from afterwords.audio.writer import AudioWriter

WHOLE_MAX_BYTES: Final = 256 * 1024
"""Audio up to this size is sent at once."""
ENCODE_WHOLE_MAX_BYTES: Final = 2 << 20
"""A WAV up to this size (44 s at 24 kHz) is encoded before it is sent, so that the header states the length."""
STEP_BYTES: Final = 128 * 1024
"""PCM that is encoded in one step: 2.7 s at 24 kHz."""
_HEAD_BYTES: Final = 16 * 1024
RANGES_MAX: Final = 16
_RANGES: Final = re.compile(r"bytes=(.*)", re.IGNORECASE)
_RANGE: Final = re.compile(r"(\d*)-(\d*)", re.ASCII)
_SIZE_DIGITS: Final = 18


class PiecesResponse(Response):
    """A body that is sent piece by piece, as long as its client is there.

    Args:
        pieces: of the body.
        close: awaited once, in the end; told whether the client got everything.
        size_bytes: of the whole body, where it is known.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes, None],
        status: int,
        headers: Mapping[str, str],
        media_type: str,
        *,
        close: Callable[[bool], Awaitable[None]],
        size_bytes: int | None = None,
    ) -> None:
        self.status_code, self.media_type, self.background = status, media_type, None
        self._pieces = pieces
        self._close = close
        self.init_headers({**headers, **({} if size_bytes is None else {"Content-Length": str(size_bytes)})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_connected(receive, self._send(send, is_head=scope["afterwords.exchange"].is_head))

    async def _send(self, send: Send, *, is_head: bool) -> None:
        is_whole = False
        try:
            async with aclosing(self._pieces):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                if not is_head:
                    async for piece in self._pieces:
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            is_whole = True
        finally:
            await self._close(is_whole)


async def audio_response(
    request: Request,
    audio: BlobReader,
    speech_format: SpeechFormat,
    *,
    voice_id: str,
    sha256: str,
    headers: Mapping[str, str],
) -> Response:
    """Answer with a WAV file that we wrote, in a format.

    A WAV can be had in parts (Range); the other formats are made of it while they are sent, and come whole.

    Args:
        audio: closed when it was sent.
        voice_id: that speaks.
        sha256: of the WAV.
    """
    headers = {"Cache-Control": "private, no-store", **headers}
    try:
        if speech_format is SpeechFormat.WAV:
            return await _wav_response(request, audio, sha256, headers)
        headers["Accept-Ranges"] = "none"
        return await _encoded_response(request, audio, speech_format, voice_id, sha256, headers)
    except BaseException:
        audio.close()
        raise


async def _wav_response(request: Request, audio: BlobReader, sha256: str, headers: dict[str, str]) -> Response:
    tag = f'"{sha256}"'
    headers |= {"Accept-Ranges": "bytes", "ETag": tag}
    is_get = request.method == "GET" and not exchange_of(request).is_head
    asked = request.headers.get("range") if is_get else None
    part = None
    if asked is not None and request.headers.get("if-range", tag) == tag:
        part = requested_range(asked, audio.size_bytes)
    first, last = part or (0, audio.size_bytes - 1)
    status = 200 if part is None else 206
    if part is not None:
        headers["Content-Range"] = f"bytes {first}-{last}/{audio.size_bytes}"
    return await _sent(audio, first, last + 1, status, headers, "audio/wav")


async def _sent(
    audio: BlobReader, start: int, end: int, status: int, headers: Mapping[str, str], media_type: str
) -> Response:
    """The bytes of a blob from start to end, at once where they are few."""
    if end - start <= WHOLE_MAX_BYTES:
        data = await audio.read(start, end - start)
        audio.close()
        return Response(data, status, headers, media_type=media_type)

    async def pieces() -> AsyncGenerator[bytes, None]:
        step = min(audio.chunk_bytes, WHOLE_MAX_BYTES)
        for place in range(start, end, step):
            yield await audio.read(place, min(step, end - place))

    return PiecesResponse(pieces(), status, headers, media_type, close=_closing(audio), size_bytes=end - start)


def requested_range(header: str, size: int) -> tuple[int, int] | None:
    """The first and last byte that a Range header asks for; None where it is to be ignored and all is sent.

    Ignored are other units, what is malformed, and several ranges (RFC 9110, 14.2).

    Raises:
        InvalidRequestError: no byte is in the range, or the ranges are absurdly many.
    """
    given = _RANGES.fullmatch(header.strip())
    if given is None:
        return None
    ranges = given[1].split(",")
    if len(ranges) > RANGES_MAX:
        raise InvalidRequestError.range_not_satisfiable(size_bytes=size)
    one = _RANGE.fullmatch(ranges[0].strip()) if len(ranges) == 1 else None
    if one is None or one[1] == one[2] == "":
        return None
    if not one[1]:
        n_last = _number(one[2])
        if not n_last:
            raise InvalidRequestError.range_not_satisfiable(size_bytes=size)
        return max(0, size - n_last), size - 1
    first, last = _number(one[1]), _number(one[2]) if one[2] else size - 1
    if first > last and one[2]:
        return None
    if first >= size:
        raise InvalidRequestError.range_not_satisfiable(size_bytes=size)
    return first, min(last, size - 1)


def _number(digits: str) -> int:
    """A number of bytes; one with more digits than any file has counts as the largest."""
    digits = digits.lstrip("0")
    return int(digits or 0) if len(digits) <= _SIZE_DIGITS else int("9" * _SIZE_DIGITS)


# -- other formats --------------------------------------------------------------------------------------------


async def _encoded_response(
    request: Request,
    audio: BlobReader,
    speech_format: SpeechFormat,
    voice_id: str,
    sha256: str,
    headers: Mapping[str, str],
) -> Response:
    media_type = MEDIA_TYPES[speech_format]
    kept, name = state_of(request).encoded, f"{sha256}.{speech_format}"
    data = kept.get(voice_id, name)
    if data is None and not exchange_of(request).is_head and audio.size_bytes <= ENCODE_WHOLE_MAX_BYTES:
        data = await while_connected(request.receive, _encoded_whole(request, audio, speech_format))
        kept.put(voice_id, name, data)
    if data is not None:
        audio.close()
        return await _sent(MemoryReader(data), 0, len(data), 200, headers, media_type)

    async def pieces() -> AsyncGenerator[bytes, None]:
        with kept.collect(voice_id, name) as collected:
            async with aclosing(_encoded(request, audio, speech_format, _Sink())) as encoded:
                async for piece in encoded:
                    collected.add(piece)
                    yield piece
            collected.finish()

    return PiecesResponse(pieces(), 200, headers, media_type, close=_closing(audio))


async def _encoded_whole(request: Request, audio: BlobReader, speech_format: SpeechFormat) -> bytes:
    sink = _WholeSink()
    async with aclosing(_encoded(request, audio, speech_format, sink)) as encoded:
        async for _ in encoded:
            pass
    return sink.getvalue()


async def _encoded(
    request: Request, audio: BlobReader, speech_format: SpeechFormat, sink: _Sink | _WholeSink
) -> AsyncGenerator[bytes, None]:
    """A WAV file that we wrote, in another format; what it says of itself comes along."""
    from afterwords.audio.wav_chunks import read_info, sound_start
    from afterwords.audio.writer import AudioWriter

    head = BytesIO(await audio.read(0, _HEAD_BYTES))
    sample_rate, start = sound_start(head)
    n_frames = (audio.size_bytes - start) // 2
    file, tags, place = cast("BinaryIO", sink), read_info(head), start
    with AudioWriter(file, format=speech_format, sample_rate=sample_rate, tags=tags) as writer:
        while pcm := await audio.read(place, STEP_BYTES):
            await _write(request, writer, pcm)
            if ready := sink.take():
                yield _stating_length(ready, n_frames) if place == start else ready
            place += len(pcm)
    if ready := sink.take():
        yield ready


async def encoded_stream(
    request: Request,
    pcm: AsyncIterator[bytes],
    sample_rate: int,
    speech_format: SpeechFormat,
    tags: Mapping[str, str],
) -> AsyncGenerator[bytes, None]:
    """PCM as it comes, in a format as far as it can be written by then."""
    from afterwords.audio.writer import AudioWriter

    sink = _Sink()
    file = cast("BinaryIO", sink)
    with AudioWriter(file, format=speech_format, sample_rate=sample_rate, tags=dict(tags)) as writer:
        async for piece in pcm:
            await _write(request, writer, piece)
            if ready := sink.take():
                yield ready
    if ready := sink.take():
        yield ready


async def _write(request: Request, writer: AudioWriter, pcm: bytes) -> None:
    """Encode one step, when the account's turn has come."""
    from afterwords.audio.wav import float_from_pcm16

    def write() -> None:
        writer.write(float_from_pcm16(pcm))

    async with state_of(request).encoding.slot(caller_of(request).account_id):
        await in_thread(write)


def _stating_length(begin: bytes, n_frames: int) -> bytes:
    """The begin of a FLAC file with the number of samples, which its encoder learns too late; else as it is.

    Source: RFC 9639, 8.2: the 36 bits after 28 bits of rate, channels and sample size.
    """
    if begin[:4] != b"fLaC":
        return begin
    facts = int.from_bytes(begin[18:26], "big") | n_frames
    return begin[:18] + facts.to_bytes(8, "big") + begin[26:]


def _closing(audio: BlobReader) -> Callable[[bool], Awaitable[None]]:
    async def close(_is_whole: bool) -> None:
        audio.close()

    return close


class _WholeSink(BytesIO):
    """A file that is looked at when it is whole."""

    def take(self) -> bytes:
        return b""


class _Sink:
    """A file that is only written to, and emptied by who sends it on."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._n_bytes = 0

    def write(self, data: Any, /) -> int:
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
