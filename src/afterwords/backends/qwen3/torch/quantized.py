"""Quantized weights: one byte each, with a scale per output, which halves the memory traffic of bfloat16.

Activations are not quantized. `ops.linear` multiplies by such weights in plain torch, `kernels.linear` in one kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_FORMS: Final = {"fp8": (torch.float8_e4m3fn, 448.0), "int8": (torch.int8, 127.0)}
"""The dtype of each precision, and its largest value."""


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A quantized matrix.

    Attributes:
        values: Shape (n_out, n_in), float8_e4m3fn or int8.
        scales: Factor for the values of each output, float32 of shape (n_out,).
    """

    values: Tensor
    scales: Tensor


Matrix = Tensor | QuantizedMatrix


def quantize_matrix(weight: Tensor, precision: str) -> QuantizedMatrix:
    """Quantize a matrix of shape (n_out, n_in) to "fp8" or "int8"."""
    dtype, most = _FORMS[precision]
    scales = weight.float().abs().amax(1).clamp_(min=1e-12) / most
    values = (weight.float() / scales[:, None]).clamp_(-most, most)
    return QuantizedMatrix((values if dtype.is_floating_point else values.round_()).to(dtype), scales)
