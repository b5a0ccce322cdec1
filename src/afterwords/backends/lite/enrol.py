"""Enrolment: from a reference recording to the profile that speaks like it.

Search the style space, speak two calibration sentences with the best finds and with the nearest stock voice,
equalise each towards the reference at several strengths, keep what sounds most alike without sounding poor,
and fit the cepstral map on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from afterwords.acoustics import measure_pitch
from afterwords.audio import resample
from afterwords.backends.base import Progress, Reference
from afterwords.backends.lite.g2p import tokens
from afterwords.backends.lite.kokoro import SAMPLE_RATE, Kokoro, PitchTarget, pitch_stats
from afterwords.backends.lite.profile import Profile
from afterwords.backends.lite.search import PHRASE, Heard, Surrogate, Target, evolve, search, trim, voice_table
from afterwords.backends.lite.shaping import LOUDNESS, CepstralMap, cepstral_stats, equalise, equaliser_db
from afterwords.backends.lite.speaker import divergence, embed, timbre
from afterwords.backends.lite.styles import StyleSpace, style_space
from afterwords.errors import UnvoicedReferenceError

CALIBRATION: Final = (
    "The boy was there when the sun rose, and a rod is used to catch pink salmon.",
    "Rice is often served in round bowls, and the juice of lemons makes fine punch.",
)
"""Harvard sentences (IEEE, 1969): phonetically balanced, never the text that is spoken later."""
MIN_VOICED_S: Final = 3.0
STRENGTHS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
_RANGE_LIMITS: Final = (0.7, 1.2)  # of the factor on the pitch range; beyond, speech sounds flat or theatrical

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A style, and how the calibration sentences came out in it at the speaker's pitch."""

    style: Array
    quality: float
    spoken: Array
    pitch: PitchTarget
    equaliser_db: Array


@dataclass(frozen=True, eq=False)
class Choice:
    """A candidate with the equaliser at one strength, and what that is worth."""

    candidate: Candidate
    strength: float
    worth: float

    @property
    def equaliser_db(self) -> Array:
        return self.candidate.equaliser_db * np.float32(self.strength)

    @cached_property
    def spoken(self) -> Array:
        return equalise(self.candidate.spoken, self.equaliser_db)


class Speaker:
    """What enrolment knows of the person: the reference at 24 kHz and what was measured in it."""

    def __init__(self, reference: Reference) -> None:
        self.samples = resample(reference.samples, reference.sample_rate, SAMPLE_RATE)
        self.pitch = measure_pitch(reference.samples, reference.sample_rate)
        if self.pitch.voiced_s < MIN_VOICED_S:
            raise UnvoicedReferenceError("The reference", voiced_s=self.pitch.voiced_s, minimum_s=MIN_VOICED_S)
        self.embedding = embed(self.samples, SAMPLE_RATE)
        self.timbre = timbre(self.samples, SAMPLE_RATE)
        self.target = Target(self.embedding, float(np.log(self.pitch.median_hz)))

    def similarity(self, samples: Array) -> float:
        return float(embed(samples, SAMPLE_RATE) @ self.embedding)

    def worth(self, samples: Array, quality: float) -> float:
        """Likeness of speech at 24 kHz less what makes it a poor choice."""
        apart = divergence(timbre(samples, SAMPLE_RATE), self.timbre)
        return self.similarity(samples) - 0.15 * min(apart, 0.6) - 0.1 * max(0.0, 2.85 - quality)


def enrol(reference: Reference, kokoro: Kokoro, progress: Progress, *, fast: bool = False) -> Profile:
    """Make the profile of a voice.

    Args:
        reference: the prepared recording.
        kokoro: the network that will speak.
        progress: told how far it is.
        fast: do not speak during the search: about a third of the time, and less alike.

    Raises:
        UnvoicedReferenceError: less than MIN_VOICED_S of it is voiced speech.
    """
    progress(0.0, "listening")
    speaker, space = Speaker(reference), style_space()
    stock = _nearest_stock(speaker.target, space)
    surrogate = Surrogate(voice_table(), speaker.target)
    points = [*_found(speaker, space, kokoro, surrogate, progress, fast=fast), space.coordinates[stock]]
    choices: list[Choice] = []
    for number, point in enumerate(points):
        progress(0.7 + 0.25 * number / len(points), "comparing")
        style = space.voices[stock] if number == len(points) - 1 else space.table(point)
        quality = float(surrogate.quality(np.asarray(point, np.float64)[None])[0])
        candidate = _calibrate(style, quality, speaker, kokoro)
        choices += _strengths(candidate, speaker)
    best = max(choices, key=lambda choice: choice.worth)
    progress(0.95, "shaping")
    baseline = speaker.similarity(_raw(space.voices[stock], kokoro))
    profile = _profile(best, speaker, baseline, space.names[stock])
    progress(1.0, "done")
    return profile


def _found(
    speaker: Speaker, space: StyleSpace, kokoro: Kokoro, surrogate: Surrogate, progress: Progress, *, fast: bool
) -> list[NDArray[np.float64]]:
    """The most promising points of the style space; in fast mode, one that was never heard.

    One short phrase judges a point roughly: so three go on to the calibration sentences, and what they have in common.
    """
    if fast:
        start = surrogate.best(1)[0]
        return [evolve(surrogate.expected, start, random=np.random.default_rng(0))]
    phrase = tokens(PHRASE)
    pitch = PitchTarget(speaker.pitch.median_hz)

    def hear(point: NDArray[np.float64]) -> Heard:
        said = kokoro.speak(phrase, space.row(point, len(phrase)), pitch)
        raw_hz = pitch_stats(said.raw_pitch)[0] or speaker.pitch.median_hz
        return Heard(embed(trim(said.samples), SAMPLE_RATE), float(np.log(raw_hz)))

    trials = search(surrogate, hear, on_trial=lambda done, total: progress(0.7 * done / total, "searching"))
    best = [trial.point for trial in trials[:3]]
    return [*best, np.mean(best, axis=0)]


def _nearest_stock(target: Target, space: StyleSpace) -> int:
    """The English stock voice most like the speaker; similarity alone may pick the wrong sex, so pitch counts."""
    table = voice_table()
    count = len(space.names)
    similarity = table.embeddings[:count] @ target.embedding
    off_st = 12 / np.log(2) * np.abs(table.log_pitch[:count] - target.log_pitch)
    is_english = np.array([name[0] in "ab" for name in space.names])
    return int(np.argmax(np.where(is_english, similarity - 0.05 * (off_st > 5), -np.inf)))


def _calibrate(style: Array, quality: float, speaker: Speaker, kokoro: Kokoro) -> Candidate:
    """Speak the calibration sentences at the speaker's pitch."""
    moved = PitchTarget(speaker.pitch.median_hz)
    said = [kokoro.speak(ids, style[len(ids) - 1], moved) for ids in _calibration_tokens()]
    source_hz, spread_st = pitch_stats(np.concatenate([utterance.raw_pitch for utterance in said]))
    # Half the way in log frequency: the two spreads are measured in unlike ways, and the full way sounds worse.
    scale = float(np.clip(np.sqrt(speaker.pitch.spread_st / max(spread_st, 0.5)), *_RANGE_LIMITS))
    spoken = np.concatenate([trim(utterance.samples) for utterance in said])
    pitch = PitchTarget(speaker.pitch.median_hz, source_hz or None, scale)
    return Candidate(style, quality, spoken, pitch, equaliser_db(spoken, speaker.samples))


def _raw(style: Array, kokoro: Kokoro) -> Array:
    """The calibration sentences as a style speaks them by itself."""
    return np.concatenate([trim(kokoro.speak(ids, style[len(ids) - 1]).samples) for ids in _calibration_tokens()])


def _calibration_tokens() -> Iterator[list[int]]:
    return (tokens(sentence) for sentence in CALIBRATION)


def _strengths(candidate: Candidate, speaker: Speaker) -> Iterator[Choice]:
    for strength in STRENGTHS:
        spoken = equalise(candidate.spoken, candidate.equaliser_db * np.float32(strength))
        yield Choice(candidate, strength, speaker.worth(spoken, candidate.quality))


def _profile(choice: Choice, speaker: Speaker, baseline: float, stock: str) -> Profile:
    cepstra = CepstralMap(*cepstral_stats(choice.spoken), *cepstral_stats(speaker.samples))
    spoken = cepstra.apply(choice.spoken)
    return Profile(
        style=choice.candidate.style,
        pitch=choice.candidate.pitch,
        equaliser_db=choice.equaliser_db,
        cepstra=cepstra,
        gain=LOUDNESS / max(float(np.sqrt(np.mean(np.square(spoken)))), 1e-6),
        similarity=speaker.similarity(spoken),
        baseline=baseline,
        nearest_stock=stock,
    )
