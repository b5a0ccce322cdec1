"""Pitch, speech activity and spectra of synthetic sounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from afterwords.audio import analysis
from afterwords.audio.analysis import Samples
from afterwords.audio.audio import decode
from tests.conftest import READER as READER_FILE

READER = decode(READER_FILE)

RATE = 16_000


def sine(hz: float, duration_s: float = 1.0, *, rate: int = RATE) -> Samples:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(round(duration_s * rate)) / rate)).astype(np.float32)


def pulses(hz: float, duration_s: float = 1.0, *, rate: int = RATE) -> Samples:
    """Return a sum of all harmonics up to 4 kHz at equal strength."""
    phase = 2 * np.pi * hz * np.arange(round(duration_s * rate)) / rate
    harmonics = range(1, int(4000 / hz))
    samples: Samples = np.mean([np.cos(k * phase) / 4 for k in harmonics], axis=0).astype(np.float32)
    return samples


def noise(duration_s: float, *, level: float = 0.1) -> Samples:
    return np.random.default_rng(0).normal(0, level, round(duration_s * RATE)).astype(np.float32)


@pytest.mark.parametrize("sound", [sine, pulses])
@pytest.mark.parametrize("hz", [70, 95, 120, 180, 250, 330, 450])
def test_pitch_is_within_one_percent(sound: Callable[[float], Samples], hz: float) -> None:
    pitch = analysis.measure_pitch(sound(hz), RATE)
    assert pitch.median_hz == pytest.approx(hz, rel=0.01)
    assert pitch.spread_st < 0.2
    assert pitch.voiced_s > 0.8


@pytest.mark.parametrize("rate", [8_000, 22_050, 48_000])
def test_pitch_does_not_depend_on_the_sample_rate(rate: int) -> None:
    assert analysis.measure_pitch(pulses(140, rate=rate), rate).median_hz == pytest.approx(140, rel=0.01)


def test_pitch_spread_separates_lively_from_flat_voice() -> None:
    lively = np.concatenate([pulses(hz, 0.5) for hz in (100, 150, 200)])
    assert analysis.measure_pitch(lively, RATE).spread_st > 3


def test_mains_hum_between_words_is_not_the_pitch() -> None:
    pause = np.zeros(RATE, np.float32)
    words = np.concatenate([pulses(190, 0.5), pause, pulses(190, 0.5), pause])
    hum = pulses(60, len(words) / RATE)

    pitch = analysis.measure_pitch(words + np.float32(0.05) * hum, RATE)

    assert pitch.median_hz == pytest.approx(190, rel=0.01)
    assert pitch.spread_st < 0.5
    assert pitch.voiced_s < 1.2


@pytest.mark.parametrize("samples", [noise(2), np.zeros(RATE, np.float32)], ids=["noise", "silence"])
def test_noise_and_silence_are_unvoiced(samples: Samples) -> None:
    assert analysis.measure_pitch(samples, RATE) == analysis.Pitch(0.0, 0.0, 0.0)


def bumped(samples: Samples) -> Samples:
    """Soften speech and add one bump of the microphone."""
    soft = 0.02 * samples
    soft[4000:4020] = 0.95
    return soft


def rumbling(samples: Samples) -> Samples:
    """Add a rumble of three times the level, as from a fan or traffic."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(len(samples)))
    spectrum[np.fft.rfftfreq(len(samples), 1 / READER.sample_rate) > 40] = 0
    rumble = np.fft.irfft(spectrum, len(samples))
    spoiled: Samples = (samples + 3 * rumble * samples.std() / rumble.std()).astype(np.float32)
    return spoiled


@pytest.mark.parametrize("spoil", [bumped, rumbling])
def test_clear_speech_stays_voiced_with_louder_noise(spoil: Callable[[Samples], Samples]) -> None:
    samples = READER.samples[: round(7.5 * READER.sample_rate)]
    clean = analysis.measure_pitch(samples, READER.sample_rate)

    found = analysis.measure_pitch(spoil(samples), READER.sample_rate)

    assert clean.voiced_s > 4.5
    assert found.voiced_s == pytest.approx(clean.voiced_s, rel=0.15)
    assert found.median_hz == pytest.approx(clean.median_hz, rel=0.05)


def test_speech_mask_marks_the_sound_between_silences() -> None:
    quiet = noise(1, level=0.0005)
    mask = analysis.speech_mask(np.concatenate([quiet, pulses(120, 2), quiet]), RATE)
    where = np.flatnonzero(mask) * analysis.HOP_S
    assert where[0] == pytest.approx(1, abs=0.12)
    assert where[-1] == pytest.approx(3, abs=0.12)
    assert mask[110:290].all()


def test_speech_mask_of_silence_is_empty() -> None:
    assert not analysis.speech_mask(np.zeros(RATE, np.float32), RATE).any()


def test_keep_speech_drops_the_silence() -> None:
    gap = noise(1, level=0.0005)
    kept = analysis.keep_speech(np.concatenate([gap, pulses(120, 2), gap]), RATE)
    assert len(kept) / RATE == pytest.approx(2, abs=0.25)


def test_level_of_a_full_sine_is_three_decibels_below_its_peak() -> None:
    levels = analysis.levels_db(sine(1000), RATE)
    assert levels.shape == (100,)
    assert levels == pytest.approx(20 * np.log10(0.3) - 3.01, abs=0.02)


def test_level_of_silence_is_the_floor() -> None:
    assert analysis.levels_db(np.zeros(RATE, np.float32), RATE) == pytest.approx(-120)


def test_power_spectrum_peaks_at_the_tone() -> None:
    power = analysis.power_spectrum(sine(1000), 512, 160)
    assert power.shape == (101, 257)
    assert power[50].argmax() * RATE / 512 == pytest.approx(1000, abs=RATE / 512)


def test_mel_filters_cover_each_frequency_in_range_once() -> None:
    filters = analysis.mel_filters(RATE, 1024, 40, 100.0, 7000.0)
    hz = np.fft.rfftfreq(1024, 1 / RATE)
    assert filters.shape == (40, 513)
    assert not filters[:, (hz < 100) | (hz > 7000)].any()
    assert (filters.sum(axis=0)[(hz > 200) & (hz < 6500)] > 0).all()
    assert (np.count_nonzero(filters, axis=0) <= 2).all()


def test_mel_filters_have_equal_area() -> None:
    area = analysis.mel_filters(RATE, 8192, 20, 200.0, 7000.0).sum(axis=1) * RATE / 8192
    assert area == pytest.approx(1, rel=0.02)


def test_mel_scale_is_linear_to_1_khz_then_logarithmic() -> None:
    hz = analysis.mel_frequencies(46, 0.0, 1000 * float(np.exp(np.log(6.4) / 27 * 30)))
    assert np.diff(hz[:16]) == pytest.approx(200 / 3)
    assert hz[16:] / hz[15:-1] == pytest.approx(float(np.exp(np.log(6.4) / 27)))


def test_cosine_rows_are_orthonormal() -> None:
    rows = analysis.cosine_basis(12, 40)
    assert rows @ rows.T == pytest.approx(np.eye(12), abs=1e-5)


def test_short_signal_is_padded_to_one_frame() -> None:
    assert analysis.frames(np.ones(3, np.float32), 8, 4).tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
