"""Speaker similarity: the GE2E speaker encoder in numpy, and the timbre of a voice.

The encoder is a three-layer LSTM over mel frames; the cosine of two unit-length embeddings is the similarity.
Source: L. Wan et al. (2018), "Generalized end-to-end loss for speaker verification"; weights of Resemblyzer.
"""

from __future__ import annotations

import io
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from afterwords.audio.analysis import cosine_basis, decibels, keep_speech, mel_filters, power_spectrum
from afterwords.audio.effects import resample
from afterwords.backends.lite.data import read_data

RATE: Final = 16_000
_WINDOW: Final = 160  # frames of 10 ms, as in training
_STEP: Final = 77  # frames between windows: 1.3 windows per second
_LEVEL_DB: Final = -30.0
_HIDDEN: Final = 256
# OpenBLAS splits products of more than 400,000 multiplications among spinning threads, which makes each of these 480
# steps 200 times slower on a busy machine. Four windows, one gate at a time, are well below.
_BATCH: Final = 4

Array = NDArray[np.float32]


def embed(samples: Array, sample_rate: int) -> Array:
    """Return the embedding of a voice: the mean over windows of 1.6 s, unit length, shape (256,)."""
    speech_samples = speech(samples, sample_rate)
    mel = power_spectrum(speech_samples, 400, 160) @ mel_filters(RATE, 400, 40, 0.0, RATE / 2).T
    last = max(0, len(mel) - _WINDOW)
    starts = [*range(0, last + 1, _STEP)]
    if last - starts[-1] > _STEP // 2:
        starts.append(last)
    mel = np.pad(mel, ((0, max(0, _WINDOW - len(mel))), (0, 0)))
    windows = np.stack([mel[start : start + _WINDOW] for start in starts])
    batches = [_encode(windows[start : start + _BATCH]) for start in range(0, len(windows), _BATCH)]
    return _unit(np.concatenate(batches).mean(axis=0))


def speech(samples: Array, sample_rate: int) -> Array:
    """Return the speech of a recording at 16 kHz without pauses, at -30 dBFS or more."""
    speech_samples = resample(samples, sample_rate, RATE)
    level = float(decibels(np.array([np.mean(np.square(speech_samples))]))[0])
    if level < _LEVEL_DB:
        speech_samples = speech_samples * np.float32(10 ** ((_LEVEL_DB - level) / 20))
    spoken = keep_speech(speech_samples, RATE)
    return spoken if len(spoken) >= RATE // 2 else speech_samples


def timbre(samples: Array, sample_rate: int) -> Array:
    """Return mean and log standard deviation of mel cepstra 1 to 19 over the louder frames, shape (38,)."""
    speech_samples = speech(samples, sample_rate)
    power = power_spectrum(speech_samples, 512, 160)
    bands = decibels(power @ mel_filters(RATE, 512, 40, 60.0, 7600.0).T)
    bands = np.maximum(bands, bands.max() - 70)
    level = decibels(power.sum(axis=1))
    cepstra = bands[level > np.percentile(level, 95) - 35] @ cosine_basis(19, 40).T
    return np.concatenate([cepstra.mean(axis=0), np.log(np.maximum(cepstra.std(axis=0), 1e-3))])


def divergence(a: Array, b: Array) -> float:
    """Return the symmetric Kullback-Leibler divergence of two timbres as Gaussians, mean over the cepstra."""
    squares = np.square(a[:19] - b[:19])
    var_a, var_b = np.exp(2 * a[19:]), np.exp(2 * b[19:])
    return float(np.mean(((var_a + squares) / var_b + (var_b + squares) / var_a - 2) / 2))


def _encode(mel: Array) -> Array:
    """Embed windows of mel power: (n_windows, 160, 40) → (n_windows, 256) of unit length."""
    weights = _weights()
    x = mel.astype(np.float32)
    for layer in range(3):
        into = x @ weights[f"lstm.weight_ih_l{layer}"].T + weights[f"lstm.bias_l{layer}"]
        into = into.reshape(*mel.shape[:2], 4, _HIDDEN).transpose(1, 2, 0, 3)  # time, gate, window, unit
        recurrent = [weights[f"lstm.weight_hh_l{layer}.{gate}"] for gate in range(4)]
        state = np.zeros((len(x), _HIDDEN), np.float32)
        cell = np.zeros_like(state)
        x = np.empty((*mel.shape[:2], _HIDDEN), np.float32)
        for t in range(mel.shape[1]):
            add, keep, new, show = (now + state @ gate for now, gate in zip(into[t], recurrent, strict=True))
            cell = _sigmoid(keep) * cell + _sigmoid(add) * np.tanh(new)
            state = _sigmoid(show) * np.tanh(cell)
            x[:, t] = state
    return _unit(np.maximum(x[:, -1] @ weights["linear.weight"].T + weights["linear.bias"], 0))


def _sigmoid(x: Array) -> Array:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def _unit(x: Array) -> Array:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9)


@cache
def _weights() -> dict[str, Array]:
    with np.load(io.BytesIO(read_data("speaker.npz")), allow_pickle=False) as stored:
        weights = {name: stored[name].astype(np.float32) for name in stored.files}
    for layer in range(3):
        weights[f"lstm.bias_l{layer}"] = weights.pop(f"lstm.bias_ih_l{layer}") + weights.pop(f"lstm.bias_hh_l{layer}")
        for gate, block in enumerate(np.split(weights.pop(f"lstm.weight_hh_l{layer}"), 4)):
            weights[f"lstm.weight_hh_l{layer}.{gate}"] = np.ascontiguousarray(block.T)
    return weights
