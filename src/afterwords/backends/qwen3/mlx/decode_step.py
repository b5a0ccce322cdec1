"""One frame of codes, from what the talker has just heard to what it hears next: one compiled function.

The talker's own pass stays outside, since its cache grows. Within, the code predictor begins anew with every frame, so
its shapes are always the same, and MLX builds the graph of its fifteen passes once instead of for each frame.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from afterwords.backends.qwen3.config import N_CONTROL_IDS, ModelConfig, Sampling
from afterwords.backends.qwen3.mlx.sampling import draw, noise


class _Past:
    """Keys and values of one layer, of which there are never more than a frame has codes."""

    def __init__(self) -> None:
        self.offset = 0
        self._kept: tuple[mx.array, mx.array] | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Called by the layer: what it attends to."""
        self.offset += keys.shape[2]
        if self._kept is not None:
            keys = mx.concatenate([self._kept[0], keys], axis=2)
            values = mx.concatenate([self._kept[1], values], axis=2)
        self._kept = keys, values
        return keys, values


class FrameSpeaker:
    """Speaks frames with one way of drawing codes.

    Args:
        talker: mlx-audio's, with its code predictor.
        config: of the checkpoint.
        sampling: how codes are drawn; its seed is not used.
    """

    def __init__(self, talker: Any, config: ModelConfig, sampling: Sampling) -> None:
        self._talker, self._sampling = talker, sampling
        self._n_first, self._n_other = config.talker.vocab, config.predictor.vocab
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
        self.speak = mx.compile(self._speak)

    def _speak(
        self, hidden: mx.array, logits: mx.array, seen: mx.array, seeds: mx.array, frame: mx.array, text: mx.array
    ) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """Speak one frame in every row.

        Args:
            hidden: shape (n_rows, 1, hidden): what the talker made of the last column.
            logits: shape (n_rows, vocab), float32: of the first code.
            seen: shape (n_rows, vocab), bool: first codes that were drawn before.
            seeds: shape (n_rows,), uint64.
            frame: which one, a uint64.
            text: shape (n_rows, hidden): the text that goes with the frame.

        Returns:
            The codes, int32 of shape (n_rows, n_code_groups); seen, with the new ones; the next column, shape
            (n_rows, 1, hidden); and whether all that each row was drawn from were numbers, bool of shape (n_rows,).
        """
        dice = noise(seeds, frame, self._counters)
        first = self._draw_first(self._allowed(logits, seen, frame), dice[:, : self._n_first])
        codes, total = self._predicted(hidden, first, dice[:, self._n_first :])
        is_sane = mx.isfinite(logits.sum(-1) + total)
        seen = seen | (first[:, None] == mx.arange(self._n_first))
        return mx.stack(codes, axis=1), seen, (text + self.embedding(codes))[:, None], is_sane

    def embedding(self, codes: list[mx.array]) -> mx.array:
        """The sum of the codes of a frame, each of shape (n,), as the talker hears it: shape (n, hidden)."""
        tables = [self._talker.get_input_embeddings(), *self._talker.code_predictor.codec_embedding]
        heard = mx.stack([table(code) for table, code in zip(tables, codes, strict=True)])
        return heard.astype(mx.float32).sum(0).astype(heard.dtype)  # rounded once, and not 15 times

    def _allowed(self, logits: mx.array, seen: mx.array, frame: mx.array) -> mx.array:
        """The logits of what may be drawn first in a frame."""
        penalty = self._sampling.repetition_penalty
        logits = mx.where(seen, mx.where(logits < 0, logits * penalty, logits / penalty), logits)
        is_early = frame < self._sampling.min_frames
        return mx.where(self._is_banned | (self._is_end & is_early), -mx.inf, logits)

    def _predicted(self, hidden: mx.array, first: mx.array, dice: mx.array) -> tuple[list[mx.array], mx.array]:
        """The codes of a frame, each of shape (n_rows,), drawn knowing those before it; and the sum of all logits."""
        predictor = self._talker.code_predictor
        pasts = [_Past() for _ in predictor.model.layers]
        codes, total = [first], mx.zeros(first.shape)
        heard = mx.concatenate([hidden, self._talker.get_input_embeddings()(first)[:, None]], axis=1)
        for group, table in enumerate(predictor.codec_embedding):
            logits, _, _ = predictor(heard, cache=pasts, generation_step=group)
            noise_of = dice[:, group * self._n_other : (group + 1) * self._n_other]
            logits = logits[:, -1].astype(mx.float32)
            total = total + logits.sum(-1)
            codes.append(self._draw_other(logits, noise_of))
            heard = table(codes[-1])[:, None]
        return codes, total
