"""Responses of audio: read from storage, encoded or generated in chunks while they are sent.

A response holds one chunk at a time, whatever the length of the audio, and stops when its client disconnects.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, Final, TypeAlias, cast
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from afterwords.audio.encoding import Encoding
from afterwords.errors import (
    AfterwordsError,
    ConflictError,
    InvalidOptionError,
    InvalidRequestError,
    SynthesisError,
    UnavailableError,
)
from afterwords.models import JobStatus, SpeechFormat
from afterwords.provenance import mark_tags
from afterwords.server.concurrency import in_thread, while_connected
from afterwords.server.ports import BlobReader, Listener
from afterwords.server.records import StoredJob
from afterwords.server.routes.responses import caller_of, context_of, state_of
from afterwords.server.services.synthesis import AcceptedJob, CachedSpeech
from afterwords.server.spool import MemoryReader

WHOLE_MAX_BYTES: Final = 256 * 1024
"""Audio up to this size is sent in one message."""
ENCODE_WHOLE_MAX_BYTES: Final = 2 << 20
"""A WAV up to this size (44 s at 24 kHz) is encoded before it is sent, so that Content-Length is known."""
STEP_BYTES: Final = 128 * 1024
"""PCM encoded per step: 2.7 s at 24 kHz."""
FIRST_STEP_BYTES: Final = 8 * 1024
"""PCM encoded in the first step, which a client waits for: 0.17 s at 24 kHz."""
HEAD_BYTES: Final = 16 * 1024
RANGES_MAX: Final = 16
LEFT_OUT_MAX: Final = 20
"""Words that X-Left-Out lists at most."""
STREAM_WAIT_S: Final = 3600.0
"""How long a stream waits for its audio; it ends sooner if the client disconnects."""
Wrap: TypeAlias = Callable[[AsyncGenerator[bytes, None]], AsyncGenerator[bytes, None]]
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
        media_type: str | None,
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


def parse_encoding(speech_format: SpeechFormat, sample_rate: int | None) -> Encoding:
    """Return the encoding that a request asks for.

    Raises:
        InvalidRequestError: The format has no such rate.
    """
    try:
        return Encoding(speech_format, sample_rate)
    except InvalidOptionError as error:
        rule = f"it must {error.message.partition('but must ')[2].rstrip('.')}"
        raise InvalidRequestError.invalid_field("sample_rate", rule=rule) from None


async def speech_response(
    request: Request,
    result: CachedSpeech | AcceptedJob,
    encoding: Encoding,
    *,
    is_tagged: bool = True,
    wrap: Wrap | None = None,
) -> Response:
    """Return the audio of a synthesis: cached, while it is generated, or once it is ready if this process can't listen.

    Cancels the job if the client disconnects.

    Args:
        is_tagged: Whether audio that is sent in chunks has tags. A file that is sent at once always has.
        wrap: Makes server-sent events of the chunks.
    """
    if isinstance(result, CachedSpeech):
        entry = result.entry
        headers = speech_headers(entry.voice_id, result.backend, cache="HIT", synth_ms=entry.synth_ms)
        stored = StoredAudio(result.audio, entry.voice_id, entry.sha256, is_tagged, wrap)
        response = await audio_response(request, stored, encoding, headers)
    else:
        response = await _follow(request, result, encoding, is_tagged, wrap)
    add_result_headers(response, result)
    return response


async def _follow(
    request: Request, accepted: AcceptedJob, encoding: Encoding, is_tagged: bool, wrap: Wrap | None
) -> Response:
    state, caller, job, listener = state_of(request), caller_of(request), accepted.job, accepted.listener

    async def close(is_complete: bool) -> None:
        if listener:
            listener.close()
        if accepted.is_new:
            await state.synthesis.end_stream(caller, job.job_id, is_whole=is_complete)

    async def start() -> Response:
        try:
            sample_rate = None
            if listener:
                sample_rate = await state.synthesis.wait_for_audio(job, listener, wait_s=STREAM_WAIT_S)
            if sample_rate is None or listener is None:
                final = await state.synthesis.get_job(caller, job.job_id, wait_s=STREAM_WAIT_S)
                if final.status is JobStatus.CANCELLED:
                    raise ConflictError(
                        f"The job is already {final.status}, so it can't be cancelled.", code="job_final"
                    )
                if final.error in ("timestamps_unavailable", "verification_unavailable"):
                    why = (
                        f"The speech has no report: where the backend {final.backend} runs, words can't be recognized."
                    )
                    raise UnavailableError(why, code=final.error)
                if final.status is not JobStatus.READY:
                    raise SynthesisError.for_backend(final.backend, why=final.error or "it took too long")
                stored = await _open_job(request, final, is_tagged, wrap)
                response = await audio_response(request, stored, encoding, job_headers(final))
                await close(True)
                return response
        except BaseException as error:
            await close(isinstance(error, AfterwordsError))
            raise
        tags = mark_tags(
            backend=job.backend, voice_name=accepted.voice_name, voice_id=job.voice_id, made_at=job.created_at
        )
        headers = {**job_headers(job), "Cache-Control": "private, no-store", "Accept-Ranges": "none"}
        pcm = read_stream(request, job, listener)
        chunks = encode_stream(request, pcm, sample_rate, encoding, tags if is_tagged else {})
        return _chunked_response(chunks, encoding, headers, wrap, close)

    return await while_connected(request.receive, start())


async def read_stream(request: HTTPConnection, job: StoredJob, listener: Listener) -> AsyncGenerator[bytes, None]:
    """Yield the audio of a stream, and if it ends early although the job is ready, the rest of the stored audio.

    The connection of a remote worker may be lost, or its audio be delivered to another server.
    """
    state, n_bytes = state_of(request), 0
    try:
        async for pcm in listener:
            yield pcm
            n_bytes += len(pcm)
    except SynthesisError:
        final = await state.synthesis.get_job(caller_of(request), job.job_id)
        if final.status is not JobStatus.READY or final.attempt != listener.attempt:
            raise
        audio = await state.synthesis.open_audio(final)
        try:
            async for pcm in read_pcm(audio, n_bytes):
                yield pcm
        finally:
            audio.close()


def speech_headers(voice_id: str, backend: str, *, cache: str, synth_ms: int) -> dict[str, str]:
    """Return the headers that describe a synthesis."""
    return {
        "X-Cache": cache,
        "X-Voice-Id": voice_id,
        "X-Backend": backend,
        "X-Synthesis-Time-Ms": str(synth_ms),
    }


def job_headers(job: StoredJob) -> dict[str, str]:
    """Return the headers that describe the synthesis of a job."""
    synth_ms = -1 if job.synth_ms is None else job.synth_ms
    return {**speech_headers(job.voice_id, job.backend, cache="MISS", synth_ms=synth_ms), "X-Job-Id": job.job_id}


def add_result_headers(response: Response, result: CachedSpeech | AcceptedJob) -> None:
    """Add headers with the characters of the account, words that the backend can't speak, and notices about markup."""
    if result.quota:
        response.headers["X-Characters-Used"] = str(result.quota.used)
        response.headers["X-Characters-Remaining"] = str(result.quota.left)
    if result.left_out:
        response.headers["X-Left-Out"] = ",".join(quote(word[:40]) for word in result.left_out[:LEFT_OUT_MAX])
    if result.notices:
        response.headers["X-Notices"] = " ".join(result.notices)


# -- stored audio ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredAudio:
    """A stored WAV file, its voice and digest, and how it is sent, as for `speech_response`."""

    reader: BlobReader
    voice_id: str
    sha256: str
    is_tagged: bool = True
    wrap: Wrap | None = None

    async def close(self, _is_complete: bool = True) -> None:
        self.reader.close()


async def job_audio_response(request: Request, job: StoredJob, headers: dict[str, str]) -> Response:
    """Return the audio of a job that is ready, in its format."""
    encoding = Encoding(job.response_format, job.sample_rate)
    return await audio_response(request, await _open_job(request, job), encoding, headers)


async def _open_job(request: Request, job: StoredJob, is_tagged: bool = True, wrap: Wrap | None = None) -> StoredAudio:
    reader = await state_of(request).synthesis.open_audio(job)
    return StoredAudio(reader, job.voice_id, job.audio_sha256 or "", is_tagged, wrap)


async def audio_response(
    request: Request, audio: StoredAudio, encoding: Encoding, headers: Mapping[str, str]
) -> Response:
    """Return stored audio, which is closed when it was sent.

    WAV as stored supports ranges; other encodings are made while they are sent, and always sent in full.
    """
    headers = {"Cache-Control": "private, no-store", **headers}
    try:
        if encoding == Encoding(SpeechFormat.WAV) and not audio.wrap:
            size_bytes, tag = audio.reader.size_bytes, f'"{audio.sha256}"'
            headers |= {"Accept-Ranges": "bytes", "ETag": tag}
            is_get = request.method == "GET" and not context_of(request).is_head
            header = request.headers.get("range") if is_get else None
            part = None
            if header is not None and request.headers.get("if-range", tag) == tag:
                part = parse_range(header, size_bytes)
            first, last = part or (0, size_bytes - 1)
            if part is not None:
                headers["Content-Range"] = f"bytes {first}-{last}/{size_bytes}"
            return await _send_range(audio.reader, first, last + 1, 200 if part is None else 206, headers, "audio/wav")
        headers["Accept-Ranges"] = "none"
        return await _encoded_response(request, audio, encoding, headers)
    except BaseException:
        audio.reader.close()
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

    async def close(_is_complete: bool) -> None:
        audio.close()

    return ChunkedAudioResponse(chunks(), status, headers, media_type, close=close, size_bytes=end - start)


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
    request: Request, audio: StoredAudio, encoding: Encoding, headers: Mapping[str, str]
) -> Response:
    if audio.wrap:
        return _chunked_response(_encode(request, audio, encoding, _Sink()), encoding, headers, audio.wrap, audio.close)
    cache, name = state_of(request).encoded, f"{audio.sha256}.{encoding}.{audio.is_tagged}"
    data = cache.get(audio.voice_id, name)
    if data is None and not context_of(request).is_head and audio.reader.size_bytes <= ENCODE_WHOLE_MAX_BYTES:
        data = await while_connected(request.receive, encode_whole(request, audio, encoding))
        cache.put(audio.voice_id, name, data)
    if data is not None:
        audio.reader.close()
        return await _send_range(MemoryReader(data), 0, len(data), 200, headers, encoding.media_type)

    async def chunks() -> AsyncGenerator[bytes, None]:
        with cache.collect(audio.voice_id, name) as collected:
            async with aclosing(_encode(request, audio, encoding, _Sink())) as encoded:
                async for chunk in encoded:
                    collected.add(chunk)
                    yield chunk
            collected.finish()

    return _chunked_response(chunks(), encoding, headers, None, audio.close)


async def encode_whole(request: Request, audio: StoredAudio, encoding: Encoding) -> bytes:
    """Return a stored WAV file in another encoding."""
    sink = _WholeSink()
    async for _ in _encode(request, audio, encoding, sink):
        pass
    return sink.getvalue()


def _chunked_response(
    chunks: AsyncGenerator[bytes, None],
    encoding: Encoding,
    headers: Mapping[str, str],
    wrap: Wrap | None,
    close: Callable[[bool], Awaitable[None]],
) -> Response:
    if wrap:
        headers = {**headers, "Content-Type": "text/event-stream"}  # without a charset, which some clients don't expect
        return ChunkedAudioResponse(wrap(chunks), 200, headers, None, close=close)
    return ChunkedAudioResponse(chunks, 200, headers, encoding.media_type, close=close)


async def _encode(
    request: Request, audio: StoredAudio, encoding: Encoding, sink: _Sink | _WholeSink
) -> AsyncGenerator[bytes, None]:
    """Encode a stored WAV file, with its tags."""
    from afterwords.audio.wav_chunks import read_info, sound_start

    head = BytesIO(await audio.reader.read(0, HEAD_BYTES))
    sample_rate, start = sound_start(head)
    is_first, pcm = True, read_pcm(audio.reader, 0)
    tags = read_info(head) if audio.is_tagged or isinstance(sink, _WholeSink) else {}
    n_samples = (audio.reader.size_bytes - start) // 2
    n_frames = int(n_samples * encoding.rate_for(sample_rate) / sample_rate + 0.5)  # as soxr rounds
    async with aclosing(encode_stream(request, pcm, sample_rate, encoding, tags, sink)) as encoded:
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

    _, start = sound_start(BytesIO(await audio.read(0, HEAD_BYTES)))
    while pcm := await audio.read(start + position, STEP_BYTES):
        yield pcm
        position += len(pcm)


async def encode_stream(
    request: HTTPConnection,
    pcm: AsyncIterator[bytes],
    sample_rate: int,
    encoding: Encoding,
    tags: Mapping[str, str],
    sink: _Sink | _WholeSink | None = None,
) -> AsyncGenerator[bytes, None]:
    """Encode PCM as it arrives, each step in a thread and fairly among accounts.

    Copying samples takes less time than a thread takes to start, so audio that stays PCM needs none.
    """
    from afterwords.audio.wav import float_from_pcm16
    from afterwords.audio.writer import AudioWriter

    turns, account_id = state_of(request).encoding, caller_of(request).account_id
    sink = _Sink() if sink is None else sink
    file = cast("BinaryIO", sink)
    is_copied = (
        encoding.format in {SpeechFormat.WAV, SpeechFormat.PCM} and encoding.rate_for(sample_rate) == sample_rate
    )
    with AudioWriter(file, format=encoding, sample_rate=sample_rate, tags=dict(tags)) as writer:

        def write(chunk: bytes) -> None:
            writer.write(float_from_pcm16(chunk))

        async for chunk in pcm:
            end = 0 if writer.duration_s else FIRST_STEP_BYTES
            for part in filter(None, (chunk[:end], chunk[end:])):
                if is_copied:
                    write(part)
                else:
                    async with turns.slot(account_id):
                        await in_thread(write, part)
                if ready := sink.take():
                    yield ready
    if ready := sink.take():
        yield ready


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
