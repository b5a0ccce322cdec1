"""A stack of decoder layers with a static key-value cache, for the talker and the code predictor.

Every row has its own position. A step over one position per row is a fixed sequence of operations on buffers that do
not move, so that it can be captured as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from afterwords.backends.qwen3.config import StackConfig
from afterwords.backends.qwen3.torch import ops as torch_ops
from afterwords.backends.qwen3.torch.ops import Matrix, Ops, quantize_matrix
from afterwords.backends.qwen3.torch.weights import Weights


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Weights of one layer; queries, keys and values are one matrix, as are gate and up."""

    attention_norm: Tensor
    qkv: Matrix
    out: Matrix
    ffn_norm: Tensor
    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True)
class StepPositions:
    """The positions of a step, one per row.

    Attributes:
        rows, positions: Shape (n_rows,) each, or one position for all rows.
        rotations: Shape (2, n_layers, n_rows or 1, n_heads + n_kv_heads, head_dim), see `ops.rotate_and_cache_`.
        mask: Shape (n_rows or 1, 1, 1, n_positions).
    """

    rows: Tensor
    positions: Tensor
    rotations: Tensor
    mask: Tensor


class Stack:
    """Decoder layers and the final norm."""

    def __init__(
        self, weights: Weights, prefix: str, config: StackConfig, *, n_positions: int, ops: Ops = torch_ops
    ) -> None:
        """Take the weights under a prefix, for rows of up to `n_positions`.

        Raises:
            ModelError: A tensor is missing or misshapen.
        """
        self.config, self.n_positions, self._ops = config, n_positions, ops
        self._device, self._dtype = weights.device, weights.dtype
        self._layers: list[LayerWeights] = []
        norms: list[Tensor] = []  # of each layer: of each head, queries then keys
        hidden, head_dim = config.hidden, config.head_dim
        queries, keys = (config.n_heads * head_dim, hidden), (config.n_kv_heads * head_dim, hidden)
        heads = [("q", queries), ("k", keys), ("v", keys)]
        for number in range(config.n_layers):
            at = f"{prefix}.layers.{number}"
            layer = LayerWeights(
                attention_norm=weights.take(f"{at}.input_layernorm.weight", (hidden,)),
                qkv=weights.join([(f"{at}.self_attn.{name}_proj.weight", shape) for name, shape in heads]),
                out=weights.take(f"{at}.self_attn.o_proj.weight", (hidden, queries[0])),
                ffn_norm=weights.take(f"{at}.post_attention_layernorm.weight", (hidden,)),
                gate_up=weights.join(
                    [(f"{at}.mlp.{part}_proj.weight", (config.ffn, hidden)) for part in ("gate", "up")]
                ),
                down=weights.take(f"{at}.mlp.down_proj.weight", (hidden, config.ffn)),
            )
            self._layers.append(layer)
            query, key = (
                weights.take(f"{at}.self_attn.{name}_norm.weight", (head_dim,), dtype=torch.float32) for name in "qk"
            )
            norms.append(torch.cat([query.expand(config.n_heads, -1), key.expand(config.n_kv_heads, -1)]))
        self._norm = weights.take(f"{prefix}.norm.weight", (hidden,))
        # (2, n_layers, heads, head_dim): the weights, and the weights that each half gets from the other half.
        self._qk_norms = torch.stack([torch.stack(norms), torch.stack(norms).roll(head_dim // 2, -1)])
        self._ahead = torch.arange(n_positions, device=weights.device)
        steps = torch.arange(0, head_dim, 2, device=weights.device, dtype=torch.float32) / head_dim
        angles = self._ahead.float()[:, None] / config.rope_theta**steps
        cos, sin = angles.cos(), angles.sin()
        # (2, n_positions, head_dim): cosines, and sines with the sign of their half.
        self._angles = torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)])

    def quantize(self, precision: str, names: Sequence[str]) -> None:
        """Quantize these matrices of every layer, by their names in `LayerWeights`."""
        for number, layer in enumerate(self._layers):  # one by one, so that at most one matrix is in memory twice
            rounded: dict[str, Any] = {name: quantize_matrix(getattr(layer, name), precision) for name in names}
            self._layers[number] = replace(layer, **rounded)

    def new_cache(self, n_rows: int, n_positions: int) -> Tensor:
        """Return an empty cache, shape (n_layers, n_rows, n_positions, 2 * n_kv_heads, head_dim)."""
        config = self.config
        shape = (config.n_layers, n_rows, n_positions, 2 * config.n_kv_heads, config.head_dim)
        return torch.zeros(shape, device=self._device, dtype=self._dtype)

    def step_positions(self, rows: Tensor, positions: Tensor, n_positions: int) -> StepPositions:
        """Return the positions of a `step`.

        Args:
            rows: Rows of the cache, shape (n_rows,).
            positions: Shape (n_rows,) or (1,).
            n_positions: Positions of the cache.
        """
        rotations = self._angles[:, None, positions, None] * self._qk_norms[:, :, None]
        is_hidden = self._ahead[:n_positions] > positions[:, None]
        mask = torch.zeros_like(is_hidden, dtype=self._dtype).masked_fill_(is_hidden, -torch.inf)
        return StepPositions(rows, positions, rotations, mask[:, None, None])

    def step(self, x: Tensor, cache: Tensor, at: StepPositions) -> Tensor:
        """Run the layers at one position per row.

        Args:
            x: Shape (n_rows, hidden); overwritten.
            cache: Cache of `new_cache`, or a view of its first rows and positions.
            at: Positions of `step_positions`.

        Returns:
            Shape (n_rows, hidden), normalized.
        """

        def attend(number: int, qkv: Tensor) -> Tensor:
            return self._ops.rotate_and_attend(
                qkv, at.rotations[:, number], cache[number], at.rows, at.positions, at.mask, self.config.norm_eps
            )

        return self._run(x, attend)

    def prefill(self, x: Tensor, cache: Tensor, rows: Tensor) -> Tensor:
        """Run the layers at the first positions of some rows.

        Shorter rows are padded on the right: no earlier position attends to the padding, and it is overwritten before a
        later position does.

        Args:
            x: Shape (n, n_positions, hidden); overwritten.
            cache: Cache of `new_cache`.
            rows: Rows of the cache, shape (n,).

        Returns:
            Shape (n, n_positions, hidden), normalized.
        """
        n, length, hidden = x.shape
        positions = self._ahead[:length]
        angles = self._angles[:, :length, None]

        def attend(number: int, qkv: Tensor) -> Tensor:
            qkv = qkv.view(n, length, *qkv.shape[1:])
            rotation = (angles * self._qk_norms[:, number, None])[:, None]
            self._ops.rotate_and_cache_(qkv, rotation, cache[number], rows[:, None], positions, self.config.norm_eps)
            return torch_ops.attend_causally(qkv, self.config.n_heads).view(n * length, -1)

        return self._run(x.view(n * length, hidden), attend).view(n, length, hidden)

    def _run(self, x: Tensor, attend: Callable[[int, Tensor], Tensor]) -> Tensor:
        ops, eps, head_dim = self._ops, self.config.norm_eps, self.config.head_dim
        for number, layer in enumerate(self._layers):
            qkv = ops.norm_linear(x, layer.attention_norm, layer.qkv, eps)
            ops.add_linear_(x, attend(number, qkv.view(len(x), -1, head_dim)), layer.out)
            ops.add_linear_(x, ops.norm_swiglu(x, layer.ffn_norm, layer.gate_up, eps), layer.down)
        return ops.rms_norm(x, self._norm, eps)
