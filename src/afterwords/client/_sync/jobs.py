"""Jobs of a server, and speech while it is made. Made from `aio_speech` by `make client`."""

from __future__ import annotations

from collections.abc import Iterator
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
    from afterwords.client._sync.client import Client


class Jobs:
    """The jobs of a server: `client.jobs`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._operations = client._operations

    def get(self, job_id: str) -> RemoteJob:
        """Ask where a job stands.

        Raises:
            JobNotFoundError: there is none.
        """
        return RemoteJob.of(self._client, self._client._run(self._operations.get_job(job_id)))

    def list(self, *, status: JobStatus | str | None = None, page_size: int = 100) -> Iterator[RemoteJob]:
        """Go through the jobs, newest first; pages are fetched as they are needed."""
        limit, wanted = max(1, min(page_size, PAGE_MAX)), status_named(status)
        jobs = self._client._pages(lambda after: self._operations.jobs_page(after, status=wanted, limit=limit))
        return (RemoteJob.of(self._client, job) for job in jobs)

    def wait(self, job_id: str, *, timeout_s: float = JOB_TIMEOUT_S, progress: Progress | None = None) -> RemoteJob:
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
        job = self._client._run(self._operations.wait_for_job(job_id, timeout_s=timeout_s, progress=progress))
        return RemoteJob.of(self._client, job)

    def cancel(self, job_id: str) -> RemoteJob:
        """Cancel a pending job; what it reserved is given back.

        Raises:
            JobFinalError: it is final already.
        """
        return RemoteJob.of(self._client, self._client._run(self._operations.cancel_job(job_id)))

    def audio(self, job_id: str) -> Audio:
        """Fetch the audio of a job that is ready.

        Raises:
            JobNotReadyError: it is not.
        """
        from afterwords.client.audio import decoded

        return decoded(Sound(self.data(job_id), None, None, job_id))

    def download(self, job_id: str, path: Path | str) -> Path:
        """Write the audio of a job into a file as it is on the server, whole or not at all."""
        return written(self.data(job_id), path)

    def data(self, job_id: str) -> bytes:
        """Fetch the audio of a job that is ready as it is on the server: the bytes of a file.

        Raises:
            JobNotReadyError: it is not.
        """
        return self._client._run(self._operations.job_audio(job_id))


class RemoteJob(Job):
    """A job, and the way to its audio."""

    _client: Client = PrivateAttr()
    _sound: Sound | None = PrivateAttr(default=None)
    _backend: str | None = PrivateAttr(default=None)
    _left_out: tuple[str, ...] = PrivateAttr(default=())

    @classmethod
    def of(
        cls,
        client: Client,
        job: Job,
        sound: Sound | None = None,
        *,
        backend: str | None = None,
        left_out: tuple[str, ...] = (),
    ) -> RemoteJob:
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

    def wait(self, *, timeout_s: float = JOB_TIMEOUT_S, progress: Progress | None = None) -> RemoteJob:
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
        job = self._client._run(waiting)
        job = job.model_copy(update={"voice_id": self.voice_id or job.voice_id})
        return RemoteJob.of(self._client, job, backend=self._backend, left_out=self._left_out)

    def audio(self) -> Audio:
        """Fetch its audio.

        Raises:
            JobNotReadyError: it has none yet.
        """
        from afterwords.client.audio import decoded

        sound = Sound(self.data(), self.voice_id, self._backend, self.job_id)
        return decoded(sound)

    def download(self, path: Path | str) -> Path:
        """Write its audio into a file as it is on the server, whole or not at all."""
        return written(self.data(), path)

    def cancel(self) -> RemoteJob:
        """Cancel it; what it reserved is given back.

        Raises:
            JobFinalError: it is final already.
        """
        return self._client.jobs.cancel(self._id())

    def data(self) -> bytes:
        """Fetch its audio as it is on the server: the bytes of a file.

        Raises:
            JobNotReadyError: it has none yet.
        """
        if self._sound is not None:
            return self._sound.data
        return self._client.jobs.data(self._id())

    def _id(self) -> str:
        if self.job_id is None:  # spoken before, so there is no job
            raise JobFinalError(self.status)
        return self.job_id


class RemoteSpeech:
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

    def __init__(self, client: Client, sound: Sound, voice: Voice | str) -> None:
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
        self._pieces = transport.iter_bytes(self._response)
        self._wav = WavStream()
        self._first: Samples | None = None
        self._is_begun = False

    def __repr__(self) -> str:
        return f"RemoteSpeech({self.sample_rate} Hz, backend={self.backend!r})"

    def __iter__(self) -> Iterator[Chunk]:
        if self._is_begun:
            raise SpeechReadError
        self._is_begun = True
        return self._chunks()

    def audio(self) -> Audio:
        """Read all of it."""
        from afterwords.client.audio import joined

        return joined([chunk.samples for chunk in self], self.sample_rate, self.tags)

    def save(self, path: Path | str, *, format: SpeechFormat | FormatName | None = None) -> Path:
        """Write the speech to a file while it is made, and return its path. The file appears when it is whole.

        Args:
            path: an existing file is replaced, and kept if anything fails.
            format: None takes it from the ending of the path.

        Raises:
            UnmarkableFormatError, UnwritableOutputError, StorageFullError: as `Audio.save`.
        """
        from afterwords.audio.writer import AudioWriter

        with AudioWriter(Path(path), format=format, sample_rate=self.sample_rate, tags=self.tags) as writer:
            for chunk in self:
                writer.write(chunk.samples)
        return Path(path)

    def close(self) -> None:
        """Stop listening; a job that is not done is cancelled."""
        self._is_begun = True
        transport.close(self._response)

    def __enter__(self) -> RemoteSpeech:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def begun(self) -> RemoteSpeech:
        """Read up to where the sound begins: from then on the sample rate is known."""
        from afterwords.client.audio import marked

        try:
            while not self._wav.sample_rate:
                piece = self._piece()
                if piece is None:
                    self._wav.end()
                else:
                    self._first = self._wav.feed(piece)
        except BaseException:
            transport.close(self._response)
            raise
        self.sample_rate = self._wav.sample_rate
        self.tags = marked(self._wav.tags, self._sound, self._voice)
        return self

    def _piece(self) -> bytes | None:
        """The next bytes; None at the end."""
        with named(self._client._access, self._response.request):
            return next(self._pieces, None)

    def _chunks(self) -> Iterator[Chunk]:
        from afterwords.backends.base import Chunk

        try:
            if self._first is not None:
                yield Chunk(self._first)
            while (piece := self._piece()) is not None:
                if (samples := self._wav.feed(piece)) is not None:
                    yield Chunk(samples)
            self._wav.end()
        finally:
            transport.close(self._response)


class RemoteBytes:
    """The bytes of an audio file while a server makes it: iterate over it, once.

    Attributes:
        content_type: the media type, for example `audio/mpeg`.
        voice_id: the voice that speaks.
        backend: the backend that speaks.
        job_id: the job; None if the speech was in the cache.
        is_cached: whether the speech was in the cache, so that nothing was charged.
        left_out: words of the text that the backend can't speak.
    """

    def __init__(self, client: Client, sound: Sound) -> None:
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
        return f"RemoteBytes({self.content_type!r}, backend={self.backend!r})"

    def __iter__(self) -> Iterator[bytes]:
        if self._is_begun:
            raise SpeechReadError
        self._is_begun = True
        return self._pieces()

    def save(self, path: Path | str) -> Path:
        """Write the bytes to a file as they come, and return its path. The file appears when it is whole.

        Raises:
            UnwritableOutputError, StorageFullError: the file can't be written.
        """
        from afterwords.audio.output import open_atomically

        with open_atomically(Path(path)) as file:
            for piece in self:
                file.write(piece)
        return Path(path)

    def close(self) -> None:
        """Stop listening; a job that is not done is cancelled."""
        self._is_begun = True
        transport.close(self._response)

    def __enter__(self) -> RemoteBytes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pieces(self) -> Iterator[bytes]:
        pieces = transport.iter_bytes(self._response)
        try:
            while True:
                with named(self._client._access, self._response.request):
                    piece = next(pieces, None)
                if piece is None:
                    return
                yield piece
        finally:
            transport.close(self._response)
