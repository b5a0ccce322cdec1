"""The steps of a decoder layer that are more than one matrix product, each as one function.

They are written in plain torch, with fixed shapes and nothing read back to the host; names that end in an underscore
write to what they are given. `kernels` has those of `Ops` as one GPU kernel each. Which of the two a model takes is
chosen once, when it is loaded.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from afterwords.backends.qwen3.torch.quantized import Matrix
from afterwords.backends.qwen3.torch.sampling import draw

__all__ = [
    "Ops",
    "add_linear_",
    "attend",
    "attend_causally",
    "draw",
    "linear",
    "rms_norm",
    "rotate_and_cache_",
    "swiglu",
]


class Ops(Protocol):
    """What there are kernels for: this module in plain torch, and `kernels`."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...

    def linear(self, x: Tensor, weight: Matrix) -> Tensor: ...

    def add_linear_(self, x: Tensor, y: Tensor, weight: Matrix) -> None: ...

    def swiglu(self, gate_up: Tensor) -> Tensor: ...

    def rotate_and_cache_(
        self, qkv: Tensor, rotation: Tensor, cache: Tensor, rows: Tensor, positions: Tensor, eps: float
    ) -> Tensor: ...

    def attend(self, query: Tensor, cache: Tensor, positions: Tensor, mask: Tensor) -> Tensor: ...

    def draw(self, logits: Tensor, beyond: Tensor, noise: Tensor, shares: tuple[Tensor, Tensor] | None) -> Tensor: ...


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each row to a root mean square of 1, then by the weight."""
    return functional.rms_norm(x, weight.shape, weight, eps)


def linear(x: Tensor, weight: Matrix) -> Tensor:
    """Take x of shape (n, n_in) through a linear layer."""
    if isinstance(weight, Tensor):
        return functional.linear(x, weight)
    return functional.linear(x, weight.values.to(x.dtype)).mul_(weight.scales.to(x.dtype))


def add_linear_(x: Tensor, y: Tensor, weight: Matrix) -> None:
    """Add y through a linear layer to the residual stream x, shape (n, hidden)."""
    if isinstance(weight, Tensor):
        x.addmm_(y, weight.t())
    else:
        x.add_(linear(y, weight))


def swiglu(gate_up: Tensor) -> Tensor:
    """Gate the second half of the last dimension by the first."""
    gate, up = gate_up.chunk(2, -1)
    return functional.silu(gate).mul_(up)


def rotate_and_cache_(
    qkv: Tensor, rotation: Tensor, cache: Tensor, rows: Tensor, positions: Tensor, eps: float
) -> Tensor:
    """Norm and rotate the queries and keys, and put keys and values into the cache.

    Args:
        qkv: shape (..., n_heads + 2 * n_kv_heads, head_dim), queries, keys, values; overwritten.
        turn: shape (2, ..., n_heads + n_kv_heads, head_dim), float32: cosines, and sines with the sign of their half,
            with the weights of the norm in both.
        cache: shape (n_rows, n_positions, 2 * n_kv_heads, head_dim), keys then values.
        rows, positions: where to write; they broadcast to the leading dimensions of qkv.
        eps: of the norm.

    Returns:
        The queries, shape (..., n_heads, head_dim).
    """
    n_rotated, head_dim = rotation.shape[-2:]
    n_heads = qkv.shape[-2] - cache.shape[-2]
    rotated = qkv[..., :n_rotated, :]
    level = functional.rms_norm(rotated, (head_dim,), eps=eps)
    torch.addcmul(level * rotation[0], level.roll(head_dim // 2, -1), rotation[1], out=rotated)
    cache.index_put_((rows, positions), qkv[..., n_heads:, :])
    return qkv[..., :n_heads, :]


def attend(query: Tensor, cache: Tensor, positions: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG001 - the mask says it
    """Attend from one position a row to what its cache holds.

    Args:
        query: shape (n_rows, n_heads, head_dim).
        cache: shape (n_rows, n_positions, 2 * n_kv_heads, head_dim).
        positions: shape (n_rows or 1,): the last one that each row sees.
        mask: the same, shape (n_rows or 1, 1, 1, n_positions), 0 where a position is seen and -inf where not.

    Returns:
        Shape (n_rows, n_heads * head_dim).
    """
    n_rows, n_heads, head_dim = query.shape
    key, value = cache.transpose(1, 2).chunk(2, 1)
    # The heads that share a key are laid out as queries of one head: no copy of keys, and no choice of a slow path.
    grouped = query.view(n_rows, key.shape[1], n_heads // key.shape[1], head_dim)
    return functional.scaled_dot_product_attention(grouped, key, value, attn_mask=mask).reshape(n_rows, -1)


def attend_causally(qkv: Tensor, n_heads: int) -> Tensor:
    """Attend from each position to those up to it: (n, n_positions, all heads, head_dim) → (n, n_positions, ...)."""
    n_kv_heads = (qkv.shape[2] - n_heads) // 2
    query, key, value = qkv.transpose(1, 2).split([n_heads, n_kv_heads, n_kv_heads], 1)
    heard = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return heard.transpose(1, 2).flatten(2)
