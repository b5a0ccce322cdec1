"""A weight and its bias, which every layer of the codec and of the speaker encoder takes together."""

from __future__ import annotations

import torch
from torch import Tensor

from afterwords.backends.qwen3.torch.weights import Shape, Weights

Affine = tuple[Tensor, Tensor]


def take_affine(
    weights: Weights, name: str, shape: Shape, *, n_outputs: int | None = None, dtype: torch.dtype | None = None
) -> Affine:
    """Read `name.weight` and `name.bias`.

    Args:
        weights: the checkpoint.
        name: of the layer.
        shape: of its weight.
        n_outputs: length of the bias, where that is not the weight's first dimension.
        dtype: other than that of all.

    Raises:
        ModelError: as `Weights.take`.
    """
    weight = weights.take(f"{name}.weight", shape, dtype=dtype)
    return weight, weights.take(f"{name}.bias", (n_outputs or shape[0],), dtype=dtype)
