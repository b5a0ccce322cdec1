"""What runs in a Ray cluster: replicas that each hold the engine of one backend. Imported only where Ray is.

A replica knows no queue and no database. Gateways call it with a text and a prompt or recording, and it yields messages
as a worker process sends them. It raises nothing: Ray would log the error, which may quote the text.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final

from ray import serve

from afterwords import __version__
from afterwords.backends.base import features
from afterwords.config import load_config
from afterwords.server.dispatch.local import CLUSTER_SECRETS, environment_for
from afterwords.server.dispatch.worker import Work, Worker

Event = tuple[str, dict[str, Any], bytes]
"""A message: its kind, facts, and body."""
WARM_VOICES: Final = 16
"""How many voices are routed to the same replica: as many as an engine keeps prompts for."""
TICK_S: Final = 0.1
"""Idle time is counted in ticks: a machine that was suspended must not blame its engines."""
LAST_WORDS_S: Final = 1.0
"""How long a replica whose engine hangs lives on, so that its last message arrives."""


@dataclass(frozen=True, slots=True)
class Description:
    """What gateways know of the replicas of a backend.

    Attributes:
        version: Of afterwords; gateways of another version give it no work.
        engine: The first backend of its engine, as in `BackendInfo`.
        max_replicas: Replicas that the cluster starts when many jobs wait.
    """

    version: str
    engine: str
    languages: tuple[str, ...]
    prompt_version: str
    features: tuple[str, ...]
    max_concurrent: int
    max_replicas: int


class Replica:
    """One engine in a process of the cluster."""

    def __init__(self, backend: str, max_replicas: int) -> None:
        os.environ["AFTERWORDS_BACKENDS"] = backend
        clean = environment_for(load_config(), os.environ, kept=CLUSTER_SECRETS)
        os.environ.clear()  # an engine may be a plug-in, and `ray start` may have inherited the secrets of a server
        os.environ.update(clean)
        self._backend = backend
        self._max_replicas = max_replicas
        self._is_hung = False
        self._worker = Worker()
        self._engine = self._worker.engine(backend)
        self._engine.load(backend)
        self._room = asyncio.Semaphore(self._engine.max_concurrent)
        nothing = os.open(os.devnull, os.O_WRONLY)
        for output in (1, 2):  # Ray keeps it in files, and a library may print the text that it speaks
            os.dup2(nothing, output)
        os.close(nothing)

    async def describe(self) -> Description:
        """Return what gateways need to know."""
        engine = self._engine
        return Description(
            version=__version__,
            engine=engine.backends[0],
            languages=tuple(sorted(engine.languages(self._backend))),
            prompt_version=engine.prompt_version,
            features=tuple(features(engine)),
            max_concurrent=engine.max_concurrent,
            max_replicas=self._max_replicas,
        )

    @serve.multiplexed(max_num_models_per_replica=WARM_VOICES)  # type: ignore[untyped-decorator]
    async def _mark_warm(self, voice_id: str) -> str:
        """Let Ray route further work of this voice here, where the engine has its prompt in memory."""
        return voice_id

    async def speak(
        self, work: Work, *, prompt_version: str, allowance_s: float, stall_s: float
    ) -> AsyncGenerator[Event, None]:
        """Yield the messages of an utterance; the last one is `ended` or `lost`, or the only one is `refused`.

        Args:
            prompt_version: That of the prompt in `work`, or for which a new one will be stored.
            allowance_s: Longest time without progress while the voice is prepared.
            stall_s: Longest time without audio.
        """
        if self._is_hung:
            yield "refused", {}, b""
            return
        if prompt_version != self._engine.prompt_version:
            yield "lost", {"code": "worker_lost"}, b""  # the next attempt knows the new version
            return
        await self._mark_warm(work.voice_id)
        async with self._room:
            async for event in self._speak(work, allowance_s=allowance_s, stall_s=stall_s):
                yield event

    async def _speak(self, work: Work, *, allowance_s: float, stall_s: float) -> AsyncGenerator[Event, None]:
        loop = asyncio.get_running_loop()
        received: asyncio.Queue[Event] = asyncio.Queue()
        cancelled = threading.Event()

        def send(kind: str, body: bytes = b"", **facts: Any) -> None:
            loop.call_soon_threadsafe(received.put_nowait, (kind, facts, body))

        def run() -> None:
            send("ended", **self._worker.speak(work, cancelled, send))

        threading.Thread(target=run, daemon=True).start()
        kind, position, idle_s = "", (0.0, ""), 0.0
        is_speaking = work.prompt is not None
        try:
            while kind != "ended":
                try:
                    async with asyncio.timeout(TICK_S):
                        kind, facts, body = await received.get()
                except TimeoutError:
                    idle_s += TICK_S
                    if idle_s <= (stall_s if is_speaking else allowance_s):
                        continue
                    self._is_hung = True
                    yield "lost", {"code": "speaking_timed_out" if is_speaking else "preparing_timed_out"}, b""
                    # Nothing but the end of its process stops an engine that hangs. Ray starts another one.
                    loop.call_later(LAST_WORDS_S, os.kill, os.getpid(), signal.SIGKILL)
                    return
                if kind == "preparing":
                    if (facts["fraction"], facts["step"]) == position:  # repeated, so the idle time goes on
                        continue
                    position = facts["fraction"], facts["step"]
                is_speaking = is_speaking or kind == "speaking"
                if kind != "audio" or body:
                    idle_s = 0.0
                yield kind, facts, body
        finally:
            cancelled.set()
