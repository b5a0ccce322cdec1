"""The audio of one job while it is synthesized: one attempt writes it, any number of listeners read it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path

from afterwords.audio.wav import wav_header
from afterwords.errors import SynthesisError
from afterwords.models import WordTiming
from afterwords.server.concurrency import Condition
from afterwords.server.metrics import Metrics
from afterwords.server.records import StoredJob
from afterwords.server.spool import Spool

_HEADER_BYTES = len(wav_header(8000, n_frames=0))
_READ_BYTES = 64 * 1024  # at once, by a listener


class AudioStream:
    """A WAV file (mono, 16 bits) that grows. All of it is kept: it becomes the job's audio.

    Attributes:
        file: In memory while it is short, then on disk; its header is valid once it is finished.
        attempt: Number of the attempt that writes it.
        sample_rate: In Hz; None before the first chunk.
        words: The words in it; None if its attempt reports none.
        has_writer: An attempt writes it, or is about to.
        on_start: Called with the backend after the first chunk.
    """

    def __init__(self, folder: Path) -> None:
        self.changed = Condition()
        self.file = Spool(folder)
        self.attempt = 0
        self.sample_rate: int | None = None
        self.words: list[WordTiming] | None = None
        self.backend = ""
        self.is_finished = False
        self.is_aborted = False
        self.n_listeners = 0
        self.has_writer = False
        self.on_start: Callable[[str], None] = lambda _: None
        self._is_job_over = False

    @property
    def has_started(self) -> bool:
        return self.sample_rate is not None

    @property
    def duration_s(self) -> float:
        """Duration so far, in seconds."""
        return (self.file.size_bytes - _HEADER_BYTES) / 2 / self.sample_rate if self.sample_rate else 0.0

    def write(self, pcm: bytes, *, sample_rate: int, backend: str, words: Sequence[WordTiming] | None = None) -> None:
        """Append a chunk, and the words in it.

        Raises:
            StorageFullError, StorageUnavailableError: It could not be kept; the call may be repeated.
        """
        if pcm:
            if not self.file.size_bytes:
                self.file.write(wav_header(sample_rate, n_frames=0))
            self.file.write(pcm)
        if words is not None:
            self.words = [*(self.words or ()), *words]
        if not pcm:
            return
        is_first = not self.has_started
        self.sample_rate, self.backend = sample_rate, backend
        self.changed.notify_all()
        if is_first:
            self.on_start(backend)

    def finish(self) -> None:
        """End the stream: the audio is complete."""
        if self.sample_rate is not None and not self.file.closed:
            n_frames = (self.file.size_bytes - _HEADER_BYTES) // 2
            self.file.replace_head(wav_header(self.sample_rate, n_frames=n_frames))
        self.is_finished = True
        self.changed.notify_all()

    def abort(self) -> None:
        """End the stream: the audio is incomplete. A finished stream stays as it is."""
        if not self.is_finished:
            self.is_aborted = True
            self.finish()

    def release(self) -> None:
        """Remove the file as soon as its last listener is gone."""
        self._is_job_over = True
        self.remove_unused()

    def remove_unused(self) -> None:
        """Remove the file if neither the job nor a listener needs it."""
        if self._is_job_over and not self.n_listeners:
            self.file.close()


class AudioListener:
    """One listener; implements the port Listener."""

    def __init__(self, stream: AudioStream, on_close: Callable[[], None]) -> None:
        self._stream = stream
        self._on_close = on_close
        self._is_closed = False
        stream.n_listeners += 1

    @property
    def attempt(self) -> int:
        return self._stream.attempt

    @property
    def words(self) -> Sequence[WordTiming] | None:
        return None if self._stream.is_aborted else self._stream.words

    @property
    def duration_s(self) -> float:
        return self._stream.duration_s

    async def wait_until_started(self) -> int | None:
        stream = self._stream
        await stream.changed.wait_for(lambda: stream.has_started or stream.is_finished or self._is_closed)
        return None if self._is_closed else stream.sample_rate

    async def __aiter__(self) -> AsyncIterator[bytes]:
        stream, position = self._stream, _HEADER_BYTES
        while not self._is_closed:
            if pcm := stream.file.read_at(position, _READ_BYTES):
                position += len(pcm)
                yield pcm
            elif not stream.is_finished:
                await stream.changed.wait()
            elif stream.is_aborted:
                raise SynthesisError.for_backend(stream.backend, why="its audio stream ended early")
            else:
                return

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._stream.n_listeners -= 1
            self._stream.changed.notify_all()
            self._on_close()
            self._stream.remove_unused()


class AudioStreams:
    """The streams of pending jobs: each has listeners, or an attempt that writes it. All dispatchers share them."""

    def __init__(self, folder: Path, metrics: Metrics | None = None) -> None:
        self._folder = folder
        self._metrics = metrics or Metrics()
        self._streams: dict[str, AudioStream] = {}

    def listen(self, job_id: str) -> AudioListener:
        """Subscribe to the audio of the next attempt at a job."""
        stream = self._streams.setdefault(job_id, AudioStream(self._folder))

        def forget_unused() -> None:
            if not stream.n_listeners and not stream.has_writer and self._streams.get(job_id) is stream:
                del self._streams[job_id]

        return AudioListener(stream, on_close=forget_unused)

    def begin(self, job: StoredJob) -> AudioStream:
        """Return the stream for a new attempt: the one that listeners wait for, unless another attempt has begun it."""
        job_id = job.job_id
        stream = self._streams.get(job_id)
        if stream is None or stream.has_started or stream.has_writer:
            stream = self._streams[job_id] = AudioStream(self._folder)
        stream.has_writer, stream.attempt = True, job.attempt
        stream.on_start = partial(self._metrics.observe_first_audio, submitted_at=job.created_at)
        return stream

    def end(self, job_id: str, stream: AudioStream, *, will_be_retried: bool) -> None:
        """End an attempt. A stream without audio waits for the next attempt, if there will be one."""
        stream.has_writer = False
        if will_be_retried and not stream.has_started and stream.n_listeners:
            return
        stream.abort()
        if self._streams.get(job_id) is stream:
            del self._streams[job_id]
        stream.release()

    def cancel(self, job_id: str) -> None:
        """End the stream of a job that is not wanted any more."""
        if stream := self._streams.pop(job_id, None):
            stream.abort()

    def close(self) -> None:
        """End all streams."""
        for stream in self._streams.values():
            stream.abort()
        self._streams.clear()
