# Generated from client/_async/stream.py by `make client`. Do not edit.
"""Speech that is read while the server generates it, as samples or as the bytes of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import httpx

from afterwords.client._sync.session import Session, release
from afterwords.client.parsing import SpeechResponse
from afterwords.errors import StreamConsumedError
from afterwords.models import FormatName, SpeechFormat, Voice

if TYPE_CHECKING:
    from afterwords.audio.audio import Audio
    from afterwords.audio.wav import Samples
    from afterwords.backends.base import Chunk


class RemoteStream:
    """An open response with speech, which can be read once. Use it in `with`, or close it.

    Attributes:
        voice_id: The voice that speaks.
        backend: The backend that speaks.
        job_id: The job; None if the speech was in the cache.
        is_cached: Whether the speech was in the cache, so that nothing was charged.
        left_out: Words of the text that the backend can't speak.
    """

    def __init__(self, session: Session, speech: SpeechResponse) -> None:
        self.voice_id = speech.voice_id
        self.backend = speech.backend
        self.job_id = speech.job_id
        self.is_cached = speech.is_cached
        self.left_out = speech.left_out
        self._response: httpx.Response = speech.stream
        self._session = session
        self._is_read = False

    def close(self) -> None:
        """Stop reading; a job that has not ended is cancelled."""
        self._is_read = True
        release(self._response)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_once(self) -> None:
        if self._is_read:
            raise StreamConsumedError
        self._is_read = True


class RemoteSpeech(RemoteStream):
    """Speech as samples: iterate over it, once, to get its chunks.

    Attributes:
        sample_rate: In Hz.
        tags: The tags that mark files of this speech as synthetic.
    """

    def __init__(self, session: Session, speech: SpeechResponse, voice: Voice | str) -> None:
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
        return f"RemoteSpeech({self.sample_rate} Hz, backend={self.backend!r})"

    def __iter__(self) -> Iterator[Chunk]:
        self._read_once()
        return self._chunks()

    def audio(self) -> Audio:
        """Read all of the speech."""
        import numpy as np

        from afterwords.audio.audio import Audio

        parts = [chunk.samples for chunk in self]
        return Audio(np.concatenate(parts) if parts else np.zeros(0, np.float32), self.sample_rate, self.tags)

    def save(self, path: Path | str, *, format: SpeechFormat | FormatName | None = None) -> Path:
        """Write the speech to a file as it arrives, and return its path. The file appears when it is complete.

        Args:
            path: An existing file is replaced, or kept if anything fails.
            format: None takes the format from the suffix of the path.

        Raises:
            InvalidInputError, FileError, StorageFullError: The file can't be written.
        """
        from afterwords.audio.writer import AudioWriter

        with AudioWriter(Path(path), format=format, sample_rate=self.sample_rate, tags=self.tags) as writer:
            for chunk in self:
                writer.write(chunk.samples)
        return Path(path)

    def _read_header(self) -> None:
        """Read until the sample rate is known."""
        from afterwords.client.audio import ensure_mark

        try:
            while not self._wav.sample_rate:
                piece = next(self._pieces, None)
                if piece is None:
                    self._wav.end()
                else:
                    self._first = self._wav.feed(piece)
        except BaseException:
            release(self._response)
            raise
        self.sample_rate = self._wav.sample_rate
        self.tags = ensure_mark(self._wav.tags, self._speech, self._voice)

    def _chunks(self) -> Iterator[Chunk]:
        from afterwords.backends.base import Chunk

        try:
            if self._first is not None:
                yield Chunk(self._first)
            for piece in self._pieces:
                if (samples := self._wav.feed(piece)) is not None:
                    yield Chunk(samples)
            self._wav.end()
        finally:
            release(self._response)


class RemoteBytes(RemoteStream):
    """The bytes of an audio file: iterate over it, once, to get them as they arrive.

    Attributes:
        content_type: The media type, for example `audio/mpeg`.
    """

    def __init__(self, session: Session, speech: SpeechResponse) -> None:
        super().__init__(session, speech)
        self.content_type: str = self._response.headers["content-type"]

    def __repr__(self) -> str:
        return f"RemoteBytes({self.content_type!r}, backend={self.backend!r})"

    def __iter__(self) -> Iterator[bytes]:
        self._read_once()
        return self._session.stream(self._response)

    def save(self, path: Path | str) -> Path:
        """Write the bytes to a file as they arrive, and return its path. The file appears when it is complete.

        Raises:
            FileError, StorageFullError: The file can't be written.
        """
        from afterwords.audio.output import open_atomically

        with open_atomically(Path(path)) as file:
            for piece in self:
                file.write(piece)
        return Path(path)
