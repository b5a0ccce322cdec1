"""What dispatchers share: the loop that claims jobs, and attempts that run as tasks, renew their leases and report."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Final, Generic, TypeVar

from afterwords.errors import AfterwordsError, ServiceUnavailableError, StaleAttemptError, StorageFullError
from afterwords.server.ports import JobQueue
from afterwords.server.records import Claim, JobProgress
from afterwords.server.tracing import note, span

_log = logging.getLogger(__name__)

OUTAGE: Final = (ServiceUnavailableError, StorageFullError)
"""Errors of a database or storage that may work again later."""
FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 2.0
CLAIM_MAX_S: Final = 10.0
"""How long the last claim may take when the server stops; the job queue answers within 2 s."""

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


class ClaimLoop:
    """Look for jobs whenever it is woken, and regularly; with growing pauses while the job queue fails.

    Args:
        look: Claims what can start now, and returns whether to look again at once.
        interval_s: Returns the longest time until the next look. None: until it is woken.
    """

    def __init__(self, look: Callable[[], Awaitable[bool]], *, interval_s: Callable[[], float | None]) -> None:
        self._look = look
        self._interval_s = interval_s
        self._woken = asyncio.Event()
        self._closed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def start(self) -> None:
        """Start to look."""
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Look now, and once more if a look is in progress."""
        self._woken.set()

    def close(self) -> None:
        """Look no more, once a look in progress has ended."""
        self._closed.set()
        self._woken.set()

    async def wait_closed(self) -> None:
        """Wait until the last look has ended: if it were cut off, its job would wait until its lease expires."""
        if self._task:
            await asyncio.wait([self._task], timeout=CLAIM_MAX_S)
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self.is_closed:
            self._woken.clear()  # before the look, so that a job submitted meanwhile is not missed
            try:
                is_more_expected = await self._look()
            except Exception as error:  # noqa: BLE001 - whatever ails the job queue, the next claim may succeed
                _log.warning("no job could be claimed: %s; trying again in %.2g s", type(error).__name__, pause_s)
                await _wait(self._closed, timeout_s=pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            pause_s = FIRST_PAUSE_S
            if not is_more_expected:
                await _wait(self._woken, timeout_s=self._interval_s())


async def _wait(event: asyncio.Event, *, timeout_s: float | None) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)


class LeasedAttempt(ABC):
    """One attempt at one job: a task that renews its lease while it works, and reports one end to the job queue.

    Attributes:
        is_dropped: The result is not wanted any more, and nothing is reported to the job queue.
        will_be_retried: The job waits for another attempt.
        progress: What it is doing.
    """

    def __init__(self, claim: Claim, *, queue: JobQueue, lease_s: float) -> None:
        self.claim = claim
        self.is_dropped = False
        self.will_be_retried = False
        self.progress = JobProgress("waiting")
        self._queue = queue
        self._lease_s = claim.lease_s or lease_s
        self._is_reporting = False
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def _work(self) -> None:
        """Speak the text and deliver the audio. An outage that is raised retries the job; another error fails it."""

    async def _end(self) -> None:  # noqa: B027 - most have nothing to clean up
        """Clean up after the work."""

    def start(self) -> asyncio.Task[None]:
        """Start; the task ends with the attempt and raises nothing."""
        self._task = asyncio.create_task(self._run_traced())
        return self._task

    def drop(self) -> None:
        """Stop it, but let a call to the job queue that is in progress finish."""
        self.is_dropped = True
        if self._task and not self._is_reporting:
            self._task.cancel()

    async def abandon(self) -> None:
        """Stop it wherever it is."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    async def release(self) -> None:
        """Return the job to the queue as if the attempt had not started."""
        job = self.claim.job
        self.will_be_retried = True
        note(outcome="released")
        await self._report(lambda: self._queue.release(job.job_id, job.attempt))

    async def _run_traced(self) -> None:
        job = self.claim.job
        with span(
            "attempt",
            kind="CONSUMER",
            parent=job.traceparent,
            job_id=job.job_id,
            voice_id=job.voice_id,
            backend=job.backend,
            attempt=job.attempt,
        ):
            await self._run()

    async def _run(self) -> None:
        heartbeats = asyncio.create_task(self._send_heartbeats())
        try:
            await self._work()
        except StaleAttemptError:
            pass
        except OUTAGE as error:
            await self._retry(error.code)
        except AfterwordsError as error:
            await self._fail(error.code)
        except Exception as error:  # noqa: BLE001 - the edge of an attempt; its lease expires and the reaper requeues it
            _log.error("job %s: %s; it is left to the reaper", self.claim.job.job_id, type(error).__name__)
        finally:
            heartbeats.cancel()
            await self._end()

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

    async def _retry(self, error: str, *, max_attempts: int | None = None) -> None:
        job = self.claim.job
        self.will_be_retried = True
        note(outcome="retry", error=error)
        await self._report(lambda: self._queue.retry(job.job_id, job.attempt, error=error, max_attempts=max_attempts))

    async def _fail(self, error: str) -> None:
        job = self.claim.job
        note(outcome="failed", error=error)
        if self.claim.is_preparation:
            _log.warning("voice %s can't be prepared for %s: %s", job.voice_id, job.backend, error)
            await self._report(lambda: self._queue.end_preparation(job.job_id, job.attempt))
        else:
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


A = TypeVar("A", bound=LeasedAttempt)


class RunningAttempts(Generic[A]):
    """The attempts of a dispatcher that have not ended.

    Args:
        on_end: Called with each attempt after its end.
    """

    def __init__(self, on_end: Callable[[A], None]) -> None:
        self._on_end = on_end
        self._tasks: dict[A, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[A]:
        return iter(list(self._tasks))

    def start(self, attempt: A) -> None:
        """Start an attempt. Older ones at its job are dropped: their leases have expired."""
        for older in self.of_job(attempt.claim.job.job_id):
            older.drop()

        def remove(_: asyncio.Task[None]) -> None:
            del self._tasks[attempt]
            self._on_end(attempt)

        self._tasks[attempt] = attempt.start()
        self._tasks[attempt].add_done_callback(remove)

    def of_job(self, job_id: str) -> list[A]:
        return [attempt for attempt in self._tasks if attempt.claim.job.job_id == job_id]

    async def wait(self, *, timeout_s: float | None = None) -> None:
        """Wait until no attempt runs."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._tasks:
                    await asyncio.wait(self._tasks.values())

    async def stop(self, *, grace_s: float) -> list[A]:
        """Let attempts finish; stop the rest after the grace period, and return those: their jobs can be released."""
        await self.wait(timeout_s=grace_s)
        unfinished = list(self._tasks)
        await asyncio.gather(*(attempt.abandon() for attempt in unfinished))
        return unfinished
