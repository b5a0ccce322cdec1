"""The container of a service that is called, such as Modal: it runs the attempts that it is handed.

It works like a remote worker: it fetches the recording, renews the lease, streams, and delivers the audio.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from cachetools import LRUCache

from afterwords import __version__
from afterwords.client.profiles import Access
from afterwords.errors import (
    AfterwordsError,
    InvalidInputError,
    ServerSetupError,
    ServiceUnavailableError,
    StaleAttemptError,
)
from afterwords.server.dispatch.audio_stream import AudioStream, AudioStreams
from afterwords.server.dispatch.http_queue import CLAIMS_MAX, HttpJobQueue, parse_answer
from afterwords.server.dispatch.local import LocalDispatcher
from afterwords.server.dispatch.protocol import PROTOCOL, ClaimAnswer, ClaimedJob, HandedJob, Hello
from afterwords.server.records import Claim
from afterwords.server.settings import load_settings

_log = logging.getLogger("afterwords.server")

ANY_SERVER: Final = Access("https:")
LOADING_LOOK_S: Final = 0.05
BEGIN_TIMEOUT_S: Final = 10.0
"""How long a server may take to give an attempt: other servers wait meanwhile."""
OUTAGE_MAX_S: Final = 60.0
"""How long an attempt waits for a server that is away. Then its lease decides."""

T = TypeVar("T")


class Container:
    """Runs attempts in an engine process of this machine.

    The event loop has a thread of its own, so that `run` may be called from any number of threads and event loops.

    Args:
        backend: The backend to load.
    """

    def __init__(self, backend: str) -> None:
        self._settings = load_settings(backends=(backend,), workers=1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="afterwords-container", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Load the model.

        Raises:
            BackendUnavailableError: The backend can't run here.
            ServerSetupError: The model did not load.
        """
        LocalDispatcher.check(self._settings)
        self._wait(self._start())

    async def run(self, job: Mapping[str, Any]) -> None:
        """Run an attempt, a `HandedJob` as JSON, and return after its end. If it is cancelled, the attempt is stopped.

        Raises:
            InvalidInputError: The backend is another one.
        """
        handed = HandedJob.model_validate(job)
        if handed.backend not in self._dispatcher.backends:
            raise InvalidInputError(f"This container has no backend {handed.backend}.", code="invalid_backend")
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._run(handed), self._loop))

    def stop(self) -> None:
        """Return unfinished jobs to their servers."""
        self._wait(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> None:
        self._jobs = _HandedJobs()
        self._jobs.streams = _Streams(self._settings.folder, self._jobs)
        self._dispatcher = LocalDispatcher(self._settings, self._jobs, self._jobs.streams)
        self._jobs.progress, self._jobs.cancel = self._dispatcher.progress, self._dispatcher.cancel
        await self._dispatcher.start()
        try:
            async with asyncio.timeout(self._settings.start_allowance_s):
                while not self._dispatcher.is_ready:
                    await asyncio.sleep(LOADING_LOOK_S)
        except TimeoutError:
            raise ServerSetupError(f"The model did not load: {self._dispatcher.state}.") from None

    async def _run(self, job: HandedJob) -> None:
        handed = self._jobs.add(job)
        self._dispatcher.wake()
        try:
            await handed.ended.wait()
        except asyncio.CancelledError:
            self._jobs.withdraw(handed)
            raise

    async def _stop(self) -> None:
        await self._dispatcher.stop(grace_s=0)
        await self._jobs.close()


class _Handed:
    """An attempt that was handed over.

    Attributes:
        ended: Set at its end.
        attempt: Its number, once it has begun.
        give_up_at: When to stop asking a server that is away; None: it was not away.
    """

    def __init__(self, job: HandedJob) -> None:
        self.job = job
        self.ended = asyncio.Event()
        self.attempt: int | None = None
        self.give_up_at: float | None = None


class _HandedJobs(HttpJobQueue):
    """The attempts that were handed over, of any number of servers."""

    def __init__(self) -> None:
        super().__init__(ANY_SERVER, "", name="container")
        self._waiting: list[_Handed] = []
        self._begun: dict[str, _Handed] = {}  # by job: the newest attempt
        self._servers: LRUCache[str, str] = LRUCache(CLAIMS_MAX)  # by job, also for what is reported after the end

    def add(self, job: HandedJob) -> _Handed:
        """Add an attempt, unless it was handed over before."""
        for handed in (*self._waiting, *self._begun.values()):
            if handed.job.token == job.token:
                return handed
        handed = _Handed(job)
        self._servers[job.job_id] = job.server
        self._waiting.append(handed)
        return handed

    def withdraw(self, handed: _Handed) -> None:
        """Stop an attempt that the service has cancelled. Other attempts at its job continue."""
        if handed in self._waiting:
            self._waiting.remove(handed)
            handed.ended.set()
        elif self._begun.get(handed.job.job_id) is handed:
            self.cancel(handed.job.job_id)

    def end(self, job_id: str, attempt: int) -> None:
        """Note the end of an attempt that has begun."""
        handed = self._begun.get(job_id)
        if handed and handed.attempt == attempt:
            self._stop_watch(job_id)
            del self._begun[job_id]
            handed.ended.set()

    async def claim(
        self,
        *,
        backends: Sequence[str],
        worker: str,  # noqa: ARG002 - as the server knows it
        skip_voices: Sequence[str] = (),
        prepare: Sequence[str] = (),  # noqa: ARG002 - no preparation is handed over
    ) -> Claim | None:
        outage: ServiceUnavailableError | None = None
        for handed in [*self._waiting]:
            if handed.job.backend not in backends or handed.job.voice_id in skip_voices:
                continue
            try:
                claimed = await self._begin(handed.job)
            except ServiceUnavailableError as error:
                if self._note_outage(handed, error):
                    outage = error
                continue
            except Exception as error:  # noqa: BLE001 - whatever a server answers, its call must end
                why = error.code if isinstance(error, AfterwordsError) else type(error).__name__
                _log.warning("job %s: the server does not want it any more: %s", handed.job.job_id, why)
                self.withdraw(handed)
                continue
            if handed.ended.is_set():  # withdrawn meanwhile
                continue
            self._waiting.remove(handed)
            if older := self._begun.get(claimed.job_id):  # its lease has expired, and the dispatcher drops it
                older.ended.set()
            handed.attempt = claimed.attempt
            self._begun[claimed.job_id] = handed
            return self._accept(claimed)
        if outage is not None:
            raise outage
        return None

    async def find_deleted(self, voice_ids: Sequence[str]) -> set[str]:  # noqa: ARG002 - the tokens of attempts end with them
        return set()

    async def _begin(self, job: HandedJob) -> ClaimedJob:
        body = Hello(protocol=PROTOCOL, version=__version__)
        try:
            async with asyncio.timeout(BEGIN_TIMEOUT_S):
                answer = await self._request("POST", f"{self._url(job.job_id)}/begin", job.token, json=body)
        except TimeoutError:
            raise ServiceUnavailableError(f"{job.server} does not answer.") from None
        if (claimed := parse_answer(ClaimAnswer, answer).job) is None:
            raise StaleAttemptError
        return claimed

    def _note_outage(self, handed: _Handed, error: ServiceUnavailableError) -> bool:
        """Move a job behind the others, or give it up; return whether its server is asked again."""
        now = asyncio.get_running_loop().time()
        if handed.give_up_at is None:
            handed.give_up_at = now + OUTAGE_MAX_S
        if handed not in self._waiting:
            return False
        if now < handed.give_up_at:
            self._waiting.remove(handed)
            self._waiting.append(handed)
            return True
        _log.warning("job %s: it is left to its server: %s", handed.job.job_id, error.message)
        self.withdraw(handed)
        return False

    def _url(self, job_id: str) -> str:
        return f"{self._servers.get(job_id, '')}/v1/jobs/{job_id}"


class _Streams(AudioStreams):
    """Streams whose ends are those of the attempts."""

    def __init__(self, folder: Path, jobs: _HandedJobs) -> None:
        super().__init__(folder)
        self._jobs = jobs

    def end(self, job_id: str, stream: AudioStream, *, will_be_retried: bool) -> None:
        super().end(job_id, stream, will_be_retried=will_be_retried)
        self._jobs.end(job_id, stream.attempt)
