"""Speech that is read while the server generates it, as samples or as the bytes of a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import httpx

from afterwords.client._async.session import AsyncSession, release
from afterwords.client.parsing import SpeechResponse
from afterwords.errors import StreamConsumedError
from afterwords.models import FormatName, SpeechFormat, Voice

if TYPE_CHECKING:
    from afterwords.audio.audio import Audio
    from afterwords.audio.wav import Samples
    from afterwords.backends.base import Chunk


class AsyncRemoteStream:
    """An open response with speech, which can be read once. Use it in `async with`, or close it.

    Attributes:
        voice_id: The voice that speaks.
        backend: The backend that speaks.
        job_id: The job; None if the speech was in the cache.
        is_cached: Whether the speech was in the cache, so that nothing was charged.
        left_out: Words of the text that the backend can't speak.
    """

    def __init__(self, session: AsyncSession, speech: SpeechResponse) -> None:
        self.voice_id = speech.voice_id
        self.backend = speech.backend
        self.job_id = speech.job_id
        self.is_cached = speech.is_cached
        self.left_out = speech.left_out
        self._response: httpx.Response = speech.stream
        self._session = session
        self._is_read = False

    async def close(self) -> None:
        """Stop reading; a job that has not ended is cancelled."""
        self._is_read = True
        await release(self._response)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _read_once(self) -> None:
        if self._is_read:
            raise StreamConsumedError
        self._is_read = True


class AsyncRemoteSpeech(AsyncRemoteStream):
    """Speech as samples: iterate over it, once, to get its chunks.

    Attributes:
        sample_rate: In Hz.
        tags: The tags that mark files of this speech as synthetic.
    """

    def __init__(self, session: AsyncSession, speech: SpeechResponse, voice: Voice | str) -> None:
        from afterwords.client.audio import WavStream

        super().__init__(session, speech)
        self.sample_rate = 0
        self.tags: dict[str, str] = {}
        self._speech = speech
        self._voice = voice
        self._pieces = session.stream(self._response)
        self._wav = WavStream()
        self._first: Samples | None = None

    def __repr__(self) -> str:
        return f"AsyncRemoteSpeech({self.sample_rate} Hz, backend={self.backend!r})"

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

    async def _read_header(self) -> None:
        """Read until the sample rate is known."""
        from afterwords.client.audio import ensure_mark

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
        self.sample_rate = self._wav.sample_rate
        self.tags = ensure_mark(self._wav.tags, self._speech, self._voice)

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


class AsyncRemoteBytes(AsyncRemoteStream):
    """The bytes of an audio file: iterate over it, once, to get them as they arrive.

    Attributes:
        content_type: The media type, for example `audio/mpeg`.
    """

    def __init__(self, session: AsyncSession, speech: SpeechResponse) -> None:
        super().__init__(session, speech)
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
