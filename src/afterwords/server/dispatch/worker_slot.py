"""One slot for a worker process: it is started, loaded, and replaced when it is retired or dead.

The dispatcher has a slot for each of its processes and runs attempts there; a slot decides which may start when.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from afterwords.backends.base import ignore_progress
from afterwords.server.concurrency import Condition
from afterwords.server.dispatch.worker import Work
from afterwords.server.dispatch.worker_process import (
    WorkerCrashedError,
    WorkerError,
    WorkerLimits,
    WorkerProcess,
    WorkerUtterance,
)

if TYPE_CHECKING:
    from afterwords.server.dispatch.attempt import Attempt

_log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """A backend of this server, and what is known of its engine before it is loaded.

    Attributes:
        engine: The first backend of its engine, which identifies it: two engines of one name, for example for two
            sizes of a model, are loaded separately, and each has its own capacity.
    """

    name: str
    engine: str
    prompt_version: str
    languages: frozenset[str]
    features: frozenset[str]


class SlotUnavailableError(Exception):
    """The slot has no process and can't start one at the moment."""


class PromptVersionError(Exception):
    """The process takes prompts of another version: its weights are newer or older than expected."""


class Slot(ABC):
    """A place where attempts run: a process of this machine, or a process that is connected to a cluster.

    Attributes:
        state: What it is doing, for people to read.
        is_ready: Whether a process is loaded, or was and is being replaced.

    Args:
        failure: What to log, with the reason, if no process becomes ready.
    """

    def __init__(self, *, failure: str, environment: Mapping[str, str], on_change: Callable[[], None]) -> None:
        self._failure = failure
        self.state = "starting"
        self.is_ready = False
        self._environment = environment
        self._on_change = on_change
        self._changed = Condition()
        self._closed = asyncio.Event()
        self._process: WorkerProcess | None = None
        self._attempts: set[Attempt] = set()
        self._waiting: set[Attempt] = set()  # attempts that have not started to speak

    @abstractmethod
    async def _run_process(self) -> str | None:
        """Start a process and wait until it is over; return why it never became ready."""

    @abstractmethod
    def has_capacity(self, backend: BackendInfo) -> bool:
        """Return whether one more attempt with that backend could start now."""

    def can_prepare(self, backend: BackendInfo) -> bool:  # noqa: ARG002 - most don't
        """Return whether a preparation could start now, without delaying a job."""
        return False

    @abstractmethod
    def prompt_version(self, backend: BackendInfo) -> str:
        """Return the version of the prompts that a backend takes."""

    @abstractmethod
    async def speak(
        self, attempt: Attempt, work: Work, *, prompt_version: str
    ) -> tuple[WorkerProcess, WorkerUtterance]:
        """Wait until the attempt may start, and start it.

        Raises:
            PromptVersionError: The work was written for another version; the attempt remains acquired.
            WorkerCrashedError: The process died while loading the backend, or could not load it, or took too long.
            SlotUnavailableError: No process can be started.
        """

    async def run(self) -> None:
        """Keep a process running until the slot is closed."""
        pause_s = FIRST_PAUSE_S
        while not self._closed.is_set():
            reason = await self._run_process()
            if reason is None:
                pause_s = FIRST_PAUSE_S
                continue
            self.is_ready = False
            self.state = f"{self._failure} ({reason}); trying again in {pause_s:.0f} s"
            _log.error("%s", self.state)
            self._notify()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    @property
    def process(self) -> WorkerProcess | None:
        """The process, from its start to its end."""
        return self._process

    def close(self) -> None:
        """Kill the process and start no other."""
        self._closed.set()
        if self._process:
            self._process.kill()

    def _notify(self) -> None:
        self._changed.notify_all()
        self._on_change()

    @property
    def n_active(self) -> int:
        return len(self._attempts)

    def acquire(self, attempt: Attempt) -> None:
        """Count an attempt as active here until it is released."""
        self._attempts.add(attempt)
        self._waiting.add(attempt)

    def release(self, attempt: Attempt) -> None:
        """Make room for other attempts; an attempt may be released twice."""
        self._attempts.discard(attempt)
        self._waiting.discard(attempt)
        self._notify()


class WorkerSlot(Slot):
    """A slot for one worker process of this machine."""

    def __init__(
        self, first: BackendInfo, *, limits: WorkerLimits, environment: Mapping[str, str], on_change: Callable[[], None]
    ) -> None:
        super().__init__(failure=f"{first.name} can't be loaded", environment=environment, on_change=on_change)
        self._first = first
        self._limits = limits
        self._worker: WorkerProcess | None = None  # the process while it takes work

    async def _run_process(self) -> str | None:
        def show_progress(fraction: float, step: str) -> None:  # noqa: ARG001 - the steps are for callers who wait
            self.state = f"loading {self._first.name}, {100 * fraction:.0f} %"

        try:
            self._process = worker = await WorkerProcess.start(self._limits, self._environment)
        except OSError as error:
            return type(error).__name__
        try:
            if self._closed.is_set():
                return None
            await worker.load(self._first.name, show_progress)
            if worker.is_retired:
                return "it takes more memory than AFTERWORDS_WORKER_MEMORY_MB allows"
            self._worker, self.is_ready, self.state = worker, True, "ready"
            _log.info("worker process %d is ready", worker.pid)
            while not (worker.is_lost or (worker.is_retired and not worker.is_busy)):
                self._notify()
                await worker.changed.wait()
        except (WorkerError, WorkerCrashedError) as error:
            return None if self._closed.is_set() else str(error)
        except Exception as error:  # noqa: BLE001 - the slot outlives any failure of a process
            return type(error).__name__
        finally:
            self._worker = None
            await worker.end()
        return None

    def has_capacity(self, backend: BackendInfo) -> bool:
        worker = self._worker
        if worker is None or worker.is_retired or worker.is_lost or any(attempt.is_alone for attempt in self._attempts):
            return False
        n_waiting = sum(
            attempt.backend.engine == backend.engine
            for attempt in self._waiting
            if not _will_prepare_alongside(worker, attempt)
        )
        return _n_speaking(worker, backend) + n_waiting < worker.capacity.get(backend.engine, 1)

    def can_prepare(self, backend: BackendInfo) -> bool:
        worker = self._worker
        return (
            worker is not None
            and self.has_capacity(backend)
            and not any(attempt.claim.is_preparation for attempt in self._attempts)
            and not any(_will_prepare_alongside(worker, attempt) for attempt in self._waiting)
            and not any(_prepares_alongside(worker, utterance) for utterance in worker.utterances.values())
        )

    def prompt_version(self, backend: BackendInfo) -> str:
        """Return the version of the prompts that a backend takes: the process's if it is loaded, else the known one."""
        loaded = self._worker.loaded if self._worker else {}
        return loaded.get(backend.name, backend.prompt_version)

    async def speak(
        self, attempt: Attempt, work: Work, *, prompt_version: str
    ) -> tuple[WorkerProcess, WorkerUtterance]:
        """Load the backend if needed. A preparation that can't start is refused, since jobs of its voice would wait.

        A job that would wait for a preparation interrupts it: there, the utterance raises SlotUnavailableError.
        """
        while True:
            if attempt.claim.is_preparation and not self._may_start(attempt):
                raise SlotUnavailableError
            self._interrupt_preparation(attempt)
            await self._changed.wait_for(lambda: self._may_start(attempt) or not self.is_ready)
            worker = self._worker
            if worker is None or not self.is_ready:
                raise SlotUnavailableError
            if work.backend in worker.loaded:
                if prompt_version != worker.loaded[work.backend]:
                    raise PromptVersionError
                self._waiting.discard(attempt)
                return worker, worker.speak(work, engine=attempt.backend.engine)
            try:
                await worker.load(work.backend, ignore_progress)
            except WorkerError as error:
                _log.error("%s can't be loaded: %s", work.backend, error)
                worker.retire()
                raise WorkerCrashedError(is_out_of_memory=error.is_out_of_memory, code="model_unavailable") from error

    def _interrupt_preparation(self, attempt: Attempt) -> None:
        """Interrupt a preparation that would delay a job for long. What was done of it is kept as a checkpoint."""
        worker = self._worker
        if worker and (attempt.is_alone or _will_prepare_alongside(worker, attempt)):
            for utterance in worker.utterances.values():
                if utterance.is_silent and _prepares_alongside(worker, utterance):
                    utterance.received.put_nowait(SlotUnavailableError())

    def _may_start(self, attempt: Attempt) -> bool:
        worker = self._worker
        if worker is None or worker.is_retired or worker.is_lost:
            return False
        if attempt.claim.is_preparation and any(
            other.is_alone or _will_prepare_alongside(worker, other) for other in self._waiting - {attempt}
        ):
            return False
        if attempt.is_alone:
            return not worker.utterances and all(other.is_alone for other in self._waiting)
        if _will_prepare_alongside(worker, attempt):
            return not any(_prepares_alongside(worker, other) for other in worker.utterances.values())
        return _n_speaking(worker, attempt.backend) < worker.capacity.get(attempt.backend.engine, 1)


def _n_speaking(worker: WorkerProcess, backend: BackendInfo) -> int:
    return sum(
        utterance.engine == backend.engine and not _prepares_alongside(worker, utterance)
        for utterance in worker.utterances.values()
    )


def _will_prepare_alongside(worker: WorkerProcess, attempt: Attempt) -> bool:
    """Return whether an attempt will prepare its voice while others speak: one at a time, outside the capacity."""
    return attempt.must_prepare and attempt.backend.engine in worker.prepares_alongside


def _prepares_alongside(worker: WorkerProcess, utterance: WorkerUtterance) -> bool:
    return utterance.is_preparing and utterance.engine in worker.prepares_alongside
