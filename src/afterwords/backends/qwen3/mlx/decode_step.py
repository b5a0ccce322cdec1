"""One frame of codes, from the talker's last hidden state to its next input, as one compiled function.

The talker's own pass is outside, since its cache grows. The code predictor starts empty with every frame, so its shapes
never change, and MLX builds the graph of its fifteen passes once instead of for each frame.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from afterwords.backends.qwen3.config import N_CONTROL_IDS, ModelConfig, Sampling
from afterwords.backends.qwen3.mlx.sampling import draw, noise


class _FrameCache:
    """Keys and values of one layer of the predictor, with at most as many positions as a frame has codes."""

    def __init__(self) -> None:
        self.offset = 0
        self._kept: tuple[mx.array, mx.array] | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values, and return all; called by the layer."""
        self.offset += keys.shape[2]
        if self._kept is not None:
            keys = mx.concatenate([self._kept[0], keys], axis=2)
            values = mx.concatenate([self._kept[1], values], axis=2)
        self._kept = keys, values
        return keys, values


class FrameDecoder:
    """Decodes frames with mlx-audio's talker and one set of sampling parameters, whose seed is not used."""

    def __init__(self, talker: Any, config: ModelConfig, sampling: Sampling) -> None:
        self._talker, self._sampling = talker, sampling
        self._n_first, self._n_other = config.talker.vocab, config.talker.predictor.vocab
        codes = mx.arange(self._n_first)
        self._is_end = codes == config.talker.codes.eos
        self._is_banned = (codes >= self._n_first - N_CONTROL_IDS) & ~self._is_end
        others = np.arange(1, config.talker.n_code_groups)[:, None] * self._n_first + np.arange(self._n_other)
        counters = np.concatenate([np.arange(self._n_first), others.reshape(-1)])
        self._counters = mx.array(counters.astype(np.uint64))
        self._draw_first = partial(draw, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
        self._draw_other = partial(
            draw,
            temperature=sampling.predictor_temperature,
            top_k=sampling.predictor_top_k,
            top_p=sampling.predictor_top_p,
        )
        self.decode = mx.compile(self._decode)

    def _decode(
        self, hidden: mx.array, logits: mx.array, seen: mx.array, seeds: mx.array, frame: mx.array, text: mx.array
    ) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """Decode one frame in every row.

        Args:
            hidden: Hidden state of the talker's last column, shape (n_rows, 1, hidden).
            logits: Logits of the first code, shape (n_rows, vocab), float32.
            seen: First codes that were drawn before, shape (n_rows, vocab), bool.
            seeds: Shape (n_rows,), uint64.
            frame: Number of the frame, uint64.
            text: Embedding of the text token of the frame, shape (n_rows, hidden).

        Returns:
            The codes, int32 of shape (n_rows, n_code_groups); `seen` with the new codes; the talker's next column,
            shape (n_rows, 1, hidden); and whether all logits of a row were finite, bool of shape (n_rows,).
        """
        dice = noise(seeds, frame, self._counters)
        penalty = self._sampling.repetition_penalty
        allowed = mx.where(seen, mx.where(logits < 0, logits * penalty, logits / penalty), logits)
        is_early = frame < self._sampling.min_frames
        allowed = mx.where(self._is_banned | (self._is_end & is_early), -mx.inf, allowed)
        first = self._draw_first(allowed, dice[:, : self._n_first])
        predictor = self._talker.code_predictor
        caches = [_FrameCache() for _ in predictor.model.layers]
        codes, total = [first], mx.zeros(first.shape)
        inputs = mx.concatenate([hidden, self._talker.get_input_embeddings()(first)[:, None]], axis=1)
        for group, table in enumerate(predictor.codec_embedding):
            other, _, _ = predictor(inputs, cache=caches, generation_step=group)
            start = self._n_first + group * self._n_other
            other = other[:, -1].astype(mx.float32)
            total = total + other.sum(-1)
            codes.append(self._draw_other(other, dice[:, start : start + self._n_other]))
            inputs = table(codes[-1])[:, None]
        is_sane = mx.isfinite(logits.sum(-1) + total)
        seen = seen | (first[:, None] == mx.arange(self._n_first))
        return mx.stack(codes, axis=1), seen, (text + self.embed(codes))[:, None], is_sane

    def embed(self, codes: list[mx.array]) -> mx.array:
        """Return the sum of the embeddings of a frame's codes, each of shape (n,), as shape (n, hidden)."""
        tables = [self._talker.get_input_embeddings(), *self._talker.code_predictor.codec_embedding]
        embedded = mx.stack([table(code) for table, code in zip(tables, codes, strict=True)])
        return embedded.astype(mx.float32).sum(0).astype(embedded.dtype)  # rounded once, and not 15 times
