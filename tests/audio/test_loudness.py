"""Test loudness against the reference signals of the standards, and the limiter of peaks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterwords.audio.loudness import LoudnessMeter, limit_peaks, true_peak
from afterwords.audio.wav import Samples


def sine(dbfs: float, duration_s: float, sample_rate: int, *, hz: float = 997) -> Samples:
    time_s = np.arange(round(duration_s * sample_rate)) / sample_rate
    return (10 ** (dbfs / 20) * np.sin(2 * np.pi * hz * time_s)).astype(np.float32)


def measure(*parts: Samples, sample_rate: int = 48_000) -> float | None:
    meter = LoudnessMeter(sample_rate)
    for part in parts:
        meter.add(part)
    return meter.integrated()


@pytest.mark.parametrize("sample_rate", [16_000, 22_050, 24_000, 44_100, 48_000])
def test_reference_tone_has_its_loudness(sample_rate: int) -> None:
    # BS.1770-5: a sine of 997 Hz at 0 dBFS in one channel has -3.01 LKFS.
    assert measure(sine(-20, 5, sample_rate), sample_rate=sample_rate) == pytest.approx(-23.01, abs=0.01)


@pytest.mark.parametrize(
    ("levels", "durations_s"),
    [
        ((-72, -36, -23, -36, -72), (10, 10, 60, 10, 10)),
        ((-26, -20, -26), (20, 20.1, 20)),
    ],
)
def test_gates_leave_out_quiet_parts(levels: tuple[float, ...], durations_s: tuple[float, ...]) -> None:
    # EBU Tech 3341, cases 4 and 5, whose stereo tones of 1 kHz have -23 LUFS: one channel has 3.01 LU less.
    tones = [sine(level, length, 16_000, hz=1000) for level, length in zip(levels, durations_s, strict=True)]
    assert measure(*tones, sample_rate=16_000) == pytest.approx(-23 - 3.01, abs=0.1)


def test_pieces_measure_like_the_whole() -> None:
    noise = np.random.default_rng(1).normal(0, 0.1, 200_000).astype(np.float32)
    assert measure(*np.array_split(noise, 23), sample_rate=24_000) == pytest.approx(
        measure(noise, sample_rate=24_000), abs=0.05
    )


@pytest.mark.parametrize("samples", [np.zeros(0, np.float32), np.zeros(48_000, np.float32), sine(-20, 0.3, 48_000)])
def test_silence_and_short_audio_have_no_loudness(samples: Samples) -> None:
    assert measure(samples) is None


def test_true_peak_is_between_the_samples() -> None:
    # A sine of a quarter of the rate, sampled at 45 degrees: each sample is at 0.707 of the peak.
    samples = np.tile(np.array([0.5, 0.5, -0.5, -0.5], np.float32), 500)
    assert true_peak(samples) == pytest.approx(0.707, abs=0.07)


@given(st.integers(0, 2**31), st.integers(1, 6000), st.floats(0.1, 5))
def test_limited_peaks_stay_below_the_ceiling(seed: int, n_samples: int, level: float) -> None:
    noise = (np.random.default_rng(seed).normal(0, level, n_samples)).astype(np.float32)
    limited = limit_peaks(noise, 24_000, 0.8)
    assert len(limited) == n_samples
    assert true_peak(limited) <= 0.8 * 1.02


def test_quiet_audio_passes_the_limiter_unchanged() -> None:
    samples = sine(-6, 1, 24_000)
    assert limit_peaks(samples, 24_000, 0.6) is samples


def test_limiter_only_turns_down_near_the_peak() -> None:
    samples = sine(-12, 1, 24_000)
    samples[12_000] = 0.99
    limited = limit_peaks(samples, 24_000, 0.7)
    np.testing.assert_allclose(limited[:11_600], samples[:11_600], rtol=1e-6)
    np.testing.assert_allclose(limited[12_400:], samples[12_400:], rtol=1e-6)
    assert np.abs(limited).max() <= 0.7
