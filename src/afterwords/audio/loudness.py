"""Measure loudness as ITU-R BS.1770 defines it, and limit peaks between the samples.

Source: Recommendation ITU-R BS.1770-5, annexes 1 (loudness) and 2 (true peak).
"""

from __future__ import annotations

from array import array
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from afterwords.audio.wav import Samples

OVERSAMPLING: Final = 4
STEP_S: Final = 0.1
"""Blocks of 400 ms begin every 100 ms."""
_BLOCK_STEPS: Final = 4
_OFFSET_DB: Final = -0.691
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0
_FILTER_RATE: Final = 48_000
_BOOST: Final = ((1.53512485958697, -2.69169618940638, 1.19839281085285), (1.0, -1.69065929318241, 0.73248077421585))
_HIGH_PASS: Final = ((1.0, -2.0, 1.0), (1.0, -1.99004745483398, 0.99007225036621))
_RING_S: Final = 0.2
"""Time after which the impulse response of both filters is below the resolution of float32."""
_LOOKAHEAD: Final = 5
"""Milliseconds over which the gain falls before a peak and rises after it."""


class LoudnessMeter:
    """Measure the integrated loudness of mono audio of any length that arrives in pieces.

    Memory grows by 80 bytes per second.

    Args:
        sample_rate: In Hz, at most 48,000.
    """

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._step = round(STEP_S * sample_rate)
        self._rest = np.zeros(0)
        self._energies = array("d")

    def add(self, samples: Samples) -> None:
        """Add a piece, of shape (n_samples,). It is filtered alone, so pieces should begin and end quietly."""
        energy = np.concatenate([self._rest, _weighted(samples, self._sample_rate) ** 2])
        n_whole = len(energy) // self._step * self._step
        self._energies.extend(energy[:n_whole].reshape(-1, self._step).mean(axis=1))
        self._rest = energy[n_whole:]

    def integrated(self) -> float | None:
        """Return the loudness so far in LUFS, or None if all of it is silence or it is shorter than 400 ms."""
        steps = np.frombuffer(self._energies) if self._energies else np.zeros(0)
        if len(steps) < _BLOCK_STEPS:
            return None
        blocks = np.convolve(steps, np.full(_BLOCK_STEPS, 1 / _BLOCK_STEPS), "valid")
        loud = blocks[_lufs(blocks) > _ABSOLUTE_GATE]
        if not len(loud):
            return None
        return float(_lufs(loud[_lufs(loud) > _lufs(loud.mean()) + _RELATIVE_GATE].mean()))


def _lufs(energy: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    return _OFFSET_DB + 10 * np.log10(np.maximum(energy, 1e-12))


def _weighted(samples: Samples, sample_rate: int) -> NDArray[np.float64]:
    """Return samples after the K-weighting filter."""
    n_fft = 1 << (len(samples) + round(_RING_S * sample_rate)).bit_length()
    spectrum = np.fft.rfft(samples, n_fft) * _response(n_fft, sample_rate)
    return np.fft.irfft(spectrum, n_fft)[: len(samples)]


@lru_cache(maxsize=4)
def _response(n_fft: int, sample_rate: int) -> NDArray[np.complex128]:
    """Return the frequency response of the K-weighting filter, which the standard gives for 48 kHz."""
    z = np.exp(-2j * np.pi * np.fft.rfftfreq(n_fft, 1 / sample_rate) / _FILTER_RATE)
    response: NDArray[np.complex128] = np.ones_like(z)
    for numerator, denominator in (_BOOST, _HIGH_PASS):
        response *= np.polyval(numerator[::-1], z) / np.polyval(denominator[::-1], z)
    return response


def true_peak(samples: Samples) -> float:
    """Return the peak of the signal at and between its samples; 1 is full scale."""
    return float(_amplitudes(samples).max(initial=0.0))


def limit_peaks(samples: Samples, sample_rate: int, ceiling: float) -> Samples:
    """Turn samples down around true peaks above a ceiling, smoothly; others stay as they are.

    Args:
        samples: Shape (n_samples,), of any amplitude.
        sample_rate: In Hz.
        ceiling: Highest true peak in the result; 1 is full scale.
    """
    block = sample_rate // 1000
    peaks = _amplitudes(samples)
    if peaks.max(initial=0.0) <= ceiling:
        return samples
    n_blocks = -(-len(samples) // block)
    padded = np.zeros(n_blocks * block * OVERSAMPLING, np.float32)
    padded[: len(peaks)] = peaks
    wanted = np.minimum(1.0, ceiling / np.maximum(padded.reshape(n_blocks, -1).max(axis=1), 1e-9))
    # The lowest gain near each block, then its mean: it reaches each peak in time and never exceeds what that allows.
    reach = _LOOKAHEAD + 1
    low = np.lib.stride_tricks.sliding_window_view(np.pad(wanted, reach, mode="edge"), 2 * reach + 1).min(axis=1)
    kernel = np.full(2 * _LOOKAHEAD + 1, 1 / (2 * _LOOKAHEAD + 1))
    smooth = np.convolve(np.pad(low, _LOOKAHEAD, mode="edge"), kernel, "valid")
    gain = np.interp(np.arange(len(samples)), (np.arange(n_blocks) + 0.5) * block, smooth)
    return (samples * gain).astype(np.float32)


def _amplitudes(samples: Samples) -> Samples:
    """Return four amplitudes per sample: its own, or those of the signal between the samples if they are larger."""
    import soxr

    between = np.abs(soxr.resample(samples, 1, OVERSAMPLING))
    amplitudes: Samples = np.repeat(np.abs(samples), OVERSAMPLING)
    n_both = min(len(between), len(amplitudes))
    amplitudes[:n_both] = np.maximum(amplitudes[:n_both], between[:n_both])
    return amplitudes
