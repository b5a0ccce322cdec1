"""A dispatcher that calls a service elsewhere for each job, such as Modal or RunPod, which has machines and a queue.

The service gets a token for the attempt and delivers the result over HTTP. The claim is the call: its lease lasts as
long as a model may take to start and the text to be spoken, or until the service renews it like a remote worker.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from afterwords.backends import registry
from afterwords.backends.base import features, unspoken
from afterwords.client.profiles import Access
from afterwords.errors import InvalidOptionError, ServerSetupError, StaleAttemptError
from afterwords.server.concurrency import Condition
from afterwords.server.dispatch.claiming import OUTAGE, ClaimLoop, LeasedAttempt, RunningAttempts
from afterwords.server.dispatch.local import load_worker_config, unknown_backend
from afterwords.server.dispatch.protocol import HandedJob
from afterwords.server.ports import AttemptQueue
from afterwords.server.records import Claim, JobProgress, StoredJob
from afterwords.server.services.backend_choice import DEFAULT_BACKEND
from afterwords.server.settings import Settings
from afterwords.text import max_speech_s

_log = logging.getLogger("afterwords.server")

CALL_TIMEOUT_S: Final = 10.0
"""Longest duration of a call, which only starts a job."""
CALLING_MAX: Final = 16
"""Concurrent calls that a service has not answered yet."""
LOOK_INTERVAL_S: Final = 1.0
"""Time between looks for jobs without `wake`: other servers submit to the same database."""
WATCH_INTERVAL_S: Final = 5.0
"""Time between looks at a job that runs elsewhere."""
QUEUED_MAX_S: Final = 3600.0
"""How long a call may wait for a container. A service may report a call that waits as one that runs."""
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0


class CallState(Enum):
    """What a service does with a call."""

    WAITING = "waiting"  # in its queue
    RUNNING = "running"  # or not known
    OVER = "over"  # it ended, was stopped, or is not known any more


class CallError(Exception):
    """A call did not succeed.

    Attributes:
        problem: What happened and how to fix it, for the log and for /readyz.
        retry_after_s: When to call again, if the service says so.
        status: Of the HTTP response, if there was one.
    """

    def __init__(self, problem: str, *, retry_after_s: float | None = None, status: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.status = status
        self.retry_after_s = retry_after_s


class NotCalledError(CallError):
    """The service did not take the job, which goes back to the queue."""


class UnknownOutcomeError(CallError):
    """The service may have taken the job: no other call is made before its lease ends."""


class CallFailedError(CallError):
    """The service failed at this job."""


class Service(Protocol):
    """A service that runs jobs. Its methods raise CallError.

    Attributes:
        sends_words: Its containers send the times of words with the audio.
    """

    name: str
    sends_words: bool

    async def call(self, claim: Claim) -> str | None:
        """Start a job, and return the ID of the call if the service has IDs."""

    async def state(self, call_id: str) -> CallState: ...

    async def cancel(self, call_id: str) -> None: ...

    async def close(self) -> None:
        """Close all connections."""


@dataclass
class _Calls:
    """How the calls for a backend go: why they fail, and when the next one is made."""

    problem: str = ""
    pause_s: float = FIRST_PAUSE_S
    paused_until: float = 0.0


class CallDispatcher:
    """Run jobs by calling a service; implements the port Dispatcher."""

    def __init__(self, settings: Settings, queue: AttemptQueue, service: Service) -> None:
        self.settings = settings
        self.queue = queue
        self.service = service
        self._offered = {each.name: each for each in _find_backends(settings) if each.engine is not None}
        self._attempts = RunningAttempts[CallAttempt](lambda _: self.wake())
        self._claims = ClaimLoop(self._start_next, interval_s=self._interval_s)
        self._changed = Condition()
        self._calls = {name: _Calls() for name in self._offered}
        queue.subscribe(self._settle)

    @property
    def backends(self) -> Mapping[str, frozenset[str]]:
        return {name: backend.languages for name, backend in self._offered.items()}

    def unspoken(self, backend: str, text: str) -> list[str]:
        found = self._offered.get(backend)
        return unspoken(found.engine, text) if found and found.is_available and found.engine else []

    @property
    def prompt_versions(self) -> Mapping[str, str]:
        return {name: backend.engine.prompt_version for name, backend in self._offered.items() if backend.engine}

    @property
    def features(self) -> Mapping[str, frozenset[str]]:
        lacking = frozenset() if self.service.sends_words else {"has_timing"}
        return {name: features(backend.engine) - lacking for name, backend in self._offered.items() if backend.engine}

    @property
    def prepares(self) -> Set[str]:
        return frozenset()  # the first call for a voice prepares it

    @property
    def is_ready(self) -> bool:
        return not self._claims.is_closed and any(not calls.problem for calls in self._calls.values())

    @property
    def state(self) -> str:
        problems = [
            calls.problem if len(self._calls) == 1 else f"{backend} {calls.problem}"
            for backend, calls in self._calls.items()
            if calls.problem
        ]
        what = "stopping" if self._claims.is_closed else "; ".join(problems) or "ready"
        return f"{self.service.name}: {what}"

    async def start(self) -> None:
        self._claims.start()

    def wake(self) -> None:
        self._changed.notify_all()
        self._claims.wake()

    def listen(self, job_id: str) -> None:  # noqa: ARG002 - the dispatcher of remote workers streams what arrives
        return None

    def progress(self, job: StoredJob) -> JobProgress:  # noqa: ARG002 - the dispatcher of remote workers knows it
        return JobProgress("waiting")

    def cancel(self, job_id: str) -> None:
        self._settle(job_id)  # a job that is ready or cancelled ends its call by itself

    async def stop(self, *, grace_s: float) -> None:  # noqa: ARG002 - what runs elsewhere delivers to the next server
        self._claims.close()
        await self._claims.wait_closed()
        with suppress(TimeoutError):
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._changed.wait_for(lambda: not self._n_calling)
        await self._attempts.stop(grace_s=0)
        await self.service.close()

    # -- what attempts call

    def note_success(self, backend: str) -> None:
        """Record that the service took a job."""
        if self._calls[backend].problem:
            _log.info("%s works again for %s", self.service.name, backend)
        self._calls[backend] = _Calls()

    def note_failure(self, backend: str, error: CallError) -> None:
        """Record why the service did not take a job, and call it again for this backend after a pause."""
        calls, name = self._calls[backend], self.service.name
        pause_s = calls.pause_s if error.retry_after_s is None else min(error.retry_after_s, LONGEST_PAUSE_S)
        if error.problem != calls.problem:
            _log.warning(
                "%s: %s. Jobs for %s wait, and it is called again until it works.", name, error.problem, backend
            )
        now = asyncio.get_running_loop().time()
        if now >= calls.paused_until:  # calls that fail together count once
            calls.pause_s = min(2 * calls.pause_s, LONGEST_PAUSE_S)
        calls.problem, calls.paused_until = error.problem, now + pause_s

    # -- claims

    @property
    def _n_calling(self) -> int:
        return sum(attempt.is_calling for attempt in self._attempts)

    def _interval_s(self) -> float:
        now = asyncio.get_running_loop().time()
        pauses = (calls.paused_until - now for calls in self._calls.values())
        return min([LOOK_INTERVAL_S, *(pause_s for pause_s in pauses if pause_s > 0)])

    async def _start_next(self) -> bool:
        n_open = sum(not attempt.settled.is_set() for attempt in self._attempts)
        if n_open >= self.settings.max_remote_jobs or self._n_calling >= CALLING_MAX:
            return False
        now = asyncio.get_running_loop().time()
        called = {attempt.claim.job.backend for attempt in self._attempts if attempt.is_calling}
        backends = [
            backend
            for backend, calls in self._calls.items()  # one call finds out whether it works again
            if now >= calls.paused_until and not (calls.problem and backend in called)
        ]
        if not backends:
            return False
        claim = await self.queue.claim(backends=backends, worker=f"{self.service.name}-{os.getpid()}")
        if claim:
            self._attempts.start(CallAttempt(claim, self))
        return claim is not None

    def _settle(self, job_id: str) -> None:
        for attempt in self._attempts.of_job(job_id):
            attempt.settled.set()
            self.wake()


class CallAttempt(LeasedAttempt):
    """One attempt that a service runs.

    Attributes:
        is_calling: The service has not answered yet.
        settled: The job is over.
    """

    def __init__(self, claim: Claim, dispatcher: CallDispatcher) -> None:
        super().__init__(claim, queue=dispatcher.queue, lease_s=dispatcher.settings.lease_s)
        self.is_calling = True
        self.settled = asyncio.Event()
        self._dispatcher = dispatcher
        self._call_id: str | None = None
        self._must_cancel = False
        self._lease_expires: float | None = None

    async def _send_heartbeats(self) -> None:
        """Send none: the lease must end if the service is lost."""

    async def _work(self) -> None:
        job, dispatcher = self.claim.job, self._dispatcher
        try:
            await self._renew()
            self._call_id = await dispatcher.service.call(self.claim)
            dispatcher.note_success(job.backend)
        except NotCalledError as error:
            dispatcher.note_failure(job.backend, error)
            await self.release()
            return
        except CallFailedError as error:
            dispatcher.note_failure(job.backend, error)
            await self._retry("worker_lost")
            return
        except CallError as error:  # the service may have taken the job
            dispatcher.note_failure(job.backend, error)
        finally:
            self.is_calling = False
            dispatcher.wake()
        await self._watch()

    async def _end(self) -> None:
        if self._call_id and (self.is_dropped or self._must_cancel):
            with suppress(CallError):  # the result of a call that goes on is refused
                await self._dispatcher.service.cancel(self._call_id)

    @property
    def _allowance_s(self) -> float:
        job = self.claim.job
        return self._dispatcher.settings.start_allowance_s + max_speech_s(job.text or "", speed=job.speed)

    async def _renew(self) -> None:
        """Renew the lease for as long as the job may take to start and to be spoken.

        Raises:
            StaleAttemptError: The attempt does not hold the job any more.
        """
        job, queue = self.claim.job, self._dispatcher.queue
        await queue.heartbeat(job.job_id, job.attempt, lease_s=self._allowance_s)
        self._lease_expires = (await queue.find_claim(job.job_id, job.attempt)).job.lease_expires

    async def _watch(self) -> None:
        """Wait until the job is over, and find out if the call ended without a result."""
        job, service, queue = self.claim.job, self._dispatcher.service, self._dispatcher.queue
        interval_s = min(WATCH_INTERVAL_S, self._lease_s / 3)
        queued_until = asyncio.get_running_loop().time() + QUEUED_MAX_S
        while not self.settled.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self.settled.wait(), interval_s)
                break
            try:
                state = await self._state()
                lease_expires = (await queue.find_claim(job.job_id, job.attempt)).job.lease_expires
                has_begun = lease_expires != self._lease_expires or self._call_id is None  # a container renews it
                may_wait = not has_begun and asyncio.get_running_loop().time() < queued_until
                if state is CallState.WAITING or (state is CallState.RUNNING and may_wait):
                    await self._renew()
            except OUTAGE:
                continue
            except StaleAttemptError:  # the job ended at another server, or the lease is over
                break
            if state is CallState.OVER:
                _log.warning("job %s: the call of %s ended without a result", job.job_id, service.name)
                await self._retry("worker_lost")
                return
        if self._call_id:
            await asyncio.sleep(interval_s)  # the call is about to end by itself
            self._must_cancel = await self._state() is not CallState.OVER

    async def _state(self) -> CallState:
        if self._call_id is None:
            return CallState.RUNNING
        try:
            return await self._dispatcher.service.state(self._call_id)
        except CallError:  # the lease decides
            return CallState.RUNNING


def hand(settings: Settings, queue: AttemptQueue, claim: Claim) -> dict[str, Any]:
    """Return an attempt as `Container.run` takes it: the text stays on the server until the container fetches it."""
    job = claim.job
    return HandedJob(
        server=settings.base_url,
        job_id=job.job_id,
        token=queue.attempt_token(job.job_id, job.attempt),
        voice_id=job.voice_id,
        backend=job.backend,
    ).model_dump()


def check_service(settings: Settings, url: str, *, name: str) -> None:
    """Refuse settings with which a service could not run jobs.

    Args:
        url: The address of the service.

    Raises:
        InvalidOptionError: No installed engine has a backend that is to be offered.
        ServerSetupError: The service could not reach this server.
    """
    known = [backend.name for backend in _find_backends(settings)]
    for backend in settings.backends or ():
        if backend not in known:
            raise unknown_backend(settings, backend)
    if settings.public_url is None and not Access(url).is_loopback:
        raise ServerSetupError(
            f"{name} fetches recordings from this server and delivers audio to it, but no public URL is set.",
            hint="set AFTERWORDS_PUBLIC_URL to the https:// address under which this server is reached from outside.",
        )


def check_url(url: str | None, option: str) -> str:
    """Return a URL of a service.

    Raises:
        InvalidOptionError: It is not set, or not an http(s):// address.
    """
    parts = urlsplit(url or "")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidOptionError.for_option(
            option, value="not set" if url is None else "***", allowed="an https:// URL"
        )
    assert url is not None
    return url


def _find_backends(settings: Settings) -> list[registry.Backend]:
    """Return the backends to offer: their languages are known without what their engines need to run."""
    return registry.backends(replace(load_worker_config(settings), backends=settings.backends or (DEFAULT_BACKEND,)))
