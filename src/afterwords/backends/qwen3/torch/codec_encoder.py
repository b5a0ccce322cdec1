"""The encoder of the codec, which is that of Mimi: from audio to frames of the first sixteen codebooks.

Convolutions down to 25 steps per second, a transformer, a convolution that halves the rate, then residual vector
quantization. `Engine.prepare` encodes the reference of a voice with it.
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

CHUNK_FRAMES: Final = 25
"""Frames that are convolved at once: 2 s. The widest layer needs 12 MB for it."""


class CodecEncoder:
    """The encoder of a codec checkpoint. Its weights are float32; with lower precision, the codes differ."""

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
            samples: float32 of shape (n_samples,), at least one, in [-1, 1], at `sample_rate`.

        Returns:
            Codes, uint16 of shape (ceil(n_samples / samples_per_frame), codebooks).
        """
        sound = torch.from_numpy(samples).to(self._device, self._dtype)[None, None]
        pasts = [layer.new_past(1) for stage in self._stages for layer in stage.layers]
        steps = []
        for chunk in sound.split(CHUNK_FRAMES * self.samples_per_frame, dim=-1):
            x, remaining = chunk, iter(pasts)
            for stage in self._stages:
                x = stage(x, [next(remaining) for _ in stage.layers])
            steps.append(x)
        latent = self._transformer(torch.cat(steps, dim=-1).transpose(1, 2)).transpose(1, 2)
        # This convolution repeats its edges, where the others pad with silence.
        latent = functional.pad(latent, (DOWNSAMPLING, -latent.shape[-1] % DOWNSAMPLING), mode="replicate")
        latent = functional.conv1d(latent, self._last, stride=DOWNSAMPLING)
        codes = torch.cat([quantizer(latent[0].T) for quantizer in self._quantizers], dim=1)
        return codes.cpu().numpy().astype(np.uint16)


class _Convolution:
    """An ELU, except before the first layer, and a convolution."""

    def __init__(self, weights: Weights, place: int, shape: tuple[int, int, int], *, stride: int = 1) -> None:
        kernel = take_affine(weights, f"encoder.encoder.layers.{place}.conv", shape)
        self._is_first = place == 0
        self.layers = (CausalConv(*kernel, stride=stride),)

    def __call__(self, x: Tensor, pasts: list[Tensor]) -> Tensor:
        return self.layers[0](x if self._is_first else functional.elu(x), pasts[0])


class _ResidualUnit:
    """A residual path through fewer channels."""

    def __init__(self, weights: Weights, place: int, width: int, inner: int, *, kernel: int, dilation: int) -> None:
        name = f"encoder.encoder.layers.{place}.block"
        dilated = take_affine(weights, f"{name}.1.conv", (inner, width, kernel))
        self.layers = (CausalConv(*dilated, dilation=dilation),)
        self._pointwise = take_affine(weights, f"{name}.3.conv", (width, inner, 1))

    def __call__(self, x: Tensor, pasts: list[Tensor]) -> Tensor:
        return x + functional.conv1d(functional.elu(self.layers[0](functional.elu(x), pasts[0])), *self._pointwise)


def _stages(config: CodecEncoderConfig, weights: Weights) -> list[_Convolution | _ResidualUnit]:
    """Return the convolutions, from (1, 1, samples) to (1, hidden, steps). An ELU has a layer number of its own."""
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
    """Residual vector quantization: each codebook gives the entry that is nearest to the residual."""

    def __init__(self, config: CodecEncoderConfig, weights: Weights, kind: str, count: int) -> None:
        name = f"encoder.quantizer.{kind}_residual_vector_quantizer"
        shape = (config.codebook_size, config.codebook_dim)
        self._inward = weights.take(f"{name}.input_proj.weight", (config.codebook_dim, config.stack.hidden, 1))[..., 0]
        self._books = [
            take_codebook(weights, f"{name}.layers.{i}.codebook", "embed_sum", shape).to(weights.dtype)
            for i in range(count)
        ]
        weights.skip(f"{name}.")  # the output projection, and codebooks that frames do not use

    def __call__(self, latent: Tensor) -> Tensor:
        """Return codes, int64 of shape (frames, codebooks), for latents of shape (frames, hidden)."""
        residual = functional.linear(latent, self._inward)
        codes = []
        for book in self._books:
            nearest = torch.cdist(residual[None], book[None])[0].argmin(dim=-1)
            residual = residual - functional.embedding(nearest, book)
            codes.append(nearest)
        return torch.stack(codes, dim=1)
