"""What dispatchers share that run attempts in slots: those of this machine, and the cluster of Ray."""

from __future__ import annotations

import asyncio
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Final

from afterwords.server import failpoints
from afterwords.server.dispatch.attempt import Attempt
from afterwords.server.dispatch.audio_stream import AudioStreams
from afterwords.server.dispatch.claiming import ClaimLoop, RunningAttempts
from afterwords.server.dispatch.protocol import VOICES_MAX
from afterwords.server.dispatch.worker_slot import BackendInfo, Slot
from afterwords.server.ports import JobQueue
from afterwords.server.records import Claim, JobProgress, StoredJob
from afterwords.server.settings import Settings

_log = logging.getLogger(__name__)

POLL_INTERVAL_S: Final = 1.0
"""Time between looks for jobs of which no `wake` tells: other servers submit to the same database."""
PREPARED_MAX: Final = 10_000
"""Voices that are known to have their prompts; to ask for one again costs a look into the storage."""


FORGET_INTERVAL_S: Final = 10.0
"""Time between looks for deleted voices, which the processes must not keep in memory."""


class SlotDispatcher(ABC):
    """Claim jobs that can start in a slot, and run them there; implements most of the port Dispatcher.

    Attributes:
        kind: Beginning of the names of its workers in the database.
    """

    kind: str
    _slots: Sequence[Slot]

    def __init__(self, settings: Settings, queue: JobQueue, streams: AudioStreams | None) -> None:
        self._settings = settings
        self._queue = queue
        self._slots = []
        self._attempts = RunningAttempts[Attempt](self._end_attempt)
        self._claims = ClaimLoop(self._start_next, interval_s=lambda: POLL_INTERVAL_S)
        self._streams = streams or AudioStreams(settings.folder)
        self._owns_streams = streams is None
        self._prepared: set[tuple[str, str]] = set()  # voice and backend whose prompt is, or was, stored
        self._wish: tuple[list[str], list[str], list[str]] | None = None  # of the claim in progress
        self._running: list[asyncio.Task[None]] = []
        self._forgetting: asyncio.Task[None] | None = None

    @property
    @abstractmethod
    def _offered(self) -> Mapping[str, BackendInfo]:
        """The backends to offer, best first."""

    @property
    @abstractmethod
    def _runnable(self) -> Iterable[str]:
        """Names of the backends that can run here."""

    @property
    @abstractmethod
    def _attempts_max(self) -> int:
        """Most attempts at once, including those whose audio is being delivered and waits in memory."""

    @property
    def backends(self) -> Mapping[str, frozenset[str]]:
        return {backend.name: backend.languages for backend in self._offered.values()}

    @property
    def features(self) -> Mapping[str, frozenset[str]]:
        return {backend.name: backend.features for backend in self._offered.values()}

    @property
    def prepares(self) -> Set[str]:
        return frozenset()

    @property
    def n_running(self) -> int:
        """Number of attempts that have not ended."""
        return len(self._attempts)

    async def finish(self) -> None:
        """Wait until no attempt runs."""
        await self._attempts.wait()

    def wake(self) -> None:
        self._claims.wake()
        if self._wish is not None and self._find_wish() != self._wish:
            self._queue.interrupt()

    def progress(self, job: StoredJob) -> JobProgress:
        for attempt in self._attempts:
            if attempt.claim.job.job_id == job.job_id and not attempt.is_dropped:
                return attempt.progress
        for attempt in self._attempts:  # one that prepares the voice prepares it for this job, too
            is_for_it = (attempt.claim.voice.voice_id, attempt.backend.name) == (job.voice_id, job.backend)
            if is_for_it and attempt.progress.step == "preparing":
                return attempt.progress
        is_loading = bool(self._slots) and not any(slot.is_ready for slot in self._slots)
        return JobProgress("loading" if is_loading else "waiting")

    def cancel(self, job_id: str) -> None:
        for attempt in self._attempts.of_job(job_id):
            attempt.drop()
        self._streams.cancel(job_id)

    async def stop(self, *, grace_s: float) -> None:
        self._claims.close()
        self.wake()
        await self._claims.wait_closed()
        preparations = [attempt for attempt in self._attempts if attempt.claim.is_preparation]
        await asyncio.gather(*(attempt.abandon() for attempt in preparations))
        await asyncio.gather(*(attempt.release() for attempt in preparations))
        unfinished = await self._attempts.stop(grace_s=grace_s)
        if self._forgetting:
            self._forgetting.cancel()
        for slot in self._slots:
            slot.close()
        await asyncio.gather(*self._running)
        await asyncio.gather(*(attempt.release() for attempt in unfinished))
        if self._owns_streams:
            self._streams.close()

    # -- claiming

    async def _start_next(self) -> bool:
        """Claim the next job that can start now, if any, and start it; return whether there was one."""
        self._wish = self._find_wish()
        if self._wish is None:
            return False
        try:
            backends, skip_voices, prepare = self._wish
            claim = await self._queue.claim(
                backends=backends, worker=f"{self.kind}-{os.getpid()}", skip_voices=skip_voices, prepare=prepare
            )
        finally:
            self._wish = None
        if claim:
            await self._start_attempt(claim)
        return claim is not None

    def _find_wish(self) -> tuple[list[str], list[str], list[str]] | None:
        """Return the backends of which a job could start now, the voices to skip, and the backends of preparations.

        None: no job could start.
        """
        if self._claims.is_closed or len(self._attempts) >= self._attempts_max:
            return None
        if any(attempt.is_held_up for attempt in self._attempts):
            return None  # more audio could not be stored either
        startable = [name for name in self._runnable if self._find_slot(self._offered[name])]
        speaking = [attempt for attempt in self._attempts if not attempt.claim.is_preparation]
        unprepared = {attempt.claim.voice.voice_id for attempt in speaking if not attempt.has_prompt}
        preparable = [name for name in startable if self._find_slot(self._offered[name], is_preparation=True)]
        return (startable, sorted(unprepared), preparable) if startable else None

    def _find_slot(self, backend: BackendInfo, *, is_preparation: bool = False) -> Slot | None:
        """Return the slot with the fewest attempts where one more could start now."""
        slots = [s for s in self._slots if (s.can_prepare(backend) if is_preparation else s.has_capacity(backend))]
        return min(slots, key=lambda slot: slot.n_active, default=None)

    async def _start_attempt(self, claim: Claim) -> None:
        failpoints.reach("preparation-claimed" if claim.is_preparation else "job-claimed")
        job = claim.job
        backend = self._offered[job.backend]
        # If the capacity is gone since the claim, the attempt waits for it.
        slot = self._find_slot(backend, is_preparation=claim.is_preparation) or min(
            self._slots, key=lambda slot: slot.n_active
        )
        voice = (claim.voice.voice_id, backend.name)
        attempt = Attempt(
            claim,
            backend,
            queue=self._queue,
            slot=slot,
            audio=self._streams.begin(job),
            settings=self._settings,
            has_prompt=voice in self._prepared,
            on_prompt=partial(self._note_prepared, voice),
        )
        if self._claims.is_closed:
            await attempt.release()
            self._streams.end(job.job_id, attempt.audio, will_be_retried=True)
            return
        self._attempts.start(attempt)

    async def _forget_deleted(self) -> None:
        """Let the processes forget voices that any server has deleted."""
        while True:
            await asyncio.sleep(FORGET_INTERVAL_S)
            processes = [slot.process for slot in self._slots if slot.process]
            voices = sorted({voice_id for process in processes for voice_id in process.voices})
            try:
                for start in range(0, len(voices), VOICES_MAX):
                    deleted = await self._queue.find_deleted(voices[start : start + VOICES_MAX])
                    for process in processes:
                        process.forget(deleted)
            except Exception as error:  # noqa: BLE001 - the queue may answer next time
                _log.warning("deleted voices could not be looked up: %s", type(error).__name__)

    def _note_prepared(self, voice: tuple[str, str]) -> None:
        """Let jobs of a voice run at the same time, and look for those that waited."""
        if len(self._prepared) >= PREPARED_MAX:
            self._prepared.clear()
        self._prepared.add(voice)
        self.wake()

    def _end_attempt(self, attempt: Attempt) -> None:
        attempt.leave()
        self._streams.end(attempt.claim.job.job_id, attempt.audio, will_be_retried=attempt.will_be_retried)
        self.wake()
