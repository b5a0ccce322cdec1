"""From sound to codec frames: the encoder of Mimi, of whose codebooks a frame has the first sixteen.

Convolutions down to 25 steps a second, a transformer, once more by two, then each codebook quantizes what the ones
before it left over. `Engine.prepare` makes the codes of a reference with it, once a voice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from afterwords.audio.wav import Samples
from afterwords.backends.qwen3.codec_config import DOWNSAMPLING
from afterwords.backends.qwen3.torch.causal import CausalConv
from afterwords.backends.qwen3.torch.codec_transformer import EncoderTransformer
from afterwords.backends.qwen3.torch.weights import Weights, take_affine, take_codebook

if TYPE_CHECKING:
    from afterwords.backends.qwen3.codec_config import CodecConfig, CodecEncoderConfig

PIECE_FRAMES: Final = 25
"""Frames convolved at once: 2 s. The widest layer needs 12 MB for it."""


class CodecEncoder:
    """The encoder of a codec checkpoint.

    Args:
        config: of the codec.
        weights: of the codec's file, in float32: in less, other codes come out.
    """

    def __init__(self, config: CodecConfig, weights: Weights) -> None:
        encoder = config.encoder
        self.sample_rate, self.samples_per_frame = config.input_sample_rate, config.encode_downsample_rate
        self._device, self._dtype = weights.device, weights.dtype
        self._stages = _stages(encoder, weights)
        self._transformer = EncoderTransformer(encoder.stack, weights, "encoder.encoder_transformer")
        hidden = encoder.stack.hidden
        self._last = weights.take("encoder.downsample.conv.weight", (hidden, hidden, 2 * DOWNSAMPLING))
        n_acoustic = config.n_codebooks - encoder.n_semantic
        self._quantizers = [
            _Quantizer(encoder, weights, "semantic", encoder.n_semantic),
            _Quantizer(encoder, weights, "acoustic", n_acoustic),
        ]
        weights.check_all_taken("encoder.")

    @torch.inference_mode()
    def encode(self, samples: Samples) -> NDArray[np.uint16]:
        """Encode a recording.

        Args:
            samples: shape (n_samples,), at least one, float32 in [-1, 1], at `sample_rate`.

        Returns:
            Codes, uint16 of shape (ceil(n_samples / samples_per_frame), codebooks).
        """
        sound = torch.from_numpy(samples).to(self._device, self._dtype)[None, None]
        pasts = [layer.new_past(1) for stage in self._stages for layer in stage.layers]
        pieces = sound.split(PIECE_FRAMES * self.samples_per_frame, dim=-1)
        steps = torch.cat([self._convolve(piece, pasts) for piece in pieces], dim=-1)
        latent = self._halve(self._transformer(steps.transpose(1, 2)).transpose(1, 2))
        codes = torch.cat([quantizer(latent[0].T) for quantizer in self._quantizers], dim=1)
        return codes.cpu().numpy().astype(np.uint16)

    def _convolve(self, x: Tensor, pasts: list[Tensor]) -> Tensor:
        """The next piece of sound, shape (1, 1, n), as steps of shape (1, hidden, ceil(n / 960))."""
        left = iter(pasts)
        for stage in self._stages:
            x = stage(x, [next(left) for _ in stage.layers])
        return x

    def _halve(self, x: Tensor) -> Tensor:
        """From steps to frames. Its edges go on as they are, where those of the other convolutions are silent."""
        x = functional.pad(x, (DOWNSAMPLING, -x.shape[-1] % DOWNSAMPLING), mode="replicate")
        return functional.conv1d(x, self._last, stride=DOWNSAMPLING)


class _Convolution:
    """A convolution, behind an ELU unless it is the first."""

    def __init__(self, weights: Weights, place: int, shape: tuple[int, int, int], *, stride: int = 1) -> None:
        kernel = take_affine(weights, f"encoder.encoder.layers.{place}.conv", shape)
        self._is_first = place == 0
        self.layers = (CausalConv(*kernel, stride=stride),)

    def __call__(self, x: Tensor, pasts: list[Tensor]) -> Tensor:
        return self.layers[0](x if self._is_first else functional.elu(x), pasts[0])


class _ResidualUnit:
    """What a narrower path adds to the stream."""

    def __init__(self, weights: Weights, place: int, width: int, inner: int, *, kernel: int, dilation: int) -> None:
        name = f"encoder.encoder.layers.{place}.block"
        far = take_affine(weights, f"{name}.1.conv", (inner, width, kernel))
        self.layers = (CausalConv(*far, dilation=dilation),)
        self._near = take_affine(weights, f"{name}.3.conv", (width, inner, 1))

    def __call__(self, x: Tensor, pasts: list[Tensor]) -> Tensor:
        return x + functional.conv1d(functional.elu(self.layers[0](functional.elu(x), pasts[0])), *self._near)


def _stages(config: CodecEncoderConfig, weights: Weights) -> list[_Convolution | _ResidualUnit]:
    """The convolutions, from (1, 1, samples) to (1, hidden, steps). An ELU counts as a place of its own."""
    width = config.n_filters
    stages: list[_Convolution | _ResidualUnit] = [_Convolution(weights, 0, (width, 1, config.kernel))]
    place = 1
    for ratio in config.ratios:
        for unit in range(config.n_residual):
            dilation, kernel = config.dilation_growth**unit, config.residual_kernel
            inner = width // config.compress
            stages.append(_ResidualUnit(weights, place, width, inner, kernel=kernel, dilation=dilation))
            place += 1
        stages.append(_Convolution(weights, place + 1, (2 * width, width, 2 * ratio), stride=ratio))
        width, place = 2 * width, place + 2
    stages.append(_Convolution(weights, place + 1, (config.stack.hidden, width, config.last_kernel)))
    return stages


class _Quantizer:
    """Codebooks one behind the other: each says which of its entries is nearest to what is left."""

    def __init__(self, config: CodecEncoderConfig, weights: Weights, kind: str, count: int) -> None:
        name = f"encoder.quantizer.{kind}_residual_vector_quantizer"
        shape = (config.codebook_size, config.codebook_dim)
        self._inward = weights.take(f"{name}.input_proj.weight", (config.codebook_dim, config.stack.hidden, 1))[..., 0]
        self._books = [
            take_codebook(weights, f"{name}.layers.{i}.codebook", "embed_sum", shape).to(weights.dtype)
            for i in range(count)
        ]
        weights.skip(f"{name}.")  # the projection back, and codebooks beyond those of a frame

    def __call__(self, latent: Tensor) -> Tensor:
        """Codes of shape (frames, codebooks), int64, for latents of shape (frames, hidden)."""
        left = functional.linear(latent, self._inward)
        codes = []
        for book in self._books:
            nearest = torch.cdist(left[None], book[None])[0].argmin(dim=-1)
            left = left - functional.embedding(nearest, book)
            codes.append(nearest)
        return torch.stack(codes, dim=1)
