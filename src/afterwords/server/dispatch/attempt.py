"""One attempt at a claimed job: fetch the prompt or reference, have a worker process speak, deliver the result.

`Attempt._run` has every way in which an attempt can end, and reports one of them to the job queue.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import BinaryIO, Final, TypeVar, cast

from afterwords.errors import (
    AfterwordsError,
    RecordingError,
    ServiceUnavailableError,
    StaleAttemptError,
    StorageFullError,
    SynthesisError,
)
from afterwords.server.dispatch.audio_stream import AudioStream
from afterwords.server.dispatch.messages import INVALID_PROMPT, Message
from afterwords.server.dispatch.worker import Work
from afterwords.server.dispatch.worker_process import WorkerCrashedError, WorkerError
from afterwords.server.dispatch.worker_slot import BackendInfo, PromptVersionError, SlotUnavailableError, WorkerSlot
from afterwords.server.ports import JobQueue
from afterwords.server.records import Claim, JobProgress
from afterwords.server.settings import Settings
from afterwords.speech import EXPECTED_SECONDS_PER_CHARACTER
from afterwords.text import max_speech_s

_log = logging.getLogger(__name__)

OUTAGE: Final = (ServiceUnavailableError, StorageFullError)
"""Errors of a database or storage that may work again later."""
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 2.0
CLAIM_MAX_S: Final = 10.0
"""How long the last claim may take when the server stops; the job queue answers within 2 s."""
OUT_OF_MEMORY_ATTEMPTS: Final = 2
"""What does not fit into a fresh process that does nothing else never will."""
_LOG_STEP_PERCENT: Final = 10
"""How often the progress of a preparation is logged."""

T = TypeVar("T")


async def retry_during_outage(
    call: Callable[[], Awaitable[T]], *, timeout_s: float, should_stop: Callable[[], bool] = lambda: False
) -> T:
    """Call until the call does not fail with an outage.

    Args:
        call: Returns a new awaitable for each try.
        timeout_s: Time after which the last error is raised.
        should_stop: Checked before each further try; the error is raised if it returns True.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return await call()
        except OUTAGE:
            if should_stop() or loop.time() + pause_s > deadline:
                raise
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


class Attempt:
    """One attempt at one job.

    Attributes:
        backend: The backend that speaks.
        audio: The audio so far.
        is_dropped: The result is not wanted any more, and nothing is reported to the job queue.
        will_be_retried: The job waits for another attempt.
        is_held_up: The audio is ready, and can't be stored at the moment.
        has_prompt: The prompt of the voice is stored, as far as is known: other jobs of the voice need not wait.
        must_prepare: The voice has to be prepared first, as far as is known.
        progress: What it is doing.
    """

    def __init__(
        self,
        claim: Claim,
        backend: BackendInfo,
        *,
        queue: JobQueue,
        slot: WorkerSlot,
        audio: AudioStream,
        settings: Settings,
        has_prompt: bool = False,
        on_prompt: Callable[[], None] = lambda: None,
    ) -> None:
        self.claim = claim
        self.backend = backend
        self.audio = audio
        self.is_dropped = False
        self.will_be_retried = False
        self.is_held_up = False
        self.has_prompt = has_prompt
        self.must_prepare = False
        self.progress = JobProgress("waiting")
        self._on_prompt = on_prompt
        self._ignores_prompt = False
        self._is_fast = settings.prepare == "fast"
        self._queue = queue
        self._slot = slot
        self._lease_s = claim.lease_s or settings.lease_s
        self._longest_s = max_speech_s(claim.job.text or "", speed=claim.job.speed)
        self._expected_s = EXPECTED_SECONDS_PER_CHARACTER * len(claim.job.text or " ") / claim.job.speed
        self._timeout_s = settings.start_allowance_s + 2 * self._longest_s
        self._is_reporting = False
        self._task: asyncio.Task[None] | None = None
        self._prompt_task: asyncio.Task[None] | None = None
        self._checkpoint: bytes | None = None
        self._checkpoint_task: asyncio.Task[None] | None = None
        self._logged_percent = -_LOG_STEP_PERCENT

    @property
    def is_alone(self) -> bool:
        """Whether no other attempt may share its process: an earlier try of the job may have killed one."""
        return self.claim.job.attempt - self.claim.job.returned > 1

    def start(self) -> asyncio.Task[None]:
        """Start; the task ends with the attempt and raises nothing."""
        self._slot.acquire(self)
        self._task = asyncio.create_task(self._run())
        return self._task

    def drop(self) -> None:
        """Stop it, but let a call to the job queue that is in progress finish."""
        self.is_dropped = True
        if self._task and not self._is_reporting:
            self._task.cancel()

    def leave(self) -> None:
        """Release its place in the slot."""
        self._slot.release(self)

    async def abandon(self) -> None:
        """Stop it wherever it is."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    async def release(self) -> None:
        """Return the job to the queue as if the attempt had not started."""
        job = self.claim.job
        self.will_be_retried = True
        await self._report(lambda: self._queue.release(job.job_id, job.attempt))

    async def _run(self) -> None:
        job_id = self.claim.job.job_id
        heartbeat = asyncio.create_task(self._send_heartbeats())
        try:
            await self._speak_and_deliver()
        except StaleAttemptError:
            pass
        except SlotUnavailableError:
            await self.release()
        except WorkerCrashedError as error:
            await self._retry("out_of_memory" if error.is_out_of_memory else error.code)
        except WorkerError as error:
            _log.warning("job %s: the engine failed: %s (%s)", job_id, error.code, error.kind)
            if error.is_out_of_memory:
                await self._retry("out_of_memory")
            else:
                await self._fail("synthesis_failed" if error.code == INVALID_PROMPT else error.code)
        except OUTAGE as error:
            await self._retry(error.code)
        except AfterwordsError as error:
            await self._fail(error.code)
        except Exception as error:  # noqa: BLE001 - the edge of an attempt; its lease expires and the reaper requeues it
            _log.error("job %s: %s; it is left to the reaper", job_id, type(error).__name__)
        finally:
            heartbeat.cancel()
            self.leave()
            if unfinished := [task for task in (self._prompt_task, self._checkpoint_task) if task]:
                await asyncio.wait(unfinished)

    async def _speak_and_deliver(self) -> None:
        try:
            synth_ms = await self._speak()
        except WorkerError as error:
            if error.code != INVALID_PROMPT:
                raise
            _log.warning("voice %s: its prompt for %s is invalid", self.claim.voice.voice_id, self.backend.name)
            self._ignores_prompt = True
            self._slot.acquire(self)
            synth_ms = await self._speak()
        self.leave()  # another attempt may speak while this one delivers
        if not self.audio.has_started:
            await self._fail("synthesis_failed")
            return
        job = self.claim.job
        wav = cast("BinaryIO", self.audio.file)
        self._is_reporting = True
        try:
            await self._retry_held_up(lambda: self._queue.complete(job.job_id, job.attempt, wav, synth_ms=synth_ms))
        except (RecordingError, SynthesisError) as error:
            _log.warning("job %s: its audio was refused: %s", job.job_id, error.code)

    async def _send_heartbeats(self) -> None:
        job = self.claim.job
        while True:
            await asyncio.sleep(self._lease_s / 3)
            try:
                is_ours = await self._queue.heartbeat(job.job_id, job.attempt)
            except Exception as error:  # noqa: BLE001 - the next heartbeat may succeed, and the lease outlasts two
                _log.warning("job %s: a heartbeat failed: %s", job.job_id, type(error).__name__)
                continue
            if not is_ours:
                self.drop()
                return

    # -- speaking

    async def _fetch_work(self, version: str) -> Work:
        """Return the work, with a prompt of this version if there is one."""
        job, voice = self.claim.job, self.claim.voice
        assert job.text is not None, "a pending job has its text"
        prompt = reference = checkpoint = None
        if not self._ignores_prompt:
            prompt = await retry_during_outage(
                lambda: self._queue.prompt(self.claim, version=version), timeout_s=self._lease_s
            )
        self.must_prepare = prompt is None
        if prompt is None:
            reference = await retry_during_outage(lambda: self._queue.reference(self.claim), timeout_s=self._lease_s)
            checkpoint = await retry_during_outage(
                lambda: self._queue.checkpoint(self.claim, version=version), timeout_s=self._lease_s
            )
        else:
            self._note_prompt()
        return Work(
            text=job.text,
            lang=job.lang,
            backend=job.backend,
            voice_id=job.voice_id,
            speed=job.speed,
            seed=job.seed,
            prompt=prompt,
            checkpoint=checkpoint,
            is_fast=self._is_fast,
            reference=reference,
            ref_text=voice.ref_text,
            ref_lang=voice.lang,
        )

    async def _speak(self) -> int | None:
        """Collect the audio; return the time to synthesize it, in ms, or None if the engine did not stop."""
        while True:
            version = self._slot.prompt_version(self.backend)
            work = await self._fetch_work(version)
            try:
                worker, utterance = await self._slot.speak(self, work, prompt_version=version)
                break
            except PromptVersionError:  # weights were updated since the prompt was fetched
                continue
        try:
            while (message := await utterance.next()) is not None:
                if message.kind == "preparing":
                    fraction = message.facts["fraction"]
                    self.progress = JobProgress("preparing", fraction)
                    percent = int(100 * fraction)
                    if percent >= self._logged_percent + _LOG_STEP_PERCENT:
                        self._logged_percent = percent
                        _log.info("preparing voice %s for %s, %d %%", work.voice_id, self.backend.name, percent)
                elif message.kind == "checkpoint":
                    self._checkpoint = message.body
                    if self._checkpoint_task is None or self._checkpoint_task.done():
                        self._checkpoint_task = asyncio.create_task(self._save_checkpoints(version))
                elif message.kind == "speaking":
                    self.must_prepare = False
                    self.progress = JobProgress("speaking", 0.0)
                    if message.facts["is_new"]:
                        self._prompt_task = asyncio.create_task(self._save_prompt(message.body, version))
                elif message.kind == "audio":
                    await self._retry_held_up(partial(self._write, message))
                    self.progress = JobProgress("speaking", min(0.99, self.audio.duration_s / self._expected_s))
                if self.audio.duration_s > self._longest_s:
                    self.audio.abort()  # the engine did not find the end; completion will refuse the audio
                    return None
        finally:
            worker.cancel(utterance)
        self.audio.finish()
        return utterance.synth_ms

    async def _write(self, message: Message) -> None:
        self.audio.write(message.body, sample_rate=message.facts["sample_rate"], backend=self.backend.name)

    async def _retry_held_up(self, call: Callable[[], Awaitable[None]]) -> None:
        """Retry during an outage, and let the dispatcher know that it lasts."""

        async def call_and_note() -> None:
            try:
                await call()
            except OUTAGE:
                self.is_held_up = True
                raise

        try:
            await retry_during_outage(call_and_note, timeout_s=self._timeout_s, should_stop=lambda: self.is_dropped)
        finally:
            self.is_held_up = False

    def _note_prompt(self) -> None:
        if not self.has_prompt:
            self.has_prompt = True
            self._on_prompt()

    async def _save_prompt(self, prompt: bytes, version: str) -> None:
        """Store a new prompt at once: the speech may fail, and the prompt may have taken minutes."""
        is_fast = self._is_fast and not self._ignores_prompt  # or the invalid one, a full one, would be found first
        if self._checkpoint_task:
            await asyncio.wait([self._checkpoint_task])  # or a late checkpoint would stay beyond the prompt
        try:
            await retry_during_outage(
                lambda: self._queue.save_prompt(self.claim, version=version, prompt=prompt, is_fast=is_fast),
                timeout_s=self._lease_s,
            )
        except Exception as error:  # noqa: BLE001 - a prompt is a cache, and can be made again
            _log.warning("voice %s: its prompt is not kept: %s", self.claim.voice.voice_id, type(error).__name__)
        self._note_prompt()

    async def _save_checkpoints(self, version: str) -> None:
        """Store the latest checkpoint, and the one that arrived meanwhile."""
        while (checkpoint := self._checkpoint) is not None:
            self._checkpoint = None
            try:
                await self._queue.save_checkpoint(self.claim, version=version, checkpoint=checkpoint)
            except Exception as error:  # noqa: BLE001 - an interrupted preparation restarts from an earlier one
                voice_id = self.claim.voice.voice_id
                _log.warning("voice %s: a checkpoint is not kept: %s", voice_id, type(error).__name__)

    # -- reporting to the job queue

    async def _retry(self, error: str) -> None:
        job = self.claim.job
        max_attempts = OUT_OF_MEMORY_ATTEMPTS if error == "out_of_memory" else None
        self.will_be_retried = True
        await self._report(lambda: self._queue.retry(job.job_id, job.attempt, error=error, max_attempts=max_attempts))

    async def _fail(self, error: str) -> None:
        job = self.claim.job
        await self._report(lambda: self._queue.fail(job.job_id, job.attempt, error=error))

    async def _report(self, call: Callable[[], Awaitable[None]]) -> None:
        """Report the end; if that fails, the lease expires and the reaper requeues the job."""
        if self.is_dropped:
            return
        self._is_reporting = True
        try:
            await retry_during_outage(call, timeout_s=self._lease_s, should_stop=lambda: self.is_dropped)
        except StaleAttemptError:
            pass
        except Exception as error:  # noqa: BLE001 - the edge of an attempt
            _log.error("job %s: its end could not be reported: %s", self.claim.job.job_id, type(error).__name__)
