"""The code predictor: from the first code of a frame and what the talker made of it, the other codes one by one.

Its context begins anew with every frame and holds as many positions as a frame has codes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from afterwords.backends.qwen3.config import ModelConfig
from afterwords.backends.qwen3.torch import ops as torch_ops
from afterwords.backends.qwen3.torch.batch import BatchState
from afterwords.backends.qwen3.torch.embeddings import Embeddings
from afterwords.backends.qwen3.torch.ops import Ops
from afterwords.backends.qwen3.torch.transformer import Stack
from afterwords.backends.qwen3.torch.weights import Weights

_AT: Final = "talker.code_predictor"


class Predictor:
    """The predictor of one checkpoint."""

    def __init__(self, weights: Weights, config: ModelConfig, embeddings: Embeddings, *, ops: Ops = torch_ops) -> None:
        """Take its weights; the talker's embeddings are projected to its width here, once, where the two differ."""
        stack, codes = config.predictor.stack, config.predictor.vocab
        self.n_groups = config.talker.n_code_groups
        self.stack = Stack(weights, f"{_AT}.model", stack, n_positions=self.n_groups, ops=ops)
        self._draw = ops.draw
        heads = [f"{_AT}.lm_head.{group}.weight" for group in range(self.n_groups - 1)]
        self._heads = [weights.take(name, (codes, stack.hidden)) for name in heads]
        self._narrowing = _narrowing(weights, config)
        narrow = self._narrowed(embeddings.codes)
        # Each codebook but the last is heard; the first one's table has the control ids in it.
        self._tables = narrow.split([config.talker.vocab, *[codes] * (self.n_groups - 1)])[:-1]
        first = torch.zeros(1, device=weights.device, dtype=torch.int64)
        self._places = [self.stack.place(first, first + position, self.n_groups) for position in range(self.n_groups)]

    def predict_frame(self, rows: BatchState, code: Tensor, noise: Tensor, *, with_top_p: bool) -> Tensor:
        """Draw the codes of a frame.

        Args:
            rows: of which `hidden` is read and `predictor_cache` written.
            code: shape (n_rows,), the first codes.
            noise: shape (n_rows, n_code_groups, codes or more), times the temperature.
            with_top_p: whether some row limits the share it draws from.

        Returns:
            Shape (n_rows, n_code_groups), the first codes included.
        """
        codes = [code]
        heard = torch.stack([self._narrowed(rows.hidden), functional.embedding(code, self._tables[0])], 1)
        x = self.stack.prefill(heard, rows.predictor_cache, rows.index)[:, -1]
        for group in range(1, self.n_groups):
            if group > 1:
                x = functional.embedding(codes[-1], self._tables[group - 1])
                place = replace(self._places[group], rows=rows.index)
                x = self.stack.step(x, rows.predictor_cache, place)
            shares = (rows.top_ps[:, group], rows.temperatures[:, group]) if with_top_p else None
            logits = functional.linear(x, self._heads[group - 1])
            codes.append(self._draw(logits, rows.beyond[:, 1], noise[:, group], shares))
        return torch.stack(codes, 1)

    def most_likely_codes(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """The likeliest code at each place but the first, given the codes before it in its frame.

        Args:
            hidden: shape (n_frames, hidden), what the talker made of what came before each frame.
            codes: shape (n_frames, n_code_groups).

        Returns:
            Shape (n_frames, n_code_groups - 1).
        """
        heard = [functional.embedding(codes[:, group], table) for group, table in enumerate(self._tables)]
        cache = self.stack.new_cache(len(codes), self.n_groups)
        rows = torch.arange(len(codes), device=codes.device)
        made = self.stack.prefill(torch.stack([self._narrowed(hidden), *heard], 1), cache, rows)
        likely = [functional.linear(made[:, group], head).argmax(-1) for group, head in enumerate(self._heads, 1)]
        return torch.stack(likely, 1)

    def _narrowed(self, x: Tensor) -> Tensor:
        return x if self._narrowing is None else functional.linear(x, *self._narrowing)


def _narrowing(weights: Weights, config: ModelConfig) -> tuple[Tensor, Tensor] | None:
    narrow, wide = config.predictor.stack.hidden, config.talker.stack.hidden
    if narrow == wide:
        return None
    at = f"{_AT}.small_to_mtp_projection"
    return weights.take(f"{at}.weight", (narrow, wide)), weights.take(f"{at}.bias", (narrow,))
