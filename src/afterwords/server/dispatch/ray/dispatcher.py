"""The dispatcher of a Ray cluster: claim jobs, and have replicas of Ray Serve speak them.

The database decides what happens to a job: a dead replica costs an attempt, a dead server lets the lease expire.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, ClassVar, Final

from afterwords.backends import registry
from afterwords.backends.base import features, unspoken
from afterwords.errors import MissingExtraError, UnreachableError
from afterwords.server.dispatch import messages
from afterwords.server.dispatch.audio_stream import AudioListener, AudioStreams
from afterwords.server.dispatch.local import CLUSTER_SECRETS, environment_for, load_worker_config
from afterwords.server.dispatch.messages import Message
from afterwords.server.dispatch.slots import SlotDispatcher
from afterwords.server.dispatch.worker import Work
from afterwords.server.dispatch.worker_process import (
    WorkerCrashedError,
    WorkerLimits,
    WorkerProcess,
    WorkerUtterance,
)
from afterwords.server.dispatch.worker_slot import BackendInfo, PromptVersionError, Slot, SlotUnavailableError
from afterwords.server.ports import JobQueue
from afterwords.server.settings import Settings

if TYPE_CHECKING:
    from afterwords.server.dispatch.attempt import Attempt

COMMAND: Final = (sys.executable, "-P", "-m", "afterwords.server.dispatch.ray.gateway")
REPORT_MAX_S: Final = 10.0
"""Age of the last report of the cluster from which no more jobs are claimed for it."""
CHECK_MAX_S: Final = 60.0
DELIVERING_MAX: Final = 32
"""Attempts beyond the capacity of the cluster: their audio is being delivered, or they wait to run alone."""
_UNLIMITED: Final = WorkerLimits(
    start_allowance_s=float("inf"), stall_s=float("inf"), memory_bytes=sys.maxsize, recycle_after=sys.maxsize
)
"""The gateway itself has no limits: replicas watch their engines."""


class GatewayProcess(WorkerProcess):
    """The process that is connected to the cluster.

    Attributes:
        was_connected: It reached the cluster.
        backends: The backends of the cluster.
        problem: Why it can't be used, or why a backend can't.
    """

    command: ClassVar = COMMAND

    def __init__(self, process: asyncio.subprocess.Process, limits: WorkerLimits) -> None:
        super().__init__(process, limits)
        self.was_connected = False
        self.backends: dict[str, BackendInfo] = {}
        self.problem = "it does not answer"
        self._reported = float("-inf")

    @property
    def is_current(self) -> bool:
        """Whether the cluster has been seen in the last seconds."""
        return not self.is_lost and asyncio.get_running_loop().time() - self._reported < REPORT_MAX_S

    def _handle(self, message: Message) -> None:
        facts = message.facts
        if message.kind == "connected":
            self.was_connected, self.problem = True, "looking for backends in the Ray cluster"
        elif message.kind == "unreachable":
            self.problem = f"{facts['why']} {facts['hint']}"
        elif message.kind == "lost":
            self._finish(
                self.utterances[facts["number"]], WorkerCrashedError(is_out_of_memory=False, code=facts["code"])
            )
        elif message.kind == "pool":
            self._reported = asyncio.get_running_loop().time()
            self.backends = {
                name: BackendInfo(
                    name,
                    found["engine"],
                    found["prompt_version"],
                    frozenset(found["languages"]),
                    frozenset(found["features"]),
                )
                for name, found in facts["backends"].items()
                if "engine" in found
            }
            self.capacity = {name: facts["backends"][name]["capacity"] for name in self.backends}
            problems = [found["problem"] for found in facts["backends"].values() if found["problem"]]
            if not facts["backends"]:
                problems = ["the cluster has no backend: afterwords cluster deploy --backend …"]
            self.problem = "; ".join(problems)
            self.changed.notify_all()
        else:
            super()._handle(message)


class RayPool(Slot):
    """The replicas of the cluster, reached through one gateway process.

    Attributes:
        backends: The backends of the cluster, as last seen.
    """

    def __init__(self, settings: Settings, *, environment: Mapping[str, str], on_change: Callable[[], None]) -> None:
        super().__init__(failure="the Ray cluster can't be used", environment=environment, on_change=on_change)
        self.state = "connecting to the Ray cluster"
        self.backends: dict[str, BackendInfo] = {}
        self._address = settings.ray_address
        self._limits = {"allowance_s": settings.start_allowance_s, "stall_s": settings.stall_s}
        self._gateway: GatewayProcess | None = None
        self._alone: dict[str, Attempt] = {}  # the attempt that may have killed a replica before, by backend

    async def _run_process(self) -> str | None:
        arguments = [self._address] if self._address else []
        try:
            self._process = self._gateway = gateway = await GatewayProcess.start(
                _UNLIMITED, self._environment, *arguments
            )
        except OSError as error:
            return type(error).__name__
        try:
            while not (gateway.is_lost or self._closed.is_set()):
                self.backends = gateway.backends or self.backends
                self.is_ready = any(gateway.capacity.values())
                self.state = gateway.problem or "ready"
                self._notify()
                await gateway.changed.wait()
        finally:
            self._gateway, self.is_ready, self.state = None, False, "the connection to the Ray cluster was lost"
            await gateway.end()
        return None if gateway.was_connected or self._closed.is_set() else gateway.problem

    @property
    def is_current(self) -> bool:
        """Whether the cluster has been seen in the last seconds."""
        return self._gateway is not None and self._gateway.is_current

    @property
    def capacity(self) -> int:
        """Utterances at once, in all backends."""
        return sum(self._gateway.capacity.values()) if self._gateway else 0

    def has_capacity(self, backend: BackendInfo) -> bool:
        if self._gateway is None or not self._gateway.is_current:
            return False
        n_taken = sum(
            attempt.backend.name == backend.name
            for attempt in self._attempts
            if not (attempt.is_alone and attempt in self._waiting)
        )
        return n_taken < self._gateway.capacity.get(backend.name, 0)

    def prompt_version(self, backend: BackendInfo) -> str:
        return self.backends.get(backend.name, backend).prompt_version

    async def speak(
        self, attempt: Attempt, work: Work, *, prompt_version: str
    ) -> tuple[WorkerProcess, WorkerUtterance]:
        """Start an utterance; one that may have killed a replica before waits until no other such one runs.

        They may share a replica with others, which lose one attempt at most.
        """
        name = work.backend
        if attempt.is_alone:
            await self._changed.wait_for(lambda: self._gateway is None or self._alone.get(name, attempt) is attempt)
        if self._gateway is None or name not in self._gateway.backends:
            raise SlotUnavailableError
        backend = self._gateway.backends[name]
        if prompt_version != backend.prompt_version:
            raise PromptVersionError
        if attempt.is_alone:
            self._alone[name] = attempt
        self._waiting.discard(attempt)
        limits = {"prompt_version": prompt_version, **self._limits}
        return self._gateway, self._gateway.speak(work, engine=backend.engine, limits=limits)

    def release(self, attempt: Attempt) -> None:
        if self._alone.get(attempt.backend.name) is attempt:
            del self._alone[attempt.backend.name]
        super().release(attempt)


class RayDispatcher(SlotDispatcher):
    """Run jobs in a Ray cluster; implements the port Dispatcher."""

    kind = "ray"

    def __init__(self, settings: Settings, queue: JobQueue, streams: AudioStreams | None = None) -> None:
        super().__init__(settings, queue, streams)
        config = load_worker_config(settings)
        found = registry.backends(config)
        self._engines = {each.name: each.engine for each in found if each.engine is not None}
        self._named = {
            name: BackendInfo(name, engine.backends[0], engine.prompt_version, engine.languages(name), features(engine))
            for name, engine in self._engines.items()
            if name in (settings.backends or ())
        }
        self._pool = RayPool(
            settings, environment=environment_for(config, os.environ, kept=CLUSTER_SECRETS), on_change=self.wake
        )
        self._slots = [self._pool]

    @staticmethod
    def check(settings: Settings) -> None:
        """Refuse to start a server that can't reach the cluster.

        Raises:
            MissingExtraError: Ray is not installed.
            InvalidOptionError: The address is invalid.
            UnreachableError: The cluster does not answer, or no node of it runs on this machine.
        """
        if find_spec("ray") is None:
            raise MissingExtraError.for_extra("ray", purpose="A Ray cluster")
        from afterwords.server.dispatch.ray.cluster import HINT, check_address

        if settings.ray_address:
            check_address(settings.ray_address)
        environment = environment_for(load_worker_config(settings), os.environ, kept=CLUSTER_SECRETS)
        command = [*COMMAND, *([settings.ray_address] if settings.ray_address else [])]
        why, hint = "The Ray cluster does not answer.", HINT
        try:
            output = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=CHECK_MAX_S,
                check=False,
            ).stdout
        except subprocess.TimeoutExpired:
            output = b""
        if message := messages.read(BytesIO(output)):
            if message.kind == "connected":
                return
            why, hint = message.facts["why"], message.facts["hint"]
        raise UnreachableError(why, hint=hint)

    @property
    def _offered(self) -> Mapping[str, BackendInfo]:
        """The backends that the settings name, else those of the cluster, in the order of `registry.PREFERENCE`."""
        if self._settings.backends is not None:
            known = {**self._named, **self._pool.backends}
            return {name: known[name] for name in self._settings.backends if name in known}
        rank = {name: place for place, name in enumerate(registry.PREFERENCE)}
        names = sorted(self._pool.backends, key=lambda name: (rank.get(name, len(rank)), name))
        return {name: self._pool.backends[name] for name in names}

    @property
    def _runnable(self) -> Iterable[str]:
        return [name for name in self._offered if name in self._pool.backends]

    @property
    def _attempts_max(self) -> int:
        return self._pool.capacity + DELIVERING_MAX

    def unspoken(self, backend: str, text: str) -> list[str]:
        engine = self._engines.get(backend)
        return [] if engine is None else unspoken(engine, text)

    @property
    def prompt_versions(self) -> Mapping[str, str]:
        return {name: backend.prompt_version for name, backend in self._offered.items()}

    @property
    def is_ready(self) -> bool:
        return not self._claims.is_closed and self._pool.is_ready and self._pool.is_current

    @property
    def state(self) -> str:
        if self._claims.is_closed:
            return "stopping"
        if self._pool.is_ready and not self._pool.is_current:
            return "the Ray cluster does not answer"
        return self._pool.state

    async def start(self) -> None:
        self._running = [asyncio.create_task(self._pool.run())]
        self._claims.start()

    def listen(self, job_id: str) -> AudioListener:
        return self._streams.listen(job_id)
