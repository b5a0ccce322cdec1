"""Match synthetic speech to a speaker after synthesis: long-term spectrum, cepstra, loudness.

The equalizer is one linear-phase filter per voice. The cepstral map moves mean and spread of the spectral envelope of
each frame toward the speaker. Both are fitted once, on calibration sentences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from afterwords.audio.analysis import cosine_basis, decibels, frames, hann, mel_filters, mel_frequencies, power_spectrum

RATE: Final = 24_000
TAPS: Final = 1024
LOUDNESS: Final = 0.08
"""RMS of synthesized speech, about -22 dBFS."""
CEPSTRA: Final = 12
_BANDS, _LOW_HZ, _HIGH_HZ = 32, 60.0, 11_000.0
_ENVELOPE_BANDS, _ENVELOPE_HIGH_HZ = 40, 10_000.0
_HOP = 256

Array = NDArray[np.float32]


def equalizer_db(spoken: Array, reference: Array) -> Array:
    """Return the difference of two long-term spectra in dB at the TAPS // 2 + 1 filter frequencies.

    Args:
        spoken: Calibration speech at 24 kHz.
        reference: The speaker at 24 kHz.

    Only the louder 60 % of frames count; the mean over 150 to 5,000 Hz is removed to ignore loudness; limited to ±8 dB,
    and faded out from 7 kHz, where the reference may have no content.
    """
    centers = mel_frequencies(_BANDS + 2, _LOW_HZ, _HIGH_HZ)[1:-1]
    difference = _long_term_db(reference) - _long_term_db(spoken)
    difference -= difference[(centers > 150) & (centers < 5000)].mean()
    difference = _smooth(np.clip(difference, -8, 8))
    at = np.fft.rfftfreq(TAPS, 1 / RATE)
    curve = np.interp(at, centers, difference)
    edge = min(float(np.interp(7000, at, curve)), 3.0)
    curve = np.where(at > 7000, np.minimum(edge, curve) * np.clip((11_500 - at) / 4500, 0, 1), curve)
    return curve.astype(np.float32)


def equalize(samples: Array, curve_db: NDArray[np.floating]) -> Array:
    """Apply a linear-phase filter with this gain; length and timing are unchanged."""
    impulse = np.roll(np.fft.irfft(10 ** (curve_db / 20)), TAPS // 2) * hann(TAPS)
    n_fft = 1 << (len(samples) + TAPS - 1).bit_length()
    filtered = np.fft.irfft(np.fft.rfft(samples, n_fft) * np.fft.rfft(impulse, n_fft), n_fft)
    return filtered[TAPS // 2 : TAPS // 2 + len(samples)].astype(np.float32)


def _long_term_db(samples: Array) -> Array:
    power = power_spectrum(samples, TAPS, TAPS // 4)
    energy = power.sum(axis=1)
    loud = power[energy > np.percentile(energy, 40)]
    return decibels(mel_filters(RATE, TAPS, _BANDS, _LOW_HZ, _HIGH_HZ) @ loud.mean(axis=0))


def _smooth(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    """Average each value of the last axis with its neighbors, a quarter each."""
    padded = np.concatenate([rows[..., :1], rows, rows[..., -1:]], axis=-1)
    return 0.25 * padded[..., :-2] + 0.5 * padded[..., 1:-1] + 0.25 * padded[..., 2:]


def cepstral_stats(samples: Array) -> tuple[Array, Array]:
    """Return mean and standard deviation of cepstra 1 to CEPSTRA of speech at 24 kHz, each of shape (CEPSTRA,)."""
    envelope, level = _envelope(power_spectrum(samples, TAPS, _HOP))
    cepstra = envelope[level > np.percentile(level, 95) - 35] @ cosine_basis(CEPSTRA, _ENVELOPE_BANDS).T
    return cepstra.mean(axis=0), cepstra.std(axis=0)


def _envelope(power: Array) -> tuple[Array, Array]:
    """Return the mel envelope in dB (n_frames, 40), at most 70 dB deep, and the level in dB (n_frames,)."""
    envelope = decibels(power @ mel_filters(RATE, TAPS, _ENVELOPE_BANDS, _LOW_HZ, _ENVELOPE_HIGH_HZ).T)
    return np.maximum(envelope, envelope.max() - 70), decibels(power.sum(axis=1))


@dataclass(frozen=True, slots=True, eq=False)
class CepstralMap:
    """Moves cepstra from synthetic statistics toward those of the speaker; all of shape (CEPSTRA,).

    The ratio of the spreads to the power 0.3 is limited to 0.75 to 1.35, the mean moves halfway: more of either gains
    similarity and costs quality. In pauses only the mean moves.
    """

    spoken_mean: Array
    spoken_std: Array
    speaker_mean: Array
    speaker_std: Array

    def apply(self, samples: Array) -> Array:
        """Filter speech at 24 kHz frame by frame; the length is unchanged."""
        padded = np.pad(samples, TAPS // 2)
        short_by = -(len(padded) - TAPS) % _HOP
        spectrum = np.fft.rfft(frames(np.pad(padded, (0, short_by)), TAPS, _HOP) * hann(TAPS), axis=1)
        envelope, level = _envelope((spectrum.real**2 + spectrum.imag**2).astype(np.float32))
        basis = cosine_basis(CEPSTRA, _ENVELOPE_BANDS)
        ratio = np.clip((self.speaker_std / np.maximum(self.spoken_std, 1e-3)) ** 0.3, 0.75, 1.35)
        shift = 0.5 * (self.speaker_mean - self.spoken_mean)
        spread = (ratio - 1) * (envelope @ basis.T - self.spoken_mean)
        is_speech = 1 / (1 + np.exp(-(level - (np.percentile(level, 95) - 30)) / 3))
        gain_db = _smooth(np.clip((is_speech[:, None] * spread + shift) @ basis, -8, 8))
        at = np.fft.rfftfreq(TAPS, 1 / RATE)
        centers = mel_frequencies(_ENVELOPE_BANDS + 2, _LOW_HZ, _ENVELOPE_HIGH_HZ)[1:-1]
        interpolation = np.array([np.interp(at, centers, row) for row in np.eye(len(centers))], np.float32)
        gain_db = gain_db @ interpolation * np.clip((11_000 - at) / 4000, 0, 1)
        gains = (10 ** (gain_db / 20)).astype(np.float32)
        pieces = np.fft.irfft(spectrum * gains, TAPS, axis=1) * hann(TAPS)
        out = np.zeros((len(pieces) - 1) * _HOP + TAPS)
        weight = np.zeros_like(out)
        for number, piece in enumerate(pieces):
            out[number * _HOP : number * _HOP + TAPS] += piece
            weight[number * _HOP : number * _HOP + TAPS] += hann(TAPS) ** 2
        out /= np.maximum(weight, 1e-3)
        return out[TAPS // 2 : TAPS // 2 + len(samples)].astype(np.float32)


def limit(samples: Array, ceiling: float = 0.97) -> Array:
    """Compress samples above 80 % of the ceiling so that none exceeds it."""
    knee = 0.8 * ceiling
    over = np.abs(samples) > knee
    bent = knee + (ceiling - knee) * np.tanh((np.abs(samples[over]) - knee) / (ceiling - knee))
    limited = samples.copy()
    limited[over] = np.sign(samples[over]) * bent
    return limited
