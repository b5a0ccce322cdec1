"""The choice between a predicted timbre and the nearest stock voice, with known measures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from afterwords.audio.audio import decode
from afterwords.backends.base import Reference, ignore_progress
from afterwords.backends.lite.enroll import Candidate, Comparison, ReferenceSpeaker, Score
from afterwords.backends.lite.kokoro import FRAME, KokoroOutput, PitchTarget
from afterwords.backends.lite.search import Journal
from afterwords.backends.lite.styles import style_space
from tests.conftest import READER

RECORDING = decode(READER)
SPEAKER = ReferenceSpeaker(Reference(RECORDING.samples[: 4 * RECORDING.sample_rate], RECORDING.sample_rate))
GOOD, UNCHANGED = (0.80, 0.10), (0.60, 0.20)
"""Similarity and divergence."""


def speak(tokens: Sequence[int], style: NDArray[np.float32], pitch: PitchTarget | None = None) -> KokoroOutput:
    """Return the same second of speech for all styles."""
    samples = SPEAKER.samples[24_000:48_000]
    frames = np.full(len(tokens) + 2, len(samples) / FRAME / (len(tokens) + 2), np.float32)
    return KokoroOutput(samples, np.full(80, 95, np.float32), frames)


def choose(
    timbre: Sequence[tuple[float, float]],
    stock: Sequence[tuple[float, float]] = ((0.62, 0.19), (0.70, 0.12)),
    *,
    quality: tuple[float, float] = (3.0, 3.0),
) -> tuple[Candidate, Score, Score]:
    """Return the choice between two strengths of a timbre and of the stock voice, as if all had been measured."""
    measured = np.array([*timbre, *stock, UNCHANGED], "<f8")
    styles = [style_space().voices[number] for number in (0, 1)]
    comparison = Comparison(styles, SPEAKER, speak, ignore_progress)
    return comparison.best(np.array(quality), Journal(measured.tobytes(), lambda _: None))


def test_similar_timbre_is_chosen() -> None:
    choice, score, unchanged = choose([(0.78, 0.12), GOOD])
    assert (score.similarity, unchanged.similarity) == (0.80, 0.60)
    np.testing.assert_array_equal(choice.style, style_space().voices[0])
    assert np.abs(choice.equalizer_db).max() > 0


@pytest.mark.parametrize(
    ("timbre", "quality"),
    [
        ((0.72, 0.02), 3.0),  # gains too little
        ((0.90, 0.21), 3.0),  # diverges more than the unchanged stock voice
        ((0.90, 0.02), 2.7),  # is predicted to sound worse
    ],
)
def test_doubtful_timbre_loses_to_the_stock_voice(timbre: tuple[float, float], quality: float) -> None:
    choice, score, _ = choose([timbre, timbre], quality=(quality, 3.0))
    assert score.similarity == 0.70
    np.testing.assert_array_equal(choice.style, style_space().voices[1])


@pytest.mark.parametrize("matched", [(0.59, 0.12), (0.70, 0.21)])
def test_match_that_makes_the_stock_voice_worse_is_dropped(matched: tuple[float, float]) -> None:
    choice, score, _ = choose([(0.55, 0.1)] * 2, [(0.58, 0.2), matched])
    assert score.similarity == 0.58
    assert not choice.equalizer_db.any()
    np.testing.assert_allclose(choice.cepstra.apply(SPEAKER.samples), SPEAKER.samples, atol=1e-3)


def test_timbre_is_safe_without_a_better_stock_voice() -> None:
    _, score, _ = choose([GOOD, (0.9, 0.3)], [(0.58, 0.2), (0.59, 0.3)])
    assert score.similarity == 0.80
