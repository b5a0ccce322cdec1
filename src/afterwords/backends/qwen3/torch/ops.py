"""The operations of a decoder layer in plain torch.

Shapes are fixed and nothing is read back to the host. Functions that end in an underscore write to an argument.
`kernels` implements those of `Ops` as one GPU kernel each; a model chooses between the two when it is loaded.
Quantized weights have one byte each, with a scale per output, which halves the memory traffic of bfloat16; activations
are not quantized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from afterwords.backends.qwen3.torch.sampling import draw as draw  # noqa: PLC0414 - one of `Ops`

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


class Ops(Protocol):
    """The operations that this module and `kernels` implement."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...

    def linear(self, x: Tensor, weight: Matrix) -> Tensor: ...

    def norm_linear(self, x: Tensor, norm: Tensor, weight: Matrix, eps: float) -> Tensor: ...

    def norm_swiglu(self, x: Tensor, norm: Tensor, gate_up: Matrix, eps: float) -> Tensor: ...

    def add_linear_(self, x: Tensor, y: Tensor, weight: Matrix) -> None: ...

    def rotate_and_cache_(
        self, qkv: Tensor, rotation: Tensor, cache: Tensor, rows: Tensor, positions: Tensor, eps: float
    ) -> Tensor: ...

    def rotate_and_attend(
        self, qkv: Tensor, rotation: Tensor, cache: Tensor, rows: Tensor, positions: Tensor, mask: Tensor, eps: float
    ) -> Tensor: ...

    def snake(self, x: Tensor, slope: Tensor, weight: Tensor, bias: Tensor) -> Tensor: ...

    def draw(self, logits: Tensor, beyond: Tensor, noise: Tensor, shares: tuple[Tensor, Tensor] | None) -> Tensor: ...


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each row to a root mean square of 1, then by the weight."""
    return functional.rms_norm(x, weight.shape, weight, eps)


def linear(x: Tensor, weight: Matrix) -> Tensor:
    """Apply a linear layer to x of shape (n, n_in)."""
    if isinstance(weight, Tensor):
        return functional.linear(x, weight)
    return functional.linear(x, weight.values.to(x.dtype)).mul_(weight.scales.to(x.dtype))


def norm_linear(x: Tensor, norm: Tensor, weight: Matrix, eps: float) -> Tensor:
    """Apply a norm, then a linear layer."""
    return linear(rms_norm(x, norm, eps), weight)


def norm_swiglu(x: Tensor, norm: Tensor, gate_up: Matrix, eps: float) -> Tensor:
    """Apply a norm, then a linear layer whose outputs are gates and as many values."""
    return swiglu(linear(rms_norm(x, norm, eps), gate_up))


def add_linear_(x: Tensor, y: Tensor, weight: Matrix) -> None:
    """Apply a linear layer to y, and add the result to the residual stream x of shape (n, hidden)."""
    if isinstance(weight, Tensor):
        x.addmm_(y, weight.t())
    else:
        x.add_(linear(y, weight))


def swiglu(gate_up: Tensor) -> Tensor:
    """Multiply the second half of the last dimension by the SiLU of the first."""
    gate, up = gate_up.chunk(2, -1)
    return functional.silu(gate).mul_(up)


def rotate_and_cache_(
    qkv: Tensor, rotation: Tensor, cache: Tensor, rows: Tensor, positions: Tensor, eps: float
) -> Tensor:
    """Normalize and rotate queries and keys, and write keys and values to the cache.

    Args:
        qkv: Shape (..., n_heads + 2 * n_kv_heads, head_dim), queries, keys, values; overwritten.
        rotation: Cosines, and sines with the sign of their half, both times the norm weights, float32 of shape
            (2, ..., n_heads + n_kv_heads, head_dim).
        cache: Shape (n_rows, n_positions, 2 * n_kv_heads, head_dim), keys then values.
        rows, positions: Where to write; they broadcast to the leading dimensions of qkv.
        eps: Epsilon of the norm.

    Returns:
        Queries of shape (..., n_heads, head_dim).
    """
    n_rotated, head_dim = rotation.shape[-2:]
    n_heads = qkv.shape[-2] - cache.shape[-2]
    rotated = qkv[..., :n_rotated, :]
    level = functional.rms_norm(rotated, (head_dim,), eps=eps)
    torch.addcmul(level * rotation[0], level.roll(head_dim // 2, -1), rotation[1], out=rotated)
    cache.index_put_((rows, positions), qkv[..., n_heads:, :])
    return qkv[..., :n_heads, :]


def rotate_and_attend(
    qkv: Tensor, rotation: Tensor, cache: Tensor, rows: Tensor, positions: Tensor, mask: Tensor, eps: float
) -> Tensor:
    """Normalize and rotate one position per row, write it to the cache, and attend from it.

    Args:
        qkv: Shape (n_rows, n_heads + 2 * n_kv_heads, head_dim); may be overwritten.
        rotation: As in `rotate_and_cache_`, shape (2, n_rows or 1, n_heads + n_kv_heads, head_dim).
        cache: Shape (n_rows, n_positions, 2 * n_kv_heads, head_dim).
        rows: 0, 1, 2..., shape (n_rows,).
        positions: Position of each row, shape (n_rows or 1,).
        mask: 0 up to this position, -inf after it, shape (n_rows or 1, 1, 1, n_positions).
        eps: Epsilon of the norm.

    Returns:
        Shape (n_rows, n_heads * head_dim).
    """
    query = rotate_and_cache_(qkv, rotation, cache, rows, positions, eps)
    n_rows, n_heads, head_dim = query.shape
    key, value = cache.transpose(1, 2).chunk(2, 1)
    # Heads that share a key become queries of one head, which needs no copy of the keys and avoids a slow path.
    grouped = query.view(n_rows, key.shape[1], n_heads // key.shape[1], head_dim)
    return functional.scaled_dot_product_attention(grouped, key, value, attn_mask=mask).reshape(n_rows, -1)


def attend_causally(qkv: Tensor, n_heads: int) -> Tensor:
    """Attend causally: (n, n_positions, all heads, head_dim) → (n, n_positions, n_heads * head_dim)."""
    n_kv_heads = (qkv.shape[2] - n_heads) // 2
    query, key, value = qkv.transpose(1, 2).split([n_heads, n_kv_heads, n_kv_heads], 1)
    output = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return output.transpose(1, 2).flatten(2)


def snake(x: Tensor, slope: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Add a bias, then return x + sin²(slope x) * weight: the nonlinearity of the codec.

    Args:
        x: Shape (rows, channels, n).
        slope, weight, bias: Of each channel, shape (channels, 1).
    """
    x = x + bias
    return torch.addcmul(x, (x * slope).sin_().square_(), weight)
