"""A worker process as the server sees it: started, given work, watched, and ended. `WorkerSlot` owns it.

`worker_main` is the code that runs in the process. Nothing here knows of jobs: a caller gets a WorkerUtterance to read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Final, Self

from afterwords.backends.base import Progress
from afterwords.backends.memory import resident_bytes
from afterwords.server.concurrency import Condition
from afterwords.server.dispatch import messages
from afterwords.server.dispatch.messages import MalformedMessageError, Message
from afterwords.server.dispatch.worker import Work

_log = logging.getLogger(__name__)

COMMAND: Final = (sys.executable, "-P", "-m", "afterwords.server.dispatch.worker_main")  # -P: not from this folder
TICK_S: Final = 0.1
NEAR_THE_LIMIT: Final = 0.9
"""A process that dies while it holds this share of its memory limit is taken to have run out of memory."""
FAR_BEYOND_THE_LIMIT: Final = 1.5
_PIPE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Limits of a worker process.

    Attributes:
        start_allowance_s: Longest time without progress while a model loads or a voice is prepared.
        stall_s: Longest time without audio, or words that are recognized in it, while an utterance is spoken.
        memory_bytes: Above it the process gets no more work; far above it, the process is killed.
        recycle_after: Utterances after which the process gets no more work.
    """

    start_allowance_s: float
    stall_s: float
    memory_bytes: int
    recycle_after: int


LOADING, PREPARING, SPEAKING = "loading_timed_out", "preparing_timed_out", "speaking_timed_out"
_REASONS: Final = {
    "worker_lost": "it died",
    "model_unavailable": "it could not load the model",
    LOADING: "it made no progress for longer than AFTERWORDS_START_ALLOWANCE_S allows",
    PREPARING: "it made no progress for longer than AFTERWORDS_START_ALLOWANCE_S allows",
    SPEAKING: "it made no sound for longer than AFTERWORDS_STALL_S allows",
}


class WorkerCrashedError(Exception):
    """The process died or was killed.

    Attributes:
        code: Of the API: "worker_lost", "model_unavailable", or the code of the timeout.
    """

    def __init__(self, *, is_out_of_memory: bool, code: str = "worker_lost") -> None:
        super().__init__("it ran out of memory" if is_out_of_memory else _REASONS[code])
        self.is_out_of_memory = is_out_of_memory
        self.code = code


class WorkerError(Exception):
    """The process lives, and failed to do its work.

    Attributes:
        code: Of the API.
        kind: Name of the error's class.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.code: str = facts["error"]
        self.kind: str = facts["error_kind"]
        self.is_out_of_memory: bool = facts["is_out_of_memory"]
        super().__init__(facts["words"] or self.kind)


@dataclass(slots=True, eq=False)
class WorkerUtterance:
    """An utterance in a worker process, from the request to its last message.

    Attributes:
        engine: Its engine, as in `BackendInfo`.
        voice_id: Its voice, which the engine may read, or read again, at any time until the end.
        is_preparing: The voice is being prepared first.
        is_silent: Only the prompt is wanted.
        position: Fraction and step of the preparation.
        idle_s: Time without progress.
        is_stuck: Its process was killed because it made no progress.
    """

    number: int
    engine: str
    voice_id: str
    is_preparing: bool
    is_silent: bool = False
    position: tuple[float, str] = (0.0, "")
    idle_s: float = 0.0
    is_stuck: bool = False
    is_over: bool = False
    synth_ms: int | None = None
    received: asyncio.Queue[Message | Exception | None] = field(default_factory=asyncio.Queue)

    async def next(self) -> Message | None:
        """Return the next message; None at the end.

        While the voice is prepared: `preparing`, with a fraction, and `checkpoint`. Then `speaking`, with the prompt
        if it is new, and `audio` after `audio`.

        Raises:
            WorkerError: It could not be spoken.
            WorkerCrashedError: The process is gone.
        """
        received = await self.received.get()
        if isinstance(received, Exception):
            raise received
        return received


@dataclass(slots=True, eq=False)
class _Loading:
    """A backend that is being loaded."""

    progress: Progress
    done: asyncio.Future[None]
    position: tuple[float, str] = (0.0, "")
    idle_s: float = 0.0
    is_stuck: bool = False


class WorkerProcess:
    """One worker process.

    Attributes:
        changed: Notified when it can do more than before, or is gone.
        capacity: Utterances at once for each loaded engine, by `BackendInfo.engine`.
        prepares_alongside: Engines that speak while they prepare a voice.
        loaded: Loaded backends, each with the version of the prompts that it takes.
        utterances: Utterances that are not over, cancelled ones included.
        voices: IDs of the voices that its engines may keep in memory.
        is_retired: It gets no more work.
        is_lost: It is dead, or about to be.
    """

    command: ClassVar[tuple[str, ...]] = COMMAND

    def __init__(self, process: asyncio.subprocess.Process, limits: WorkerLimits) -> None:
        self.changed = Condition()
        self.capacity: dict[str, int] = {}
        self.prepares_alongside: set[str] = set()
        self.loaded: dict[str, str] = {}
        self.utterances: dict[int, WorkerUtterance] = {}
        self.voices: set[str] = set()
        self.is_retired = False
        self.is_lost = False
        self._was_stopped = False
        self._process = process
        self._limits = limits
        self._loadings: dict[str, _Loading] = {}
        self._n_started = 0
        self._memory_bytes = 0
        self._reading = asyncio.create_task(self._read())
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(cls, limits: WorkerLimits, environment: Mapping[str, str], *arguments: str) -> Self:
        """Start a process. Its stderr is dropped: a library may print the text that it speaks.

        Raises:
            OSError: The system can't start another process.
        """
        process = await asyncio.create_subprocess_exec(
            *cls.command,
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
            limit=_PIPE_BYTES,
            start_new_session=True,  # Ctrl-C is for the server, and its own children can be killed with it
        )
        return cls(process, limits)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_busy(self) -> bool:
        return bool(self.utterances or self._loadings)

    async def load(self, backend: str, progress: Progress) -> None:
        """Load a backend; concurrent callers wait for the same load.

        Raises:
            WorkerError, WorkerCrashedError: It is not loaded.
        """
        if backend in self.loaded:
            return
        if backend not in self._loadings:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.add_done_callback(lambda future: future.exception())  # retrieved, even if no caller waits any more
            self._loadings[backend] = _Loading(progress, done)
            self._send(messages.pack("load", backend=backend))
            self.changed.notify_all()
        await asyncio.shield(self._loadings[backend].done)

    def speak(self, work: Work, *, engine: str, **options: object) -> WorkerUtterance:
        """Start an utterance with a loaded backend; `options` go into the message."""
        self._n_started += 1
        self.is_retired = self.is_retired or self._n_started >= self._limits.recycle_after
        utterance = WorkerUtterance(
            self._n_started,
            engine,
            work.voice_id,
            is_preparing=work.prompt is None,
            is_silent=work.text is None,
        )
        self.utterances[utterance.number] = utterance
        self.voices.add(work.voice_id)
        facts = asdict(work)
        parts = {name: facts.pop(name) for name in ("prompt", "checkpoint", "reference")}
        parts = {name: part for name, part in parts.items() if part is not None}
        lengths = {name: len(part) for name, part in parts.items()}
        body = b"".join(parts.values())
        self._send(messages.pack("speak", body, number=utterance.number, work=facts, parts=lengths, **options))
        self.changed.notify_all()
        return utterance

    def cancel(self, utterance: WorkerUtterance) -> None:
        """Stop an utterance; others continue. It is over when the process confirms it."""
        if not utterance.is_over:
            self._send(messages.pack("cancel", number=utterance.number))

    def forget(self, deleted: Set[str]) -> None:
        """Remove voices from the memory of the process. The other ones are read again when they speak."""
        if self.voices & deleted:
            self._send(messages.pack("forget"))
            self.voices = {utterance.voice_id for utterance in self.utterances.values()}

    def retire(self) -> None:
        """Give the process no more work."""
        self.is_retired = True
        self.changed.notify_all()

    def kill(self) -> None:
        """Stop a healthy process that is not needed any more, and its children."""
        self._was_stopped = self._was_stopped or not self.is_lost
        self._kill()

    async def end(self) -> None:
        """Kill the process and wait until it is gone."""
        self._watching.cancel()
        self.kill()
        await asyncio.wait([self._reading, self._watching])

    def _kill(self) -> None:
        self.is_lost = True
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                if sys.platform == "win32":
                    self._process.kill()
                else:
                    os.killpg(self.pid, signal.SIGKILL)

    def _kill_faulty(self, reason: str) -> None:
        if not self.is_lost:
            _log.warning("worker process %d is killed: %s", self.pid, reason)
            self._kill()

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        if not self.is_lost and not self._process.stdin.is_closing():  # callers learn of the end from the reader
            self._process.stdin.write(data)

    # -- messages from the process

    async def _read(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        try:
            while (message := await messages.receive(self._process.stdout)) is not None:
                self._handle(message)
        except (MalformedMessageError, LookupError, TypeError, ValueError):
            self._kill_faulty("it sent a malformed message")
        self._kill()  # a process that closed its output is useless
        self._process.stdin.close()
        status = await self._process.wait()
        with suppress(OSError):
            await self._process.stdin.wait_closed()
        if self._was_stopped:
            _log.info("worker process %d stopped", self.pid)
        else:
            _log.warning("worker process %d ended with status %d", self.pid, status)
        is_out_of_memory = self._memory_bytes >= NEAR_THE_LIMIT * self._limits.memory_bytes
        for loading in self._loadings.values():
            if loading.is_stuck:
                loading.done.set_exception(WorkerCrashedError(is_out_of_memory=False, code=LOADING))
            elif not loading.done.done():
                loading.done.set_exception(WorkerCrashedError(is_out_of_memory=is_out_of_memory))
        self._loadings.clear()
        for utterance in list(self.utterances.values()):
            if utterance.is_stuck:
                code = PREPARING if utterance.is_preparing else SPEAKING
                self._finish(utterance, WorkerCrashedError(is_out_of_memory=False, code=code))
            else:
                self._finish(utterance, WorkerCrashedError(is_out_of_memory=is_out_of_memory))
        self.changed.notify_all()

    def _handle(self, message: Message) -> None:
        facts = message.facts
        if message.kind in ("loading", "loaded", "load-failed"):
            self._handle_loading(message)
            return
        utterance = self.utterances[facts["number"]]
        if message.kind == "ended":
            self._check_memory(facts["peak"])
            failure = WorkerError(facts) if "error" in facts else None
            if (failure and failure.is_out_of_memory) or facts["is_outdated"]:
                self.is_retired = True
            utterance.synth_ms = facts.get("synth_ms")
            self._finish(utterance, failure)
            self.changed.notify_all()
            return
        if message.kind == "preparing":
            position = facts["fraction"], facts["step"]
            if position == utterance.position:  # repeated, so the idle time goes on
                return
            utterance.position = position
        elif message.kind == "speaking":
            utterance.is_preparing = False
            self.changed.notify_all()
        if message.kind != "audio" or message.body:
            utterance.idle_s = 0.0
        utterance.received.put_nowait(message)

    def _handle_loading(self, message: Message) -> None:
        facts = message.facts
        backend: str = facts["backend"]
        if message.kind == "loading":
            loading, position = self._loadings[backend], (facts["fraction"], facts["step"])
            if position != loading.position:
                loading.position, loading.idle_s = position, 0.0
                loading.progress(*position)
            return
        loading = self._loadings.pop(backend)
        if message.kind == "loaded":
            self.loaded[backend] = facts["prompt_version"]
            self.capacity[facts["engine"]] = facts["max_concurrent"]
            if facts["prepares_alongside"]:
                self.prepares_alongside.add(facts["engine"])
            self._check_memory(facts["peak"])
            loading.done.set_result(None)
        else:
            loading.done.set_exception(WorkerError(facts))
        self.changed.notify_all()

    def _finish(self, utterance: WorkerUtterance, failure: Exception | None) -> None:
        del self.utterances[utterance.number]
        utterance.is_over = True
        utterance.received.put_nowait(failure)

    # -- limits

    async def _watch(self) -> None:
        while True:
            await self.changed.wait_for(lambda: self.is_busy)
            await asyncio.sleep(TICK_S)
            self._check_memory(None)
            self._check_progress()

    def _check_memory(self, peak_bytes: int | None) -> None:
        measured = resident_bytes(self.pid) or peak_bytes
        if measured is None:
            return
        self._memory_bytes = measured
        if measured > self._limits.memory_bytes:
            self.is_retired = True
            if measured > FAR_BEYOND_THE_LIMIT * self._limits.memory_bytes and self.is_busy:
                self._kill_faulty("it takes too much memory")

    def _check_progress(self) -> None:
        """Count a tick for each task, and kill the process if one made no progress for too long.

        Ticks are counted instead of time: a server that was itself suspended must not blame its workers.
        """
        allowance_s, stall_s = self._limits.start_allowance_s, self._limits.stall_s
        for backend, loading in self._loadings.items():
            loading.idle_s += TICK_S
            if loading.idle_s > allowance_s:
                loading.is_stuck = True
                self._kill_faulty(
                    f"loading {backend} made no progress for {allowance_s:g} s at {100 * loading.position[0]:.0f} % "
                    "(AFTERWORDS_START_ALLOWANCE_S)"
                )
        for utterance in self.utterances.values():
            utterance.idle_s += TICK_S
            if utterance.is_preparing and utterance.idle_s > allowance_s:
                utterance.is_stuck = True
                self._kill_faulty(
                    f"preparing a voice made no progress for {allowance_s:g} s at {100 * utterance.position[0]:.0f} % "
                    "(AFTERWORDS_START_ALLOWANCE_S)"
                )
            elif not utterance.is_preparing and utterance.idle_s > stall_s:
                utterance.is_stuck = True
                self._kill_faulty(f"an utterance made no sound for {stall_s:g} s (AFTERWORDS_STALL_S)")
