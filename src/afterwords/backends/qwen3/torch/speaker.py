"""The speaker encoder: an ECAPA-TDNN over mel frames that gives one embedding per recording.

The embedding is as wide as the talker, whose input it is at one position; so each size of the model has a speaker
encoder of its own in its checkpoint.
Source: B. Desplanques et al. (2020), "ECAPA-TDNN: emphasized channel attention, propagation and aggregation in TDNN
based speaker verification".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn import functional

from afterwords.audio.analysis import mel_filters
from afterwords.audio.wav import Samples
from afterwords.backends.qwen3.torch.weights import Weights, take_affine

if TYPE_CHECKING:
    from afterwords.backends.qwen3.config import SpeakerConfig

# Not in the checkpoint's configuration. Source: qwen-tts 0.1.1, `extract_speaker_embedding`.
_N_FFT: Final = 1024
_HOP: Final = 256
_HIGH_HZ: Final = 12_000.0
_POWER_FLOOR: Final = 1e-9
_MEL_FLOOR: Final = 1e-5
_VARIANCE_FLOOR: Final = 1e-12


class SpeakerEncoder:
    """The speaker encoder of a checkpoint, with weights of its main file in float32."""

    def __init__(self, config: SpeakerConfig, weights: Weights) -> None:
        self.width, self.sample_rate = config.width, config.sample_rate
        self._device, self._dtype = weights.device, weights.dtype
        filters = mel_filters(config.sample_rate, _N_FFT, config.n_mels, 0.0, _HIGH_HZ)
        self._filters = torch.from_numpy(filters).to(self._device, self._dtype)
        self._window = torch.hann_window(_N_FFT, device=self._device, dtype=self._dtype)
        name, channels = "speaker_encoder", config.channels
        first = (channels[0], config.n_mels, config.kernels[0])
        self._first = _Tdnn(weights, f"{name}.blocks.0", first, dilation=config.dilations[0])
        self._blocks = [_Block(config, weights, f"{name}.blocks.{i}", i) for i in range(1, len(channels) - 1)]
        joined = (channels[-1], sum(channels[1:-1]), config.kernels[-1])
        self._join = _Tdnn(weights, f"{name}.mfa", joined, dilation=config.dilations[-1])
        self._pool = _Pooling(config, weights, f"{name}.asp")
        self._last = take_affine(weights, f"{name}.fc", (config.width, 2 * channels[-1], 1))
        weights.check_all_taken(f"{name}.")

    @torch.inference_mode()
    def embed(self, samples: Samples) -> Samples:
        """Return the speaker embedding of a recording.

        Args:
            samples: float32 of shape (n_samples,), at least 0.1 s, in [-1, 1], at `sample_rate`.

        Returns:
            The embedding, float32 of shape (width,).
        """
        x = self._first(self.mel_frames(torch.from_numpy(samples))[None])
        outputs = []
        for block in self._blocks:
            x = block(x)
            outputs.append(x)
        embedding = functional.conv1d(self._pool(self._join(torch.cat(outputs, dim=1))), *self._last)[0, :, 0]
        return embedding.float().cpu().numpy()

    def mel_frames(self, samples: Tensor) -> Tensor:
        """Return log mel frames of shape (n_mels, n_frames): 1024 samples each, every 256."""
        sound = samples.to(self._device, self._dtype)
        edge = (_N_FFT - _HOP) // 2
        sound = functional.pad(sound[None], (edge, edge), mode="reflect")[0]
        spectrum = torch.stft(sound, _N_FFT, _HOP, window=self._window, center=False, return_complex=True)
        magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + _POWER_FLOOR)
        return (self._filters @ magnitude).clamp(min=_MEL_FLOOR).log()


class _Tdnn:
    """A convolution with reflected edges, and a ReLU."""

    def __init__(self, weights: Weights, name: str, shape: tuple[int, int, int], *, dilation: int = 1) -> None:
        self._weight, self._bias = take_affine(weights, f"{name}.conv", shape)
        self._dilation, self._reach = dilation, dilation * (shape[-1] - 1)

    def __call__(self, x: Tensor) -> Tensor:
        left = self._reach // 2
        if self._reach:
            x = functional.pad(x, (left, self._reach - left), mode="reflect")
        return functional.relu(functional.conv1d(x, self._weight, self._bias, dilation=self._dilation))


class _Block:
    """An SE-Res2Net block: groups of channels with growing context, and squeeze-excitation."""

    def __init__(self, config: SpeakerConfig, weights: Weights, name: str, place: int) -> None:
        width, before, self._scale = config.channels[place], config.channels[place - 1], config.res2net_scale
        part = (width // self._scale, width // self._scale, config.kernels[place])
        self._enter = _Tdnn(weights, f"{name}.tdnn1", (width, before, 1))
        self._tdnns = [
            _Tdnn(weights, f"{name}.res2net_block.blocks.{i}", part, dilation=config.dilations[place])
            for i in range(self._scale - 1)
        ]
        self._leave = _Tdnn(weights, f"{name}.tdnn2", (width, width, 1))
        self._squeeze = take_affine(weights, f"{name}.se_block.conv1", (config.se_channels, width, 1))
        self._excite = take_affine(weights, f"{name}.se_block.conv2", (width, config.se_channels, 1))

    def __call__(self, x: Tensor) -> Tensor:
        first, *others = self._enter(x).chunk(self._scale, dim=1)
        outputs = [first]
        for i, (part, tdnn) in enumerate(zip(others, self._tdnns, strict=True)):
            outputs.append(tdnn(part if i == 0 else part + outputs[-1]))
        y = self._leave(torch.cat(outputs, dim=1))
        squeezed = functional.relu(functional.conv1d(y.mean(dim=2, keepdim=True), *self._squeeze))
        return x + y * torch.sigmoid(functional.conv1d(squeezed, *self._excite))


class _Pooling:
    """Attentive pooling: weighted mean and standard deviation of each channel over time."""

    def __init__(self, config: SpeakerConfig, weights: Weights, name: str) -> None:
        width, inner = config.channels[-1], config.attention_channels
        self._tdnn = _Tdnn(weights, f"{name}.tdnn", (inner, 3 * width, 1))
        self._attention = take_affine(weights, f"{name}.conv", (width, inner, 1))

    def __call__(self, x: Tensor) -> Tensor:
        """Pool shape (1, channels, frames) to (1, 2 * channels, 1)."""
        mean, spread = _moments(x, torch.full_like(x, 1 / x.shape[-1]))
        context = torch.cat([x, mean.expand_as(x), spread.expand_as(x)], dim=1)
        weighting = functional.conv1d(torch.tanh(self._tdnn(context)), *self._attention).softmax(dim=2)
        return torch.cat(_moments(x, weighting), dim=1)


def _moments(x: Tensor, weighting: Tensor) -> tuple[Tensor, Tensor]:
    mean = (weighting * x).sum(dim=2, keepdim=True)
    variance = (weighting * (x - mean).square()).sum(dim=2, keepdim=True)
    return mean, variance.clamp(min=_VARIANCE_FLOOR).sqrt()
