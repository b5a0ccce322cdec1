"""The convolutions of the codec's decoder, from the latent of a frame to its samples.

They take nine tenths of the decoder's time. A stage reads the past inputs of its convolutions from `pasts`, in the
order of its `layers`. The biases of most convolutions are added by the next snake, which reads their
output in any case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from afterwords.backends.qwen3.torch.causal import CausalConv, CausalUpsampling, remember
from afterwords.backends.qwen3.torch.ops import Ops
from afterwords.backends.qwen3.torch.weights import Shape, Weights, take_affine

if TYPE_CHECKING:
    from afterwords.backends.qwen3.codec_config import CodecDecoderConfig

# What the checkpoint does not state. Source: qwen-tts 0.1.1, modeling_qwen3_tts_tokenizer_v2.py.
_KERNEL: Final = 7
_DILATIONS: Final = (1, 3, 9)
_BLOCK_EXPANSION: Final = 4
_BLOCK_NORM_EPS: Final = 1e-6
_SNAKE_FLOOR: Final = 1e-9
_OUTPUTS: Final = 8

WaveLayer = CausalConv | CausalUpsampling


class Stage(Protocol):
    """Layers of the decoder, from shape (rows, inputs, n) to (rows, outputs, n * upsampling)."""

    @property
    def layers(self) -> Sequence[WaveLayer]: ...

    def __call__(self, x: Tensor, pasts: Iterator[Tensor], n_frames: Tensor | None) -> Tensor: ...


def wave_stages(config: CodecDecoderConfig, weights: Weights, ops: Ops) -> list[Stage]:
    """Return the stages, from (rows, latent, frames) to (rows, 8, samples), of which the first is meant."""
    rate, width = 1, config.latent
    stages: list[Stage] = []
    for i, ratio in enumerate(config.upsampling_ratios):
        stages.append(FrameUpsampling(weights, f"decoder.upsample.{i}", width=width, ratio=ratio, rate=rate))
        rate *= ratio
    entrance = InputConv(weights, "decoder.decoder.0", shape=(config.wave_width, width, _KERNEL), rate=rate)
    stages.append(entrance)
    width, bias = config.wave_width, entrance.bias
    for i, ratio in enumerate(config.upsample_rates, 1):
        name = f"decoder.decoder.{i}.block"
        stage = WaveUpsampling(weights, name, ops, width=width, ratio=ratio, rate=rate, bias=bias)
        stages.append(stage)
        rate, width, bias = rate * ratio, width // 2, stage.bias
    place = len(config.upsample_rates) + 1
    stages.append(OutputConv(weights, "decoder.decoder", ops, place=place, width=width, rate=rate, bias=bias))
    return stages


class Snake:
    """x + sin²(a x) / b, with a and b for each channel, after a bias is added to x.

    Source: L. Ziyin et al. (2020), "Neural networks fail to learn periodic functions and how to fix it".
    """

    def __init__(self, weights: Weights, name: str, ops: Ops, *, bias: Tensor) -> None:
        slope, height = (
            weights.take(f"{name}.{part}", (len(bias),), dtype=torch.float32).exp() for part in ("alpha", "beta")
        )
        numbers = (slope, 1 / (height + _SNAKE_FLOOR), bias)
        self._numbers = [number.to(weights.dtype)[:, None] for number in numbers]
        self._snake = ops.snake

    def __call__(self, x: Tensor) -> Tensor:
        return self._snake(x, *self._numbers)


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
    """The convolution from the latent width to that of the sample stages.

    Attributes:
        bias: Not added yet, float32 of shape (outputs,).
    """

    def __init__(self, weights: Weights, name: str, *, shape: Shape, rate: int) -> None:
        weight, bias = take_affine(weights, f"{name}.conv", shape)
        self.layers, self.bias = (CausalConv(weight, None, rate=rate),), bias.float()
        self._matrix = weight.flatten(1)

    def __call__(self, x: Tensor, pasts: Iterator[Tensor], n_frames: Tensor | None) -> Tensor:
        # As a matrix product, since cuDNN has no fast kernel for few samples of many channels.
        joined = remember(next(pasts), x, None if n_frames is None else n_frames * self.layers[0].rate)
        windows = joined.unfold(-1, _KERNEL, 1).transpose(1, 2).flatten(2)
        return functional.linear(windows, self._matrix).transpose(1, 2).contiguous()


class WaveUpsampling:
    """Upsampling with half the channels, then three residual units with growing dilation.

    Attributes:
        bias: Not added yet, float32 of shape (outputs,).
    """

    def __init__(
        self, weights: Weights, name: str, ops: Ops, *, width: int, ratio: int, rate: int, bias: Tensor
    ) -> None:
        inner = width // 2
        self._snake = Snake(weights, f"{name}.0", ops, bias=bias)
        wider, bias = take_affine(weights, f"{name}.1.conv", (width, inner, 2 * ratio), n_outputs=inner)
        self._wider = CausalUpsampling(wider, None, stride=ratio, rate=rate)
        self._units: list[_ResidualUnit] = []
        self.bias = bias.float()
        for i, dilation in enumerate(_DILATIONS, 2):
            unit = _ResidualUnit(weights, f"{name}.{i}", ops, dilation=dilation, rate=rate * ratio, bias=self.bias)
            self._units.append(unit)
            self.bias = unit.bias
        self.layers: tuple[WaveLayer, ...] = (self._wider, *(unit.dilated for unit in self._units))

    def __call__(self, x: Tensor, pasts: Iterator[Tensor], n_frames: Tensor | None) -> Tensor:
        x = self._wider(self._snake(x), next(pasts), n_frames)
        for unit in self._units:
            x = unit(x, next(pasts), n_frames)
        return x


class _ResidualUnit:
    def __init__(self, weights: Weights, name: str, ops: Ops, *, dilation: int, rate: int, bias: Tensor) -> None:
        width = len(bias)
        dilated, inner_bias = take_affine(weights, f"{name}.conv1.conv", (width, width, _KERNEL))
        self._snakes = [
            Snake(weights, f"{name}.act{i}", ops, bias=each) for i, each in ((1, bias), (2, inner_bias.float()))
        ]
        self.dilated = CausalConv(dilated, None, dilation=dilation, rate=rate)
        pointwise, outer_bias = take_affine(weights, f"{name}.conv2.conv", (width, width, 1))
        self._pointwise = pointwise[..., 0]
        self.bias = bias + outer_bias.float()

    def __call__(self, x: Tensor, past: Tensor, n_frames: Tensor | None) -> Tensor:
        y = self._snakes[1](self.dilated(self._snakes[0](x), past, n_frames))
        return torch.baddbmm(x, self._pointwise.expand(len(y), -1, -1), y)


class OutputConv:
    """The convolution from the last channels to one; others are zero, since tensor cores need eight."""

    def __init__(
        self, weights: Weights, name: str, ops: Ops, *, place: int, width: int, rate: int, bias: Tensor
    ) -> None:
        self._snake = Snake(weights, f"{name}.{place}", ops, bias=bias)
        weight, last_bias = take_affine(weights, f"{name}.{place + 1}.conv", (1, width, _KERNEL))
        wide = functional.pad(weight, (0, 0, 0, 0, 0, _OUTPUTS - 1)), functional.pad(last_bias, (0, _OUTPUTS - 1))
        self.layers = (CausalConv(*wide, rate=rate),)

    def __call__(self, x: Tensor, pasts: Iterator[Tensor], n_frames: Tensor | None) -> Tensor:
        return self.layers[0](self._snake(x), next(pasts), n_frames)
