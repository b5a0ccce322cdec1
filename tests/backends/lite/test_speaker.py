"""The speaker encoder: textbook equations, and voices of known similarity."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray

from afterwords.audio.analysis import mel_filters, power_spectrum
from afterwords.audio.effects import resample
from afterwords.backends.base import Reference
from afterwords.backends.lite.data import read_data
from afterwords.backends.lite.g2p import tokens
from afterwords.backends.lite.kokoro import SAMPLE_RATE, Kokoro
from afterwords.backends.lite.speaker import RATE, divergence, embed, speech, timbre
from afterwords.backends.lite.styles import style_space


@pytest.fixture(scope="module")
def stock(kokoro: Kokoro) -> NDArray[np.float32]:
    """Return two sentences of the stock voice most similar to the reader."""
    ids, space = tokens("The birch canoe slid on the smooth planks. Four hours of steady work faced us."), style_space()
    return kokoro.speak(ids, space.voices[space.names.index("am_michael")][len(ids) - 1]).samples


def textbook_embedding(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute the embedding of the first 1.6 s by the LSTM equations, frame by frame, in double precision."""
    with np.load(io.BytesIO(read_data("speaker.npz"))) as stored:
        weights = {name: stored[name].astype(np.float64) for name in stored.files}
    mel = power_spectrum(speech(samples, RATE), 400, 160) @ mel_filters(RATE, 400, 40, 0.0, RATE / 2).T
    frames = list(mel[:160].astype(np.float64))
    for layer in range(3):
        into, through = weights[f"lstm.weight_ih_l{layer}"], weights[f"lstm.weight_hh_l{layer}"]
        bias = weights[f"lstm.bias_ih_l{layer}"] + weights[f"lstm.bias_hh_l{layer}"]
        state, cell = np.zeros(256), np.zeros(256)
        for t, frame in enumerate(frames):
            add, keep, new, show = np.split(into @ frame + through @ state + bias, 4)
            cell = cell / (1 + np.exp(-keep)) + np.tanh(new) / (1 + np.exp(-add))
            state = np.tanh(cell) / (1 + np.exp(-show))
            frames[t] = state
    last = np.maximum(weights["linear.weight"] @ frames[-1] + weights["linear.bias"], 0)
    return np.asarray(last / np.linalg.norm(last))


def test_encoder_computes_a_textbook_lstm(first_half: Reference) -> None:
    samples = first_half.samples[: round(1.95 * RATE)]
    frames = len(speech(samples, RATE)) // 160 + 1
    assert 160 <= frames < 160 + 38  # one window, not two
    np.testing.assert_allclose(embed(samples, RATE), textbook_embedding(samples), atol=1e-4)


def test_embedding_has_unit_length(first_half: Reference) -> None:
    embedding = embed(first_half.samples, RATE)
    assert embedding.shape == (256,)
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)
    assert (embedding >= 0).all()


def test_two_halves_of_a_reading_are_similar(first_half: Reference, second_half: Reference) -> None:
    assert embed(first_half.samples, RATE) @ embed(second_half.samples, RATE) > 0.85


def test_stock_voice_is_dissimilar(first_half: Reference, stock: NDArray[np.float32]) -> None:
    assert embed(first_half.samples, RATE) @ embed(stock, SAMPLE_RATE) < 0.75


@pytest.mark.parametrize("gain", [0.01, 0.1])
def test_embedding_ignores_level(first_half: Reference, gain: float) -> None:
    """Test below -30 dBFS only: above, the encoder measures vocal effort."""
    soft = first_half.samples[: 6 * RATE] * np.float32(0.4)
    np.testing.assert_allclose(embed(soft, RATE), embed(soft * np.float32(gain), RATE), atol=2e-3)


@pytest.mark.parametrize("rate", [24_000, 44_100, 48_000])
def test_embedding_ignores_sample_rate(first_half: Reference, rate: int) -> None:
    samples = first_half.samples[: 6 * RATE]
    assert embed(samples, RATE) @ embed(resample(samples, RATE, rate), rate) > 0.98


@pytest.mark.parametrize("duration_s", [0.05, 0.5, 1.0, 1.59])
def test_short_recording_has_an_embedding(first_half: Reference, duration_s: float) -> None:
    embedding = embed(first_half.samples[RATE : RATE + round(duration_s * RATE)], RATE)
    assert np.isfinite(embedding).all()
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5)


def test_embedding_of_silence_is_finite() -> None:
    assert np.isfinite(embed(np.zeros(2 * RATE, np.float32), RATE)).all()


def test_speech_has_no_pauses(first_half: Reference) -> None:
    voice = first_half.samples[: 4 * RATE]
    paused = np.concatenate([voice, np.zeros(3 * RATE, np.float32), voice])
    assert len(speech(paused, RATE)) < len(paused) - 2.5 * RATE


def test_timbre_separates_speaker_and_stock_voice(
    first_half: Reference, second_half: Reference, stock: NDArray[np.float32]
) -> None:
    one, same, other = timbre(first_half.samples, RATE), timbre(second_half.samples, RATE), timbre(stock, SAMPLE_RATE)
    assert one.shape == (38,)
    assert divergence(one, one) == pytest.approx(0, abs=1e-6)
    assert divergence(one, other) == pytest.approx(divergence(other, one), rel=1e-5)
    assert divergence(one, same) < 0.5 * divergence(one, other)
