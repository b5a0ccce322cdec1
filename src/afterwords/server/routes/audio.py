"""Responses of audio: read from storage, encoded or generated in chunks while they are sent.

A response holds one chunk at a time, whatever the length of the audio, and stops when its client disconnects.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from io import BytesIO
from typing import Any, BinaryIO, Final, cast

from fastapi import Request
from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from afterwords.errors import InvalidRequestError
from afterwords.models import SpeechFormat
from afterwords.server.concurrency import in_thread, while_connected
from afterwords.server.ports import BlobReader
from afterwords.server.routes.responses import MEDIA_TYPES, caller_of, context_of, state_of
from afterwords.server.spool import MemoryReader

WHOLE_MAX_BYTES: Final = 256 * 1024
"""Audio up to this size is sent in one message."""
ENCODE_WHOLE_MAX_BYTES: Final = 2 << 20
"""A WAV up to this size (44 s at 24 kHz) is encoded before it is sent, so that Content-Length is known."""
STEP_BYTES: Final = 128 * 1024
"""PCM encoded per step: 2.7 s at 24 kHz."""
_HEAD_BYTES: Final = 16 * 1024
RANGES_MAX: Final = 16
_RANGE: Final = re.compile(r"(\d{0,4000})-(\d{0,4000})", re.ASCII)  # int() takes 4,300 digits


class ChunkedAudioResponse(Response):
    """A response that is sent in chunks while the client is connected.

    Args:
        chunks: The body.
        close: Awaited once at the end, with whether the client received everything.
        size_bytes: Length of the body, if known.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        status: int,
        headers: Mapping[str, str],
        media_type: str,
        *,
        close: Callable[[bool], Awaitable[None]],
        size_bytes: int | None = None,
    ) -> None:
        self.status_code, self.media_type, self.background = status, media_type, None
        self._chunks = chunks
        self._close = close
        self.init_headers({**headers, **({} if size_bytes is None else {"Content-Length": str(size_bytes)})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_all() -> None:
            is_complete = False
            try:
                async with aclosing(self._chunks):
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                    if not scope["afterwords.context"].is_head:
                        async for chunk in self._chunks:
                            await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                is_complete = True
            finally:
                await self._close(is_complete)

        await while_connected(receive, send_all())


async def audio_response(
    request: Request,
    audio: BlobReader,
    speech_format: SpeechFormat,
    *,
    voice_id: str,
    sha256: str,
    headers: Mapping[str, str],
) -> Response:
    """Return a stored WAV file in a format.

    WAV supports ranges; other formats are encoded while they are sent, and always sent in full.

    Args:
        audio: The WAV file, closed when it was sent.
        voice_id: The voice, under which encoded audio is cached.
        sha256: Digest of the WAV file.
    """
    headers = {"Cache-Control": "private, no-store", **headers}
    try:
        if speech_format is SpeechFormat.WAV:
            tag = f'"{sha256}"'
            headers |= {"Accept-Ranges": "bytes", "ETag": tag}
            is_get = request.method == "GET" and not context_of(request).is_head
            header = request.headers.get("range") if is_get else None
            part = None
            if header is not None and request.headers.get("if-range", tag) == tag:
                part = parse_range(header, audio.size_bytes)
            first, last = part or (0, audio.size_bytes - 1)
            if part is not None:
                headers["Content-Range"] = f"bytes {first}-{last}/{audio.size_bytes}"
            return await _send_range(audio, first, last + 1, 200 if part is None else 206, headers, "audio/wav")
        headers["Accept-Ranges"] = "none"
        return await _encoded_response(request, audio, speech_format, voice_id, sha256, headers)
    except BaseException:
        audio.close()
        raise


async def _send_range(
    audio: BlobReader, start: int, end: int, status: int, headers: Mapping[str, str], media_type: str
) -> Response:
    """Send the bytes of a blob from start to end, in one message if they are few."""
    if end - start <= WHOLE_MAX_BYTES:
        data = await audio.read(start, end - start)
        audio.close()
        return Response(data, status, headers, media_type=media_type)

    async def chunks() -> AsyncGenerator[bytes, None]:
        step = min(audio.chunk_bytes, WHOLE_MAX_BYTES)
        for position in range(start, end, step):
            yield await audio.read(position, min(step, end - position))

    return ChunkedAudioResponse(chunks(), status, headers, media_type, close=_closing(audio), size_bytes=end - start)


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """Return the first and last byte of a Range header, or None to ignore it and send everything.

    Other units, malformed and multiple ranges are ignored (RFC 9110, 14.2).

    Raises:
        InvalidRequestError: The range contains no byte, or there are more than RANGES_MAX ranges.
    """
    not_satisfiable = InvalidRequestError(
        f"The audio has {size:,} bytes, and the requested range is not one range within it.",
        code="range_not_satisfiable",
        headers={"Content-Range": f"bytes */{size}"},
    )
    match = re.fullmatch(r"bytes=(.*)", header.strip(), re.IGNORECASE)
    if match is None:
        return None
    ranges = match[1].split(",")
    if len(ranges) > RANGES_MAX:
        raise not_satisfiable
    one = _RANGE.fullmatch(ranges[0].strip()) if len(ranges) == 1 else None
    if one is None or one[1] == one[2] == "":
        return None
    first = int(one[1]) if one[1] else max(0, size - int(one[2]))
    last = int(one[2]) if one[1] and one[2] else size - 1
    if one[1] and one[2] and first > last:
        return None
    if first >= size:
        raise not_satisfiable
    return first, min(last, size - 1)


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
    cache, name = state_of(request).encoded, f"{sha256}.{speech_format}"
    data = cache.get(voice_id, name)
    if data is None and not context_of(request).is_head and audio.size_bytes <= ENCODE_WHOLE_MAX_BYTES:
        sink = _WholeSink()

        async def encode_whole() -> None:
            async for _ in _encode(request, audio, speech_format, sink):
                pass

        await while_connected(request.receive, encode_whole())
        data = sink.getvalue()
        cache.put(voice_id, name, data)
    if data is not None:
        audio.close()
        return await _send_range(MemoryReader(data), 0, len(data), 200, headers, media_type)

    async def chunks() -> AsyncGenerator[bytes, None]:
        with cache.collect(voice_id, name) as collected:
            async with aclosing(_encode(request, audio, speech_format, _Sink())) as encoded:
                async for chunk in encoded:
                    collected.add(chunk)
                    yield chunk
            collected.finish()

    return ChunkedAudioResponse(chunks(), 200, headers, media_type, close=_closing(audio))


async def _encode(
    request: Request, audio: BlobReader, speech_format: SpeechFormat, sink: _Sink | _WholeSink
) -> AsyncGenerator[bytes, None]:
    """Encode a stored WAV file, with its tags."""
    from afterwords.audio.wav_chunks import read_info, sound_start

    head = BytesIO(await audio.read(0, _HEAD_BYTES))
    sample_rate, start = sound_start(head)
    n_frames, is_first, pcm = (audio.size_bytes - start) // 2, True, read_pcm(audio, 0)
    async with aclosing(encode_stream(request, pcm, sample_rate, speech_format, read_info(head), sink)) as encoded:
        async for ready in encoded:
            if is_first and ready[:4] == b"fLaC":
                # The encoder learns the number of samples too late. Source: RFC 9639, 8.2: the 36 bits after 28 bits of
                # rate, channels and sample size.
                facts = int.from_bytes(ready[18:26], "big") | n_frames
                yield ready[:18] + facts.to_bytes(8, "big") + ready[26:]
            else:
                yield ready
            is_first = False


async def read_pcm(audio: BlobReader, position: int) -> AsyncGenerator[bytes, None]:
    """Yield the PCM of a stored WAV file, from a byte of the PCM to its end."""
    from afterwords.audio.wav_chunks import sound_start

    _, start = sound_start(BytesIO(await audio.read(0, _HEAD_BYTES)))
    while pcm := await audio.read(start + position, STEP_BYTES):
        yield pcm
        position += len(pcm)


async def encode_stream(
    request: Request,
    pcm: AsyncIterator[bytes],
    sample_rate: int,
    speech_format: SpeechFormat,
    tags: Mapping[str, str],
    sink: _Sink | _WholeSink | None = None,
) -> AsyncGenerator[bytes, None]:
    """Encode PCM as it arrives, each step in a thread and fairly among accounts."""
    from afterwords.audio.wav import float_from_pcm16
    from afterwords.audio.writer import AudioWriter

    encoding, account_id = state_of(request).encoding, caller_of(request).account_id
    sink = _Sink() if sink is None else sink
    file = cast("BinaryIO", sink)
    with AudioWriter(file, format=speech_format, sample_rate=sample_rate, tags=dict(tags)) as writer:

        def write(chunk: bytes) -> None:
            writer.write(float_from_pcm16(chunk))

        async for chunk in pcm:
            async with encoding.slot(account_id):
                await in_thread(write, chunk)
            if ready := sink.take():
                yield ready
    if ready := sink.take():
        yield ready


def _closing(audio: BlobReader) -> Callable[[bool], Awaitable[None]]:
    async def close(_is_complete: bool) -> None:
        audio.close()

    return close


class _WholeSink(BytesIO):
    """A sink that is read at the end."""

    def take(self) -> bytes:
        return b""


class _Sink:
    """A write-only file whose content is taken out while it is written."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._n_bytes = 0

    def write(self, data: Any, /) -> int:
        self._chunks.append(bytes(data))
        self._n_bytes += len(data)
        return len(data)

    def flush(self) -> None:
        pass

    def tell(self) -> int:
        return self._n_bytes

    def seekable(self) -> bool:
        return False

    def take(self) -> bytes:
        ready = b"".join(self._chunks)
        self._chunks.clear()
        return ready
