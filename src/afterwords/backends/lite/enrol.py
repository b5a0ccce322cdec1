"""Enrolment: from a reference recording to the profile that speaks like it.

Search the style space, speak two calibration sentences with the best finds and with the nearest stock voice,
equalise each towards the reference at several strengths, keep what sounds most alike without sounding poor,
and fit the cepstral map on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from afterwords.audio.analysis import measure_pitch
from afterwords.audio.effects import resample
from afterwords.backends.base import Progress, Reference
from afterwords.backends.lite.g2p import tokens
from afterwords.backends.lite.kokoro import SAMPLE_RATE, PitchTarget, Utterance, pitch_stats
from afterwords.backends.lite.profile import Profile
from afterwords.backends.lite.search import (
    PHRASE,
    Heard,
    Journal,
    Surrogate,
    Target,
    evolve,
    search,
    trim,
    voice_table,
)
from afterwords.backends.lite.shaping import LOUDNESS, CepstralMap, cepstral_stats, equalise, equaliser_db
from afterwords.backends.lite.speaker import divergence, embed, timbre
from afterwords.backends.lite.styles import StyleSpace, style_space
from afterwords.errors import RecordingError

CALIBRATION: Final = (
    "The boy was there when the sun rose, and a rod is used to catch pink salmon.",
    "Rice is often served in round bowls, and the juice of lemons makes fine punch.",
)
"""Harvard sentences (IEEE, 1969): phonetically balanced, never the text that is spoken later."""
MIN_VOICED_S: Final = 1.0
"""What the sums need. How much a good voice needs is for `reference` to say, before a recording comes here."""
STRENGTHS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
HEARD: Final = 0.03
SEARCHED: Final = 0.35
COMPARED: Final = 0.92
"""Where the steps end, as parts of the whole time."""
_RANGE_LIMITS: Final = (0.7, 1.2)  # of the factor on the pitch range; beyond, speech sounds flat or theatrical

Array = NDArray[np.float32]


class Speak(Protocol):
    """Speak phoneme tokens in a style, as `Kokoro.speak`."""

    def __call__(self, tokens: Sequence[int], style: Array, pitch: PitchTarget | None = None) -> Utterance: ...


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
    """A candidate with the equaliser at one strength."""

    candidate: Candidate
    strength: float

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
            raise RecordingError.no_voice("The reference", voiced_s=self.pitch.voiced_s, minimum_s=MIN_VOICED_S)
        self.embedding = embed(self.samples, SAMPLE_RATE)
        self.timbre = timbre(self.samples, SAMPLE_RATE)
        self.target = Target(self.embedding, float(np.log(self.pitch.median_hz)))

    def similarity(self, samples: Array) -> float:
        return float(embed(samples, SAMPLE_RATE) @ self.embedding)

    def worth(self, samples: Array, quality: float) -> float:
        """Likeness of speech at 24 kHz less what makes it a poor choice."""
        apart = divergence(timbre(samples, SAMPLE_RATE), self.timbre)
        return self.similarity(samples) - 0.15 * min(apart, 0.6) - 0.1 * max(0.0, 2.85 - quality)


def enrol(
    reference: Reference,
    speak: Speak,
    progress: Progress,
    *,
    fast: bool = False,
    checkpoint: bytes | None = None,
    save: Callable[[bytes], None] = lambda _checkpoint: None,
) -> Profile:
    """Make the profile of a voice.

    Args:
        reference: the prepared recording.
        speak: the network that will speak.
        progress: told how far it is.
        fast: do not speak during the search: about a third of the time, and less alike.
        checkpoint: what `save` was given last, where another process was interrupted; the profile comes out the same.
        save: given all that was found so far, whenever something was.

    Raises:
        RecordingError: less than MIN_VOICED_S of it is voiced speech.
    """
    progress(0.0, "measuring the voice")
    speaker, space, journal = Speaker(reference), style_space(), Journal(checkpoint, save)
    progress(HEARD / 2, "measuring the voice")
    stock = _nearest_stock(speaker.target, space)
    surrogate = Surrogate(voice_table(), speaker.target)
    progress(HEARD, "finding a similar voice")
    found = _found(speaker, space, speak, surrogate, progress, journal, fast=fast)
    comparison = Comparison(
        [*(space.table(point) for point in found), space.voices[stock]],
        surrogate.quality(np.array([*found, space.coordinates[stock]], np.float64)),
        speaker,
        speak,
        progress,
    )
    choice = comparison.best(journal)
    progress(COMPARED, "matching the sound")
    raw = _raw(space.voices[stock], speak, lambda done: progress(COMPARED + 0.02 * done, "matching the sound"))
    profile = _profile(choice, speaker, speaker.similarity(raw), space.names[stock])
    progress(1.0, "done")
    return profile


class Comparison:
    """Styles that are spoken at length, and compared with the speaker at each strength of the equaliser."""

    N_STEPS: Final = len(CALIBRATION) + len(STRENGTHS)
    """Of one style."""

    def __init__(
        self, styles: list[Array], quality: NDArray[np.float64], speaker: Speaker, speak: Speak, progress: Progress
    ) -> None:
        self._styles, self._quality, self._speaker, self._speak = styles, quality, speaker, speak
        self._progress = progress
        self._candidates: dict[int, Candidate] = {}
        self._n_done = 0

    def best(self, journal: Journal) -> Choice:
        """The style and strength of the greatest worth."""
        worths = []
        for number in range(len(self._styles)):
            worths.append(journal.recall(len(STRENGTHS), partial(self._worths, number)))
            self._n_done = self.N_STEPS * (number + 1)
        style, strength = np.unravel_index(int(np.argmax(worths)), (len(worths), len(STRENGTHS)))
        return Choice(self._candidate(int(style)), STRENGTHS[int(strength)])

    def _worths(self, number: int) -> NDArray[np.float64]:
        candidate, found = self._candidate(number), []
        for strength in STRENGTHS:
            found.append(self._speaker.worth(Choice(candidate, strength).spoken, candidate.quality))
            self._step()
        return np.array(found)

    def _candidate(self, number: int) -> Candidate:
        if number not in self._candidates:  # once more at the end, where another process had compared it
            style, quality = self._styles[number], float(self._quality[number])
            self._candidates[number] = _calibrate(style, quality, self._speaker, self._speak, self._step)
        return self._candidates[number]

    def _step(self) -> None:
        self._n_done += 1
        n_steps = self.N_STEPS * len(self._styles) + len(CALIBRATION)
        self._progress(SEARCHED + (COMPARED - SEARCHED) * self._n_done / n_steps, "comparing candidates")


def _found(
    speaker: Speaker,
    space: StyleSpace,
    speak: Speak,
    surrogate: Surrogate,
    progress: Progress,
    journal: Journal,
    *,
    fast: bool,
) -> list[NDArray[np.float64]]:
    """The most promising points of the style space; in fast mode, one that was never heard.

    One short phrase judges a point roughly: so three go on to the calibration sentences, and what they have in common.
    """
    if fast:
        start = surrogate.best(1)[0]
        return [evolve(surrogate.expected, start, random=np.random.default_rng(0))]
    phrase = tokens(PHRASE)
    pitch = PitchTarget(speaker.pitch.median_hz)

    def sounding(point: NDArray[np.float64]) -> NDArray[np.float64]:
        said = speak(phrase, space.row(point, len(phrase)), pitch)
        raw_hz = pitch_stats(said.raw_pitch)[0] or speaker.pitch.median_hz
        return np.append(embed(trim(said.samples), SAMPLE_RATE).astype(np.float64), np.log(raw_hz))

    def hear(point: NDArray[np.float64]) -> Heard:
        heard = journal.recall(len(speaker.embedding) + 1, lambda: sounding(point))
        return Heard(heard[:-1].astype(np.float32), float(heard[-1]))

    def on_trial(done: float, total: int) -> None:
        progress(HEARD + (SEARCHED - HEARD) * done / total, "finding a similar voice")

    trials = search(surrogate, hear, on_trial=on_trial)
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


def _calibrate(
    style: Array, quality: float, speaker: Speaker, speak: Speak, on_sentence: Callable[[], None]
) -> Candidate:
    """Speak the calibration sentences at the speaker's pitch."""
    moved = PitchTarget(speaker.pitch.median_hz)
    said = []
    for ids in _calibration_tokens():
        said.append(speak(ids, style[len(ids) - 1], moved))
        on_sentence()
    source_hz, spread_st = pitch_stats(np.concatenate([utterance.raw_pitch for utterance in said]))
    # Half the way in log frequency: the two spreads are measured in unlike ways, and the full way sounds worse.
    scale = float(np.clip(np.sqrt(speaker.pitch.spread_st / max(spread_st, 0.5)), *_RANGE_LIMITS))
    spoken = np.concatenate([trim(utterance.samples) for utterance in said])
    pitch = PitchTarget(speaker.pitch.median_hz, source_hz or None, scale)
    return Candidate(style, quality, spoken, pitch, equaliser_db(spoken, speaker.samples))


def _raw(style: Array, speak: Speak, on_sentence: Callable[[int], None]) -> Array:
    """The calibration sentences as a style speaks them by itself."""
    said = []
    for ids in _calibration_tokens():
        said.append(trim(speak(ids, style[len(ids) - 1]).samples))
        on_sentence(len(said))
    return np.concatenate(said)


def _calibration_tokens() -> Iterator[list[int]]:
    return (tokens(sentence) for sentence in CALIBRATION)


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
