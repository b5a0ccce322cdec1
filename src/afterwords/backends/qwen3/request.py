"""One utterance on its way: what is asked of whoever speaks it, its sound as it comes, and why it ended.

Apart from the loops that speak, since one runs on torch and another on MLX, and from the readings that hand turns in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sized
from dataclasses import dataclass, field
from enum import StrEnum
from queue import SimpleQueue
from typing import Final, Generic, Protocol, TypeVar

from afterwords.audio.wav import Samples
from afterwords.backends.qwen3.config import Sampling

BURSTS: Final = (1, 2, 4, 8)
"""Frames between two looks at the device: few at first, so that an utterance is heard at once, then more."""
LOOP_FRAMES: Final = 50
LOOP_MAX_PERIOD: Final = 12
"""First codes that go round in a period of up to 12 frames for 4 s are no speech any more."""


class Written(Protocol):
    """A prompt, on whatever device."""

    @property
    def columns(self) -> Sized: ...


PromptT = TypeVar("PromptT", bound=Written)
PrimedT = TypeVar("PrimedT")


class Finish(StrEnum):
    """Why an utterance ended."""

    STOP = "stop"
    LENGTH = "length"
    RUNAWAY = "runaway"
    CANCELLED = "cancelled"


class NotFiniteError(ArithmeticError):
    """The model made what is no number, so what it says is no speech."""

    def __init__(self) -> None:
        super().__init__("the model made numbers that are not finite")


class LoopClosedError(RuntimeError):
    """Nobody speaks here any more."""


@dataclass(slots=True, eq=False)
class Turn(Generic[PromptT, PrimedT]):
    """One utterance on its way through the loop.

    Attributes:
        primed: the codec behind the voice's reference; None begins in silence.
        sound: samples as they come, float32 of shape (n,), then None.
        is_seeded: its seed was asked for, so it shall sound the same whoever speaks beside it.
        is_awaited: whether somebody is reading it, or it is spoken ahead of its time.
        finish: why it ended, as soon as it has, though its sound may not have been read yet.
        error: what broke it.
        first_codes: of the last frames, to tell when they go round.
    """

    prompt: PromptT = field(repr=False)
    primed: PrimedT | None = field(repr=False)
    max_frames: int
    sampling: Sampling
    sound: SimpleQueue[Samples | None] = field(default_factory=SimpleQueue, repr=False)
    is_seeded: bool = False
    is_awaited: bool = False
    is_cancelled: bool = False
    finish: Finish | None = None
    error: Exception | None = None
    n_decoded: int = 0
    first_codes: deque[int] = field(default_factory=lambda: deque(maxlen=LOOP_FRAMES), repr=False)

    @property
    def n_columns(self) -> int:
        return len(self.prompt.columns)

    def heard(self) -> Iterator[Samples]:
        """The sound as it comes; behind it, `finish` and `error` say how it ended. Who stops reading gives it up."""
        self.is_awaited = True
        try:
            while (sound := self.sound.get()) is not None:
                yield sound
        finally:
            self.give_up()

    def give_up(self) -> None:
        """Free its row soon. Whoever hands a turn in reads it to its end, or gives it up."""
        self.is_cancelled = True

    def end(self, finish: Finish, error: Exception | None = None) -> None:
        """Let who reads it know that no more comes."""
        self.finish, self.error = finish, error
        self.sound.put(None)


def frames_due(n_spoken: int) -> int:
    """How many frames until somebody should hear something."""
    return next((burst for burst in BURSTS if n_spoken < 2 * burst - 1), BURSTS[-1])


def goes_round(codes: deque[int]) -> bool:
    """Whether the last frames repeat one short pattern over and over."""
    if len(codes) < LOOP_FRAMES:
        return False
    last = list(codes)
    return any(last[period:] == last[:-period] for period in range(1, LOOP_MAX_PERIOD + 1))
