"""The code predictor: predicts the other codes of a frame one by one, from its first code and the talker's hidden
state.

Its context is empty at the start of every frame and has as many positions as a frame has codes.
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
from afterwords.backends.qwen3.torch.ops import Ops
from afterwords.backends.qwen3.torch.prompt import Embeddings
from afterwords.backends.qwen3.torch.transformer import Stack
from afterwords.backends.qwen3.torch.weights import Weights, take_affine

_PREFIX: Final = "talker.code_predictor"


class Predictor:
    """The code predictor of a checkpoint."""

    def __init__(self, weights: Weights, config: ModelConfig, embeddings: Embeddings, *, ops: Ops = torch_ops) -> None:
        """Take its weights, and project the talker's embeddings to its width if the two differ."""
        stack, codes = config.talker.predictor.stack, config.talker.predictor.vocab
        self.n_groups = config.talker.n_code_groups
        self.stack = Stack(weights, f"{_PREFIX}.model", stack, n_positions=self.n_groups, ops=ops)
        self._draw, self._linear = ops.draw, ops.linear
        heads = [f"{_PREFIX}.lm_head.{group}.weight" for group in range(self.n_groups - 1)]
        self._heads = [weights.take(name, (codes, stack.hidden)) for name in heads]
        wide = config.talker.stack.hidden
        name = f"{_PREFIX}.small_to_mtp_projection"
        self._projection = None if wide == stack.hidden else take_affine(weights, name, (stack.hidden, wide))
        narrow = self._project(embeddings.codes)
        # Each codebook but the last is an input; the table of the first includes the control ids.
        self._tables = narrow.split([config.talker.vocab, *[codes] * (self.n_groups - 1)])[:-1]
        first = torch.zeros(1, device=weights.device, dtype=torch.int64)
        self._positions = [
            self.stack.step_positions(first, first + position, self.n_groups) for position in range(self.n_groups)
        ]

    def predict_frame(self, rows: BatchState, code: Tensor, noise: Tensor, *, with_top_p: bool) -> Tensor:
        """Draw the codes of a frame.

        Args:
            rows: `hidden` is read, and `predictor_cache` is written.
            code: The first codes, shape (n_rows,).
            noise: Noise times temperature, shape (n_rows, n_code_groups, codes or more).
            with_top_p: Whether some row has a top_p below 1.

        Returns:
            Shape (n_rows, n_code_groups), with the first codes.
        """
        codes = [code]
        inputs = torch.stack([self._project(rows.hidden), functional.embedding(code, self._tables[0])], 1)
        x = self.stack.prefill(inputs, rows.predictor_cache, rows.index)[:, -1]
        for group in range(1, self.n_groups):
            if group > 1:
                x = functional.embedding(codes[-1], self._tables[group - 1])
                position = replace(self._positions[group], rows=rows.index)
                x = self.stack.step(x, rows.predictor_cache, position)
            shares = (rows.top_ps[:, group], rows.temperatures[:, group]) if with_top_p else None
            logits = self._linear(x, self._heads[group - 1])
            codes.append(self._draw(logits, rows.beyond[:, 1], noise[:, group], shares))
        return torch.stack(codes, 1)

    def most_likely_codes(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Return the most likely code at each position but the first, given the codes before it in its frame.

        From the talker's hidden state before each frame, shape (n_frames, hidden), and codes of shape (n_frames,
        n_code_groups); returns one code less per frame.
        """
        inputs = [functional.embedding(codes[:, group], table) for group, table in enumerate(self._tables)]
        cache = self.stack.new_cache(len(codes), self.n_groups)
        rows = torch.arange(len(codes), device=codes.device)
        states = self.stack.prefill(torch.stack([self._project(hidden), *inputs], 1), cache, rows)
        likely = [functional.linear(states[:, group], head).argmax(-1) for group, head in enumerate(self._heads, 1)]
        return torch.stack(likely, 1)

    def _project(self, x: Tensor) -> Tensor:
        return x if self._projection is None else functional.linear(x, *self._projection)
