"""Utterances of one voice that began together and are spoken side by side, one frame of all at a time.

Prompts of one voice have the same number of columns, whatever their texts: no row is padded, and none masked. So a row
says what it would say alone, as far as the device adds up batches as it does single rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import mlx.core as mx
import numpy as np
from mlx_audio.lm.models.cache import KVCache
from numpy.typing import NDArray

from afterwords.backends.qwen3.config import Sampling
from afterwords.backends.qwen3.mlx.model import Model, Script


class Group:
    """Rows in lockstep.

    Attributes:
        n_frames: spoken so far.
    """

    def __init__(self, model: Model, scripts: Sequence[Script], samplings: Sequence[Sampling]) -> None:
        """Hear the prompts.

        Args:
            model: speaks them.
            scripts: of one voice and of one number of columns.
            samplings: of each, the same but for their seeds.
        """
        self._model, self._speaker = model, model.speaker_of_frames(samplings[0])
        self._talker = model.network.talker
        self._seeds = mx.array([sampling.seed for sampling in samplings], mx.uint64)
        self._is_sane = mx.ones((len(scripts),), mx.bool_)
        self._seen = mx.zeros((len(scripts), model.config.talker.vocab), mx.bool_)
        pad = model.config.tokens.pad
        trailing = [script.layout.trailing for script in scripts]
        longest = 1 + max(len(ids) for ids in trailing)
        self._trailing = model.text([[*ids, *[pad] * (longest - len(ids))] for ids in trailing])
        self._codec = model.standing(scripts[0].voice).primed.rows([0] * len(scripts))
        self._cache = [KVCache() for _ in self._talker.model.layers]
        self._said: list[mx.array] = []
        self.n_frames = 0
        columns = model.columns(scripts)
        self._n_columns = columns.shape[1]
        self._hidden, self._logits = self._heard(columns)

    def frame(self) -> None:
        """Speak one frame in every row. Nothing is read back: it may still be under way when this returns."""
        text = self._trailing[:, min(self.n_frames, self._trailing.shape[1] - 1)]
        frame = mx.array(self.n_frames, mx.uint64)
        codes, seen, column, is_sane = self._speaker.speak(
            self._hidden, self._logits, self._seen, self._seeds, frame, text
        )
        self._hidden, self._logits = self._heard(column)  # before all else: if it fails, the frame was not spoken
        self._seen, self._is_sane = seen, self._is_sane & is_sane
        self._said.append(codes)
        self.n_frames += 1
        mx.async_eval(self._logits, self._hidden, self._seen, self._is_sane, codes)

    def spoken(self) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """The frames without sound yet, shape (n_rows, n_frames, n_codebooks), and which rows are still sane."""
        said = mx.stack(self._said, axis=1)
        mx.eval(said, self._is_sane)
        return np.array(said), np.array(self._is_sane)

    def sound(self, codes: NDArray[np.int32]) -> list[NDArray[np.float32]]:
        """The sound of the next frames of every row; codes as `spoken` gave them, each within its codebook."""
        sound, self._codec = self._model.decoder.step(codes, self._codec)
        self._said = []
        return sound

    def alone(self, row: int) -> Group:
        """One row as a group of its own, behind its last whole frame; this group is not to be used any more."""
        other = copy(self)
        other._cache = [copy(cache) for cache in self._cache]
        for cache in other._cache:  # a frame that broke off may have gone through some layers
            cache.offset = self._n_columns + self.n_frames
        other.keep([row])
        return other

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows alone."""
        index = mx.array(rows)
        for cache in self._cache:
            cache.keys, cache.values = cache.keys[index], cache.values[index]
        self._said = [codes[index] for codes in self._said]
        self._is_sane = self._is_sane[index]
        self._seeds, self._seen, self._trailing = self._seeds[index], self._seen[index], self._trailing[index]
        self._hidden, self._logits = self._hidden[index], self._logits[index]
        self._codec = self._codec.rows(rows)

    def _heard(self, columns: mx.array) -> tuple[mx.array, mx.array]:
        """Take columns in, shape (n_rows, n, hidden): what comes of the last one, and the logits of what follows it."""
        hidden = self._talker.model(columns, cache=self._cache)[:, -1:]
        return hidden, self._talker.codec_head(hidden)[:, 0].astype(mx.float32)
