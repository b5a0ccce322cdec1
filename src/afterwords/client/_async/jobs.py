"""Jobs of a server and speech while it is made, to be awaited. `sync_speech` is made from this by `make client`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import httpx
from pydantic import PrivateAttr

from afterwords.client import transport
from afterwords.client.files import status_named, written
from afterwords.client.operations import JOB_TIMEOUT_S, PAGE_MAX
from afterwords.client.parsing import Sound
from afterwords.client.transport import named
from afterwords.errors import JobFinalError, SpeechReadError
from afterwords.models import FormatName, Job, JobStatus, SpeechFormat, Voice

if TYPE_CHECKING:
    from afterwords.audio.audio import Audio
    from afterwords.audio.wav import Samples
    from afterwords.backends.base import Chunk, Progress
    from afterwords.client._async.client import AsyncClient


class AsyncJobs:
    """The jobs of a server: `client.jobs`."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._operations = client._operations

    async def get(self, job_id: str) -> AsyncRemoteJob:
        """Ask where a job stands.

        Raises:
            JobNotFoundError: there is none.
        """
        return AsyncRemoteJob.of(self._client, await self._client._run(self._operations.get_job(job_id)))

    def list(self, *, status: JobStatus | str | None = None, page_size: int = 100) -> AsyncIterator[AsyncRemoteJob]:
        """Go through the jobs, newest first; pages are fetched as they are needed."""
        limit, wanted = max(1, min(page_size, PAGE_MAX)), status_named(status)
        jobs = self._client._pages(lambda after: self._operations.jobs_page(after, status=wanted, limit=limit))
        return (AsyncRemoteJob.of(self._client, job) async for job in jobs)

    async def wait(
        self, job_id: str, *, timeout_s: float = JOB_TIMEOUT_S, progress: Progress | None = None
    ) -> AsyncRemoteJob:
        """Follow a job until it is ready.

        Args:
            job_id: which one.
            timeout_s: how long to wait.
            progress: told about once a second how much of its present step is done, from 0 to 1, and which step that
                is: "waiting", "loading", "preparing" or "speaking".

        Raises:
            JobFailedError, JobCancelledError: it has no audio.
            JobTimeoutError: it is pending still, and goes on.
        """
        job = await self._client._run(self._operations.wait_for_job(job_id, timeout_s=timeout_s, progress=progress))
        return AsyncRemoteJob.of(self._client, job)

    async def cancel(self, job_id: str) -> AsyncRemoteJob:
        """Cancel a pending job; what it reserved is given back.

        Raises:
            JobFinalError: it is final already.
        """
        return AsyncRemoteJob.of(self._client, await self._client._run(self._operations.cancel_job(job_id)))

    async def audio(self, job_id: str) -> Audio:
        """Fetch the audio of a job that is ready.

        Raises:
            JobNotReadyError: it is not.
        """
        from afterwords.client.audio import decoded

        return await asyncio.to_thread(decoded, Sound(await self.data(job_id), None, None, job_id))

    async def download(self, job_id: str, path: Path | str) -> Path:
        """Write the audio of a job into a file as it is on the server, whole or not at all."""
        return await asyncio.to_thread(written, await self.data(job_id), path)

    async def data(self, job_id: str) -> bytes:
        """Fetch the audio of a job that is ready as it is on the server: the bytes of a file.

        Raises:
            JobNotReadyError: it is not.
        """
        return await self._client._run(self._operations.job_audio(job_id))


class AsyncRemoteJob(Job):
    """A job, and the way to its audio."""

    _client: AsyncClient = PrivateAttr()
    _sound: Sound | None = PrivateAttr(default=None)
    _backend: str | None = PrivateAttr(default=None)
    _left_out: tuple[str, ...] = PrivateAttr(default=())

    @classmethod
    def of(
        cls,
        client: AsyncClient,
        job: Job,
        sound: Sound | None = None,
        *,
        backend: str | None = None,
        left_out: tuple[str, ...] = (),
    ) -> AsyncRemoteJob:
        remote = cls.model_validate(job.model_dump())
        remote._client, remote._sound, remote._backend, remote._left_out = client, sound, backend, left_out
        return remote

    @property
    def left_out(self) -> tuple[str, ...]:
        """The words of the text that the backend can't speak, as far as the answer to the request named them."""
        return self._left_out

    @property
    def backend(self) -> str | None:
        """What speaks; None where the server did not tell."""
        return self._backend

    @property
    def is_cached(self) -> bool:
        """Whether it was spoken before, so that nothing was charged."""
        return self._sound is not None and self._sound.is_cached

    async def wait(self, *, timeout_s: float = JOB_TIMEOUT_S, progress: Progress | None = None) -> AsyncRemoteJob:
        """Follow it until it is ready, and return it as it is then.

        Args:
            timeout_s: how long to wait.
            progress: told about once a second how much of its present step is done, from 0 to 1, and which step that
                is: "waiting", "loading", "preparing" or "speaking".

        Raises:
            JobFailedError, JobCancelledError: it has no audio.
            JobTimeoutError: it is pending still, and goes on.
        """
        if self.status is JobStatus.READY:
            return self
        waiting = self._client._operations.wait_for_job(self._id(), timeout_s=timeout_s, progress=progress)
        job = await self._client._run(waiting)
        job = job.model_copy(update={"voice_id": self.voice_id or job.voice_id})
        return AsyncRemoteJob.of(self._client, job, backend=self._backend, left_out=self._left_out)

    async def audio(self) -> Audio:
        """Fetch its audio.

        Raises:
            JobNotReadyError: it has none yet.
        """
        from afterwords.client.audio import decoded

        sound = Sound(await self.data(), self.voice_id, self._backend, self.job_id)
        return await asyncio.to_thread(decoded, sound)

    async def download(self, path: Path | str) -> Path:
        """Write its audio into a file as it is on the server, whole or not at all."""
        return await asyncio.to_thread(written, await self.data(), path)

    async def cancel(self) -> AsyncRemoteJob:
        """Cancel it; what it reserved is given back.

        Raises:
            JobFinalError: it is final already.
        """
        return await self._client.jobs.cancel(self._id())

    async def data(self) -> bytes:
        """Fetch its audio as it is on the server: the bytes of a file.

        Raises:
            JobNotReadyError: it has none yet.
        """
        if self._sound is not None:
            return self._sound.data
        return await self._client.jobs.data(self._id())

    def _id(self) -> str:
        if self.job_id is None:  # spoken before, so there is no job
            raise JobFinalError(self.status)
        return self.job_id


class AsyncRemoteSpeech:
    """Speech while a server makes it: iterate over it, once, to get its chunks.

    Attributes:
        voice_id: who speaks.
        backend: what speaks.
        job_id: the job; None if it was spoken before.
        is_cached: whether it was spoken before.
        left_out: words of the text that the backend can't speak.
        sample_rate: of the chunks, in Hz.
        tags: the mark that files of this speech carry.
    """

    def __init__(self, client: AsyncClient, sound: Sound, voice: Voice | str) -> None:
        from afterwords.client.audio import WavStream

        self.voice_id = sound.voice_id
        self.backend = sound.backend
        self.job_id = sound.job_id
        self.is_cached = sound.is_cached
        self.left_out = sound.left_out
        self.sample_rate = 0
        self.tags: dict[str, str] = {}
        self._client = client
        self._sound = sound
        self._voice = voice
        self._response: httpx.Response = sound.stream
        self._pieces = transport.aiter_bytes(self._response)
        self._wav = WavStream()
        self._first: Samples | None = None
        self._is_begun = False

    def __repr__(self) -> str:
        return f"AsyncRemoteSpeech({self.sample_rate} Hz, backend={self.backend!r})"

    def __aiter__(self) -> AsyncIterator[Chunk]:
        if self._is_begun:
            raise SpeechReadError
        self._is_begun = True
        return self._chunks()

    async def audio(self) -> Audio:
        """Read all of it."""
        from afterwords.client.audio import joined

        return joined([chunk.samples async for chunk in self], self.sample_rate, self.tags)

    async def save(self, path: Path | str, *, format: SpeechFormat | FormatName | None = None) -> Path:
        """Write the speech to a file while it is made, and return its path. The file appears when it is whole.

        Args:
            path: an existing file is replaced, and kept if anything fails.
            format: None takes it from the ending of the path.

        Raises:
            UnmarkableFormatError, UnwritableOutputError, StorageFullError: as `Audio.save`.
        """
        from afterwords.audio.writer import AudioWriter

        with AudioWriter(Path(path), format=format, sample_rate=self.sample_rate, tags=self.tags) as writer:
            async for chunk in self:
                await asyncio.to_thread(writer.write, chunk.samples)
        return Path(path)

    async def close(self) -> None:
        """Stop listening; a job that is not done is cancelled."""
        self._is_begun = True
        await transport.aclose(self._response)

    async def __aenter__(self) -> AsyncRemoteSpeech:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def begun(self) -> AsyncRemoteSpeech:
        """Read up to where the sound begins: from then on the sample rate is known."""
        from afterwords.client.audio import marked

        try:
            while not self._wav.sample_rate:
                piece = await self._piece()
                if piece is None:
                    self._wav.end()
                else:
                    self._first = self._wav.feed(piece)
        except BaseException:
            await transport.aclose(self._response)
            raise
        self.sample_rate = self._wav.sample_rate
        self.tags = marked(self._wav.tags, self._sound, self._voice)
        return self

    async def _piece(self) -> bytes | None:
        """The next bytes; None at the end."""
        with named(self._client._access, self._response.request):
            return await anext(self._pieces, None)

    async def _chunks(self) -> AsyncIterator[Chunk]:
        from afterwords.backends.base import Chunk

        try:
            if self._first is not None:
                yield Chunk(self._first)
            while (piece := await self._piece()) is not None:
                if (samples := self._wav.feed(piece)) is not None:
                    yield Chunk(samples)
            self._wav.end()
        finally:
            await transport.aclose(self._response)


class AsyncRemoteBytes:
    """The bytes of an audio file while a server makes it: iterate over it, once.

    Attributes:
        content_type: the media type, for example `audio/mpeg`.
        voice_id: the voice that speaks.
        backend: the backend that speaks.
        job_id: the job; None if the speech was in the cache.
        is_cached: whether the speech was in the cache, so that nothing was charged.
        left_out: words of the text that the backend can't speak.
    """

    def __init__(self, client: AsyncClient, sound: Sound) -> None:
        self.voice_id = sound.voice_id
        self.backend = sound.backend
        self.job_id = sound.job_id
        self.is_cached = sound.is_cached
        self.left_out = sound.left_out
        self._client = client
        self._response: httpx.Response = sound.stream
        self.content_type: str = self._response.headers["content-type"]
        self._is_begun = False

    def __repr__(self) -> str:
        return f"AsyncRemoteBytes({self.content_type!r}, backend={self.backend!r})"

    def __aiter__(self) -> AsyncIterator[bytes]:
        if self._is_begun:
            raise SpeechReadError
        self._is_begun = True
        return self._pieces()

    async def save(self, path: Path | str) -> Path:
        """Write the bytes to a file as they come, and return its path. The file appears when it is whole.

        Raises:
            UnwritableOutputError, StorageFullError: the file can't be written.
        """
        from afterwords.audio.output import open_atomically

        with open_atomically(Path(path)) as file:
            async for piece in self:
                await asyncio.to_thread(file.write, piece)
        return Path(path)

    async def close(self) -> None:
        """Stop listening; a job that is not done is cancelled."""
        self._is_begun = True
        await transport.aclose(self._response)

    async def __aenter__(self) -> AsyncRemoteBytes:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _pieces(self) -> AsyncIterator[bytes]:
        pieces = transport.aiter_bytes(self._response)
        try:
            while True:
                with named(self._client._access, self._response.request):
                    piece = await anext(pieces, None)
                if piece is None:
                    return
                yield piece
        finally:
            await transport.aclose(self._response)
