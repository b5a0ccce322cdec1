"""Choose the part of a recording to clone from, cut between words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from afterwords.audio.analysis import HOP_S
from afterwords.audio.audio import Audio
from afterwords.reference.measurement import Flags, Measurement, measure
from afterwords.reference.transcription import Word

WINDOW_MAX_S: Final = 15.0
WINDOW_MIN_S: Final = 5.0
EDGE_S: Final = 0.15  # silence on each side; with less, a clone drops its first sound
# The speech mask is widened by 60 ms on each side, so this is a pause of 0.27 s; the closure of a p or t is shorter
# than 0.2 s.
PAUSE_S: Final = 0.15

# Costs in seconds of voice:
_CLIPPED_COST = 3.0  # per second with clipping
_UNSTEADY_COST = 0.25  # per dB of standard deviation of the level of half seconds
_STEADY_S = 0.5
_DIP_S = 1.0  # without pauses, cuts are at the quietest moment of each second
_DIP_SMOOTH_S = 0.05


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a recording, in seconds from its start."""

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


def best_window(
    audio: Audio, *, max_s: float = WINDOW_MAX_S, min_s: float = WINDOW_MIN_S, words: Sequence[Word] | None = None
) -> Window:
    """Choose the part with the most voice, no clipping and a steady level, from pause to pause.

    If all speech fits in `max_s`, only silence at the edges is cut. Without pauses, cuts are between words if they are
    known, else at the quietest moments.

    Args:
        audio: The recording.
        max_s: Longest window in seconds.
        min_s: Shortest window; a shorter recording is used whole.
        words: Recognized words with times.
    """
    return choose_window(measure(audio), max_s=max_s, min_s=min_s, words=words)


def whole_window(measurement: Measurement, *, min_s: float = WINDOW_MIN_S) -> Window:
    """Return all speech with EDGE_S of silence on each side, or more to reach `min_s`."""
    first_s, last_s = measurement.speech_span()
    edge_s = max(EDGE_S, (min_s - (last_s - first_s)) / 2)
    start_s, end_s = max(0.0, first_s - edge_s), min(measurement.duration_s, last_s + edge_s)
    end_s = min(measurement.duration_s, max(end_s, start_s + min_s))
    start_s = max(0.0, min(start_s, end_s - min_s))
    return Window(round(start_s, 3), round(end_s, 3))


def choose_window(
    measurement: Measurement,
    *,
    max_s: float = WINDOW_MAX_S,
    min_s: float = WINDOW_MIN_S,
    words: Sequence[Word] | None = None,
    missing: Sequence[Word] = (),
) -> Window:
    """Choose the window of a measured recording, as `best_window` does.

    Args:
        missing: Recognized words that the transcript lacks; their voice counts against a window.
    """
    whole = whole_window(measurement, min_s=min_s)
    is_short = whole.duration_s <= max(max_s, min_s)
    if is_short and not missing:
        return whole
    # The value of each frame, in seconds of voice:
    voiced = (measurement.pitch_hz > 0).astype(np.float64)
    can_avoid_clipping = 2 * np.count_nonzero(measurement.is_clipped) < np.count_nonzero(voiced)
    for word in missing:
        voiced[round(word.start_s / HOP_S) : round(word.end_s / HOP_S)] *= -1
    worth = (voiced - _CLIPPED_COST * (measurement.is_clipped & can_avoid_clipping)) * HOP_S
    for starts, ends in (
        _pause_cuts(measurement, words),
        _quiet_cuts(measurement, words),
        _quiet_cuts(measurement, None),
    ):
        window = _best_of(measurement, worth, (starts, ends), (min_s, max_s))
        if window is not None:
            value = worth[round(window.start_s / HOP_S) : round(window.end_s / HOP_S)].sum()
            return whole if is_short and value <= 0 else window
    return whole


def _pause_cuts(measurement: Measurement, words: Sequence[Word] | None) -> tuple[list[float], list[float]]:
    """Return possible starts and ends of a window: EDGE_S into a pause, or the middle of a short pause."""
    starts, ends = [], []
    for first_s, last_s in measurement.pauses(PAUSE_S):
        near = (word for word in words or () if word.start_s < last_s and word.end_s > first_s)
        if any(measurement.splits(word, (first_s + last_s) / 2) for word in near):
            continue
        edge_s = min(EDGE_S, (last_s - first_s) / 2)
        starts.append(last_s - edge_s)
        ends.append(first_s + edge_s)
    first_s, last_s = measurement.speech_span()
    if first_s < PAUSE_S:
        starts.insert(0, 0.0)
    if measurement.duration_s - last_s < PAUSE_S:
        ends.append(measurement.duration_s)
    return starts, ends


def _quiet_cuts(measurement: Measurement, words: Sequence[Word] | None) -> tuple[list[float], list[float]]:
    """Return cuts of speech without pauses: between words if known, else the quietest moment of each second."""
    width = round(_DIP_SMOOTH_S / HOP_S)
    smooth = np.convolve(np.pad(measurement.level_db, width // 2, mode="edge"), np.ones(width) / width, "valid")
    if words:
        middles = [(word.start_s + word.end_s) / 2 for word in words]
        edges = [round(middle / HOP_S) for middle in middles]
    else:
        edges = list(range(0, len(smooth), round(_DIP_S / HOP_S)))
    stretches = [(first, last) for first, last in pairwise(edges) if last > first]
    cuts = [(first + int(np.argmin(smooth[first:last]))) * HOP_S for first, last in stretches if first < len(smooth)]
    first_s, last_s = measurement.speech_span()
    return [max(0.0, first_s - EDGE_S), *cuts], [*cuts, min(measurement.duration_s, last_s + EDGE_S)]


def _best_of(
    measurement: Measurement,
    worth: NDArray[np.float64],
    cuts: tuple[Sequence[float], Sequence[float]],
    bounds_s: tuple[float, float],
) -> Window | None:
    """Return the most valuable window between two cuts within the bounds, the earliest of equals."""
    total = np.concatenate(([0.0], np.cumsum(worth)))
    width = round(_STEADY_S / HOP_S) | 1
    power = np.pad(10 ** (measurement.level_db.astype(np.float64) / 10), width // 2, mode="edge")
    slow_level_db = 10 * np.log10(np.convolve(power, np.ones(width) / width, "valid"))
    spread = _Spread(slow_level_db, measurement.is_speech)
    best, best_score = None, -np.inf
    end_frames = np.sort(np.array([int(end / HOP_S + 1e-6) for end in cuts[1]], np.int64))
    for start in cuts[0]:
        first = round(start / HOP_S)
        low, high = np.searchsorted(end_frames, [first + bounds_s[0] / HOP_S, first + bounds_s[1] / HOP_S + 1e-6])
        if low >= high:
            continue
        lasts = np.minimum(end_frames[low:high], len(worth))
        scores = total[lasts] - total[min(first, len(worth))] - _UNSTEADY_COST * spread.between(first, lasts)
        place = int(np.argmax(scores))
        if scores[place] > best_score:
            best, best_score = (
                Window(round(first * HOP_S, 3), round(float(lasts[place]) * HOP_S, 3)),
                float(scores[place]),
            )
    return best


class _Spread:
    """Standard deviation of a level over the speech between two frames, by running sums."""

    def __init__(self, level_db: NDArray[np.float64], is_speech: Flags) -> None:
        rows = np.stack([is_speech, np.where(is_speech, level_db, 0), np.where(is_speech, level_db**2, 0)])
        self._sums = np.concatenate((np.zeros((3, 1)), np.cumsum(rows, axis=1)), axis=1)

    def between(self, first: int, lasts: NDArray[np.int64]) -> NDArray[np.float64]:
        last_frame = self._sums.shape[1] - 1
        count, total, squares = self._sums[:, np.minimum(lasts, last_frame)] - self._sums[:, [min(first, last_frame)]]
        count = np.maximum(count, 1)
        spread: NDArray[np.float64] = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
        return spread
