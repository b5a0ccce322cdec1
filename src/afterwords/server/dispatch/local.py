"""The local dispatcher: claim jobs and run them in worker processes of this machine.

The server's process stays small: engines are asked which backends they have, and are loaded elsewhere. A crash, a hang
or a lack of memory there costs an attempt, never the server.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from typing import Final

from afterwords.backends import registry
from afterwords.backends.base import Engine, Unavailable, features, unspoken
from afterwords.backends.memory import memory_bytes
from afterwords.config import Config, load_config
from afterwords.errors import BackendUnavailableError, InvalidOptionError
from afterwords.server.dispatch.audio_stream import AudioListener, AudioStreams
from afterwords.server.dispatch.slots import SlotDispatcher
from afterwords.server.dispatch.worker_process import WorkerLimits
from afterwords.server.dispatch.worker_slot import BackendInfo, WorkerSlot
from afterwords.server.ports import JobQueue
from afterwords.server.settings import Settings

_log = logging.getLogger(__name__)

ATTEMPTS_MAX: Final = 32
"""Attempts at once for each process, including those whose audio is being delivered and waits in memory."""
CLUSTER_SECRETS: Final = "RAY_AUTH_"
"""Beginning of the variables that processes of a Ray cluster need."""
_SECRET_PREFIXES: Final = (
    CLUSTER_SECRETS,
    "AFTERWORDS_API_KEY",
    "AFTERWORDS_STRIPE_",
    "AFTERWORDS_WORKER_TOKEN",
    "AWS_",
    "MODAL_",
    "OTEL_",
    "PGPASS",
    "RUNPOD_",
)
"""Beginnings of variables that engines, which may be plug-ins, don't get; nor do they get the server's settings."""


class LocalDispatcher(SlotDispatcher):
    """Run jobs on this machine, in `settings.workers` processes; implements the port Dispatcher."""

    kind = "local"

    def __init__(
        self, settings: Settings, queue: JobQueue, streams: AudioStreams | None = None, *, config: Config | None = None
    ) -> None:
        config = config or load_worker_config(settings)
        super().__init__(settings, queue, streams)
        self._backends, self._engines, self._obstacle = _find_backends(config)
        self._environment = environment_for(config, os.environ)

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
            raise unknown_backend(settings, unknown[0])
        if not settings.backends and not any(backend.is_available for backend in listed):
            raise InvalidOptionError(
                "No backend can run on this machine, and AFTERWORDS_BACKENDS does not name those of other machines.",
                hint=f"set AFTERWORDS_BACKENDS to the backends of your workers, out of {', '.join(names)}.",
            )

    @property
    def _offered(self) -> Mapping[str, BackendInfo]:
        return self._backends

    @property
    def prepares(self) -> Set[str]:
        return self._backends.keys()

    @property
    def _runnable(self) -> Iterable[str]:
        return self._engines

    @property
    def _attempts_max(self) -> int:
        return ATTEMPTS_MAX * self._settings.workers

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
        self._slots = [
            WorkerSlot(first, limits=limits, environment=self._environment, on_change=self.wake)
            for _ in range(self._settings.workers)
        ]
        self._running = [asyncio.create_task(slot.run()) for slot in self._slots]
        self._forgetting = asyncio.create_task(self._forget_deleted())
        self._claims.start()

    def listen(self, job_id: str) -> AudioListener | None:
        if not self._settings.workers or not self._engines:
            return None
        return self._streams.listen(job_id)


def environment_for(config: Config, environ: Mapping[str, str], *, kept: str | None = None) -> dict[str, str]:
    """Return the environment of a worker process: the server's without its secrets, with the settings of engines.

    Args:
        kept: Beginning of secrets that it gets all the same.
    """
    dropped = tuple(prefix for prefix in _SECRET_PREFIXES if prefix != kept)
    server_settings = {f"AFTERWORDS_{name.upper()}" for name in Settings.model_fields}
    environment = {
        name: value
        for name, value in environ.items()
        if name.upper() not in server_settings and not name.upper().startswith(dropped)
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


def unknown_backend(settings: Settings, name: str) -> InvalidOptionError:
    """Return the error for a backend in AFTERWORDS_BACKENDS that no installed engine has."""
    installed = registry.backends(replace(load_worker_config(settings), backends=None))
    allowed = f"the names of installed backends ({', '.join(backend.name for backend in installed)})"
    return InvalidOptionError.for_option("AFTERWORDS_BACKENDS", value=name, allowed=allowed)


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
        each.name: BackendInfo(
            each.name, each.engine.backends[0], each.engine.prompt_version, each.languages, features(each.engine)
        )
        for each in found
        if each.engine is not None and (each.is_available or config.backends is not None)
    }
    reasons = [f"{backend.name}: {backend.state.reason}" for backend in found if isinstance(backend.state, Unavailable)]
    return backends, engines, "; ".join(reasons) or "none is installed"
