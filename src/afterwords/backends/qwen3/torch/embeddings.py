"""Inputs of the talker: projected text tokens, and code frames as the sum of their embeddings.

Used for prompts and for the next input of each frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from afterwords.backends.qwen3.config import ModelConfig
from afterwords.backends.qwen3.torch.weights import Weights, take_affine


class Embeddings:
    """The embedding tables of a talker.

    Attributes:
        codes: Shape (vocab + (n_code_groups - 1) * codes, hidden): the first codebook and the control ids, then the
            other codebooks.
        offsets: Row of `codes` where each codebook starts, shape (n_code_groups,).
    """

    def __init__(self, weights: Weights, config: ModelConfig) -> None:
        talker, hidden, text = config.talker, config.talker.stack.hidden, config.talker.text_hidden
        n_others = talker.n_code_groups - 1
        other = "talker.code_predictor.model.codec_embedding.{}.weight"
        self.codes = weights.join(
            [
                ("talker.model.codec_embedding.weight", (talker.vocab, hidden)),
                *((other.format(group), (config.predictor.vocab, hidden)) for group in range(n_others)),
            ]
        )
        begins = [0, *(talker.vocab + group * config.predictor.vocab for group in range(n_others))]
        self.offsets = torch.tensor(begins, device=weights.device)
        self._text = weights.take("talker.model.text_embedding.weight", (talker.text_vocab, text))
        self._inner = take_affine(weights, "talker.text_projection.linear_fc1", (text, text))
        self._outer = take_affine(weights, "talker.text_projection.linear_fc2", (hidden, text))

    def text(self, ids: Tensor) -> Tensor:
        """Embed text tokens of shape (n,), as shape (n, hidden)."""
        narrow = functional.silu(functional.linear(functional.embedding(ids, self._text), *self._inner))
        return functional.linear(narrow, *self._outer)

    def control(self, ids: Sequence[int]) -> Tensor:
        """Embed control ids, or codes of the first codebook, as shape (n, hidden)."""
        return functional.embedding(torch.tensor(ids, device=self.codes.device), self.codes)

    def frames(self, codes: Tensor) -> Tensor:
        """Embed frames of shape (n, n_code_groups) as the sum of their codes, shape (n, hidden)."""
        return functional.embedding(codes + self.offsets, self.codes).sum(1)
