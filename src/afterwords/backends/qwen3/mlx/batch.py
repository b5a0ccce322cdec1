"""A batch on MLX: utterances of one voice that started together and are decoded frame by frame.

Prompts of one voice have the same number of columns for any text, so that no row is padded or masked. A row gives the
codes that it gives alone, as far as the device computes batches as it computes single rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import mlx.core as mx
import numpy as np
from mlx_audio.lm.models.cache import KVCache
from numpy.typing import NDArray

from afterwords.backends.qwen3.config import Sampling
from afterwords.backends.qwen3.mlx.model import MlxModel, MlxPrompt


class MlxBatch:
    """Rows that are decoded in lockstep. `n_frames` counts the frames so far."""

    def __init__(self, model: MlxModel, prompts: Sequence[MlxPrompt], samplings: Sequence[Sampling]) -> None:
        """Prefill prompts of one voice and one number of columns; their samplings may differ in their seeds only."""
        self._model, self._frame_decoder = model, model.frame_decoder(samplings[0])
        self._talker = model.network.talker
        self._seeds = mx.array([sampling.seed for sampling in samplings], mx.uint64)
        self._is_sane = mx.ones((len(prompts),), mx.bool_)
        self._seen = mx.zeros((len(prompts), model.config.talker.vocab), mx.bool_)
        pad = model.config.tokens.pad
        trailing = [prompt.layout.trailing for prompt in prompts]
        longest = 1 + max(len(ids) for ids in trailing)
        self._trailing = model.embed_text([[*ids, *[pad] * (longest - len(ids))] for ids in trailing])
        self._codec = model.voice_on_device(prompts[0].voice).codec_state.rows([0] * len(prompts))
        self._cache = [KVCache() for _ in self._talker.model.layers]
        self._unread: list[mx.array] = []
        self.n_frames = 0
        columns = model.columns(prompts)
        self._n_columns = columns.shape[1]
        self._hidden, self._logits = self._forward(columns)

    def decode_frame(self) -> None:
        """Decode one frame in every row, without waiting for the device."""
        text = self._trailing[:, min(self.n_frames, self._trailing.shape[1] - 1)]
        frame = mx.array(self.n_frames, mx.uint64)
        codes, seen, column, is_sane = self._frame_decoder.decode(
            self._hidden, self._logits, self._seen, self._seeds, frame, text
        )
        self._hidden, self._logits = self._forward(column)  # first, so that nothing has changed if it fails
        self._seen, self._is_sane = seen, self._is_sane & is_sane
        self._unread.append(codes)
        self.n_frames += 1
        mx.async_eval(self._logits, self._hidden, self._seen, self._is_sane, codes)

    def read_codes(self) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Return the frames without audio, shape (n_rows, n_frames, n_codebooks), and which rows are finite."""
        codes = mx.stack(self._unread, axis=1)
        mx.eval(codes, self._is_sane)
        return np.array(codes), np.array(self._is_sane)

    def decode_audio(self, codes: NDArray[np.int32]) -> list[NDArray[np.float32]]:
        """Return the samples of the frames that `read_codes` returned, each code within its codebook."""
        sound, self._codec = self._model.decoder.step(codes, self._codec)
        self._unread = []
        return sound

    def isolate_row(self, row: int) -> MlxBatch:
        """Return one row as a batch of its own, after its last complete frame; this batch is not to be used again."""
        other = copy(self)
        other._cache = [copy(cache) for cache in self._cache]
        for cache in other._cache:  # a failed frame may have gone through some layers
            cache.offset = self._n_columns + self.n_frames
        other.keep([row])
        return other

    def keep(self, rows: list[int]) -> None:
        """Drop all other rows."""
        index = mx.array(rows)
        for cache in self._cache:
            cache.keys, cache.values = cache.keys[index], cache.values[index]
        self._unread = [codes[index] for codes in self._unread]
        self._is_sane = self._is_sane[index]
        self._seeds, self._seen, self._trailing = self._seeds[index], self._seen[index], self._trailing[index]
        self._hidden, self._logits = self._hidden[index], self._logits[index]
        self._codec = self._codec.rows(rows)

    def _forward(self, columns: mx.array) -> tuple[mx.array, mx.array]:
        """Run columns of shape (n_rows, n, hidden); return the last hidden state and the logits of the next code."""
        hidden = self._talker.model(columns, cache=self._cache)[:, -1:]
        return hidden, self._talker.codec_head(hidden)[:, 0].astype(mx.float32)
