"""Speech of a text that arrives in pieces: a job for each unit, a few of them ahead of what is sent."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Final

from starlette.requests import HTTPConnection

from afterwords.audio.effects import fade_from
from afterwords.audio.wav import pcm16
from afterwords.errors import AfterwordsError, QuotaExceededError, SynthesisError, TextError
from afterwords.models import JobStatus, now
from afterwords.provenance import mark_tags
from afterwords.server.concurrency import Condition
from afterwords.server.ports import BlobReader
from afterwords.server.routes.audio import HEAD_BYTES, STREAM_WAIT_S, read_pcm, read_stream
from afterwords.server.routes.responses import caller_of, state_of
from afterwords.server.services.synthesis import AcceptedJob, CachedSpeech, SynthesisRequest
from afterwords.text import MAX_LOCAL_CHARS, Granularity, LiveSplitter, is_speakable, pause_after_s

log = logging.getLogger("afterwords.server")

AHEAD: Final = 3
"""Units of a text that have a job at once: one is sent, the others are spoken meanwhile."""
SLICE_CHARS: Final = 2000
"""Text that is split at once; other requests are served before more of it is."""


async def check_quota(connection: HTTPConnection) -> None:
    """Raise QuotaExceededError if the account has no characters left, before a connection is accepted."""
    usage = await state_of(connection).synthesis.get_usage(caller_of(connection))
    if usage.limit is not None and usage.characters >= usage.limit:
        raise QuotaExceededError(f"All {usage.limit:,} characters of this period are used.")


@dataclass(slots=True, eq=False)
class LiveUnit:
    """A part of a text, and its job or cached audio.

    Attributes:
        sample_rate: In Hz, once it was started.
        pause_s: Silence before it.
    """

    connection: HTTPConnection
    text: str
    result: CachedSpeech | AcceptedJob
    pause_s: float
    sample_rate: int = 0
    _stored: BlobReader | None = None

    @property
    def backend(self) -> str:
        return self.result.job.backend if isinstance(self.result, AcceptedJob) else self.result.backend

    @property
    def voice_id(self) -> str:
        """The voice that speaks, which may be a take of the one that was named."""
        return self.result.job.voice_id if isinstance(self.result, AcceptedJob) else self.result.entry.voice_id

    @property
    def tags(self) -> dict[str, str]:
        """The mark of its audio."""
        return mark_tags(backend=self.backend, voice_name=self.result.voice_name, voice_id=self.voice_id, made_at=now())

    @property
    def is_timed(self) -> bool:
        """Whether the words in its audio have times, once it was started. Those of another server have none."""
        listener = self.result.listener if isinstance(self.result, AcceptedJob) else None
        return listener is not None and listener.words is not None

    async def start(self) -> None:
        """Wait for the first audio.

        Raises:
            SynthesisError: There will be none.
        """
        from afterwords.audio.wav_chunks import sound_start

        result, synthesis = self.result, state_of(self.connection).synthesis
        if isinstance(result, AcceptedJob):
            rate = None
            if result.listener:
                rate = await synthesis.wait_for_audio(result.job, result.listener, wait_s=STREAM_WAIT_S)
            if rate is not None:
                self.sample_rate = rate
                return
            job = await synthesis.get_job(caller_of(self.connection), result.job.job_id, wait_s=STREAM_WAIT_S)
            if job.status is not JobStatus.READY:
                raise SynthesisError.for_backend(job.backend, why=job.error or f"it was {job.status}")
            self._stored = await synthesis.open_audio(job)
        else:
            self._stored = result.audio
        self.sample_rate, _ = sound_start(BytesIO(await self._stored.read(0, HEAD_BYTES)))

    async def pcm(self) -> AsyncGenerator[bytes, None]:
        """Yield mono 16-bit PCM, after the pause and with a fade at its end, so that units join without a click."""
        if self.pause_s:
            yield bytes(2 * round(self.pause_s * self.sample_rate))
        if self._stored is not None:
            source = read_pcm(self._stored, 0)
        else:
            assert isinstance(self.result, AcceptedJob)
            assert self.result.listener is not None
            source = read_stream(self.connection, self.result.job, self.result.listener)
        last = b"\0\0"
        async for chunk in source:
            yield chunk
            last = chunk[-2:]
        yield pcm16(fade_from(int.from_bytes(last, "little", signed=True) / 32768, self.sample_rate))

    async def close(self, *, is_whole: bool) -> None:
        """Release the audio; cancel and refund the job unless the audio is whole."""
        if self._stored is not None:
            self._stored.close()
        if isinstance(self.result, CachedSpeech):
            self.result.audio.close()
            return
        if self.result.listener:
            self.result.listener.close()
        if self.result.is_new:
            synthesis = state_of(self.connection).synthesis
            await synthesis.end_stream(caller_of(self.connection), self.result.job.job_id, is_whole=is_whole)


class LiveReply:
    """The speech of one text that arrives in pieces.

    Args:
        connection: The connection of the client.
        options: The fields of the job of each unit; its text is ignored.
        by: How the text is split; None waits for its end, and speaks it at once.
    """

    def __init__(self, connection: HTTPConnection, options: SynthesisRequest, by: Granularity | None) -> None:
        self._connection, self._options = connection, options
        self._splitter = LiveSplitter(by or "sentence")
        self._is_split = by is not None
        self._text = ""
        self._waiting: deque[str] = deque()
        self._open: deque[LiveUnit] = deque()
        self._changed = Condition()
        self._is_ended = self._is_closed = False
        self._pause_s = 0.0
        self._n_waiting = 0  # characters, with those that are never spoken

    @property
    def is_idle(self) -> bool:
        """Whether nothing is spoken or waits to be."""
        return not self._open and not self._waiting

    async def feed(self, piece: str) -> None:
        """Add a piece of the text.

        Raises:
            TextError: The text that waits to be spoken is too long.
        """
        self._n_waiting += len(piece)
        if (n := self._n_waiting) > MAX_LOCAL_CHARS:
            why = f"The text that waits to be spoken has {n:,} characters; the limit is {MAX_LOCAL_CHARS:,}."
            raise TextError(why, code="text_too_long")
        if not self._is_split:
            self._text += piece
            return
        for start in range(0, len(piece), SLICE_CHARS):
            self._add(self._splitter.feed(piece[start : start + SLICE_CHARS]))
            await asyncio.sleep(0)

    def flush(self) -> None:
        """Speak what has arrived, even if its last sentence is not complete."""
        self._add([self._text] if self._text else self._splitter.flush())
        self._text = ""

    def end(self) -> None:
        """End the text."""
        self.flush()
        self._is_ended = True
        self._changed.notify_all()

    def _add(self, units: list[str]) -> None:
        self._waiting.extend(filter(is_speakable, units))
        self._changed.notify_all()

    async def units(self) -> AsyncGenerator[LiveUnit, None]:
        """Yield the units in order; each has its first audio. At the end, jobs that were not sent are cancelled.

        Raises:
            AfterwordsError: A job was refused or failed.
        """
        opening = asyncio.create_task(self._open_units())
        try:
            while True:
                await self._changed.wait_for(lambda: bool(self._open) or opening.done())
                if not self._open:
                    opening.result()
                    return
                unit = self._open[0]
                await unit.start()
                yield unit
                self._open.popleft()
                self._changed.notify_all()
                await unit.close(is_whole=True)
        finally:
            self._is_closed = True
            self._changed.notify_all()
            closing = asyncio.create_task(self._close_units(opening))
            while not closing.done():
                with suppress(asyncio.CancelledError):  # the task is ending; its jobs must be cancelled first
                    await asyncio.wait({closing})

    async def _close_units(self, opening: asyncio.Task[None]) -> None:
        await asyncio.wait({opening})  # not cancelled: a job that is just being created must be closed, too
        opening.exception()  # retrieve it, or asyncio logs it as never retrieved
        self._waiting.clear()
        while self._open:
            try:
                await self._open.popleft().close(is_whole=False)
            except AfterwordsError as error:  # the others must be cancelled, too
                log.warning("a unit was not cancelled code=%s", error.code)

    async def _open_units(self) -> None:
        synthesis, caller = state_of(self._connection).synthesis, caller_of(self._connection)
        try:
            while True:
                await self._changed.wait_for(self._can_open)
                if self._is_closed or not self._waiting:
                    return
                text = self._waiting[0]  # not idle until it is open
                try:
                    result = await synthesis.submit(caller, replace(self._options, text=text), listen=True)
                    self._open.append(LiveUnit(self._connection, text, result, self._pause_s))
                    self._pause_s = pause_after_s(text) / self._options.speed
                except TextError as error:
                    # This part alone is only a tag, or the backend has no sound for it.
                    if error.code not in ("empty_text", "unspeakable_text"):
                        raise
                self._waiting.popleft()
                self._n_waiting -= len(text)
                self._changed.notify_all()
        finally:
            self._changed.notify_all()

    def _can_open(self) -> bool:
        if self._is_closed or (self._waiting and len(self._open) < AHEAD):
            return True
        return self._is_ended and not self._waiting
