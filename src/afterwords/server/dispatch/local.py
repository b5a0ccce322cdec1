"""The local dispatcher: claim jobs and run them in worker processes of this machine.

The server's process stays small: engines are asked which backends they have, and are loaded elsewhere. A crash, a hang
or a lack of memory there costs an attempt, never the server.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Final

from afterwords.backends import registry
from afterwords.backends.base import Engine, Unavailable, unspoken
from afterwords.backends.memory import memory_bytes
from afterwords.config import Config, load_config
from afterwords.errors import BackendUnavailableError, InvalidOptionError
from afterwords.server import failpoints
from afterwords.server.dispatch.attempt import Attempt
from afterwords.server.dispatch.audio_stream import AudioListener, AudioStreams
from afterwords.server.dispatch.claiming import ClaimLoop, RunningAttempts
from afterwords.server.dispatch.worker_process import WorkerLimits
from afterwords.server.dispatch.worker_slot import BackendInfo, WorkerSlot
from afterwords.server.ports import JobQueue
from afterwords.server.records import Claim, JobProgress, StoredJob
from afterwords.server.settings import Settings

_log = logging.getLogger(__name__)

POLL_INTERVAL_S: Final = 1.0
"""Time between looks for jobs of which no `wake` tells: other servers submit to the same database."""
ATTEMPTS_MAX: Final = 32
"""Attempts at once for each process, including those whose audio is being delivered and waits in memory."""
PREPARED_MAX: Final = 10_000
"""Voices that are known to have their prompts; to ask for one again costs a look into the storage."""
_SECRET_PREFIXES: Final = ("AFTERWORDS_API_KEY", "AFTERWORDS_STRIPE_", "AFTERWORDS_WORKER_TOKEN", "AWS_", "PGPASS")
"""Beginnings of variables that engines, which may be plug-ins, don't get; nor do they get the server's settings."""


class LocalDispatcher:
    """Run jobs on this machine, in `settings.workers` processes; implements the port Dispatcher."""

    def __init__(
        self, settings: Settings, queue: JobQueue, streams: AudioStreams | None = None, *, config: Config | None = None
    ) -> None:
        config = config or load_worker_config(settings)
        self._settings = settings
        self._queue = queue
        self._backends, self._engines, self._obstacle = _find_backends(config)
        self._environment = environment_for(config, os.environ)
        self._slots: list[WorkerSlot] = []
        self._attempts = RunningAttempts[Attempt](self._end_attempt)
        self._claims = ClaimLoop(self._start_next, interval_s=lambda: POLL_INTERVAL_S)
        self._streams = streams or AudioStreams(settings.folder)
        self._prepared: set[tuple[str, str]] = set()  # voice and backend whose prompt is, or was, stored
        self._wish: tuple[list[str], list[str]] | None = None  # of the claim in progress
        self._running: list[asyncio.Task[None]] = []

    @staticmethod
    def check(settings: Settings) -> None:
        """Refuse to start a server on which no job could ever run.

        Raises:
            BackendUnavailableError: This server has workers, and no engine can run here.
            InvalidOptionError: It only accepts jobs, and the backends of other machines are not set, or not known here.
        """
        config = load_worker_config(settings)
        if settings.workers:
            try:
                registry.choose(config=config)
            except BackendUnavailableError as error:
                error.hint = f"{error.hint}; or set AFTERWORDS_WORKERS=0 if workers run on other machines"
                raise
            return
        listed = registry.backends(config if settings.backends else replace(config, backends=None))
        names = [backend.name for backend in listed if backend.engine is not None]
        unknown = [name for name in settings.backends or () if name not in names]
        if unknown:
            known = [backend.name for backend in registry.backends(replace(config, backends=None))]
            allowed = f"the names of installed backends ({', '.join(known)})"
            raise InvalidOptionError.for_option("AFTERWORDS_BACKENDS", value=unknown[0], allowed=allowed)
        if not settings.backends and not any(backend.is_available for backend in listed):
            raise InvalidOptionError(
                "No backend can run on this machine, and AFTERWORDS_BACKENDS does not name those of other machines.",
                hint=f"set AFTERWORDS_BACKENDS to the backends of your workers, out of {', '.join(names)}.",
            )

    @property
    def backends(self) -> Mapping[str, frozenset[str]]:
        return {backend.name: backend.languages for backend in self._backends.values()}

    def unspoken(self, backend: str, text: str) -> list[str]:
        engine = self._engines.get(backend)
        return [] if engine is None else unspoken(engine, text)

    @property
    def prompt_versions(self) -> Mapping[str, str]:
        return {name: self._backends[name].prompt_version for name in self._engines}

    @property
    def is_ready(self) -> bool:
        if not self._settings.workers:
            return True
        return not self._claims.is_closed and any(slot.is_ready for slot in self._slots)

    @property
    def state(self) -> str:
        if self._claims.is_closed:
            return "stopping"
        if not self._backends or (self._settings.workers and not self._engines):
            return f"no backend can run here: {self._obstacle}"
        if not self._settings.workers:
            return "only accepts jobs"
        return next((slot.state for slot in self._slots if not slot.is_ready), "ready")

    async def start(self) -> None:
        if not self._engines or not self._settings.workers:
            return
        for name in self._backends.keys() - self._engines.keys():
            _log.warning("%s can't run here: its jobs wait for a remote worker", name)
        first = self._backends[next(iter(self._engines))]
        memory_mb = self._settings.worker_memory_mb
        limits = WorkerLimits(
            start_allowance_s=self._settings.start_allowance_s,
            stall_s=self._settings.stall_s,
            memory_bytes=memory_bytes(default=8 << 30) // 2 if memory_mb is None else memory_mb << 20,
            recycle_after=self._settings.recycle_after,
        )
        for _ in range(self._settings.workers):
            slot = WorkerSlot(first, limits=limits, environment=self._environment, on_change=self.wake)
            self._slots.append(slot)
            self._running.append(asyncio.create_task(slot.run()))
        self._claims.start()

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

    def listen(self, job_id: str) -> AudioListener | None:
        if not self._settings.workers or not self._engines:
            return None
        return self._streams.listen(job_id)

    def progress(self, job: StoredJob) -> JobProgress:
        for attempt in self._attempts:
            if attempt.claim.job.job_id == job.job_id and not attempt.is_dropped:
                return attempt.progress
        for attempt in self._attempts:  # one that prepares the voice prepares it for this job, too
            is_for_it = (attempt.claim.voice.voice_id, attempt.backend.name) == (job.voice_id, job.backend)
            if is_for_it and attempt.progress.step == "preparing":
                return attempt.progress
        is_loading = bool(self._slots) and not self.is_ready
        return JobProgress("loading" if is_loading else "waiting")

    def cancel(self, job_id: str) -> None:
        for attempt in self._attempts.of_job(job_id):
            attempt.drop()
        self._streams.cancel(job_id)

    async def stop(self, *, grace_s: float) -> None:
        self._claims.close()
        self.wake()
        await self._claims.wait_closed()
        unfinished = await self._attempts.stop(grace_s=grace_s)
        for slot in self._slots:
            slot.close()
        await asyncio.gather(*self._running)
        await asyncio.gather(*(attempt.release() for attempt in unfinished))
        self._streams.close()

    # -- claiming

    async def _start_next(self) -> bool:
        """Claim the next job that can start now, if any, and start it; return whether there was one."""
        self._wish = self._find_wish()
        if self._wish is None:
            return False
        try:
            backends, skip_voices = self._wish
            claim = await self._queue.claim(backends=backends, worker=f"local-{os.getpid()}", skip_voices=skip_voices)
        finally:
            self._wish = None
        if claim:
            await self._start_attempt(claim)
        return claim is not None

    def _find_wish(self) -> tuple[list[str], list[str]] | None:
        """Return the backends of which a job could start now, and the voices to skip. None: no job could start."""
        if self._claims.is_closed or len(self._attempts) >= ATTEMPTS_MAX * self._settings.workers:
            return None
        if any(attempt.is_held_up for attempt in self._attempts):
            return None  # more audio could not be stored either
        startable = [name for name in self._engines if self._find_slot(self._backends[name])]
        unprepared = {attempt.claim.voice.voice_id for attempt in self._attempts if not attempt.has_prompt}
        return (startable, sorted(unprepared)) if startable else None

    def _find_slot(self, backend: BackendInfo) -> WorkerSlot | None:
        """Return the slot with the fewest attempts where one more could start now."""
        return min(
            (slot for slot in self._slots if slot.has_capacity(backend)),
            key=lambda slot: slot.n_active,
            default=None,
        )

    async def _start_attempt(self, claim: Claim) -> None:
        failpoints.reach("job-claimed")
        job = claim.job
        backend = self._backends[job.backend]
        # If the capacity is gone since the claim, the attempt waits for it.
        slot = self._find_slot(backend) or min(self._slots, key=lambda slot: slot.n_active)
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


def environment_for(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker process: the server's without its secrets, with the settings of engines."""
    server_settings = {f"AFTERWORDS_{name.upper()}" for name in Settings.model_fields}
    environment = {
        name: value
        for name, value in environ.items()
        if name.upper() not in server_settings and not name.upper().startswith(_SECRET_PREFIXES)
    }
    environment["AFTERWORDS_HOME"] = str(config.home)
    if config.backends is not None:
        environment["AFTERWORDS_BACKENDS"] = ",".join(config.backends)
    if config.kokoro_onnx is not None:
        environment["AFTERWORDS_KOKORO_ONNX"] = str(config.kokoro_onnx)
    if config.models is not None:
        environment["AFTERWORDS_MODELS"] = str(config.models)
    if config.mlx_weights is not None:
        environment["AFTERWORDS_MLX_WEIGHTS"] = config.mlx_weights
    environment["AFTERWORDS_IDLE_UNLOAD_S"] = str(config.idle_unload_s)
    environment["AFTERWORDS_PRECISION"] = config.precision
    if config.is_offline:
        environment["AFTERWORDS_OFFLINE"] = "1"
    if config.is_testing:
        environment["AFTERWORDS_TESTING"] = "1"
    return environment


def load_worker_config(settings: Settings) -> Config:
    """Return the settings of engines."""
    return replace(load_config(), home=settings.home, backends=settings.backends)


def _find_backends(config: Config) -> tuple[dict[str, BackendInfo], dict[str, Engine], str]:
    """Return the backends to offer, best first; the engines that can run here; and why if there are no backends.

    Backends that are named are offered even if they can't run here, since remote workers may run them: the languages
    are known without what an engine needs to run.
    """
    found = registry.backends(config)
    engines = {each.name: each.engine for each in found if each.is_available and each.engine is not None}
    backends = {
        each.name: BackendInfo(each.name, each.engine.backends[0], each.engine.prompt_version, each.languages)
        for each in found
        if each.engine is not None and (each.is_available or config.backends is not None)
    }
    reasons = [f"{backend.name}: {backend.state.reason}" for backend in found if isinstance(backend.state, Unavailable)]
    return backends, engines, "; ".join(reasons) or "none is installed"
