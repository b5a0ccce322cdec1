"""The equalizer, the cepstral map and the limiter."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from afterwords.audio.analysis import decibels, mel_filters, power_spectrum
from afterwords.audio.effects import resample
from afterwords.backends.base import Reference
from afterwords.backends.lite.g2p import tokens
from afterwords.backends.lite.kokoro import Kokoro
from afterwords.backends.lite.shaping import (
    CEPSTRA,
    RATE,
    TAPS,
    CepstralMap,
    cepstral_stats,
    equalize,
    equalizer_db,
    limit,
)
from afterwords.backends.lite.styles import style_space

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def speaker(first_half: Reference) -> Array:
    return resample(first_half.samples, first_half.sample_rate, RATE)


@pytest.fixture(scope="module")
def spoken(kokoro: Kokoro) -> Array:
    ids, space = tokens("The birch canoe slid on the smooth planks. Four hours of steady work faced us."), style_space()
    return kokoro.speak(ids, space.voices[space.names.index("am_michael")][len(ids) - 1]).samples


def spectrum_db(samples: Array) -> Array:
    """Return the long-term mel spectrum from 150 to 5,000 Hz without its mean."""
    power = power_spectrum(samples, TAPS, TAPS // 4)
    level = decibels(mel_filters(RATE, TAPS, 24, 150.0, 5000.0) @ power.mean(axis=0))
    return np.asarray(level - level.mean(), np.float32)


def distance(a: Array, b: Array) -> float:
    return float(np.sqrt(np.mean(np.square(a - b))))


# -- equalizer -----------------------------------------------------------------------------------------------


def test_equalizer_matches_the_long_term_spectrum(spoken: Array, speaker: Array) -> None:
    moved = equalize(spoken, equalizer_db(spoken, speaker))
    target = spectrum_db(speaker)
    assert distance(spectrum_db(moved), target) < 0.6 * distance(spectrum_db(spoken), target)


def test_equalizer_keeps_equal_spectra(spoken: Array) -> None:
    np.testing.assert_allclose(equalizer_db(spoken, spoken), 0, atol=1e-4)


def test_equalizer_ignores_loudness(spoken: Array, speaker: Array) -> None:
    curve, quiet = (equalizer_db(spoken, speaker * np.float32(gain)) for gain in (1.0, 0.1))
    np.testing.assert_allclose(curve, quiet, atol=0.05)


def test_equalizer_gain_is_limited(spoken: Array, speaker: Array) -> None:
    curve = equalizer_db(spoken, np.diff(speaker, prepend=0).astype(np.float32))
    assert curve.shape == (TAPS // 2 + 1,)
    assert 2 < np.abs(curve).max() <= 8


@pytest.mark.parametrize("length", [1, 100, 5_000, 24_001])
def test_flat_equalizer_changes_nothing(length: int) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, length).astype(np.float32)
    np.testing.assert_allclose(equalize(noise, np.zeros(TAPS // 2 + 1)), noise, atol=1e-6)


def test_equalizer_keeps_the_time_of_a_click(spoken: Array, speaker: Array) -> None:
    click = np.zeros(4_000, np.float32)
    click[1_500] = 1
    answer = equalize(click, equalizer_db(spoken, speaker))
    assert len(answer) == len(click)
    assert np.abs(answer).argmax() == 1_500
    np.testing.assert_allclose(answer[1_500 - 400 : 1_500], answer[1_500 + 400 : 1_500 : -1], atol=1e-6)


def test_six_decibels_double_a_tone() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)
    louder = equalize(tone, np.full(TAPS // 2 + 1, 20 * np.log10(2)))
    np.testing.assert_allclose(louder[2_000:-2_000], 2 * tone[2_000:-2_000], atol=1e-3)


# -- the cepstral map ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [300, TAPS, 24_000, 24_123])
def test_overlap_add_inverts_the_spectrum(length: int) -> None:
    """Equal statistics give gains of one, so only the overlap-add remains."""
    stats = np.ones(CEPSTRA, np.float32)
    noise = np.random.default_rng(0).normal(0, 0.1, length).astype(np.float32)
    np.testing.assert_allclose(CepstralMap(stats, stats, stats, stats).apply(noise), noise, atol=1e-6)


def test_equal_statistics_keep_speech(spoken: Array) -> None:
    own = cepstral_stats(spoken)
    np.testing.assert_allclose(CepstralMap(*own, *own).apply(spoken), spoken, atol=1e-5)


def test_mean_of_cepstra_moves_halfway(spoken: Array, speaker: Array) -> None:
    (own, own_std), (target, target_std) = cepstral_stats(spoken), cepstral_stats(speaker)
    moved, _ = cepstral_stats(CepstralMap(own, own_std, target, target_std).apply(spoken))
    way = float((moved - own) @ (target - own) / ((target - own) @ (target - own)))
    assert 0.25 < way < 0.7
    assert np.linalg.norm(moved - target) < 0.8 * np.linalg.norm(own - target)


@pytest.mark.parametrize(("factor", "is_wider"), [(2.5, True), (0.4, False)])
def test_spread_of_cepstra_follows_the_speaker(spoken: Array, factor: float, is_wider: bool) -> None:
    mean, spread = cepstral_stats(spoken)
    _, moved = cepstral_stats(CepstralMap(mean, spread, mean, spread * np.float32(factor)).apply(spoken))
    assert (float(np.median(moved / spread)) > 1.03) == is_wider
    assert (float(np.median(moved / spread)) < 0.97) != is_wider


def test_silence_stays_silent() -> None:
    low, high = np.full(CEPSTRA, -5, np.float32), np.full(CEPSTRA, 5, np.float32)
    one = np.ones(CEPSTRA, np.float32)
    assert np.abs(CepstralMap(low, one, high, one).apply(np.zeros(5_000, np.float32))).max() == 0


# -- the limiter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [0.5, 1.0, 3.0, 1000.0])
def test_limiter_is_never_exceeded(gain: float) -> None:
    noise = (gain * np.random.default_rng(0).normal(0, 1, 10_000)).astype(np.float32)
    limited = limit(noise)
    assert np.abs(limited).max() <= 0.97
    np.testing.assert_array_equal(np.sign(limited), np.sign(noise))


def test_soft_samples_pass_the_limiter() -> None:
    soft = np.linspace(-0.77, 0.77, 1_001, dtype=np.float32)
    np.testing.assert_array_equal(limit(soft), soft)


def test_limiter_keeps_order() -> None:
    rising = np.linspace(0, 2, 2_001, dtype=np.float32)
    assert (np.diff(limit(rising)) >= 0).all()
