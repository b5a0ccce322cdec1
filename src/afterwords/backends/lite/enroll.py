"""Enrollment: from a reference recording to a profile.

Find a timbre by prediction, synthesize two calibration sentences with it and with the nearest stock voice, match the
sound of each to the reference, and keep the timbre if it is clearly more similar and worse by no measure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
    Journal,
    Surrogate,
    Target,
    trim,
    voice_table,
)
from afterwords.backends.lite.shaping import LOUDNESS, CepstralMap, cepstral_stats, equalize, equalizer_db
from afterwords.backends.lite.speaker import divergence, embed, timbre
from afterwords.backends.lite.styles import TIMBRE, style_space
from afterwords.errors import RecordingError

CALIBRATION: Final = (
    "The boy was there when the sun rose, and a rod is used to catch pink salmon.",
    "Rice is often served in round bowls, and the juice of lemons makes fine punch.",
)
"""Harvard sentences (IEEE, 1969), phonetically balanced."""
MIN_VOICED_S: Final = 1.0
"""The minimum of the computation; `reference` checks before how much a good voice needs."""
STRENGTHS: Final = (0.5, 1.0)
"""Of the equalizer of a timbre."""
STOCK_STRENGTHS: Final = (0.0, 0.5)
"""Of the equalizer of the stock voice, where more costs quality; 0: nothing but the pitch is matched."""
GAIN: Final = 0.03
"""The similarity that a timbre must gain over the stock voice; smaller differences say nothing about likeness."""
BLENDS: Final = (1.0, 0.5)
"""Shares of the predicted timbre in the candidates; the rest is the nearest stock voice's."""
MEASURED: Final = 0.1
PREDICTED: Final = 0.15
"""The ends of the first steps as fractions of the total time."""
_RANGE_LIMITS: Final = (0.7, 1.2)  # of the pitch range factor; beyond, speech sounds flat or theatrical

Array = NDArray[np.float32]


class SpeakTokens(Protocol):
    """Synthesize phoneme tokens in a style, like `Kokoro.speak`."""

    def __call__(self, tokens: Sequence[int], style: Array, pitch: PitchTarget | None = None) -> KokoroOutput: ...


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A style, what matches its sound to the speaker, and its calibration sentences with all of it."""

    style: Array
    pitch: PitchTarget
    equalizer_db: Array
    cepstra: CepstralMap
    spoken: Array


@dataclass(frozen=True, slots=True)
class Score:
    """How good a candidate is: GE2E cosine and divergence of the timbre to the speaker, and predicted DNSMOS."""

    similarity: float
    divergence: float
    quality: float

    @property
    def worth(self) -> float:
        return self.similarity - 0.5 * self.divergence - 0.1 * max(0.0, 2.85 - self.quality)

    def is_safe(self, stock: Score) -> bool:
        """Return whether no measure is worse than that of the unchanged stock voice.

        The predicted DNSMOS has an error of 0.22 (RMS), so that it only excludes what is clearly worse.
        """
        return (
            self.similarity >= stock.similarity
            and self.divergence <= stock.divergence
            and self.quality >= stock.quality - 0.2
        )


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
        fast: Compare fewer candidates, in three quarters of the time.
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
    surrogate, nearest = Surrogate(table, target), space.coordinates[stock].astype(np.float64)
    progress(MEASURED, "finding a similar voice")
    # Timbre carries the likeness; prosody, which decides how long phonemes last, stays that of the stock voice.
    optimum = np.concatenate([surrogate.optimum()[:TIMBRE], nearest[TIMBRE:]])
    points = [*(share * optimum + (1 - share) * nearest for share in BLENDS[: 1 if fast else None]), nearest]
    comparison = Comparison([*map(space.table, points[:-1]), space.voices[stock]], speaker, speak, progress)
    choice, score, unchanged = comparison.best(surrogate.quality(np.array(points)), journal)
    profile = LiteProfile(
        style=choice.style,
        pitch=choice.pitch,
        equalizer_db=choice.equalizer_db,
        cepstra=choice.cepstra,
        gain=LOUDNESS / max(float(np.sqrt(np.mean(np.square(choice.spoken)))), 1e-6),
        similarity=score.similarity,
        baseline=unchanged.similarity,
        nearest_stock=space.names[stock],
    )
    progress(1.0, "done")
    return profile


class Comparison:
    """Matches the sound of styles, of which the last is the nearest stock voice, to the speaker, and compares them."""

    def __init__(
        self, styles: Sequence[Array], speaker: ReferenceSpeaker, speak: SpeakTokens, progress: Progress
    ) -> None:
        self._styles, self._speaker, self._speak, self._progress = styles, speaker, speak, progress
        self._matched: dict[int, list[Candidate]] = {}
        self._n_done = 0.0

    def best(self, quality: NDArray[np.float64], journal: Journal) -> tuple[Candidate, Score, Score]:
        """Return the chosen candidate, its score, and that of the unchanged stock voice.

        Args:
            quality: The predicted DNSMOS of each style.
            journal: Has the other measures of styles that were compared before.
        """
        scores = []
        for number, predicted in enumerate(quality.tolist()):
            found = journal.recall(4, partial(self._measure, number))
            scores += [Score(similarity, distance, predicted) for similarity, distance in found.reshape(-1, 2).tolist()]
            self._report(number + 1)
        similarity, distance = journal.recall(2, self._measure_unchanged).tolist()
        unchanged = Score(similarity, distance, scores[-1].quality)
        *timbres, plain, matched = range(len(scores))
        stock = matched if scores[matched].is_safe(unchanged) else plain
        least = scores[stock].similarity + GAIN
        safe = [
            number for number in timbres if scores[number].is_safe(unchanged) and scores[number].similarity >= least
        ]
        best = max(safe, key=lambda number: scores[number].worth, default=stock)
        number, strength = divmod(best, len(STRENGTHS))
        return self._match(number)[strength], scores[best], unchanged

    def _measure(self, number: int) -> NDArray[np.float64]:
        return np.concatenate([self._measures(candidate.spoken) for candidate in self._match(number)])

    def _measure_unchanged(self) -> NDArray[np.float64]:
        said = []
        for ids in map(tokens, CALIBRATION):
            said.append(trim(self._speak(ids, self._styles[-1][len(ids) - 1]).samples))
            self._report(len(self._styles) + len(said) / len(CALIBRATION))
        return self._measures(np.concatenate(said))

    def _measures(self, samples: Array) -> NDArray[np.float64]:
        """Return similarity and divergence to the speaker."""
        distance = divergence(timbre(samples, SAMPLE_RATE), self._speaker.timbre)
        return np.array([self._speaker.similarity(samples), distance])

    def _match(self, number: int) -> list[Candidate]:
        """Synthesize the calibration sentences at the speaker's pitch, and match their sound at each strength."""
        if number in self._matched:  # unless the journal had its measures
            return self._matched[number]
        style, speaker, said = self._styles[number], self._speaker, []
        for at, ids in enumerate(map(tokens, CALIBRATION)):
            said.append(self._speak(ids, style[len(ids) - 1], PitchTarget(speaker.pitch.median_hz)))
            self._report(number + (at + 1) / (len(CALIBRATION) + 1))
        source_hz, spread_st = pitch_stats(np.concatenate([utterance.raw_pitch for utterance in said]))
        # Half of the difference in log frequency: the two spreads are measured differently, and all of it sounds worse.
        scale = float(np.clip(np.sqrt(speaker.pitch.spread_st / max(spread_st, 0.5)), *_RANGE_LIMITS))
        spoken = np.concatenate([trim(utterance.samples) for utterance in said])
        pitch = PitchTarget(speaker.pitch.median_hz, source_hz or None, scale)
        curve_db = equalizer_db(spoken, speaker.samples)
        self._matched[number] = []
        for strength in STOCK_STRENGTHS if number == len(self._styles) - 1 else STRENGTHS:
            equalized = equalize(spoken, curve := curve_db * np.float32(strength))
            stats = cepstral_stats(equalized)
            cepstra = CepstralMap(*stats, *(cepstral_stats(speaker.samples) if strength else stats))
            self._matched[number].append(Candidate(style, pitch, curve, cepstra, cepstra.apply(equalized)))
        return self._matched[number]

    def _report(self, n_styles: float) -> None:
        self._n_done = max(self._n_done, n_styles)  # after a resumed comparison, the best style is matched again
        done = self._n_done / (len(self._styles) + 1)
        self._progress(PREDICTED + (1 - PREDICTED) * done, "comparing candidates")
