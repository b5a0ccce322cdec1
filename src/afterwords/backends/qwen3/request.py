"""One utterance to decode: its prompt and limits, its audio as it is made, and why it ended.

Shared by the schedulers, in torch and in MLX, and by `long_text`, which submits the requests.
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

STEPS_PER_READ: Final = (1, 2, 4, 8)
"""Decode steps between two reads of the device: few at first, for a short time to the first audio, then more."""
REPEAT_FRAMES: Final = 50
REPEAT_MAX_PERIOD: Final = 12
"""First codes that repeat with a period of up to 12 frames for 4 s are not speech."""


class HasColumns(Protocol):
    """A prompt, on any device."""

    @property
    def columns(self) -> Sized: ...


PromptT = TypeVar("PromptT", bound=HasColumns)
StateT = TypeVar("StateT")


class FinishReason(StrEnum):
    """Why an utterance ended."""

    STOP = "stop"
    LENGTH = "length"
    RUNAWAY = "runaway"
    CANCELLED = "cancelled"


class NotFiniteError(ArithmeticError):
    """The model produced NaN or infinity."""

    def __init__(self) -> None:
        super().__init__("the model made numbers that are not finite")


class SchedulerClosedError(RuntimeError):
    """The scheduler was closed and accepts no requests."""


@dataclass(slots=True, eq=False)
class DecodeRequest(Generic[PromptT, StateT]):
    """One utterance to decode.

    Attributes:
        codec_state: State of the codec after the voice's reference; None starts in silence.
        sound: Samples as they are decoded, float32 of shape (n,), then None.
        is_seeded: Whether the client chose the seed, so that the audio must not depend on the rest of the batch.
        is_streaming: Whether a client reads the audio now, or it is decoded ahead of its time.
        finish_reason: Set as soon as the utterance has ended, possibly before its audio is read.
        error: The exception that ended it, if any.
        n_decoded: Number of frames decoded so far.
        first_codes: First codes of the last frames, to detect repetition.
    """

    prompt: PromptT = field(repr=False)
    codec_state: StateT | None = field(repr=False)
    max_frames: int
    sampling: Sampling
    sound: SimpleQueue[Samples | None] = field(default_factory=SimpleQueue, repr=False)
    is_seeded: bool = False
    is_streaming: bool = False
    is_cancelled: bool = False
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    n_decoded: int = 0
    first_codes: deque[int] = field(default_factory=lambda: deque(maxlen=REPEAT_FRAMES), repr=False)

    @property
    def n_columns(self) -> int:
        return len(self.prompt.columns)

    def stream(self) -> Iterator[Samples]:
        """Yield the audio as it is decoded; closing the iterator cancels the request.

        After the last samples, `finish_reason` and `error` say how it ended.
        """
        self.is_streaming = True
        try:
            while (sound := self.sound.get()) is not None:
                yield sound
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Free the row soon. A submitted request must be streamed to its end or cancelled."""
        self.is_cancelled = True

    def finish(self, reason: FinishReason, error: Exception | None = None) -> None:
        """End the audio."""
        self.finish_reason, self.error = reason, error
        self.sound.put(None)


def steps_due(n_decoded: int) -> int:
    """Return the number of decode steps before the audio of an utterance should be read."""
    return next((steps for steps in STEPS_PER_READ if n_decoded < 2 * steps - 1), STEPS_PER_READ[-1])


def is_looping(codes: deque[int]) -> bool:
    """Return whether the last frames repeat one short pattern."""
    if len(codes) < REPEAT_FRAMES:
        return False
    last = list(codes)
    return any(last[period:] == last[:-period] for period in range(1, REPEAT_MAX_PERIOD + 1))
