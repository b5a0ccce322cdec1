"""One attempt at a claimed job: fetch the prompt or reference, have a worker process speak, deliver the result.

`Attempt._work` has the ways in which a worker process can fail; `LeasedAttempt` has the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import BinaryIO, Final, cast

from afterwords.errors import RecordingError, ServiceUnavailableError, SynthesisError
from afterwords.models import WordTiming
from afterwords.server.dispatch.audio_stream import AudioStream
from afterwords.server.dispatch.claiming import OUTAGE, LeasedAttempt, retry_during_outage
from afterwords.server.dispatch.messages import INVALID_PROMPT, Message
from afterwords.server.dispatch.worker import Work
from afterwords.server.dispatch.worker_process import WorkerCrashedError, WorkerError
from afterwords.server.dispatch.worker_slot import BackendInfo, PromptVersionError, Slot, SlotUnavailableError
from afterwords.server.ports import JobQueue
from afterwords.server.records import Claim, JobProgress, ReportKind
from afterwords.server.settings import Settings
from afterwords.server.tracing import note, span
from afterwords.text import expected_speech_s, max_speech_s

_log = logging.getLogger(__name__)

OUT_OF_MEMORY_ATTEMPTS: Final = 2
"""What does not fit into a fresh process that does nothing else never will."""
_LOG_STEP_PERCENT: Final = 10
"""How often the progress of a preparation is logged."""


class Attempt(LeasedAttempt):
    """One attempt at one job in a worker process.

    Attributes:
        backend: The backend that speaks.
        audio: The audio so far.
        is_held_up: The audio is ready, and can't be stored at the moment.
        has_prompt: The prompt of the voice is stored, as far as is known: other jobs of the voice need not wait.
        must_prepare: The voice has to be prepared first, as far as is known.
    """

    def __init__(
        self,
        claim: Claim,
        backend: BackendInfo,
        *,
        queue: JobQueue,
        slot: Slot,
        audio: AudioStream,
        settings: Settings,
        has_prompt: bool = False,
        on_prompt: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(claim, queue=queue, lease_s=settings.lease_s)
        self.backend = backend
        self.audio = audio
        self.is_held_up = False
        self.has_prompt = has_prompt
        self.must_prepare = False
        self._on_prompt = on_prompt
        self._ignores_prompt = False
        self._is_fast = settings.prepare == "fast"
        self._slot = slot
        self._longest_s = max_speech_s(claim.job.text or "", speed=claim.job.speed)
        self._expected_s = expected_speech_s(claim.job.text or " ", speed=claim.job.speed)
        self._timeout_s = settings.start_allowance_s + 2 * self._longest_s
        self._reports: dict[ReportKind, bytes] = {}
        self._prompt_task: asyncio.Task[bool] | None = None
        self._checkpoint: bytes | None = None
        self._checkpoint_task: asyncio.Task[None] | None = None
        self._logged_percent = -_LOG_STEP_PERCENT

    @property
    def is_alone(self) -> bool:
        """Whether no other attempt may share its process: an earlier try of the job may have killed one."""
        return not self.claim.is_preparation and self.claim.job.attempt - self.claim.job.returned > 1

    def start(self) -> asyncio.Task[None]:
        self._slot.acquire(self)
        return super().start()

    def leave(self) -> None:
        """Release its place in the slot."""
        self._slot.release(self)

    async def _work(self) -> None:
        job_id = self.claim.job.job_id
        try:
            await (self._prepare() if self.claim.is_preparation else self._speak_and_deliver())
        except SlotUnavailableError:
            await self.release()
        except (WorkerError, WorkerCrashedError) as error:
            if isinstance(error, WorkerError):
                _log.warning("job %s: the engine failed: %s (%s)", job_id, error.code, error.kind)
            if error.is_out_of_memory:
                await self._retry("out_of_memory", max_attempts=OUT_OF_MEMORY_ATTEMPTS)
            elif isinstance(error, WorkerError):
                await self._fail("synthesis_failed" if error.code == INVALID_PROMPT else error.code)
            else:
                await self._retry(error.code)

    async def _end(self) -> None:
        self.leave()
        if unfinished := [task for task in (self._prompt_task, self._checkpoint_task) if task]:
            await asyncio.wait(unfinished)

    async def _prepare(self) -> None:
        job = self.claim.job
        await self._speak()
        self.leave()
        if self._prompt_task and not await self._prompt_task:
            raise ServiceUnavailableError
        await self._report(lambda: self._queue.end_preparation(job.job_id, job.attempt))

    async def _speak_and_deliver(self) -> None:
        try:
            with span("synthesize"):
                synth_ms = await self._speak()
        except WorkerError as error:
            if error.code != INVALID_PROMPT:
                raise
            _log.warning("voice %s: its prompt for %s is invalid", self.claim.voice.voice_id, self.backend.name)
            self._ignores_prompt = True
            self._slot.acquire(self)
            with span("synthesize"):
                synth_ms = await self._speak()
        self.leave()  # another attempt may speak while this one delivers
        if not self.audio.has_started:
            await self._fail("synthesis_failed")
            return
        job = self.claim.job
        wav = cast("BinaryIO", self.audio.file)
        self._is_reporting = True
        try:
            with span("deliver"):
                for kind, report in self._reports.items():
                    await self._retry_held_up(partial(self._queue.save_report, self.claim, kind, report))
                await self._retry_held_up(lambda: self._queue.complete(job.job_id, job.attempt, wav, synth_ms=synth_ms))
            note(outcome="delivered")
        except (RecordingError, SynthesisError) as error:
            note(outcome="refused", error=error.code)
            _log.warning("job %s: its audio was refused: %s", job.job_id, error.code)

    # -- speaking

    async def _fetch_work(self, version: str) -> Work:
        """Return the work, with a prompt of this version if there is one."""
        job, voice = self.claim.job, self.claim.voice
        assert (job.text is None) == self.claim.is_preparation, "a pending job has its text"
        prompt = reference = checkpoint = None
        if not self._ignores_prompt:
            prompt = await retry_during_outage(
                lambda: self._queue.prompt(self.claim, version=version), timeout_s=self._lease_s
            )
        self.must_prepare = prompt is None
        if prompt is None or job.verify:
            reference = await retry_during_outage(lambda: self._queue.reference(self.claim), timeout_s=self._lease_s)
        if prompt is None:
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
            timestamps=job.timestamps,
            verify=job.verify,
            reference=reference,
            ref_text=voice.ref_text,
            ref_lang=voice.lang,
            reading=job.reading,
        )

    async def _speak(self) -> int | None:
        """Collect the audio; return the time to synthesize it, in ms, or None if the engine did not stop.

        Without a text, only the prompt is made, unless it is stored.
        """
        while True:
            version = self._slot.prompt_version(self.backend)
            work = await self._fetch_work(version)
            if work.text is None and work.prompt is not None:
                return None
            try:
                worker, utterance = await self._slot.speak(self, work, prompt_version=version)
                break
            except PromptVersionError:  # weights were updated since the prompt was fetched
                continue
        try:
            while (message := await utterance.next()) is not None:
                if message.kind == "preparing":
                    fraction = message.facts["fraction"]
                    if self.progress.step != "preparing":
                        note("preparing")
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
                    note("speaking")
                    self.progress = JobProgress("speaking", 0.0)
                    if message.facts["is_new"]:
                        self._prompt_task = asyncio.create_task(self._save_prompt(message.body, version))
                elif message.kind == "audio":
                    if not self.audio.has_started:
                        note("first_audio")
                    await self._retry_held_up(partial(self._write, message))
                    self.progress = JobProgress("speaking", min(0.99, self.audio.duration_s / self._expected_s))
                elif message.kind == "report":
                    self._reports[message.facts["report"]] = message.body
                if self.audio.duration_s > self._longest_s:
                    self.audio.abort()  # the engine did not find the end; completion will refuse the audio
                    return None
        finally:
            worker.cancel(utterance)
        self.audio.finish()
        return utterance.synth_ms

    async def _write(self, message: Message) -> None:
        words = message.facts.get("words")
        self.audio.write(
            message.body,
            sample_rate=message.facts["sample_rate"],
            backend=self.backend.name,
            words=None if words is None else [WordTiming.model_validate(word) for word in words],
        )

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

    async def _save_prompt(self, prompt: bytes, version: str) -> bool:
        """Store a new prompt at once: the speech may fail, and the prompt may have taken minutes.

        Returns:
            Whether it is stored.
        """
        is_stored = False
        is_fast = self._is_fast and not self._ignores_prompt  # or the invalid one, a full one, would be found first
        if self._checkpoint_task:
            await asyncio.wait([self._checkpoint_task])  # or a late checkpoint would stay beyond the prompt
        try:
            await retry_during_outage(
                lambda: self._queue.save_prompt(self.claim, version=version, prompt=prompt, is_fast=is_fast),
                timeout_s=self._lease_s,
            )
            is_stored = True
        except Exception as error:  # noqa: BLE001 - a prompt is a cache, and can be made again
            _log.warning("voice %s: its prompt is not kept: %s", self.claim.voice.voice_id, type(error).__name__)
        self._note_prompt()
        return is_stored

    async def _save_checkpoints(self, version: str) -> None:
        """Store the latest checkpoint, and the one that arrived meanwhile."""
        while (checkpoint := self._checkpoint) is not None:
            self._checkpoint = None
            try:
                await self._queue.save_checkpoint(self.claim, version=version, checkpoint=checkpoint)
            except Exception as error:  # noqa: BLE001 - an interrupted preparation restarts from an earlier one
                voice_id = self.claim.voice.voice_id
                _log.warning("voice %s: a checkpoint is not kept: %s", voice_id, type(error).__name__)
