"""A speaking process as the server sees it: started, spoken to, watched, and ended.

`child` is the other side. Here nothing is known of jobs: whoever wants something spoken gets an Utterance to read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from afterwords.backends.base import Progress
from afterwords.backends.memory import resident_bytes
from afterwords.server.dispatch import messages
from afterwords.server.dispatch.changes import Changes
from afterwords.server.dispatch.messages import BrokenFrameError, Frame
from afterwords.server.dispatch.worker import Work

_log = logging.getLogger(__name__)

COMMAND: Final = (
    sys.executable,
    "-P",
    "-m",
    "afterwords.server.dispatch.worker_main",
)  # -P: no module of the folder it is in
TICK_S: Final = 0.1
NEAR_THE_CAP: Final = 0.9
"""A process that dies while it holds this part of its cap is taken to have died of it."""
FAR_BEYOND_THE_CAP: Final = 1.5
_PIPE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What a process may take.

    Attributes:
        start_allowance_s: the longest without progress while a model loads or a voice is prepared.
        stall_s: the longest without sound while something is spoken.
        memory_bytes: beyond it the process takes no more work; far beyond it, it is killed.
        recycle_after: utterances after which it takes no more.
    """

    start_allowance_s: float
    stall_s: float
    memory_bytes: int
    recycle_after: int


class ChildLostError(Exception):
    """The process died, or was killed.

    Attributes:
        code: of the API: "worker_lost", or what made no progress for too long.
    """

    def __init__(self, *, is_out_of_memory: bool, code: str = "worker_lost") -> None:
        super().__init__("it ran out of memory" if is_out_of_memory else _WHY[code])
        self.is_out_of_memory = is_out_of_memory
        self.code = code


LOADING, PREPARING, SPEAKING = "loading_timed_out", "preparing_timed_out", "speaking_timed_out"
_WHY: Final = {
    "worker_lost": "it died",
    LOADING: "it made no progress for longer than AFTERWORDS_START_ALLOWANCE_S allows",
    PREPARING: "it made no progress for longer than AFTERWORDS_START_ALLOWANCE_S allows",
    SPEAKING: "it made no sound for longer than AFTERWORDS_STALL_S allows",
}


class ChildFailedError(Exception):
    """The process lives, and could not do what it was asked.

    Attributes:
        code: of the API.
        kind: the name of the error's class.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.code: str = facts["error"]
        self.kind: str = facts["error_kind"]
        self.is_out_of_memory: bool = facts["is_out_of_memory"]
        super().__init__(facts["words"] or self.kind)


@dataclass(slots=True, eq=False)
class Utterance:
    """Something that is spoken in a process, from the asking to its last frame.

    Attributes:
        engine: that speaks, as in `Offer`; only so many at once.
        is_preparing: its voice is prepared first, and it does not speak yet.
        at: how far that is: a fraction, and the step that it is of.
        idle_s: how long it has made no progress.
        is_stuck: its process was killed for that.
    """

    number: int
    engine: str
    is_preparing: bool
    at: tuple[float, str] = (0.0, "")
    idle_s: float = 0.0
    is_stuck: bool = False
    is_over: bool = False
    synth_ms: int | None = None
    _arrived: asyncio.Queue[Frame | Exception | None] = field(default_factory=asyncio.Queue)

    async def next(self) -> Frame | None:
        """The next frame; None at the end.

        While its voice is prepared: `preparing`, with a fraction, and `checkpoint`. Then `speaking`, with the prompt
        if it is new, and `sound` after `sound`.

        Raises:
            ChildFailedError: it could not be spoken.
            ChildLostError: the process is gone.
        """
        arrived = await self._arrived.get()
        if isinstance(arrived, Exception):
            raise arrived
        return arrived

    def put(self, arrived: Frame | Exception | None) -> None:
        """Hand on what came: a frame, a failure, or the end."""
        self._arrived.put_nowait(arrived)


@dataclass(slots=True, eq=False)
class _Loading:
    """A backend that is being loaded."""

    progress: Progress
    done: asyncio.Future[None]
    at: tuple[float, str] = (0.0, "")
    idle_s: float = 0.0
    is_stuck: bool = False


class Child:
    """One speaking process.

    Attributes:
        changes: told whenever it can do more than before, or is gone.
        room: utterances at once, of each engine that is loaded, by what `Offer.engine` calls it.
        prepares_alongside: of these, those that speak while they prepare a voice.
        loaded: backends, each with the version of the prompts that it takes.
        utterances: those not over yet, cancelled ones among them.
        is_spent: it shall take no more work.
        is_lost: it is dead, or about to be.
    """

    def __init__(self, process: asyncio.subprocess.Process, limits: Limits) -> None:
        self.changes = Changes()
        self.room: dict[str, int] = {}
        self.prepares_alongside: set[str] = set()
        self.loaded: dict[str, str] = {}
        self.utterances: dict[int, Utterance] = {}
        self.is_spent = False
        self.is_lost = False
        self._is_stopped = False
        self._process = process
        self._limits = limits
        self._loadings: dict[str, _Loading] = {}
        self._n_begun = 0
        self._memory_bytes = 0
        self._reading = asyncio.create_task(self._read())
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(cls, limits: Limits, environment: Mapping[str, str]) -> Child:
        """Start a process. What it prints is dropped: a library may print what it was given to speak.

        Raises:
            OSError: the system starts no more processes.
        """
        process = await asyncio.create_subprocess_exec(
            *COMMAND,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
            limit=_PIPE_BYTES,
            start_new_session=True,  # Ctrl-C is for the server, and what the process starts can be killed with it
        )
        return cls(process, limits)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_busy(self) -> bool:
        return bool(self.utterances or self._loadings)

    async def load(self, backend: str, progress: Progress) -> None:
        """Load a backend; callers who come meanwhile wait for the same.

        Raises:
            ChildFailedError, ChildLostError: it is not loaded.
        """
        if backend in self.loaded:
            return
        if backend not in self._loadings:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            done.add_done_callback(lambda future: future.exception())  # asked for, even if nobody waits any more
            self._loadings[backend] = _Loading(progress, done)
            self._send(messages.pack("load", backend=backend))
            self.changes.tell()
        await asyncio.shield(self._loadings[backend].done)

    def speak(self, work: Work, *, engine: str) -> Utterance:
        """Have something spoken, by a backend that is loaded."""
        self._n_begun += 1
        self.is_spent = self.is_spent or self._n_begun >= self._limits.recycle_after
        utterance = Utterance(self._n_begun, engine, is_preparing=work.prompt is None)
        self.utterances[utterance.number] = utterance
        facts = asdict(work)
        parts = {name: facts.pop(name) for name in ("prompt", "checkpoint", "reference")}
        parts = {name: part for name, part in parts.items() if part is not None}
        lengths = {name: len(part) for name, part in parts.items()}
        self._send(messages.pack("speak", b"".join(parts.values()), number=utterance.number, work=facts, parts=lengths))
        self.changes.tell()
        return utterance

    def cancel(self, utterance: Utterance) -> None:
        """Stop an utterance; the others go on. It is over when the process says so."""
        if not utterance.is_over:
            self._send(messages.pack("cancel", number=utterance.number))

    def retire(self) -> None:
        """Give it no more work."""
        self.is_spent = True
        self.changes.tell()

    def kill(self) -> None:
        """Stop it, with all that it started: nothing is wrong with it, and it is not needed."""
        self._is_stopped = self._is_stopped or not self.is_lost
        self._kill()

    def _kill(self) -> None:
        self.is_lost = True
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                if sys.platform == "win32":
                    self._process.kill()
                else:
                    os.killpg(self.pid, signal.SIGKILL)

    async def end(self) -> None:
        """Make sure that it is gone, and nothing of it left."""
        self._watching.cancel()
        self.kill()
        await asyncio.wait([self._reading, self._watching])

    def _kill_for(self, why: str) -> None:
        if not self.is_lost:
            _log.warning("speaking process %d is killed: %s", self.pid, why)
            self._kill()

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        if not self.is_lost:  # whoever waits for an answer is told when it is gone
            self._process.stdin.write(data)

    # -- what it says

    async def _read(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        try:
            while (frame := await messages.receive(self._process.stdout)) is not None:
                self._take(frame)
        except (BrokenFrameError, LookupError, TypeError, ValueError):
            self._kill_for("it speaks no frames")
        self._kill()  # one that closed its output and lives is of no use
        self._process.stdin.close()
        status = await self._process.wait()
        with suppress(OSError):
            await self._process.stdin.wait_closed()
        is_out_of_memory = self._memory_bytes >= NEAR_THE_CAP * self._limits.memory_bytes
        if self._is_stopped:
            _log.info("speaking process %d stopped", self.pid)
        else:
            _log.warning("speaking process %d ended with status %d", self.pid, status)
        self._lose(is_out_of_memory=is_out_of_memory)

    def _lose(self, *, is_out_of_memory: bool) -> None:
        for loading in self._loadings.values():
            if loading.is_stuck:
                loading.done.set_exception(ChildLostError(is_out_of_memory=False, code=LOADING))
            elif not loading.done.done():
                loading.done.set_exception(ChildLostError(is_out_of_memory=is_out_of_memory))
        self._loadings.clear()
        for number, utterance in list(self.utterances.items()):
            if utterance.is_stuck:
                code = PREPARING if utterance.is_preparing else SPEAKING
                self._end(number, ChildLostError(is_out_of_memory=False, code=code))
            else:
                self._end(number, ChildLostError(is_out_of_memory=is_out_of_memory))
        self.changes.tell()

    def _take(self, frame: Frame) -> None:
        if frame.kind in ("loading", "loaded", "load-failed"):
            self._take_loading(frame)
            return
        utterance = self.utterances[frame.facts["number"]]
        if frame.kind == "ended":
            self._take_end(utterance, frame)
            return
        if frame.kind == "preparing":
            at = _at(frame)
            if at == utterance.at:  # said again, which is no progress
                return
            utterance.at = at
        elif frame.kind == "speaking":
            utterance.is_preparing = False
            self.changes.tell()
        if frame.kind != "sound" or frame.body:
            utterance.idle_s = 0.0
        utterance.put(frame)

    def _take_loading(self, frame: Frame) -> None:
        facts = frame.facts
        backend: str = facts["backend"]
        if frame.kind == "loading":
            loading, at = self._loadings[backend], _at(frame)
            if at != loading.at:
                loading.at, loading.idle_s = at, 0.0
                loading.progress(facts["fraction"], facts["step"])
            return
        loading = self._loadings.pop(backend)
        if frame.kind == "loaded":
            self.loaded[backend] = facts["prompt_version"]
            self.room[facts["engine"]] = facts["max_concurrent"]
            if facts["prepares_alongside"]:
                self.prepares_alongside.add(facts["engine"])
            self._measure(facts["peak"])
            loading.done.set_result(None)
        else:
            loading.done.set_exception(ChildFailedError(facts))
        self.changes.tell()

    def _take_end(self, utterance: Utterance, frame: Frame) -> None:
        self._measure(frame.facts["peak"])
        failure = ChildFailedError(frame.facts) if "error" in frame.facts else None
        if (failure and failure.is_out_of_memory) or frame.facts["is_outdated"]:
            self.is_spent = True
        utterance.synth_ms = frame.facts.get("synth_ms")
        self._end(utterance.number, failure)
        self.changes.tell()

    def _end(self, number: int, failure: Exception | None) -> None:
        utterance = self.utterances.pop(number)
        utterance.is_over = True
        utterance.put(failure)

    # -- what it takes

    async def _watch(self) -> None:
        while True:
            await self.changes.until(lambda: self.is_busy)
            await asyncio.sleep(TICK_S)
            self._measure(None)
            self._look_at_clocks()

    def _measure(self, peak_bytes: int | None) -> None:
        measured = resident_bytes(self.pid) or peak_bytes
        if measured is None:
            return
        self._memory_bytes = measured
        if measured > self._limits.memory_bytes:
            self.is_spent = True
            if measured > FAR_BEYOND_THE_CAP * self._limits.memory_bytes and self.is_busy:
                self._kill_for("it takes too much memory")

    def _look_at_clocks(self) -> None:
        """Count a tick without progress for each, and kill the process if one made none for too long.

        Ticks are counted, not time: a server that was itself held up must not blame its children.
        """
        allowance_s, stall_s = self._limits.start_allowance_s, self._limits.stall_s
        for backend, loading in self._loadings.items():
            loading.idle_s += TICK_S
            if loading.idle_s > allowance_s:
                loading.is_stuck = True
                self._kill_for(
                    f"loading {backend} made no progress for {allowance_s:g} s at {_percent(loading.at)} "
                    "(AFTERWORDS_START_ALLOWANCE_S)"
                )
        for utterance in self.utterances.values():
            utterance.idle_s += TICK_S
            if utterance.is_preparing and utterance.idle_s > allowance_s:
                utterance.is_stuck = True
                self._kill_for(
                    f"preparing a voice made no progress for {allowance_s:g} s at {_percent(utterance.at)} "
                    "(AFTERWORDS_START_ALLOWANCE_S)"
                )
            elif not utterance.is_preparing and utterance.idle_s > stall_s:
                utterance.is_stuck = True
                self._kill_for(f"an utterance made no sound for {stall_s:g} s (AFTERWORDS_STALL_S)")


def _at(frame: Frame) -> tuple[float, str]:
    return frame.facts["fraction"], frame.facts["step"]


def _percent(at: tuple[float, str]) -> str:
    return f"{100 * at[0]:.0f} %"
