"""Codebooks, which a checkpoint keeps as the sums of what fell to each entry in training, and how much that was."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from afterwords.backends.qwen3.torch.weights import Shape, Weights

_USAGE_FLOOR: Final = 1e-5  # an entry that was never used. Source: qwen-tts 0.1.1; the same in Mimi


def take_codebook(weights: Weights, name: str, sums: str, shape: Shape) -> Tensor:
    """Read the entries of a codebook, float32 of shape (entries, width).

    Args:
        weights: the checkpoint.
        name: of the codebook.
        sums: what the halves of the codec call the sums.
        shape: of the entries.

    Raises:
        ModelError: as `Weights.take`.
    """
    usage = weights.take(f"{name}.cluster_usage", shape[:1], dtype=torch.float32)
    return weights.take(f"{name}.{sums}", shape, dtype=torch.float32) / usage.clamp(min=_USAGE_FLOOR)[:, None]
