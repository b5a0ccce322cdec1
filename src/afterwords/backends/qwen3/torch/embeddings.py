"""What the talker hears: text tokens through their projection, and code frames as the sum of their codes.

Prompts are written with it, and each frame's next input is made with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from afterwords.backends.qwen3.config import ModelConfig
from afterwords.backends.qwen3.torch.weights import Weights


class Embeddings:
    """The tables of one talker.

    Attributes:
        codes: shape (vocab + (n_code_groups - 1) * codes, hidden): the first codebook and the control ids, then the
            other codebooks one below the other.
        offsets: shape (n_code_groups,): the row of `codes` where each codebook begins.
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
        self._widen = [_linear(weights, "talker.text_projection.linear_fc1", text, text)]
        self._widen.append(_linear(weights, "talker.text_projection.linear_fc2", hidden, text))

    def text(self, ids: Tensor) -> Tensor:
        """Text tokens, shape (n,), as the talker hears them, shape (n, hidden)."""
        (inner, inner_bias), (outer, outer_bias) = self._widen
        narrow = functional.silu(functional.linear(functional.embedding(ids, self._text), inner, inner_bias))
        return functional.linear(narrow, outer, outer_bias)

    def control(self, ids: Sequence[int]) -> Tensor:
        """Control ids, or codes of the first codebook, shape (n, hidden)."""
        return functional.embedding(torch.tensor(ids, device=self.codes.device), self.codes)

    def frames(self, codes: Tensor) -> Tensor:
        """Frames of shape (n, n_code_groups) as the sum of their codes, shape (n, hidden)."""
        return functional.embedding(codes + self.offsets, self.codes).sum(1)


def _linear(weights: Weights, name: str, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    return weights.take(f"{name}.weight", (outputs, inputs)), weights.take(f"{name}.bias", (outputs,))
