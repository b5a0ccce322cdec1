"""Speech that is read while the server generates it, as samples or as the bytes of a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx

from afterwords.client._async.session import AsyncSession, release
from afterwords.client.parsing import SpeechResponse, SpeechUnit, parse_socket_error, parse_unit
from afterwords.client.sockets import AsyncSpeechSocket
from afterwords.errors import InvalidResponseError, StreamConsumedError, TextError
from afterwords.models import FormatName, SpeechFormat, Voice

if TYPE_CHECKING:
    from afterwords.audio.audio import Audio
    from afterwords.audio.wav import Samples
    from afterwords.backends.base import Chunk


class AsyncRemoteStream:
    """Speech that is read while it arrives, once. Use it in `async with`, or close it.

    Attributes:
        voice_id: The voice that speaks.
        backend: The backend that speaks.
        job_id: The job; None if the speech was in the cache, and for `speak`, where each sentence is a job.
        is_cached: Whether the speech was in the cache, so that nothing was charged.
        left_out: Words of the text that the backend can't speak.
        notices: Sentences about markup of the text that is spoken as text or ignored.
    """

    def __init__(self, speech: SpeechResponse) -> None:
        self.voice_id = speech.voice_id
        self.backend = speech.backend
        self.job_id = speech.job_id
        self.is_cached = speech.is_cached
        self.left_out = speech.left_out
        self.notices = speech.notices
        self._response: httpx.Response = speech.stream
        self._is_read = False

    async def close(self) -> None:
        """Stop reading; a job that has not ended is cancelled."""
        self._is_read = True
        await self._release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _release(self) -> None:
        await release(self._response)

    def _read_once(self) -> None:
        if self._is_read:
            raise StreamConsumedError
        self._is_read = True


class AsyncSampleStream(AsyncRemoteStream):
    """Speech as samples: iterate over it, once, to get its chunks.

    Attributes:
        sample_rate: In Hz.
        tags: The tags that mark files of this speech as synthetic.
    """

    def __init__(self, speech: SpeechResponse, voice: Voice | str) -> None:
        super().__init__(speech)
        self.sample_rate = 0
        self.tags: dict[str, str] = {}
        self._speech = speech
        self._voice = voice

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sample_rate} Hz, backend={self.backend!r})"

    def __aiter__(self) -> AsyncIterator[Chunk]:
        self._read_once()
        return self._chunks()

    async def audio(self) -> Audio:
        """Read all of the speech."""
        import numpy as np

        from afterwords.audio.audio import Audio

        parts = [chunk.samples async for chunk in self]
        return Audio(np.concatenate(parts) if parts else np.zeros(0, np.float32), self.sample_rate, self.tags)

    async def save(self, path: Path | str, *, format: SpeechFormat | FormatName | None = None) -> Path:
        """Write the speech to a file as it arrives, and return its path. The file appears when it is complete.

        Args:
            path: An existing file is replaced, or kept if anything fails.
            format: None takes the format from the suffix of the path.

        Raises:
            InvalidInputError, FileError, StorageFullError: The file can't be written.
        """
        from afterwords.audio.writer import AudioWriter

        with AudioWriter(Path(path), format=format, sample_rate=self.sample_rate, tags=self.tags) as writer:
            async for chunk in self:
                await asyncio.to_thread(writer.write, chunk.samples)
        return Path(path)

    def _chunks(self) -> AsyncIterator[Chunk]:
        raise NotImplementedError

    def _begin(self, sample_rate: int, tags: dict[str, str]) -> None:
        from afterwords.client.audio import ensure_mark

        self.sample_rate = sample_rate
        self.tags = ensure_mark(tags, self._speech, self._voice)


class AsyncRemoteSpeech(AsyncSampleStream):
    """The speech of a text."""

    def __init__(self, session: AsyncSession, speech: SpeechResponse, voice: Voice | str) -> None:
        from afterwords.client.audio import WavStream

        super().__init__(speech, voice)
        self._pieces = session.stream(self._response)
        self._wav = WavStream()
        self._first: Samples | None = None

    async def _read_header(self) -> None:
        """Read until the sample rate is known."""
        try:
            while not self._wav.sample_rate:
                piece = await anext(self._pieces, None)
                if piece is None:
                    self._wav.end()
                else:
                    self._first = self._wav.feed(piece)
        except BaseException:
            await release(self._response)
            raise
        self._begin(self._wav.sample_rate, self._wav.tags)

    async def _chunks(self) -> AsyncIterator[Chunk]:
        from afterwords.backends.base import Chunk

        try:
            if self._first is not None:
                yield Chunk(self._first)
            async for piece in self._pieces:
                if (samples := self._wav.feed(piece)) is not None:
                    yield Chunk(samples)
            self._wav.end()
        finally:
            await release(self._response)


class AsyncLiveSpeech(AsyncSampleStream):
    """The speech of a text that is still being written."""

    def __init__(self, socket: AsyncSpeechSocket, voice: Voice | str) -> None:
        super().__init__(SpeechResponse(b"", None, None), voice)
        self._socket = socket
        self._pcm = b""

    async def _release(self) -> None:
        await self._socket.close()

    async def _start(self, text: AsyncIterable[str] | Iterable[str], config: dict[str, Any]) -> None:
        """Send the text meanwhile, and read until its first audio.

        Raises:
            TextError: There was nothing to speak.
        """
        try:
            await self._socket.send("session.config", **config)
            self._socket.feed(text)
            while self._pcm == b"":
                if (pcm := await self._read_pcm()) is None:
                    raise TextError(code="empty_text")
                self._pcm = pcm
        except BaseException:
            await self._release()
            raise

    async def _chunks(self) -> AsyncIterator[Chunk]:
        from afterwords.audio.wav import float_from_pcm16
        from afterwords.backends.base import Chunk

        try:
            pcm: bytes | None = self._pcm
            while pcm is not None:
                rest = b"" if len(pcm) % 2 == 0 else pcm[-1:]
                yield Chunk(float_from_pcm16(pcm[: len(pcm) - len(rest)]))
                more = await self._read_pcm()
                pcm = None if more is None else rest + more
        finally:
            await self._release()

    async def _read_pcm(self) -> bytes | None:
        """Return the next audio; None at the end of the speech."""
        while True:
            message = await self._socket.receive()
            if isinstance(message, bytes):
                return message
            kind = message.get("type")
            if kind == "error":
                raise parse_socket_error(message, self._socket.request_id)
            if kind == "session.done":
                return None
            if kind == "audio.start":
                self._begin_unit(parse_unit(message))

    def _begin_unit(self, unit: SpeechUnit) -> None:
        if self.sample_rate and unit.sample_rate != self.sample_rate:
            raise InvalidResponseError.for_reason("its sample rate changes within the speech")
        self._speech = replace(self._speech, voice_id=unit.voice_id, backend=unit.backend)
        self.voice_id, self.backend = unit.voice_id, unit.backend
        self.left_out += unit.left_out
        self.notices = (*dict.fromkeys(self.notices + unit.notices),)
        if not self.sample_rate:
            self._begin(unit.sample_rate, {})


class AsyncRemoteBytes(AsyncRemoteStream):
    """The bytes of an audio file: iterate over it, once, to get them as they arrive.

    Attributes:
        content_type: The media type, for example `audio/mpeg`.
    """

    def __init__(self, session: AsyncSession, speech: SpeechResponse) -> None:
        super().__init__(speech)
        self._session = session
        self.content_type: str = self._response.headers["content-type"]

    def __repr__(self) -> str:
        return f"AsyncRemoteBytes({self.content_type!r}, backend={self.backend!r})"

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._read_once()
        return self._session.stream(self._response)

    async def save(self, path: Path | str) -> Path:
        """Write the bytes to a file as they arrive, and return its path. The file appears when it is complete.

        Raises:
            FileError, StorageFullError: The file can't be written.
        """
        from afterwords.audio.output import open_atomically

        with open_atomically(Path(path)) as file:
            async for piece in self:
                await asyncio.to_thread(file.write, piece)
        return Path(path)
