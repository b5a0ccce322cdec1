"""Synthesis of a text of any length: splits it into segments, decodes some ahead, and retries failed ones.

The engines call it. The schedulers know requests only, and no texts.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from afterwords.audio.effects import FADE_S, fade_from
from afterwords.audio.wav import Samples
from afterwords.backends.base import Chunk
from afterwords.backends.qwen3.request import DecodeRequest, FinishReason, SchedulerClosedError
from afterwords.errors import SynthesisError, TextError
from afterwords.text import split_chunks

if TYPE_CHECKING:
    from afterwords.models import SpeechTask

SEGMENT_CHARS: Final = 280
"""Longest segment: beyond about 20 s, the model drifts. Source: QwenLM/Qwen3-TTS issues 68 and 239."""
DENSE_CHARS: Final = 80
"""The same in Chinese, Japanese and Korean, where a character is a syllable or a word of 0.25 s."""
DENSE_LANGS: Final = frozenset({"zh", "ja", "ko"})
AHEAD: Final = 3
"""Segments of one text that are decoded ahead."""
PAUSE_S: Final = 0.15
SAMPLE_RATE: Final = 24_000
FADE: Final = round(FADE_S * SAMPLE_RATE)
"""Samples of fade-in and fade-out, so that segments join without a click."""
FRAMES_PER_TOKEN, FRAMES_MORE = 6, 50
"""An utterance longer than 6 frames per token and 4 s does not end by itself. Source: measured upstream."""
TRIES: Final = 3
"""Attempts for a segment that failed before any of it was streamed, each with another seed."""


class SpeechModel(Protocol):
    """A loaded checkpoint, in torch or MLX, with voices and requests of its own types."""

    def n_tokens(self, text: str) -> int: ...

    def make_request(
        self, voice: Any, text: str, lang: str, *, max_frames: int, seed: int
    ) -> DecodeRequest[Any, Any]: ...


class Scheduler(Protocol):
    """A scheduler, in torch or MLX."""

    def submit(self, request: Any) -> None: ...


def split_text(text: str, lang: str, model: SpeechModel) -> list[str]:
    """Split a text into segments, without those that have no token.

    Raises:
        TextError: No segment is left.
    """
    segments = split_chunks(text, max_chars=DENSE_CHARS if lang in DENSE_LANGS else SEGMENT_CHARS)
    if not (segments := [segment for segment in segments if model.n_tokens(segment)]):
        raise TextError(code="empty_text")
    return segments


class LongTextStream:
    """The audio of one text."""

    def __init__(self, model: SpeechModel, scheduler: Scheduler, voice: Any, task: SpeechTask) -> None:
        self._model, self._scheduler, self._voice, self._task = model, scheduler, voice, task
        self._segments = split_text(task.text, task.lang, model)
        self._requests: dict[int, DecodeRequest[Any, Any]] = {}  # submitted, by segment
        self._seed = random.getrandbits(63) if task.seed is None else task.seed

    def chunks(self) -> Generator[Chunk, None, None]:
        """Yield the audio of all segments in order.

        Raises:
            SynthesisError: A segment failed in every attempt, or after some of it was streamed.
        """
        last = len(self._segments) - 1
        try:
            for number in range(last + 1):
                for sound in smooth_edges(self._stream_segment(number), pause_s=PAUSE_S if number < last else 0.0):
                    yield Chunk(sound)
        finally:
            for request in self._requests.values():
                request.cancel()

    def _stream_segment(self, number: int) -> Iterator[Samples]:
        """Yield the audio of a segment; retry it with another seed while none of it was streamed."""
        for attempt in range(TRIES):
            if attempt:
                self._submit(number, attempt=attempt)
            self._requests = {place: request for place, request in self._requests.items() if place >= number}
            for place in range(number, min(number + AHEAD + 1, len(self._segments))):
                if place not in self._requests:
                    self._submit(place, attempt=0)
            request = self._requests[number]
            is_streamed = False
            for sound in request.stream():
                if not is_streamed and request.finish_reason not in (None, FinishReason.STOP):
                    break
                is_streamed = True
                yield sound
            request.cancel()
            if is_streamed and request.finish_reason is FinishReason.STOP:
                return
            if is_streamed or request.finish_reason is FinishReason.CANCELLED:
                break
        if request.finish_reason is FinishReason.CANCELLED:
            why = f"it raised {type(request.error).__name__}" if request.error else "the engine was closed"
        elif request.finish_reason is FinishReason.STOP:
            why = "the speech ended before its first sound"
        else:
            why = f"the speech did not come to its end ({request.finish_reason})"
        raise SynthesisError.for_backend(self._task.backend, why=why) from request.error

    def _submit(self, number: int, *, attempt: int) -> None:
        segment = self._segments[number]
        seed = (self._seed + 1_000_003 * number + 7_919 * attempt) % 2**63  # one for each segment and attempt
        max_frames = FRAMES_PER_TOKEN * self._model.n_tokens(segment) + FRAMES_MORE
        request = self._model.make_request(self._voice, segment, self._task.lang, max_frames=max_frames, seed=seed)
        request.is_seeded = self._task.seed is not None
        try:
            self._scheduler.submit(request)
        except SchedulerClosedError as error:
            raise SynthesisError.for_backend(self._task.backend, why="the engine was closed") from error
        self._requests[number] = request


def smooth_edges(sounds: Iterator[Samples], *, pause_s: float) -> Iterator[Samples]:
    """Fade a segment in and out, without waiting to see which samples are its last.

    Args:
        sounds: float32 samples of shape (n,) at 24 kHz.
        pause_s: Silence after the segment, following a fade of 5 ms from the last sample to 0.
    """
    n_before, last = 0, np.float32(0)
    for sound in sounds:
        if n_before < FADE:
            gain = np.arange(n_before, n_before + len(sound), dtype=np.float32) / FADE
            sound = sound * gain.clip(max=1)  # noqa: PLW2901 - the same samples, faded
        n_before += len(sound)
        last = sound[-1]
        yield sound
    yield np.concatenate([fade_from(float(last), SAMPLE_RATE), np.zeros(round(pause_s * SAMPLE_RATE), np.float32)])
