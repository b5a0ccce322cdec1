"""A place where one process speaks at a time: it is started, loaded, replaced when it is spent or dead.

The dispatcher has a station for each of its processes and seats attempts there; which of them may speak when is
decided here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from afterwords.backends.base import ignore_progress
from afterwords.server.dispatch.changes import Changes
from afterwords.server.dispatch.retry import wait_at_most
from afterwords.server.dispatch.worker import Work
from afterwords.server.dispatch.worker_process import Child, ChildFailedError, ChildLostError, Limits, Utterance

_log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Offer:
    """A backend that is spoken here, and what is known of its engine without loading it.

    Attributes:
        engine: the first of its backends, which tells it from every other: two engines of one name, for example for
            two sizes of a model, are loaded apart, and each has room of its own.
    """

    backend: str
    engine: str
    prompt_version: str
    languages: frozenset[str]


class StationClosedError(Exception):
    """No process can be started here at the moment."""


class OtherPromptError(Exception):
    """The process takes prompts of another version: its weights are newer, or older, than was known."""


class Guest(Protocol):
    """Who wants to speak at a station."""

    @property
    def offer(self) -> Offer: ...

    @property
    def is_alone(self) -> bool:
        """Whether nobody else may speak in the same process meanwhile."""
        ...

    @property
    def must_prepare(self) -> bool:
        """Whether its voice has to be prepared before it speaks, as far as it knows."""
        ...


class Station:
    """One place to speak.

    Attributes:
        state: what it is doing, for people.
        is_ready: whether a process is loaded, or was and is being replaced.
    """

    def __init__(
        self, first: Offer, *, limits: Limits, environment: Mapping[str, str], on_change: Callable[[], None]
    ) -> None:
        self.state = "starting"
        self.is_ready = False
        self._first = first
        self._limits = limits
        self._environment = environment
        self._on_change = on_change
        self._changes = Changes()
        self._closed = asyncio.Event()
        self._process: Child | None = None
        self._child: Child | None = None  # the process while it can speak
        self._guests: set[Guest] = set()
        self._silent: set[Guest] = set()  # those of them who did not begin yet

    # -- keeping a process

    async def keep(self) -> None:
        """Keep a process at work until the station is closed; then it is gone."""
        pause_s = FIRST_PAUSE_S
        while not self._closed.is_set():
            why = await self._one_life()
            if why is None:
                pause_s = FIRST_PAUSE_S
                continue
            self.is_ready = False
            self.state = f"{self._first.backend} can't be loaded ({why}); trying again in {pause_s:.0f} s"
            _log.error("%s", self.state)
            self._tell()
            await wait_at_most(pause_s, self._closed)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def close(self) -> None:
        """Keep no process any more, and kill the one that is there."""
        self._closed.set()
        if self._process:
            self._process.kill()

    async def _one_life(self) -> str | None:
        """Start a process, load it, and let it work until it is spent or dead; returns why it never worked."""
        try:
            self._process = child = await Child.start(self._limits, self._environment)
        except OSError as error:
            return type(error).__name__
        try:
            if self._closed.is_set():
                return None
            await child.load(self._first.backend, self._tell_progress)
            if child.is_spent:
                return "it takes more memory than AFTERWORDS_WORKER_MEMORY_MB allows"
            self._child, self.is_ready, self.state = child, True, "ready"
            _log.info("speaking process %d is ready", child.pid)
            await self._work(child)
        except (ChildFailedError, ChildLostError) as error:
            return None if self._closed.is_set() else str(error)
        except Exception as error:  # noqa: BLE001 - a station outlives whatever becomes of a process
            return type(error).__name__
        finally:
            self._child = None
            await child.end()
        return None

    async def _work(self, child: Child) -> None:
        while not (child.is_lost or (child.is_spent and not child.is_busy)):
            self._tell()
            await child.changes.next()

    def _tell_progress(self, fraction: float, step: str) -> None:  # noqa: ARG002 - steps are for those who wait at it
        self.state = f"loading {self._first.backend}, {100 * fraction:.0f} %"

    def _tell(self) -> None:
        self._changes.tell()
        self._on_change()

    # -- who speaks in it

    @property
    def n_guests(self) -> int:
        return len(self._guests)

    def has_room(self, offer: Offer) -> bool:
        """Whether one more might begin now with that backend."""
        child = self._child
        if child is None or child.is_spent or child.is_lost or any(guest.is_alone for guest in self._guests):
            return False
        n_waiting = sum(guest.offer.engine == offer.engine for guest in self._silent if not _is_aside(child, guest))
        return _n_speaking(child, offer) + n_waiting < child.room.get(offer.engine, 1)

    def prompt_version(self, offer: Offer) -> str:
        """The version of the prompts that a backend takes, as its process says, else as it was known before."""
        return self._child.loaded.get(offer.backend, offer.prompt_version) if self._child else offer.prompt_version

    def seat(self, guest: Guest) -> None:
        """Keep a place for a guest, until it leaves."""
        self._guests.add(guest)
        self._silent.add(guest)

    def leave(self, guest: Guest) -> None:
        """Give the place to others; a guest may leave twice."""
        self._guests.discard(guest)
        self._silent.discard(guest)
        self._tell()

    async def speak(self, guest: Guest, work: Work, *, prompt_version: str) -> tuple[Child, Utterance]:
        """Wait for the guest's turn and begin; loads the backend first, if that was not done.

        Raises:
            OtherPromptError: the work was written for another version; the guest still waits for its turn.
            ChildLostError: the process died of loading the backend, or could not, or took too long.
            StationClosedError: no process can be started.
        """
        while True:
            await self._changes.until(lambda: self._is_turn_of(guest) or not self.is_ready)
            child = self._child
            if child is None or not self.is_ready:
                raise StationClosedError
            if work.backend in child.loaded:
                if prompt_version != child.loaded[work.backend]:
                    raise OtherPromptError
                self._silent.discard(guest)
                return child, child.speak(work, engine=guest.offer.engine)
            try:
                await child.load(work.backend, ignore_progress)
            except ChildFailedError as error:
                _log.error("%s can't be loaded: %s", work.backend, error)
                child.retire()
                raise ChildLostError(is_out_of_memory=error.is_out_of_memory) from error

    def _is_turn_of(self, guest: Guest) -> bool:
        child = self._child
        if child is None or child.is_spent or child.is_lost:
            return False
        if guest.is_alone:
            return not child.utterances and all(other.is_alone for other in self._silent)
        if _is_aside(child, guest):
            return not any(_prepares_aside(child, other) for other in child.utterances.values())
        return _n_speaking(child, guest.offer) < child.room.get(guest.offer.engine, 1)


def _n_speaking(child: Child, offer: Offer) -> int:
    return sum(
        utterance.engine == offer.engine and not _prepares_aside(child, utterance)
        for utterance in child.utterances.values()
    )


def _is_aside(child: Child, guest: Guest) -> bool:
    """Whether a guest will prepare its voice while others speak: one at a time, and not counted among them."""
    return guest.must_prepare and guest.offer.engine in child.prepares_alongside


def _prepares_aside(child: Child, utterance: Utterance) -> bool:
    return utterance.is_preparing and utterance.engine in child.prepares_alongside
