"""The convolutions of the codec's decoder, from the latent of a frame to its samples.

They take nine tenths of the decoder's time. A stage reads the past inputs of its convolutions from `pasts`, in the
order of its `layers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from afterwords.backends.qwen3.torch.causal import CausalConv, CausalUpsampling
from afterwords.backends.qwen3.torch.weights import Shape, Weights, take_affine

if TYPE_CHECKING:
    from afterwords.backends.qwen3.codec_config import CodecDecoderConfig

# What the checkpoint does not state. Source: qwen-tts 0.1.1, modeling_qwen3_tts_tokenizer_v2.py.
_KERNEL: Final = 7
_DILATIONS: Final = (1, 3, 9)
_BLOCK_EXPANSION: Final = 4
_BLOCK_NORM_EPS: Final = 1e-6
_SNAKE_FLOOR: Final = 1e-9

WaveLayer = CausalConv | CausalUpsampling


class Stage(Protocol):
    """Layers of the decoder, from shape (rows, inputs, n) to (rows, outputs, n * upsampling)."""

    @property
    def layers(self) -> Sequence[WaveLayer]: ...

    def __call__(self, x: Tensor, pasts: Iterator[Tensor], n_frames: Tensor | None) -> Tensor: ...


def wave_stages(config: CodecDecoderConfig, weights: Weights) -> list[Stage]:
    """Return the stages, from (rows, latent, frames) to (rows, 1, samples)."""
    rate, width = 1, config.latent
    stages: list[Stage] = []
    for i, ratio in enumerate(config.upsampling_ratios):
        stages.append(FrameUpsampling(weights, f"decoder.upsample.{i}", width=width, ratio=ratio, rate=rate))
        rate *= ratio
    stages.append(InputConv(weights, "decoder.decoder.0", shape=(config.wave_width, width, _KERNEL), rate=rate))
    width = config.wave_width
    for i, ratio in enumerate(config.upsample_rates, 1):
        stages.append(WaveUpsampling(weights, f"decoder.decoder.{i}.block", width=width, ratio=ratio, rate=rate))
        rate, width = rate * ratio, width // 2
    stages.append(OutputConv(weights, "decoder.decoder", place=len(config.upsample_rates) + 1, width=width, rate=rate))
    return stages


class Snake:
    """x + sin²(a x) / b, with a and b for each channel.

    Source: L. Ziyin et al. (2020), "Neural networks fail to learn periodic functions and how to fix it".
    """

    def __init__(self, weights: Weights, name: str, width: int) -> None:
        slope, height = (
            weights.take(f"{name}.{part}", (width,), dtype=torch.float32).exp()[:, None] for part in ("alpha", "beta")
        )
        self._slope, self._weight = slope.to(weights.dtype), (1 / (height + _SNAKE_FLOOR)).to(weights.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addcmul(x, (x * self._slope).sin_().square_(), self._weight)


class FrameUpsampling:
    """Upsampling of latent frames with a ConvNeXt block, over a frame and the six before it."""

    def __init__(self, weights: Weights, name: str, *, width: int, ratio: int, rate: int) -> None:
        wider = take_affine(weights, f"{name}.0.conv", (width, width, ratio))
        depth = take_affine(weights, f"{name}.1.dwconv.conv", (width, 1, _KERNEL))
        self.layers = (
            CausalUpsampling(*wider, stride=ratio, rate=rate),
            CausalConv(*depth, groups=width, rate=rate * ratio),
        )
        self._norm = take_affine(weights, f"{name}.1.norm", (width,))
        self._up = take_affine(weights, f"{name}.1.pwconv1", (_BLOCK_EXPANSION * width, width))
        down, bias = take_affine(weights, f"{name}.1.pwconv2", (width, _BLOCK_EXPANSION * width), dtype=torch.float32)
        gain = weights.take(f"{name}.1.gamma", (width,), dtype=torch.float32)
        self._down = ((down * gain[:, None]).to(weights.dtype), (bias * gain).to(weights.dtype))

    def __call__(self, x: Tensor, pasts: Iterator[Tensor], n_frames: Tensor | None) -> Tensor:
        wider, depth = self.layers
        x = wider(x, next(pasts), n_frames)
        y = depth(x, next(pasts), n_frames).transpose(1, 2)
        y = functional.gelu(
            functional.linear(functional.layer_norm(y, self._norm[0].shape, *self._norm, _BLOCK_NORM_EPS), *self._up)
        )
        return x + functional.linear(y, *self._down).transpose(1, 2)


class InputConv:
    """The convolution from the latent width to that of the sample stages."""

    def __init__(self, weights: Weights, name: str, *, shape: Shape, rate: int) -> None:
        self.layers = (CausalConv(*take_affine(weights, f"{name}.conv", shape), rate=rate),)

    def __call__(self, x: Tensor, pasts: Iterator[Tensor], n_frames: Tensor | None) -> Tensor:
        return self.layers[0](x, next(pasts), n_frames)


class WaveUpsampling:
    """Upsampling with half the channels, then three residual units with growing dilation."""

    def __init__(self, weights: Weights, name: str, *, width: int, ratio: int, rate: int) -> None:
        inner = width // 2
        self._snake = Snake(weights, f"{name}.0", width)
        wider = take_affine(weights, f"{name}.1.conv", (width, inner, 2 * ratio), n_outputs=inner)
        self._wider = CausalUpsampling(*wider, stride=ratio, rate=rate)
        self._units = [
            _ResidualUnit(weights, f"{name}.{i}", width=inner, dilation=dilation, rate=rate * ratio)
            for i, dilation in enumerate(_DILATIONS, 2)
        ]
        self.layers: tuple[WaveLayer, ...] = (self._wider, *(unit.dilated for unit in self._units))

    def __call__(self, x: Tensor, pasts: Iterator[Tensor], n_frames: Tensor | None) -> Tensor:
        x = self._wider(self._snake(x), next(pasts), n_frames)
        for unit in self._units:
            x = unit(x, next(pasts), n_frames)
        return x


class _ResidualUnit:
    def __init__(self, weights: Weights, name: str, *, width: int, dilation: int, rate: int) -> None:
        self._snakes = [Snake(weights, f"{name}.act{i}", width) for i in (1, 2)]
        dilated = take_affine(weights, f"{name}.conv1.conv", (width, width, _KERNEL))
        self.dilated = CausalConv(*dilated, dilation=dilation, rate=rate)
        self._pointwise = take_affine(weights, f"{name}.conv2.conv", (width, width, 1))

    def __call__(self, x: Tensor, past: Tensor, n_frames: Tensor | None) -> Tensor:
        y = self._snakes[1](self.dilated(self._snakes[0](x), past, n_frames))
        return x + functional.conv1d(y, *self._pointwise)


class OutputConv:
    """The convolution from the last channels to one."""

    def __init__(self, weights: Weights, name: str, *, place: int, width: int, rate: int) -> None:
        self._snake = Snake(weights, f"{name}.{place}", width)
        last = take_affine(weights, f"{name}.{place + 1}.conv", (1, width, _KERNEL))
        self.layers = (CausalConv(*last, rate=rate),)

    def __call__(self, x: Tensor, pasts: Iterator[Tensor], n_frames: Tensor | None) -> Tensor:
        return self.layers[0](self._snake(x), next(pasts), n_frames)
