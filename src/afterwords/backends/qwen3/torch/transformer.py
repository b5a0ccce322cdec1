"""A stack of decoder layers with a static key-value cache: the talker is one, the code predictor another.

Every row has positions of its own. A step over one position a row is a fixed sequence of operations on buffers that
stay where they are, so that it can be captured once as a CUDA graph and replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from afterwords.backends.qwen3.config import StackConfig
from afterwords.backends.qwen3.torch import ops as torch_ops
from afterwords.backends.qwen3.torch.ops import Ops
from afterwords.backends.qwen3.torch.quantized import Matrix, quantize_matrix
from afterwords.backends.qwen3.torch.weights import Weights


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Weights of one layer; queries, keys and values are one matrix, and so are gate and up."""

    attention_norm: Tensor
    qkv: Matrix
    out: Matrix
    ffn_norm: Tensor
    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True, slots=True)
class StepPositions:
    """Where a step stands: one position a row.

    Attributes:
        rows, positions: shape (n_rows,) each, or 1 position for all.
        turns: shape (2, n_layers, n_rows or 1, n_heads + n_kv_heads, head_dim), see `ops.turn_and_write_`.
        mask: shape (n_rows or 1, 1, 1, n_positions).
    """

    rows: Tensor
    positions: Tensor
    rotations: Tensor
    mask: Tensor


class Stack:
    """Decoder layers and the norm after them."""

    def __init__(
        self, weights: Weights, prefix: str, config: StackConfig, *, n_positions: int, ops: Ops = torch_ops
    ) -> None:
        """Take the weights under a prefix.

        Args:
            weights: of the checkpoint.
            prefix: for example "talker.model".
            config: sizes.
            n_positions: the longest row there will be.
            ops: what its steps are made of.

        Raises:
            ModelError: a tensor is missing or misshapen.
        """
        self.config, self.n_positions, self._ops = config, n_positions, ops
        self._device, self._dtype = weights.device, weights.dtype
        self._layers = [_layer(weights, f"{prefix}.layers.{number}", config) for number in range(config.n_layers)]
        norms = [_qk_norm(weights, f"{prefix}.layers.{number}", config) for number in range(config.n_layers)]
        self._norm = weights.take(f"{prefix}.norm.weight", (config.hidden,))
        # (2, n_layers, heads, head_dim): the weights, and the weights that reach each half from the other one.
        self._qk_norms = torch.stack([torch.stack(norms), torch.stack(norms).roll(config.head_dim // 2, -1)])
        self._angles = _angles(config, n_positions, weights.device)
        self._ahead = torch.arange(n_positions, device=weights.device)

    def quantize(self, precision: str, names: Sequence[str]) -> None:
        """Round these matrices of every layer, by their names in `Layer`."""
        for number, layer in enumerate(self._layers):  # one by one, so that memory holds one matrix twice at most
            rounded: dict[str, Any] = {name: quantize_matrix(getattr(layer, name), precision) for name in names}
            self._layers[number] = replace(layer, **rounded)

    def new_cache(self, n_rows: int, n_positions: int) -> Tensor:
        """An empty cache, shape (n_layers, n_rows, n_positions, 2 * n_kv_heads, head_dim)."""
        config = self.config
        shape = (config.n_layers, n_rows, n_positions, 2 * config.n_kv_heads, config.head_dim)
        return torch.zeros(shape, device=self._device, dtype=self._dtype)

    def place(self, rows: Tensor, positions: Tensor, n_positions: int) -> StepPositions:
        """Where each row stands, for `step`.

        Args:
            rows: shape (n_rows,), rows of the cache.
            positions: shape (n_rows,) or (1,).
            n_positions: of the cache.
        """
        rotations = self._angles[:, None, positions, None] * self._qk_norms[:, :, None]
        is_hidden = self._ahead[:n_positions] > positions[:, None]
        mask = torch.zeros_like(is_hidden, dtype=self._dtype).masked_fill_(is_hidden, -torch.inf)
        return StepPositions(rows, positions, rotations, mask[:, None, None])

    def step(self, x: Tensor, cache: Tensor, place: StepPositions) -> Tensor:
        """Go through the layers at one position a row.

        Args:
            x: shape (n_rows, hidden); overwritten.
            cache: of `new_cache`, or a view of its first rows and positions.
            place: of `place`.

        Returns:
            Shape (n_rows, hidden), normed.
        """

        def attend(number: int, qkv: Tensor) -> Tensor:
            query = self._ops.rotate_and_cache_(
                qkv, place.rotations[:, number], cache[number], place.rows, place.positions, self.config.norm_eps
            )
            return self._ops.attend(query, cache[number], place.positions, place.mask)

        return self._run(x, attend)

    def prefill(self, x: Tensor, cache: Tensor, rows: Tensor) -> Tensor:
        """Go through the layers at the first positions of some rows.

        Shorter rows are padded on the right: what stands there is seen by no earlier position, and is overwritten
        before a later one looks.

        Args:
            x: shape (n, n_positions, hidden); overwritten.
            cache: of `new_cache`.
            rows: shape (n,), rows of the cache.

        Returns:
            Shape (n, n_positions, hidden), normed.
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
            qkv = ops.linear(ops.rms_norm(x, layer.attention_norm, eps), layer.qkv)
            ops.add_linear_(x, attend(number, qkv.view(len(x), -1, head_dim)), layer.out)
            gate_up = ops.linear(ops.rms_norm(x, layer.ffn_norm, eps), layer.gate_up)
            ops.add_linear_(x, ops.swiglu(gate_up), layer.down)
        return ops.rms_norm(x, self._norm, eps)


def _layer(weights: Weights, at: str, config: StackConfig) -> LayerWeights:
    hidden, head_dim = config.hidden, config.head_dim
    queries, keys = (config.n_heads * head_dim, hidden), (config.n_kv_heads * head_dim, hidden)
    heads = [("q", queries), ("k", keys), ("v", keys)]
    return LayerWeights(
        attention_norm=weights.take(f"{at}.input_layernorm.weight", (hidden,)),
        qkv=weights.join([(f"{at}.self_attn.{name}_proj.weight", shape) for name, shape in heads]),
        out=weights.take(f"{at}.self_attn.o_proj.weight", (hidden, queries[0])),
        ffn_norm=weights.take(f"{at}.post_attention_layernorm.weight", (hidden,)),
        gate_up=weights.join([(f"{at}.mlp.{name}_proj.weight", (config.ffn, hidden)) for name in ("gate", "up")]),
        down=weights.take(f"{at}.mlp.down_proj.weight", (hidden, config.ffn)),
    )


def _qk_norm(weights: Weights, at: str, config: StackConfig) -> Tensor:
    """The weights of the norms of each head, queries then keys, shape (n_heads + n_kv_heads, head_dim), float32."""
    query, key = (
        weights.take(f"{at}.self_attn.{name}_norm.weight", (config.head_dim,), dtype=torch.float32) for name in "qk"
    )
    return torch.cat([query.expand(config.n_heads, -1), key.expand(config.n_kv_heads, -1)])


def _angles(config: StackConfig, n_positions: int, device: torch.device) -> Tensor:
    """Cosines, and sines with the sign of their half, shape (2, n_positions, head_dim), float32."""
    steps = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32) / config.head_dim
    angles = torch.arange(n_positions, device=device, dtype=torch.float32)[:, None] / config.rope_theta**steps
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)])
