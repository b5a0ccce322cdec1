"""A text on its way through the loop, piece by piece: what makes one utterance of them, and what is done if one fails.

Apart from the loop, which knows turns and no texts, and from the engine, which knows neither.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from afterwords.audio.wav import Samples
from afterwords.backends.base import Chunk
from afterwords.backends.qwen3.request import DecodeRequest, FinishReason, SchedulerClosedError
from afterwords.errors import SynthesisError, TextError
from afterwords.text import split_chunks

if TYPE_CHECKING:
    from afterwords.models import SpeechTask

SEGMENT_CHARS: Final = 280
"""Longest piece spoken at once: beyond some 20 s, the model drifts. Source: QwenLM/Qwen3-TTS issues 68 and 239."""
DENSE_CHARS: Final = 80
"""The same in Chinese, Japanese and Korean, where a character is a syllable or a word, 0.25 s of speech."""
DENSE_LANGS: Final = frozenset({"zh", "ja", "ko"})
AHEAD: Final = 3
"""Pieces of one text that are spoken before they are asked for."""
PAUSE_S: Final = 0.15
SAMPLE_RATE: Final = 24_000
FADE: Final = 120
"""Samples, 5 ms, over which a piece comes and goes, so that pieces join without a click."""
FRAMES_PER_TOKEN, FRAMES_MORE = 6, 50
"""An utterance of more frames than 6 a token and 4 s does not end by itself any more. Source: measured upstream."""
TRIES: Final = 3
"""A piece that ran away before any of it was heard is spoken again, with another seed."""


class SpeechModel(Protocol):
    """What a reading asks of a loaded checkpoint; voices and turns are of its own kind."""

    def n_tokens(self, text: str) -> int: ...

    def make_request(
        self, voice: Any, text: str, lang: str, *, max_frames: int, seed: int
    ) -> DecodeRequest[Any, Any]: ...


class Scheduler(Protocol):
    """Who speaks turns."""

    def submit(self, request: Any) -> None: ...


def split_text(text: str, lang: str, model: SpeechModel) -> list[str]:
    """What is spoken at once; what the tokenizer makes nothing of is left out.

    Raises:
        TextError: that is all of it.
    """
    pieces = split_chunks(text, max_chars=DENSE_CHARS if lang in DENSE_LANGS else SEGMENT_CHARS)
    if not (pieces := [piece for piece in pieces if model.n_tokens(piece)]):
        raise TextError(code="empty_text")
    return pieces


class LongTextStream:
    """One text, read aloud once."""

    def __init__(self, model: SpeechModel, scheduler: Scheduler, voice: Any, task: SpeechTask) -> None:
        self._model, self._scheduler, self._voice, self._task = model, scheduler, voice, task
        self._pieces: Sequence[str] = split_text(task.text, task.lang, model)
        self._turns: dict[int, DecodeRequest[Any, Any]] = {}  # those handed in, by their piece
        self._seed = random.getrandbits(63) if task.seed is None else task.seed

    def chunks(self) -> Generator[Chunk, None, None]:
        """The sound of all pieces in order.

        Raises:
            SynthesisError: a piece went wrong every time, or after it was heard.
        """
        last = len(self._pieces) - 1
        try:
            for number in range(last + 1):
                for sound in smooth_edges(self._piece(number), pause_s=PAUSE_S if number < last else 0.0):
                    yield Chunk(sound)
        finally:
            for request in self._turns.values():
                request.cancel()

    def _piece(self, number: int) -> Iterator[Samples]:
        """The sound of a piece. While none of it was heard, a bad one is spoken again, with another seed."""
        for attempt in range(TRIES):
            if attempt:
                self._hand_in(number, attempt=attempt)
            self._look_ahead(number)
            request = self._turns[number]
            is_heard = False
            for sound in request.stream():
                if not is_heard and request.finish_reason not in (None, FinishReason.STOP):
                    break
                is_heard = True
                yield sound
            request.cancel()
            if is_heard and request.finish_reason is FinishReason.STOP:
                return
            if is_heard or request.finish_reason is FinishReason.CANCELLED:
                break
        raise self._failed(request) from request.error

    def _failed(self, request: DecodeRequest[Any, Any]) -> SynthesisError:
        if request.finish_reason is FinishReason.CANCELLED:
            why = f"it raised {type(request.error).__name__}" if request.error else "the engine was closed"
        elif request.finish_reason is FinishReason.STOP:
            why = "the speech ended before its first sound"
        else:
            why = f"the speech did not come to its end ({request.finish_reason})"
        return SynthesisError.for_backend(self._task.backend, why=why)

    def _look_ahead(self, number: int) -> None:
        """Hand in a piece and those behind it."""
        self._turns = {place: request for place, request in self._turns.items() if place >= number}
        for place in range(number, min(number + AHEAD + 1, len(self._pieces))):
            if place not in self._turns:
                self._hand_in(place, attempt=0)

    def _hand_in(self, number: int, *, attempt: int) -> None:
        piece = self._pieces[number]
        seed = (self._seed + 1_000_003 * number + 7_919 * attempt) % 2**63  # each piece and try draws its own
        max_frames = FRAMES_PER_TOKEN * self._model.n_tokens(piece) + FRAMES_MORE
        request = self._model.make_request(self._voice, piece, self._task.lang, max_frames=max_frames, seed=seed)
        request.is_seeded = self._task.seed is not None
        try:
            self._scheduler.submit(request)
        except SchedulerClosedError as error:
            raise SynthesisError.for_backend(self._task.backend, why="the engine was closed") from error
        self._turns[number] = request


def smooth_edges(sounds: Iterator[Samples], *, pause_s: float) -> Iterator[Samples]:
    """A piece that comes from silence and goes back into it, without waiting to see which sound is its last.

    Args:
        sounds: of shape (n,), float32 at 24 kHz; the first ones fade in.
        pause_s: of silence behind the piece. In front of it, 5 ms lead from the last sample down to 0.
    """
    n_before, last = 0, np.float32(0)
    for sound in sounds:
        if n_before < FADE:
            rise = np.arange(n_before, n_before + len(sound), dtype=np.float32) / FADE
            sound = sound * rise.clip(max=1)  # noqa: PLW2901 - the same sound, quieter
        n_before += len(sound)
        last = sound[-1]
        yield sound
    fall = np.linspace(1, 0, FADE, dtype=np.float32)
    yield np.concatenate([last * fall, np.zeros(round(pause_s * SAMPLE_RATE), np.float32)])
