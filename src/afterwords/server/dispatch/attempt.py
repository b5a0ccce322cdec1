"""One claimed job, carried out: what it needs from the desk, speech from a process, and the result to the desk.

Every end that an attempt can come to stands in `Attempt._run`, and the desk hears of one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import BinaryIO, Final, cast

from afterwords.errors import (
    AfterwordsError,
    RecordingError,
    RunawayAudioError,
    StaleAttemptError,
    VoiceDeletedError,
)
from afterwords.server.dispatch.audio_stream import Sound
from afterwords.server.dispatch.messages import INVALID_PROMPT, Frame
from afterwords.server.dispatch.retry import OUTAGE, insist
from afterwords.server.dispatch.worker import Work
from afterwords.server.dispatch.worker_process import Child, ChildFailedError, ChildLostError, Utterance
from afterwords.server.dispatch.worker_slot import Offer, OtherPromptError, Station, StationClosedError
from afterwords.server.ports import JobQueue
from afterwords.server.records import Claim, JobProgress
from afterwords.server.settings import Settings
from afterwords.speech import EXPECTED_SECONDS_PER_CHARACTER
from afterwords.text import longest_speech_s

_log = logging.getLogger(__name__)

OUT_OF_MEMORY_ATTEMPTS: Final = 2
"""What did not fit into a fresh process, with nobody beside it, never will."""
_TOLD_PERCENT: Final = 10
"""How often the log says how far a preparation is."""


class Attempt:
    """One attempt at one job.

    Attributes:
        offer: the backend that speaks.
        sound: what is heard of it.
        is_dropped: nobody wants it any more, and the desk is told nothing.
        waits_for_another: the job waits for another attempt.
        is_held_up: the audio is made, and the desk can't take it at the moment.
        has_prompt: the prompt of its voice is kept at the desk, as far as is known: its next jobs need not wait.
        progress: what it is doing.
    """

    def __init__(
        self,
        claim: Claim,
        offer: Offer,
        *,
        desk: JobQueue,
        station: Station,
        sound: Sound,
        settings: Settings,
        has_prompt: bool = False,
        on_prompt: Callable[[], None] = lambda: None,
    ) -> None:
        self.claim = claim
        self.offer = offer
        self.sound = sound
        self.is_dropped = False
        self.waits_for_another = False
        self.is_held_up = False
        self.has_prompt = has_prompt
        self.must_prepare = False
        self.progress = JobProgress("waiting")
        self._on_prompt = on_prompt
        self._ignores_prompt = False
        self._is_fast = settings.prepare == "fast"
        self._desk = desk
        self._station = station
        self._lease_s = settings.lease_s
        self._longest_s = longest_speech_s(claim.job.text or "", speed=claim.job.speed)
        self._expected_s = EXPECTED_SECONDS_PER_CHARACTER * len(claim.job.text or " ") / claim.job.speed
        self._limit_s = settings.start_allowance_s + 2 * self._longest_s
        self._is_at_desk = False
        self._task: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._checkpoint: bytes | None = None
        self._saving: asyncio.Task[None] | None = None
        self._told_percent = -_TOLD_PERCENT

    @property
    def is_alone(self) -> bool:
        """What was tried before may have killed its process: from now on nobody is beside it."""
        return self.claim.job.attempt - self.claim.job.returned > 1

    def begin(self) -> asyncio.Task[None]:
        """Begin; the task ends when the attempt has, and raises nothing."""
        self._station.seat(self)
        self._task = asyncio.create_task(self._run())
        return self._task

    def drop(self) -> None:
        """Stop it. A call at the desk that is under way is not cut off: the desk knows what it is worth."""
        self.is_dropped = True
        if self._task and not self._is_at_desk:
            self._task.cancel()

    def leave(self) -> None:
        """Give up its place among those who speak."""
        self._station.leave(self)

    async def abandon(self) -> None:
        """Stop it wherever it is."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    async def give_back(self) -> None:
        """Let the job wait for another, as if it had not been begun."""
        job = self.claim.job
        self.waits_for_another = True
        await self._tell(lambda: self._desk.release(job.job_id, job.attempt))

    async def _run(self) -> None:
        beating = asyncio.create_task(self._beat())
        try:
            await self._carry_out()
        except (StaleAttemptError, VoiceDeletedError):
            pass
        except StationClosedError:
            await self.give_back()
        except ChildLostError as lost:
            await self._retry_lost(lost.code, is_out_of_memory=lost.is_out_of_memory)
        except ChildFailedError as failed:
            await self._take_failure(failed)
        except OUTAGE as error:
            await self._retry(error.code)
        except AfterwordsError as error:
            await self._fail(error.code)
        except Exception as error:  # noqa: BLE001 - the edge of a worker's run; its lease ends, and the reaper sees to it
            _log.error("job %s: %s; it is left to the reaper", self.claim.job.job_id, type(error).__name__)
        finally:
            beating.cancel()
            self.leave()
            if under_way := [task for task in (self._keeping, self._saving) if task]:
                await asyncio.wait(under_way)

    async def _carry_out(self) -> None:
        try:
            synth_ms = await self._speak()
        except ChildFailedError as failed:
            if failed.code != INVALID_PROMPT:
                raise
            _log.warning("voice %s: its prompt for %s is invalid", self.claim.voice.voice_id, self.offer.backend)
            self._ignores_prompt = True
            self._station.seat(self)
            synth_ms = await self._speak()
        self.leave()  # another may speak while this one is brought to the desk
        if self.sound.is_begun:
            await self._deliver(synth_ms)
        else:
            await self._fail("synthesis_failed")

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            try:
                is_ours = await self._desk.heartbeat(self.claim)
            except Exception as error:  # noqa: BLE001 - the next beat may reach the desk, and the lease outlasts two
                _log.warning("job %s: a heartbeat failed: %s", self.claim.job.job_id, type(error).__name__)
                continue
            if not is_ours:
                self.drop()
                return

    # -- speaking

    async def _work(self, version: str) -> Work:
        """All that is to be done, with a prompt of this version if there is one."""
        job, voice = self.claim.job, self.claim.voice
        assert job.text is not None, "a pending job has its text"
        prompt = None
        if not self._ignores_prompt:
            prompt = await insist(
                lambda: self._desk.prompt(voice, backend=job.backend, version=version), for_s=self._lease_s
            )
        reference = checkpoint = None
        self.must_prepare = prompt is None
        if prompt is None:
            reference = await insist(lambda: self._desk.reference(voice), for_s=self._lease_s)
            checkpoint = await insist(
                lambda: self._desk.checkpoint(voice, backend=job.backend, version=version), for_s=self._lease_s
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

    async def _begun(self) -> tuple[Child, Utterance, str]:
        """Have it spoken; returns by whom, and the version of its prompt.

        The process that will speak may have loaded weights that were updated since the prompt was asked for.
        """
        while True:
            version = self._station.prompt_version(self.offer)
            work = await self._work(version)
            try:
                return *await self._station.speak(self, work, prompt_version=version), version
            except OtherPromptError:
                continue

    async def _speak(self) -> int | None:
        """Collect the sound; returns how long it took to make, in ms, if all of it was wanted."""
        child, utterance, version = await self._begun()
        try:
            while (frame := await utterance.next()) is not None:
                if frame.kind == "preparing":
                    self._note_preparing(frame.facts["fraction"])
                elif frame.kind == "checkpoint":
                    self._save(frame.body, version)
                elif frame.kind == "speaking":
                    self.must_prepare = False
                    self.progress = JobProgress("speaking", 0.0)
                    if frame.facts["is_new"]:
                        self._keeping = asyncio.create_task(self._keep(frame.body, version))
                elif frame.kind == "sound":
                    await self._add(frame)
                    self.progress = JobProgress("speaking", min(0.99, self.sound.duration_s / self._expected_s))
                if self.sound.duration_s > self._longest_s:
                    self.sound.break_off()  # the engine did not find the end; the desk refuses what there is
                    return None
        finally:
            child.cancel(utterance)
        self.sound.finish()
        return utterance.synth_ms

    async def _add(self, frame: Frame) -> None:
        """Keep a piece of sound; where the disk is full, once there is room."""

        async def add() -> None:
            try:
                self.sound.add(frame.body, sample_rate=frame.facts["sample_rate"], backend=self.offer.backend)
            except OUTAGE:
                self.is_held_up = True
                raise

        try:
            await insist(add, for_s=self._limit_s, is_pointless=lambda: self.is_dropped)
        finally:
            self.is_held_up = False

    def _note_preparing(self, fraction: float) -> None:
        self.progress = JobProgress("preparing", fraction)
        percent = int(100 * fraction)
        if percent >= self._told_percent + _TOLD_PERCENT:
            self._told_percent = percent
            _log.info("preparing voice %s for %s, %d %%", self.claim.voice.voice_id, self.offer.backend, percent)

    def _note_prompt(self) -> None:
        if not self.has_prompt:
            self.has_prompt = True
            self._on_prompt()

    async def _keep(self, prompt: bytes, version: str) -> None:
        """Keep a new prompt at once: what follows may fail, and making it may have taken minutes."""
        voice, backend = self.claim.voice, self.offer.backend
        is_fast = self._is_fast and not self._ignores_prompt  # or the invalid one, a full one, would come first again
        if self._saving:
            await asyncio.wait([self._saving])  # or the checkpoint would come after the prompt, and stay
        try:
            await insist(
                lambda: self._desk.save_prompt(voice, backend=backend, version=version, prompt=prompt, is_fast=is_fast),
                for_s=self._lease_s,
            )
        except Exception as error:  # noqa: BLE001 - a prompt is a cache: it will be made again
            _log.warning("voice %s: its prompt is not kept: %s", voice.voice_id, type(error).__name__)
        self._note_prompt()

    def _save(self, checkpoint: bytes, version: str) -> None:
        """Keep how far a preparation is; where the desk is slow, only the latest that there is by then."""
        self._checkpoint = checkpoint
        if self._saving is None or self._saving.done():
            self._saving = asyncio.create_task(self._keep_checkpoints(version))

    async def _keep_checkpoints(self, version: str) -> None:
        voice, backend = self.claim.voice, self.offer.backend
        while (checkpoint := self._checkpoint) is not None:
            self._checkpoint = None
            try:
                await self._desk.save_checkpoint(voice, backend=backend, version=version, checkpoint=checkpoint)
            except Exception as error:  # noqa: BLE001 - a preparation that is interrupted goes further back
                _log.warning("voice %s: a checkpoint is not kept: %s", voice.voice_id, type(error).__name__)

    # -- at the desk

    async def _deliver(self, synth_ms: int | None) -> None:
        job = self.claim.job
        wav = cast("BinaryIO", self.sound.file)

        async def bring() -> None:
            try:
                await self._desk.complete(job.job_id, job.attempt, wav, synth_ms=synth_ms)
            except OUTAGE:
                self.is_held_up = True
                raise

        self._is_at_desk = True
        try:
            await insist(bring, for_s=self._limit_s, is_pointless=lambda: self.is_dropped)
        except (RecordingError, RunawayAudioError) as error:
            _log.warning("job %s: its audio was refused: %s", job.job_id, error.code)
        finally:
            self.is_held_up = False

    async def _take_failure(self, failed: ChildFailedError) -> None:
        _log.warning("job %s: the engine failed: %s (%s)", self.claim.job.job_id, failed.code, failed.kind)
        if failed.is_out_of_memory:
            await self._retry_lost("out_of_memory", is_out_of_memory=True)
        else:
            await self._fail("synthesis_failed" if failed.code == INVALID_PROMPT else failed.code)

    async def _retry_lost(self, error: str, *, is_out_of_memory: bool) -> None:
        if is_out_of_memory:
            await self._retry("out_of_memory", max_attempts=OUT_OF_MEMORY_ATTEMPTS)
        else:
            await self._retry(error)

    async def _retry(self, error: str, *, max_attempts: int | None = None) -> None:
        job = self.claim.job
        self.waits_for_another = True
        await self._tell(lambda: self._desk.retry(job.job_id, job.attempt, error=error, max_attempts=max_attempts))

    async def _fail(self, error: str) -> None:
        job = self.claim.job
        await self._tell(lambda: self._desk.fail(job.job_id, job.attempt, error=error))

    async def _tell(self, call: Callable[[], Awaitable[None]]) -> None:
        """Tell the desk how it ended; where it can't be told, the lease ends and the reaper sees to the job."""
        if self.is_dropped:
            return
        self._is_at_desk = True
        try:
            await insist(call, for_s=self._lease_s, is_pointless=lambda: self.is_dropped)
        except (StaleAttemptError, VoiceDeletedError):
            pass
        except Exception as error:  # noqa: BLE001 - the edge of a worker's run
            _log.error("job %s: the desk was not told of its end: %s", self.claim.job.job_id, type(error).__name__)
