"""Measure recordings with numpy: spectra, speech activity, pitch.

Pure functions of float32 mono samples, for grading references and for the lite engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
Matrix = NDArray[np.float32]

PITCH_FLOOR_HZ: Final = 60.0
PITCH_CEILING_HZ: Final = 500.0
HOP_S: Final = 0.01
_FLOOR_DB: Final = -120.0
_RUMBLE_HZ: Final = (45.0, 58.0)  # silent below the first, unchanged above the second, which is below every voice
_SILENCE: Final = 0.03  # of the loud level; Praat's default
_HUM: Final = 0.1  # of the loud level; between words, mains hum of less than this would be a pitch of 50 or 60 Hz
OCTAVE_COST: Final = 0.02  # Praat's 0.01 halves clear voices above 350 Hz here


def decibels(power: NDArray[np.floating]) -> Matrix:
    """Convert power to dB, at least -120 dB."""
    level: Matrix = (10 * np.log10(np.maximum(power, 10 ** (_FLOOR_DB / 10)))).astype(np.float32)
    return level


def frames(samples: Samples, size: int, hop: int) -> Matrix:
    """Cut samples into overlapping frames of shape (n_frames, size); a short signal is padded to one frame."""
    if len(samples) < size:
        samples = np.pad(samples, (0, size - len(samples)))
    return np.lib.stride_tricks.sliding_window_view(samples, size)[::hop]


@lru_cache(maxsize=8)
def hann(size: int) -> Samples:
    """Return the periodic Hann window, float32 of shape (size,)."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


def power_spectrum(samples: Samples, n_fft: int, hop: int) -> Matrix:
    """Return the short-time power spectrum, shape (n_frames, n_fft // 2 + 1), centered frames, zero-padded edges."""
    padded = np.pad(samples, n_fft // 2)
    spectrum = np.fft.rfft(frames(padded, n_fft, hop) * hann(n_fft), axis=1)
    return (spectrum.real**2 + spectrum.imag**2).astype(np.float32)


@lru_cache(maxsize=8)
def mel_filters(sample_rate: int, n_fft: int, n_mels: int, low_hz: float, high_hz: float) -> Matrix:
    """Return triangular mel filters of equal area, shape (n_mels, n_fft // 2 + 1).

    Source: M. Slaney, Auditory Toolbox (1998): linear to 1 kHz, logarithmic above; as in librosa.
    """
    edges = mel_frequencies(n_mels + 2, low_hz, high_hz)
    bins = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)


def mel_frequencies(count: int, low_hz: float, high_hz: float) -> NDArray[np.float64]:
    """Return `count` frequencies in Hz, evenly spaced on the Slaney mel scale."""
    step, knee_hz, log_step = 200 / 3, 1000.0, np.log(6.4) / 27

    def to_mel(hz: float) -> float:
        return hz / step if hz < knee_hz else knee_hz / step + float(np.log(hz / knee_hz)) / log_step

    mels = np.linspace(to_mel(low_hz), to_mel(high_hz), count)
    return np.where(mels < knee_hz / step, mels * step, knee_hz * np.exp(log_step * (mels - knee_hz / step)))


@lru_cache(maxsize=4)
def cosine_basis(count: int, size: int) -> Matrix:
    """Return rows 1 to `count` of the orthonormal DCT-II over `size` bands, shape (count, size)."""
    rows = np.arange(1, count + 1)[:, None]
    basis: Matrix = (np.cos(np.pi * rows * (np.arange(size) + 0.5) / size) * np.sqrt(2 / size)).astype(np.float32)
    return basis


def levels_db(samples: Samples, sample_rate: int, hop_s: float = HOP_S) -> Matrix:
    """Return the level of each `hop_s` in dBFS RMS, shape (n_frames,)."""
    hop = max(1, round(sample_rate * hop_s))
    return decibels(np.mean(np.square(frames(samples, hop, hop)), axis=1))


def speech_mask(samples: Samples, sample_rate: int) -> NDArray[np.bool_]:
    """Return which 10 ms frames are speech, by their level over the background; shape (n_frames,).

    The threshold is two fifths of the way from background (10th percentile) to speech (95th), at most 35 dB below
    speech; runs are smoothed over 80 ms and widened by 60 ms to keep soft onsets.
    """
    level = levels_db(samples, sample_rate)
    background, speech = np.percentile(level, [10, 95])
    if speech < -70:
        return np.zeros(len(level), bool)
    threshold = max(speech - 35, min(background + 0.4 * (speech - background), speech - 12))
    smooth = np.convolve(np.pad((level > threshold).astype(np.float32), 4, mode="edge"), np.ones(9) / 9, "valid")
    return np.convolve(smooth > 0.5, np.ones(13), "same") > 0


def keep_speech(samples: Samples, sample_rate: int) -> Samples:
    """Return the samples of the frames that `speech_mask` marks, concatenated."""
    hop = max(1, round(sample_rate * HOP_S))
    mask = np.repeat(speech_mask(samples, sample_rate), hop)[: len(samples)]
    return samples[: len(mask)][mask]


@dataclass(frozen=True, slots=True)
class Pitch:
    """The pitch of a voice: median in Hz, standard deviation in semitones, seconds of voiced speech."""

    median_hz: float
    spread_st: float
    voiced_s: float


def measure_pitch(samples: Samples, sample_rate: int) -> Pitch:
    """Measure pitch in two passes; the first sets the bounds of the second.

    Source: C. De Looze and D. Hirst (2008): 0.72 × the first quartile to 1.9 × the third keeps octave errors out.
    """
    track = pitch_track(samples, sample_rate, silence=_HUM)
    voiced = track[track > 0]
    if len(voiced) >= 10:
        first, third = np.percentile(voiced, [25, 75])
        bounds = max(50.0, 0.72 * float(first)), min(600.0, 1.9 * float(third))
        again = pitch_track(samples, sample_rate, *bounds, silence=_HUM)
        if np.count_nonzero(again) >= 10:
            voiced = again[again > 0]
    if len(voiced) == 0:
        return Pitch(0.0, 0.0, 0.0)
    semitones = 12 * np.log2(voiced)
    return Pitch(float(np.median(voiced)), float(np.std(semitones)), len(voiced) * HOP_S)


def pitch_track(
    samples: Samples,
    sample_rate: int,
    floor_hz: float = PITCH_FLOOR_HZ,
    ceiling_hz: float = PITCH_CEILING_HZ,
    *,
    silence: float = _SILENCE,
) -> NDArray[np.float64]:
    """Return the fundamental frequency of each 10 ms in Hz, 0 where unvoiced.

    Peaks of the autocorrelation, divided by that of the window, on the cheapest path.
    Source: P. Boersma (1993), "Accurate short-term analysis of the fundamental frequency"; costs are Praat's defaults.
    Unlike Praat, silence is relative to the 95th percentile of all peaks, not the maximum, and rumble is removed first:
    otherwise one bump of the microphone, or traffic noise, makes clear speech unvoiced.
    """
    size, hop = int(3 * sample_rate / floor_hz), round(sample_rate * HOP_S)
    spectrum = np.fft.rfft(samples)
    low_hz, high_hz = _RUMBLE_HZ
    gain = np.clip((np.fft.rfftfreq(len(samples), 1 / sample_rate) - low_hz) / (high_hz - low_hz), 0, 1)
    cut = frames(np.fft.irfft(spectrum * gain, len(samples)).astype(np.float32), size, hop)
    cut = cut - cut.mean(axis=1, keepdims=True)
    peak = np.abs(cut).max(axis=1)
    n_fft = 1 << (2 * size - 1).bit_length()
    window = hann(size)
    lags = np.arange(int(sample_rate / ceiling_hz), min(size // 2, int(np.ceil(sample_rate / floor_hz))) + 2)

    def autocorrelation(rows: NDArray[np.floating]) -> NDArray[np.float64]:
        spectrum = np.fft.rfft(rows, n_fft, axis=-1)
        return np.fft.irfft(spectrum.real**2 + spectrum.imag**2, axis=-1)

    shape = autocorrelation(window)
    blocks = np.array_split(cut, 1 + len(cut) // 512)
    rows = np.concatenate([autocorrelation(block * window)[:, : lags[-1] + 1] for block in blocks])
    correlation = rows[:, lags] / np.maximum(rows[:, :1], 1e-12) * (shape[0] / shape[lags])
    lag, strength = _best_peaks(correlation, lags)
    loud = max(float(np.percentile(peak, 95)), _SILENCE * float(peak.max(initial=0)), 1e-9)
    loudness = np.minimum(1, peak / loud / silence)
    unvoiced = 0.45 + np.maximum(0, 2 - loudness * (1 + 0.45) * 2)
    return _cheapest_path(sample_rate / lag, strength, unvoiced)


def _best_peaks(
    correlation: NDArray[np.float64], lags: NDArray[np.int64], count: int = 5
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the `count` best local maxima of each row: lags in samples and scores, both of shape (n, count).

    A parabola refines each maximum. The score is the height less OCTAVE_COST per doubling of the lag, since multiples
    of the true period are as high.
    """
    middle = correlation[:, 1:-1]
    is_peak = (middle > correlation[:, :-2]) & (middle >= correlation[:, 2:]) & (middle > 0.15)
    cost = OCTAVE_COST * np.log2(lags[1:-1] / lags[0])
    height = np.where(is_peak, np.minimum(middle, 1.0) - cost, -1.0)
    best = np.argpartition(-height, min(count, height.shape[1] - 1), axis=1)[:, :count]
    row = np.arange(len(correlation))[:, None]
    left, center, right = correlation[row, best], correlation[row, best + 1], correlation[row, best + 2]
    bend = left - 2 * center + right
    shift = np.where(np.abs(bend) > 1e-9, 0.5 * (left - right) / np.where(np.abs(bend) > 1e-9, bend, 1), 0)
    shift = np.clip(shift, -0.5, 0.5)
    top = np.minimum(center - 0.25 * (left - right) * shift, 1.0) - cost[best]
    lag = lags[best + 1].astype(np.float64) + shift
    return lag, np.where(is_peak[row, best], top, -np.inf)


def _cheapest_path(
    frequency: NDArray[np.float64], strength: NDArray[np.float64], unvoiced: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Choose one candidate or silence per frame to maximize strength less the cost of jumps (Viterbi)."""
    n_frames, count = frequency.shape
    octave = np.log2(frequency)
    score = np.append(strength[0], unvoiced[0])
    back = np.zeros((n_frames, count + 1), np.int64)
    jump = np.empty((count + 1, count + 1))
    for i in range(1, n_frames):
        jump[:count, :count] = 0.35 * np.abs(octave[i - 1][:, None] - octave[i][None])
        jump[count, :count] = jump[:count, count] = 0.14
        jump[count, count] = 0
        total = score[:, None] - jump
        back[i] = total.argmax(axis=0)
        score = total.max(axis=0) + np.append(strength[i], unvoiced[i])
    path = np.zeros(n_frames)
    state = int(score.argmax())
    for i in range(n_frames - 1, -1, -1):
        path[i] = frequency[i, state] if state < count else 0.0
        state = int(back[i, state])
    return path
