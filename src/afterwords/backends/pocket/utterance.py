"""One text while it is spoken: a thread generates frames, and the thread that reads the sound decodes them.

Both are kept busy that way, as in the package, and a slow reader only lets small frames wait.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from queue import SimpleQueue
from typing import Final

import numpy as np
import torch
from torch import Tensor

from afterwords.audio.effects import fade_from
from afterwords.audio.wav import Samples
from afterwords.backends.pocket.model import SAMPLE_RATE, PocketModel, State
from afterwords.backends.pocket.text import Sentence
from afterwords.errors import SynthesisError

FRAMES_PER_DECODE: Final = (1, 1, 2, 4)
"""Frames that are decoded at once: few at first, for a short time to the first audio, then more, which costs less.

The package decodes all that wait, so that its sound depends on the load of the machine by 2e-6."""


class PocketUtterance:
    """The sound of one text; `slots` limits how many are generated at once."""

    def __init__(
        self, model: PocketModel, voice: State, sentences: Sequence[Sentence], *, seed: int, slots: threading.Semaphore
    ) -> None:
        self._model, self._voice, self._sentences, self._slots = model, voice, sentences, slots
        self._generator = torch.Generator().manual_seed(seed)
        self._frames: SimpleQueue[Tensor | Exception | None] = SimpleQueue()  # None ends a sentence
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
            for sentence in self._sentences:
                last = np.float32(0)
                for samples in self._model.decode(self._batches(sizes), sentence.text):
                    if not np.isfinite(samples).all():
                        raise ArithmeticError("the model made numbers that are not finite")
                    yield np.clip(samples, np.float32(-1), np.float32(1))
                    last = samples[-1]
                pause = np.zeros(round(sentence.pause_s * SAMPLE_RATE), np.float32)
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
        while (frame := self._frames.get()) is not None:
            if isinstance(frame, Exception):
                raise frame
            yield frame

    def _generate(self) -> None:
        try:
            for sentence in self._sentences:
                for frame in self._model.frames(self._voice, sentence.text, self._generator):
                    if self._stop.is_set():
                        raise SynthesisError.for_backend("pocket", why="the engine was closed")
                    self._frames.put(frame)
                self._frames.put(None)
        except Exception as error:  # noqa: BLE001 - the reader raises it
            self._frames.put(error)
        finally:
            self._slots.release()
