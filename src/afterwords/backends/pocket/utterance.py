"""One text while it is spoken: a thread generates frames, and the thread that reads the sound decodes them.

Both are kept busy that way, as in the package, and a slow reader only lets small frames wait.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from queue import SimpleQueue
from typing import Final, cast

import numpy as np
import torch
from torch import Tensor

from afterwords.audio.effects import fade_from
from afterwords.audio.wav import Samples
from afterwords.backends.pocket.model import SAMPLE_RATE, EndlessSentenceError, PocketModel, State
from afterwords.backends.pocket.text import CLAUSE_PAUSE_S, Sentence, split_again
from afterwords.errors import SynthesisError

FRAMES_PER_DECODE: Final = (1, 1, 2, 4)
"""Frames that are decoded at once: few at first, for a short time to the first audio, then more, which costs less.

The package decodes all that wait, so that its sound depends on the load of the machine by 2e-6."""

_log = logging.getLogger(__name__)


class PocketUtterance:
    """The sound of one text; `slots` limits how many are generated at once."""

    def __init__(
        self, model: PocketModel, voice: State, sentences: Sequence[Sentence], *, seed: int, slots: threading.Semaphore
    ) -> None:
        self._model, self._voice, self._sentences, self._slots = model, voice, sentences, slots
        self._generator = torch.Generator().manual_seed(seed)
        # The text of a sentence, its frames, and the pause after it; at the end None.
        self._made: SimpleQueue[str | Tensor | float | Exception | None] = SimpleQueue()
        self._pause_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._generate, name="pocket", daemon=True)

    def sound(self) -> Iterator[Samples]:
        """Yield the sound as it is decoded. Closing the iterator ends the work before it returns.

        Raises:
            SynthesisError: It failed, or `stop` was called.
        """
        sizes = chain(FRAMES_PER_DECODE, repeat(FRAMES_PER_DECODE[-1]))
        self._slots.acquire()  # the thread releases it
        try:
            self._thread.start()
        except BaseException:  # the system has no thread left
            self._slots.release()
            raise
        try:
            while (text := self._take()) is not None:
                last = np.float32(0)
                for samples in self._model.decode(self._batches(sizes), cast("str", text)):
                    if not np.isfinite(samples).all():
                        raise ArithmeticError("the model made numbers that are not finite")
                    yield np.clip(samples, np.float32(-1), np.float32(1))
                    last = samples[-1]
                pause = np.zeros(round(self._pause_s * SAMPLE_RATE), np.float32)
                yield np.concatenate([fade_from(float(last), SAMPLE_RATE), pause])
        except SynthesisError:
            raise
        except Exception as error:
            raise SynthesisError.for_backend("pocket", why=f"it raised {type(error).__name__}") from error
        finally:
            self.stop()

    def stop(self) -> None:
        """End the work, and wait until it has ended: for one frame, or one pass over the text."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _batches(self, sizes: Iterator[int]) -> Iterator[list[Tensor]]:
        """Yield the frames of one sentence, as many at once as `sizes` says."""
        frames = self._frames_of_sentence()
        while batch := list(islice(frames, next(sizes))):
            yield batch

    def _frames_of_sentence(self) -> Iterator[Tensor]:
        while isinstance(made := self._take(), Tensor):
            yield made
        self._pause_s = cast("float", made)

    def _take(self) -> str | Tensor | float | None:
        if isinstance(made := self._made.get(), Exception):
            raise made
        return made

    def _generate_sentence(self, sentence: Sentence) -> list[str]:
        """Generate a sentence; return its parts if it did not end, since some of its words may be missing."""
        self._made.put(sentence.text)
        parts: list[str] = []
        try:
            for frame in self._model.frames(self._voice, sentence.text, self._generator):
                if self._stop.is_set():
                    raise SynthesisError.for_backend("pocket", why="the engine was closed")
                self._made.put(frame)
        except EndlessSentenceError as error:
            parts = split_again(sentence.text, self._model.n_tokens)
            _log.warning("%s, and was cut%s", error, ": its parts are spoken again" if len(parts) > 1 else "")
        self._made.put(sentence.pause_s or (CLAUSE_PAUSE_S if parts else 0.0))
        return parts

    def _generate(self) -> None:
        try:
            waiting = deque((sentence, True) for sentence in self._sentences)
            while waiting:
                sentence, may_split = waiting.popleft()
                parts = self._generate_sentence(sentence)
                if may_split and len(parts) > 1:
                    *others, last = parts
                    again = [*(Sentence(part, CLAUSE_PAUSE_S) for part in others), Sentence(last, sentence.pause_s)]
                    waiting.extendleft((part, False) for part in reversed(again))
            self._made.put(None)
        except Exception as error:  # noqa: BLE001 - the reader raises it
            self._made.put(error)
        finally:
            self._slots.release()
