"""The part of a recording that a voice is made from: where to cut so that no word is torn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from afterwords.audio.analysis import HOP_S
from afterwords.audio.audio import Audio
from afterwords.reference.hearing import Flags, Hearing, listen
from afterwords.reference.transcription import Word

WINDOW_MAX_S: Final = 15.0
WINDOW_MIN_S: Final = 5.0
EDGE_S: Final = 0.15  # silence left on either side: cut closer, a clone swallows its first sound
# The speech mask is widened by 60 ms on each side, so that this is a pause of 0.27 s; the closure of a p or t lasts
# under 0.2 s and is never taken for one.
PAUSE_S: Final = 0.15

# What costs as much as a second of voice less:
_CLIPPED_COST = 3.0  # seconds for each second with clipping
_UNSTEADY_COST = 0.25  # seconds for each dB by which the level of half seconds spreads
_STEADY_S = 0.5
_DIP_S = 1.0  # where there are no pauses, the quietest moment of each second is where to cut
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

    A recording whose speech fits in `max_s` is used whole, but for silence at its edges. One without pauses is cut
    between words where they are known, else where it is quietest.

    Args:
        audio: the recording.
        max_s: the longest window, in seconds.
        min_s: the shortest; a recording that is shorter is used whole.
        words: what was heard in it, with times.
    """
    return choose_window(listen(audio), max_s=max_s, min_s=min_s, words=words)


def whole_window(hearing: Hearing, *, min_s: float = WINDOW_MIN_S) -> Window:
    """All the speech with EDGE_S of silence on either side, or more where it would be shorter than `min_s`."""
    first_s, last_s = hearing.speech_span()
    edge_s = max(EDGE_S, (min_s - (last_s - first_s)) / 2)
    start_s, end_s = max(0.0, first_s - edge_s), min(hearing.duration_s, last_s + edge_s)
    end_s = min(hearing.duration_s, max(end_s, start_s + min_s))
    start_s = max(0.0, min(start_s, end_s - min_s))
    return Window(round(start_s, 3), round(end_s, 3))


def choose_window(
    hearing: Hearing,
    *,
    max_s: float = WINDOW_MAX_S,
    min_s: float = WINDOW_MIN_S,
    words: Sequence[Word] | None = None,
    untold: Sequence[Word] = (),
) -> Window:
    """As `best_window`, for a recording that was listened to before.

    Args:
        untold: heard words that the transcript lacks: their voice counts against a window.
    """
    whole = whole_window(hearing, min_s=min_s)
    is_short = whole.duration_s <= max(max_s, min_s)
    if is_short and not untold:
        return whole
    worth = _worth(hearing, untold)
    for starts, ends in (_pause_cuts(hearing, words), _quiet_cuts(hearing, words), _quiet_cuts(hearing, None)):
        window = _best_of(hearing, worth, (starts, ends), (min_s, max_s))
        if window is not None:
            told = worth[round(window.start_s / HOP_S) : round(window.end_s / HOP_S)].sum()
            return whole if is_short and told <= 0 else window
    return whole


def _worth(hearing: Hearing, untold: Sequence[Word]) -> NDArray[np.float64]:
    """What each frame adds to a window, in seconds of voice."""
    voiced = (hearing.pitch_hz > 0).astype(np.float64)
    can_avoid_clipping = 2 * np.count_nonzero(hearing.is_clipped) < np.count_nonzero(voiced)
    for word in untold:
        voiced[round(word.start_s / HOP_S) : round(word.end_s / HOP_S)] *= -1
    return (voiced - _CLIPPED_COST * (hearing.is_clipped & can_avoid_clipping)) * HOP_S


def _pause_cuts(hearing: Hearing, words: Sequence[Word] | None) -> tuple[list[float], list[float]]:
    """Where a window may start and where it may end: EDGE_S into a pause, or at its middle where it is short."""
    starts, ends = [], []
    for first_s, last_s in hearing.pauses(PAUSE_S):
        if any(hearing.splits(word, (first_s + last_s) / 2) for word in _near(words, first_s, last_s)):
            continue
        edge_s = min(EDGE_S, (last_s - first_s) / 2)
        starts.append(last_s - edge_s)
        ends.append(first_s + edge_s)
    first_s, last_s = hearing.speech_span()
    if first_s < PAUSE_S:
        starts.insert(0, 0.0)
    if hearing.duration_s - last_s < PAUSE_S:
        ends.append(hearing.duration_s)
    return starts, ends


def _near(words: Sequence[Word] | None, first_s: float, last_s: float) -> list[Word]:
    return [word for word in words or () if word.start_s < last_s and word.end_s > first_s]


def _quiet_cuts(hearing: Hearing, words: Sequence[Word] | None) -> tuple[list[float], list[float]]:
    """Cuts for speech without pauses: between words where they are known, else the quietest moment of each second."""
    width = round(_DIP_SMOOTH_S / HOP_S)
    smooth = np.convolve(np.pad(hearing.level_db, width // 2, mode="edge"), np.ones(width) / width, "valid")
    if words:
        middles = [(word.start_s + word.end_s) / 2 for word in words]
        edges = [round(middle / HOP_S) for middle in middles]
    else:
        edges = list(range(0, len(smooth), round(_DIP_S / HOP_S)))
    stretches = [(first, last) for first, last in pairwise(edges) if last > first]
    cuts = [(first + int(np.argmin(smooth[first:last]))) * HOP_S for first, last in stretches if first < len(smooth)]
    first_s, last_s = hearing.speech_span()
    return [max(0.0, first_s - EDGE_S), *cuts], [*cuts, min(hearing.duration_s, last_s + EDGE_S)]


def _best_of(
    hearing: Hearing,
    worth: NDArray[np.float64],
    cuts: tuple[Sequence[float], Sequence[float]],
    bounds_s: tuple[float, float],
) -> Window | None:
    """The pair of cuts, at least and at most so far apart, whose window is worth most; the earliest of equals."""
    total = np.concatenate(([0.0], np.cumsum(worth)))
    spread = _Spread(_slow_level(hearing), hearing.is_speech)
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


def _slow_level(hearing: Hearing) -> NDArray[np.float64]:
    """Level over half seconds in dB, a value a frame."""
    width = round(_STEADY_S / HOP_S) | 1
    power = 10 ** (hearing.level_db.astype(np.float64) / 10)
    padded = np.pad(power, width // 2, mode="edge")
    return 10 * np.log10(np.convolve(padded, np.ones(width) / width, "valid"))


class _Spread:
    """Standard deviation of a level over the speech between any two frames, by running sums."""

    def __init__(self, level_db: NDArray[np.float64], is_speech: Flags) -> None:
        rows = np.stack([is_speech, np.where(is_speech, level_db, 0), np.where(is_speech, level_db**2, 0)])
        self._sums = np.concatenate((np.zeros((3, 1)), np.cumsum(rows, axis=1)), axis=1)

    def between(self, first: int, lasts: NDArray[np.int64]) -> NDArray[np.float64]:
        last_frame = self._sums.shape[1] - 1
        count, total, squares = self._sums[:, np.minimum(lasts, last_frame)] - self._sums[:, [min(first, last_frame)]]
        count = np.maximum(count, 1)
        spread: NDArray[np.float64] = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
        return spread
