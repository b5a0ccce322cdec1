"""Enrollment: from a reference recording to a profile.

Search the style space, synthesize two calibration sentences with the best styles and the nearest stock voice, equalize
each toward the reference at several strengths, keep the most similar result of good quality, and fit the cepstral map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from afterwords.audio.analysis import measure_pitch
from afterwords.audio.effects import resample
from afterwords.backends.base import Progress, Reference
from afterwords.backends.lite.g2p import tokens
from afterwords.backends.lite.kokoro import SAMPLE_RATE, KokoroOutput, PitchTarget, pitch_stats
from afterwords.backends.lite.profile import LiteProfile
from afterwords.backends.lite.search import (
    PHRASE,
    Evaluation,
    Journal,
    Surrogate,
    Target,
    evolve,
    search,
    trim,
    voice_table,
)
from afterwords.backends.lite.shaping import LOUDNESS, CepstralMap, cepstral_stats, equalize, equalizer_db
from afterwords.backends.lite.speaker import divergence, embed, timbre
from afterwords.backends.lite.styles import StyleSpace, style_space
from afterwords.errors import RecordingError

CALIBRATION: Final = (
    "The boy was there when the sun rose, and a rod is used to catch pink salmon.",
    "Rice is often served in round bowls, and the juice of lemons makes fine punch.",
)
"""Harvard sentences (IEEE, 1969), phonetically balanced."""
MIN_VOICED_S: Final = 1.0
"""The minimum of the computation; `reference` checks before how much a good voice needs."""
STRENGTHS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
MEASURED: Final = 0.03
SEARCHED: Final = 0.35
COMPARED: Final = 0.92
"""The ends of the steps as fractions of the total time."""
_RANGE_LIMITS: Final = (0.7, 1.2)  # of the pitch range factor; beyond, speech sounds flat or theatrical

Array = NDArray[np.float32]


class SpeakTokens(Protocol):
    """Synthesize phoneme tokens in a style, like `Kokoro.speak`."""

    def __call__(self, tokens: Sequence[int], style: Array, pitch: PitchTarget | None = None) -> KokoroOutput: ...


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A style and its calibration sentences at the pitch of the speaker."""

    style: Array
    quality: float
    spoken: Array
    pitch: PitchTarget
    equalizer_db: Array


@dataclass(frozen=True, eq=False)
class EqualizedCandidate:
    """A candidate with the equalizer at one strength."""

    candidate: Candidate
    strength: float

    @property
    def equalizer_db(self) -> Array:
        return self.candidate.equalizer_db * np.float32(self.strength)

    @cached_property
    def spoken(self) -> Array:
        return equalize(self.candidate.spoken, self.equalizer_db)


class ReferenceSpeaker:
    """The speaker of the reference: samples at 24 kHz, pitch, embedding and timbre."""

    def __init__(self, reference: Reference) -> None:
        self.samples = resample(reference.samples, reference.sample_rate, SAMPLE_RATE)
        self.pitch = measure_pitch(reference.samples, reference.sample_rate)
        if (voiced_s := self.pitch.voiced_s) < MIN_VOICED_S:
            raise RecordingError(
                f"The reference contains {voiced_s:.1f} s of voiced speech, but {MIN_VOICED_S:g} s are needed.",
                code="no_voice",
            )
        self.embedding = embed(self.samples, SAMPLE_RATE)
        self.timbre = timbre(self.samples, SAMPLE_RATE)
        self.target = Target(self.embedding, float(np.log(self.pitch.median_hz)))

    def similarity(self, samples: Array) -> float:
        return float(embed(samples, SAMPLE_RATE) @ self.embedding)

    def worth(self, samples: Array, quality: float) -> float:
        """Return the similarity of speech at 24 kHz less penalties for timbre and quality."""
        distance = divergence(timbre(samples, SAMPLE_RATE), self.timbre)
        return self.similarity(samples) - 0.15 * min(distance, 0.6) - 0.1 * max(0.0, 2.85 - quality)


def enroll(
    reference: Reference,
    speak: SpeakTokens,
    progress: Progress,
    *,
    fast: bool = False,
    checkpoint: bytes | None = None,
    save: Callable[[bytes], None] = lambda _checkpoint: None,
) -> LiteProfile:
    """Create the profile of a voice.

    Args:
        reference, speak, progress: The prepared recording, the network, and a callback.
        fast: Search without synthesis: about a third of the time, with less similarity.
        checkpoint: The last state passed to `save` by an interrupted call; the resulting profile is the same.
        save: Called with the state after each result.

    Raises:
        RecordingError: Less than MIN_VOICED_S of voiced speech.
    """
    progress(0.0, "measuring the voice")
    speaker, space, journal = ReferenceSpeaker(reference), style_space(), Journal(checkpoint, save)
    progress(MEASURED / 2, "measuring the voice")
    table, target = voice_table(), speaker.target
    n_stock = len(space.names)
    off_st = 12 / np.log(2) * np.abs(table.log_pitch[:n_stock] - target.log_pitch)
    worth = table.embeddings[:n_stock] @ target.embedding - 0.05 * (off_st > 5)  # alone, it may pick the wrong sex
    stock = int(np.argmax(np.where([name[0] in "ab" for name in space.names], worth, -np.inf)))  # an English voice
    surrogate = Surrogate(table, target)
    progress(MEASURED, "finding a similar voice")
    found = _search(speaker, space, speak, surrogate, progress, journal, fast=fast)
    comparison = Comparison(
        [*(space.table(point) for point in found), space.voices[stock]],
        surrogate.quality(np.array([*found, space.coordinates[stock]], np.float64)),
        speaker,
        speak,
        progress,
    )
    choice = comparison.best(journal)
    progress(COMPARED, "matching the sound")
    raw = []
    for ids in map(tokens, CALIBRATION):
        raw.append(trim(speak(ids, space.voices[stock][len(ids) - 1]).samples))
        progress(COMPARED + 0.02 * len(raw), "matching the sound")
    cepstra = CepstralMap(*cepstral_stats(choice.spoken), *cepstral_stats(speaker.samples))
    spoken = cepstra.apply(choice.spoken)
    profile = LiteProfile(
        style=choice.candidate.style,
        pitch=choice.candidate.pitch,
        equalizer_db=choice.equalizer_db,
        cepstra=cepstra,
        gain=LOUDNESS / max(float(np.sqrt(np.mean(np.square(spoken)))), 1e-6),
        similarity=speaker.similarity(spoken),
        baseline=speaker.similarity(np.concatenate(raw)),
        nearest_stock=space.names[stock],
    )
    progress(1.0, "done")
    return profile


class Comparison:
    """Compares candidate styles with the speaker at each strength of the equalizer."""

    N_STEPS: Final = len(CALIBRATION) + len(STRENGTHS)
    """Steps per style."""

    def __init__(
        self,
        styles: list[Array],
        quality: NDArray[np.float64],
        speaker: ReferenceSpeaker,
        speak: SpeakTokens,
        progress: Progress,
    ) -> None:
        self._styles, self._quality, self._speaker, self._speak = styles, quality, speaker, speak
        self._progress = progress
        self._candidates: dict[int, Candidate] = {}
        self._n_done = 0

    def best(self, journal: Journal) -> EqualizedCandidate:
        """Return the best style and strength."""
        worths = []
        for number in range(len(self._styles)):
            worths.append(journal.recall(len(STRENGTHS), partial(self._worths, number)))
            self._n_done = self.N_STEPS * (number + 1)
        style, strength = np.unravel_index(int(np.argmax(worths)), (len(worths), len(STRENGTHS)))
        return EqualizedCandidate(self._candidate(int(style)), STRENGTHS[int(strength)])

    def _worths(self, number: int) -> NDArray[np.float64]:
        candidate, found = self._candidate(number), []
        for strength in STRENGTHS:
            found.append(self._speaker.worth(EqualizedCandidate(candidate, strength).spoken, candidate.quality))
            self._step()
        return np.array(found)

    def _candidate(self, number: int) -> Candidate:
        """Synthesize the calibration sentences at the pitch of the speaker."""
        if number in self._candidates:  # unless a resumed comparison recalled its worths
            return self._candidates[number]
        style, speaker, said = self._styles[number], self._speaker, []
        for ids in map(tokens, CALIBRATION):
            said.append(self._speak(ids, style[len(ids) - 1], PitchTarget(speaker.pitch.median_hz)))
            self._step()
        source_hz, spread_st = pitch_stats(np.concatenate([utterance.raw_pitch for utterance in said]))
        # Half of the difference in log frequency: the two spreads are measured differently, and all of it sounds worse.
        scale = float(np.clip(np.sqrt(speaker.pitch.spread_st / max(spread_st, 0.5)), *_RANGE_LIMITS))
        spoken = np.concatenate([trim(utterance.samples) for utterance in said])
        pitch = PitchTarget(speaker.pitch.median_hz, source_hz or None, scale)
        curve_db = equalizer_db(spoken, speaker.samples)
        self._candidates[number] = Candidate(style, float(self._quality[number]), spoken, pitch, curve_db)
        return self._candidates[number]

    def _step(self) -> None:
        self._n_done += 1
        n_steps = self.N_STEPS * len(self._styles) + len(CALIBRATION)
        self._progress(SEARCHED + (COMPARED - SEARCHED) * self._n_done / n_steps, "comparing candidates")


def _search(
    speaker: ReferenceSpeaker,
    space: StyleSpace,
    speak: SpeakTokens,
    surrogate: Surrogate,
    progress: Progress,
    journal: Journal,
    *,
    fast: bool,
) -> list[NDArray[np.float64]]:
    """Return the most promising points of the style space; in fast mode, one by prediction only.

    One short phrase evaluates a point roughly: the best three and their mean go on to the calibration sentences.
    """
    if fast:
        start = surrogate.best(1)[0]
        return [evolve(surrogate.expected, start, random=np.random.default_rng(0))]
    phrase = tokens(PHRASE)
    pitch = PitchTarget(speaker.pitch.median_hz)

    def measure(point: NDArray[np.float64]) -> NDArray[np.float64]:
        output = speak(phrase, space.row(point, len(phrase)), pitch)
        raw_hz = pitch_stats(output.raw_pitch)[0] or speaker.pitch.median_hz
        return np.append(embed(trim(output.samples), SAMPLE_RATE).astype(np.float64), np.log(raw_hz))

    def evaluate(point: NDArray[np.float64]) -> Evaluation:
        values = journal.recall(len(speaker.embedding) + 1, lambda: measure(point))
        return Evaluation(values[:-1].astype(np.float32), float(values[-1]))

    def on_trial(done: float, total: int) -> None:
        progress(MEASURED + (SEARCHED - MEASURED) * done / total, "finding a similar voice")

    trials = search(surrogate, evaluate, on_trial=on_trial)
    best = [trial.point for trial in trials[:3]]
    return [*best, np.mean(best, axis=0)]
