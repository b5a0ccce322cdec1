"""Weights of one byte each, with a scale for each output: half of what a frame reads of them in bfloat16.

Activations stay as they are. `ops.linear` multiplies by such weights in plain torch, `kernels.linear` as one kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_FORMS: Final = {"fp8": (torch.float8_e4m3fn, 448.0), "int8": (torch.int8, 127.0)}
"""The dtype of each precision, and its largest number."""


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix.

    Attributes:
        values: shape (n_out, n_in), float8_e4m3fn or int8.
        scales: shape (n_out,), float32: what the values of each output are to be multiplied by.
    """

    values: Tensor
    scales: Tensor


Matrix = Tensor | QuantizedMatrix


def quantize_matrix(weight: Tensor, precision: str) -> QuantizedMatrix:
    """Round a matrix of shape (n_out, n_in) to a precision of one byte, "fp8" or "int8"."""
    dtype, most = _FORMS[precision]
    scales = weight.float().abs().amax(1).clamp_(min=1e-12) / most
    values = (weight.float() / scales[:, None]).clamp_(-most, most)
    return QuantizedMatrix((values if dtype.is_floating_point else values.round_()).to(dtype), scales)
