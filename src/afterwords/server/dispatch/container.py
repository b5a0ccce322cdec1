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

from afterwords import __version__
from afterwords.client.profiles import Access
from afterwords.errors import AfterwordsError, InvalidInputError, ServerSetupError, ServiceUnavailableError
from afterwords.server.dispatch.audio_stream import AudioStream, AudioStreams
from afterwords.server.dispatch.http_queue import HttpJobQueue
from afterwords.server.dispatch.local import LocalDispatcher
from afterwords.server.dispatch.protocol import PROTOCOL, ClaimAnswer, HandedJob, Hello
from afterwords.server.records import Claim
from afterwords.server.settings import load_settings

_log = logging.getLogger("afterwords.server")

ANY_SERVER: Final = Access("https:")
LOADING_LOOK_S: Final = 0.05

T = TypeVar("T")


class Container:
    """Runs attempts in an engine process of this machine.

    The event loop has a thread of its own, so that `run` may be called from many threads at once.

    Args:
        backend: The backend to load.
    """

    def __init__(self, backend: str) -> None:
        self._settings = load_settings(backends=(backend,), workers=1)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="afterwords-container", daemon=True).start()

    def start(self) -> None:
        """Load the model.

        Raises:
            BackendUnavailableError: The backend can't run here.
            ServerSetupError: The model did not load.
        """
        LocalDispatcher.check(self._settings)
        self._wait(self._start())

    def run(self, job: Mapping[str, Any]) -> None:
        """Run an attempt, a `HandedJob` as JSON, and return after its end, of which the server knows.

        Raises:
            InvalidInputError: The backend is another one.
        """
        handed = HandedJob.model_validate(job)
        if handed.backend not in self._dispatcher.backends:
            raise InvalidInputError(f"This container has no backend {handed.backend}.", code="invalid_backend")
        self._wait(self._run(handed))

    def stop(self) -> None:
        """Return unfinished jobs to their servers."""
        self._wait(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)

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

    async def _run(self, handed: HandedJob) -> None:
        ended = self._jobs.add(handed)
        self._dispatcher.wake()
        await ended.wait()

    async def _stop(self) -> None:
        await self._dispatcher.stop(grace_s=0)
        await self._jobs.close()


class _HandedJobs(HttpJobQueue):
    """The attempts that were handed over, of any number of servers."""

    def __init__(self) -> None:
        super().__init__(ANY_SERVER, "", name="container")
        self._waiting: list[HandedJob] = []
        self._handed: dict[str, tuple[HandedJob, asyncio.Event]] = {}  # by job

    def add(self, handed: HandedJob) -> asyncio.Event:
        """Add an attempt, and return an event for its end."""
        self.end(handed.job_id)  # an older attempt, whose lease has expired
        ended = asyncio.Event()
        self._handed[handed.job_id] = handed, ended
        self._waiting.append(handed)
        return ended

    def end(self, job_id: str) -> None:
        """Note the end of an attempt."""
        self._stop_watch(job_id)
        if found := self._handed.pop(job_id, None):
            found[1].set()

    async def claim(
        self,
        *,
        backends: Sequence[str],
        worker: str,  # noqa: ARG002 - as the server knows it
        skip_voices: Sequence[str] = (),
        prepare: Sequence[str] = (),  # noqa: ARG002 - no preparation is handed over
    ) -> Claim | None:
        for handed in [*self._waiting]:
            if handed.backend not in backends or handed.voice_id in skip_voices:
                continue
            body = Hello(protocol=PROTOCOL, version=__version__)
            url = f"{self._url(handed.job_id)}/begin"
            try:
                answer = await self._request("POST", url, handed.token, json=body)
            except ServiceUnavailableError:  # it is asked again
                raise
            except AfterwordsError as error:
                _log.warning("job %s: the server does not want it any more: %s", handed.job_id, error.code)
                self._waiting.remove(handed)
                self.end(handed.job_id)
                continue
            self._waiting.remove(handed)
            if (claimed := ClaimAnswer.model_validate_json(answer.content).job) is not None:
                return self._accept(claimed)
        return None

    async def find_deleted(self, voice_ids: Sequence[str]) -> set[str]:  # noqa: ARG002 - the tokens of attempts end with them
        return set()

    def _url(self, job_id: str) -> str:
        handed = self._handed.get(job_id)
        return f"{handed[0].server if handed else ''}/v1/jobs/{job_id}"


class _Streams(AudioStreams):
    """Streams whose ends are those of the attempts."""

    def __init__(self, folder: Path, jobs: _HandedJobs) -> None:
        super().__init__(folder)
        self._jobs = jobs

    def end(self, job_id: str, stream: AudioStream, *, will_be_retried: bool) -> None:
        super().end(job_id, stream, will_be_retried=will_be_retried)
        self._jobs.end(job_id)
