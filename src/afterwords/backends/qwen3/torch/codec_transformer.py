"""The transformers of the codec: over a window of frames in its decoder, over all frames in its encoder.

Both use rotary positions and a layer scale. The decoder keeps its window between chunks, in tensors of a fixed shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn import functional

from afterwords.backends.qwen3.torch.causal import remember
from afterwords.backends.qwen3.torch.weights import Shape, Weights, take_affine

if TYPE_CHECKING:
    from afterwords.backends.qwen3.codec_config import CodecDecoderConfig
    from afterwords.backends.qwen3.config import StackConfig


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of positions, each of shape (rows or 1, n, 1, head_dim / 2).

    Source: J. Su et al. (2021), "RoFormer: enhanced transformer with rotary position embedding".
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def at(cls, positions: Tensor, *, head_dim: int, theta: float, dtype: torch.dtype) -> Rotation:
        """Return the rotation at positions of shape (rows or 1, n); angles are float32 for any dtype."""
        share = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
        angle = (positions[..., None].float() * (1.0 / theta**share))[:, :, None]
        return cls(angle.cos().to(dtype), angle.sin().to(dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate heads of shape (rows, n, heads, head_dim); the halves of a head are the two axes of its planes."""
        left, right = x.chunk(2, dim=-1)
        return torch.cat([left * self.cos - right * self.sin, right * self.cos + left * self.sin], dim=-1)


class Attention:
    """The attention of one layer, with its output projection."""

    def __init__(self, config: StackConfig, weights: Weights, name: str) -> None:
        self._heads, self._kv_heads, self._head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        widths = {"q": config.n_heads, "k": config.n_kv_heads, "v": config.n_kv_heads}
        self._inward = weights.join(
            [
                (f"{name}.self_attn.{part}_proj.weight", (n * config.head_dim, config.hidden))
                for part, n in widths.items()
            ]
        )
        self._outward = _take_scaled(
            weights,
            f"{name}.self_attn.o_proj.weight",
            (config.hidden, config.n_heads * config.head_dim),
            f"{name}.self_attn_layer_scale.scale",
        )

    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of shape (rows, heads, n, head_dim) for x of shape (rows, n, hidden)."""
        heads = functional.linear(x, self._inward).unflatten(-1, (-1, self._head_dim))
        rotated, values = heads.split([self._heads + self._kv_heads, self._kv_heads], dim=2)
        queries, keys = rotation(rotated).transpose(1, 2).split([self._heads, self._kv_heads], dim=1)
        return queries, keys, values.transpose(1, 2)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Return the attention output, shape (rows, n, hidden); without a mask it is causal."""
        seen = functional.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self._heads != self._kv_heads,
        )
        return functional.linear(seen.transpose(1, 2).flatten(2), self._outward)


# -- in the decoder ----------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class WindowCache:
    """Keys and values of the frames in the window, for each row of a batch.

    Attributes:
        n_seen: Number of frames so far, int64 of shape (rows,).
        keys: Shape (layers, rows, heads, window - 1, head_dim).
        values: The same shape.
    """

    n_seen: Tensor
    keys: Tensor
    values: Tensor

    def mask(self, n: int) -> Tensor:
        """Return which frames each of the next n frames attends to, bool of shape (rows, 1, n, window - 1 + n)."""
        size = self.keys.shape[-2]
        frame = torch.arange(n, device=self.keys.device)[:, None]
        at = torch.arange(size + n, device=self.keys.device)
        is_near = (at >= frame) & (at <= frame + size)
        is_there = at >= size - self.n_seen[:, None, None, None]
        return is_near & is_there


class WindowTransformer:
    """The transformer of the decoder: RMS norms, SwiGLU; a frame attends to itself and the window before it."""

    def __init__(self, config: CodecDecoderConfig, weights: Weights, name: str) -> None:
        self.window, self.stack = config.window, config.stack
        hidden, latent = config.stack.hidden, config.latent
        self._entrance = take_affine(weights, f"{name}.input_proj", (hidden, latent))
        self._layers = [_WindowLayer(self.stack, weights, f"{name}.layers.{i}") for i in range(self.stack.n_layers)]
        self._norm = weights.take(f"{name}.norm.weight", (hidden,))
        self._exit = take_affine(weights, f"{name}.output_proj", (latent, hidden))

    def new_window(self, rows: int) -> WindowCache:
        """Return an empty window."""
        stack = self.stack
        keys = self._norm.new_zeros(stack.n_layers, rows, stack.n_kv_heads, self.window - 1, stack.head_dim)
        return WindowCache(torch.zeros(rows, dtype=torch.int64, device=keys.device), keys, keys.clone())

    def __call__(self, x: Tensor, window: WindowCache, n_frames: Tensor | None = None) -> Tensor:
        """Run the next frames.

        Args:
            x: Shape (rows, n, latent).
            window: Updated in place.
            n_frames: Number of valid frames in each row, shape (rows,); None for all.

        Returns:
            Shape (rows, n, latent).
        """
        n = x.shape[1]
        positions = window.n_seen[:, None] + torch.arange(n, device=x.device)
        rotation = Rotation.at(positions, head_dim=self.stack.head_dim, theta=self.stack.rope_theta, dtype=x.dtype)
        mask = window.mask(n)
        x = functional.linear(x, *self._entrance)
        for layer, keys, values in zip(self._layers, window.keys, window.values, strict=True):
            x = layer(x, rotation, mask, (keys, values), n_frames)
        window.n_seen.add_(n if n_frames is None else n_frames)
        return functional.linear(functional.rms_norm(x, self._norm.shape, self._norm, self.stack.norm_eps), *self._exit)


class _WindowLayer:
    def __init__(self, config: StackConfig, weights: Weights, name: str) -> None:
        self._eps = config.norm_eps
        self._norms = [weights.take(f"{name}.{norm}.weight", (config.hidden,)) for norm in _NORMS]
        self._attention = Attention(config, weights, name)
        wide = (config.ffn, config.hidden)
        self._up = weights.join([(f"{name}.mlp.{part}_proj.weight", wide) for part in ("gate", "up")])
        self._down = _take_scaled(weights, f"{name}.mlp.down_proj.weight", wide[::-1], f"{name}.mlp_layer_scale.scale")

    def __call__(
        self, x: Tensor, rotation: Rotation, mask: Tensor, past: tuple[Tensor, Tensor], n_frames: Tensor | None
    ) -> Tensor:
        queries, keys, values = self._attention.project(self._normed(x, 0), rotation)
        keys = remember(past[0], keys, n_frames, dim=-2)
        values = remember(past[1], values, n_frames, dim=-2)
        x = x + self._attention.attend(queries, keys, values, mask)
        gate, up = functional.linear(self._normed(x, 1), self._up).chunk(2, dim=-1)
        return x + functional.linear(functional.silu(gate) * up, self._down)

    def _normed(self, x: Tensor, which: int) -> Tensor:
        return functional.rms_norm(x, self._norms[which].shape, self._norms[which], self._eps)


# -- in the encoder ----------------------------------------------------------------------------------------------


class EncoderTransformer:
    """The transformer of the encoder: layer norms, GELU; a step attends to itself and all steps before it.

    The checkpoint states a window of 250 steps, which the reference package does not apply: with it, codes differ from
    10.2 s on, and the talker was trained on codes without it.
    """

    def __init__(self, config: StackConfig, weights: Weights, name: str) -> None:
        self.stack = config
        self._layers = [_EncoderLayer(config, weights, f"{name}.layers.{i}") for i in range(config.n_layers)]

    def __call__(self, x: Tensor) -> Tensor:
        """Run the layers on x of shape (rows, n, hidden); return the same shape."""
        positions = torch.arange(x.shape[1], device=x.device)[None]
        rotation = Rotation.at(positions, head_dim=self.stack.head_dim, theta=self.stack.rope_theta, dtype=x.dtype)
        for layer in self._layers:
            x = layer(x, rotation)
        return x


class _EncoderLayer:
    def __init__(self, config: StackConfig, weights: Weights, name: str) -> None:
        self._eps = config.norm_eps
        self._norms = [take_affine(weights, f"{name}.{norm}", (config.hidden,)) for norm in _NORMS]
        self._attention = Attention(config, weights, name)
        wide = (config.ffn, config.hidden)
        self._up = weights.take(f"{name}.mlp.fc1.weight", wide)
        self._down = _take_scaled(weights, f"{name}.mlp.fc2.weight", wide[::-1], f"{name}.mlp_layer_scale.scale")

    def __call__(self, x: Tensor, rotation: Rotation) -> Tensor:
        x = x + self._attention.attend(*self._attention.project(self._normed(x, 0), rotation), None)
        return x + functional.linear(functional.gelu(functional.linear(self._normed(x, 1), self._up)), self._down)

    def _normed(self, x: Tensor, which: int) -> Tensor:
        weight, bias = self._norms[which]
        return functional.layer_norm(x, weight.shape, weight, bias, self._eps)


_NORMS: Final = ("input_layernorm", "post_attention_layernorm")


def _take_scaled(weights: Weights, name: str, shape: Shape, scale: str) -> Tensor:
    """Read a matrix and multiply it by its layer scale, which saves an operation."""
    gain = weights.take(scale, shape[:1], dtype=torch.float32)
    return (weights.take(name, shape, dtype=torch.float32) * gain[:, None]).to(weights.dtype)
