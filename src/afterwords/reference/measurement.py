"""Measure level, speech, pitch and clipping of each 10 ms of a recording, once for grading, window and level."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from afterwords.audio import analysis
from afterwords.audio.analysis import HOP_S, Samples
from afterwords.audio.audio import Audio
from afterwords.audio.effects import resample
from afterwords.errors import RecordingError
from afterwords.reference.transcription import Word

Flags = NDArray[np.bool_]

_MUTED_DB = -90.0  # dBFS without constant offset; about the lowest step of 16 bits
_ANALYSIS_RATE = 16_000  # Hz; 10 ms are a whole number of samples
_PITCH_RATE = 8_000  # Hz; enough for 500 Hz
_PITCH_BLOCK_S = 60  # bounds the memory for half an hour
_CLIPPED_RUN = 3  # samples; natural peaks reach their highest value once
_CLIPPED_NEAR = 0.99  # of the peak, to allow for the ripple of a lossy codec
_CLIPPED_STEP = 0.002  # of the peak, between neighbors in a flat run
_NOISE_FRAMES_MIN = 30  # 0.3 s of pauses give a reliable background
_SPECTRUM_S = 0.032
_SPECTRUM_FRAMES = 3000  # evenly spread over a long recording: half a minute of speech
_BAND_HZ = 250
_BAND_RANGE_DB = 60.0  # below the strongest band: inaudible under speech
_BAND_OVER_NOISE_DB = 3.0  # speech plus background is twice the background


@dataclass(frozen=True, slots=True)
class Measurement:
    """A recording and its 10 ms frames.

    Attributes:
        samples: Shape (n_samples,), float32 mono, without constant offset.
        sample_rate: In Hz, as in the file.
        level_db: dBFS RMS, shape (n_frames,), like all following arrays.
        is_live: Not muted. Padding and noise gates are silent, a room never is.
        is_speech: By level over the background.
        pitch_hz: 0 where the frame isn't voiced speech.
        is_clipped: Contains samples in a flat run at the peak.
        clipped_share: Share of clipped samples, in [0, 1].
    """

    samples: Samples = field(repr=False)
    sample_rate: int
    level_db: NDArray[np.float32] = field(repr=False)
    is_live: Flags = field(repr=False)
    is_speech: Flags = field(repr=False)
    pitch_hz: NDArray[np.float64] = field(repr=False)
    is_clipped: Flags = field(repr=False)
    clipped_share: float

    @property
    def duration_s(self) -> float:
        return len(self.samples) / self.sample_rate

    @property
    def speech_s(self) -> float:
        return float(np.count_nonzero(self.is_speech)) * HOP_S

    @property
    def voiced_s(self) -> float:
        return float(np.count_nonzero(self.pitch_hz)) * HOP_S

    def speech_span(self) -> tuple[float, float]:
        """Return start and end of the speech in seconds; the whole recording without speech."""
        where = np.flatnonzero(self.is_speech)
        return (float(where[0]) * HOP_S, float(where[-1] + 1) * HOP_S) if len(where) else (0.0, self.duration_s)

    def pauses(self, minimum_s: float) -> list[tuple[float, float]]:
        """Return the parts without speech of at least `minimum_s`, in seconds, including the edges."""
        edges = np.flatnonzero(np.diff(np.concatenate(([0], (~self.is_speech).astype(np.int8), [0]))))
        stretches = [(float(start) * HOP_S, float(end) * HOP_S) for start, end in edges.reshape(-1, 2)]
        return [(start, end) for start, end in stretches if end - start >= minimum_s - HOP_S / 2]

    def speech_power(self) -> float:
        """Return the mean square of the speech; 0 without speech."""
        level_db = self.level_db[self.is_speech].astype(np.float64)
        return float(np.mean(10 ** (level_db / 10))) if len(level_db) else 0.0

    def peak(self) -> float:
        return float(np.abs(self.samples).max(initial=0.0))

    def background_power(self) -> float:
        """Return the mean square of the background: of the pauses, else of the quietest twentieth.

        Muted parts don't count.
        """
        pauses = self.level_db[self.is_live & ~self.is_speech]
        if len(pauses) >= _NOISE_FRAMES_MIN:
            return float(10 ** (np.median(pauses) / 10))
        live = self.level_db[self.is_live]
        return float(10 ** (np.percentile(live, 5) / 10)) if len(live) else 0.0

    def bandwidth_hz(self) -> float:
        """Return the highest frequency of the speech within 60 dB of the strongest band and above the background."""
        n_fft = int(2 ** np.ceil(np.log2(self.sample_rate * _SPECTRUM_S)))
        speech = self._spectrum(self.is_speech, n_fft)
        if speech is None:
            return 0.0
        background = self._spectrum(self.is_live & ~self.is_speech, n_fft)
        is_real = speech > speech.max() - _BAND_RANGE_DB
        if background is not None:
            is_real &= speech > background + _BAND_OVER_NOISE_DB
        bands = np.flatnonzero(is_real)
        return min(float(bands[-1] + 1) * _BAND_HZ, self.sample_rate / 2) if len(bands) else 0.0

    def pitch(self) -> tuple[float, float]:
        """Return median in Hz and standard deviation in semitones, without octave errors; zeros if unvoiced.

        Source: C. De Looze and D. Hirst (2008): 0.72 × the first quartile to 1.9 × the third.
        """
        voiced = self.pitch_hz[self.pitch_hz > 0]
        if len(voiced) == 0:
            return 0.0, 0.0
        first, third = np.percentile(voiced, [25, 75])
        kept = voiced[(voiced >= 0.72 * first) & (voiced <= 1.9 * third)]
        return float(np.median(kept)), float(np.std(12 * np.log2(kept)))

    def contains(self, word: Word, start_s: float, end_s: float) -> bool:
        """Return whether most speech of a word is between two times; Whisper's word times reach into pauses.

        A word entirely in a pause belongs to the speech nearest to its start.
        """
        speech, inside = self._speech_in(word, 0.0, self.duration_s), self._speech_in(word, start_s, end_s)
        if speech == 0:
            frames_s = np.flatnonzero(self.is_speech) * HOP_S
            near_s = frames_s[np.argmin(np.abs(frames_s - word.start_s))] if len(frames_s) else word.start_s
            return start_s <= float(near_s) < end_s
        return 2 * inside > speech

    def splits(self, word: Word, cut_s: float) -> bool:
        """Return whether a cut leaves more than a third of the speech of a word on each side."""
        before, after = self._speech_in(word, 0.0, cut_s), self._speech_in(word, cut_s, self.duration_s)
        return min(before, after) * 3 > before + after

    def _speech_in(self, word: Word, start_s: float, end_s: float) -> int:
        first, last = (round(time_s / HOP_S) for time_s in (max(start_s, word.start_s), min(end_s, word.end_s)))
        return int(np.count_nonzero(self.is_speech[max(first, 0) : max(last, 0)]))

    def _spectrum(self, chosen: Flags, n_fft: int) -> NDArray[np.float32] | None:
        """Return the 95th percentile level of each 250 Hz band in dB, so that sibilants count; None for few frames."""
        centers = np.flatnonzero(chosen) * HOP_S * self.sample_rate
        starts = (centers - n_fft / 2).astype(np.int64)
        starts = starts[(starts >= 0) & (starts + n_fft <= len(self.samples))]
        if len(starts) < _NOISE_FRAMES_MIN:
            return None
        starts = starts[:: 1 + len(starts) // _SPECTRUM_FRAMES]
        cut = np.lib.stride_tricks.sliding_window_view(self.samples, n_fft)[starts] * analysis.hann(n_fft)
        power = np.abs(np.fft.rfft(cut, axis=1)) ** 2
        band = (np.fft.rfftfreq(n_fft, 1 / self.sample_rate)[:-1] // _BAND_HZ).astype(np.int64)
        first_bins = np.flatnonzero(np.diff(band, prepend=-1))
        widths = np.diff(np.append(first_bins, len(band)))
        bands = np.add.reduceat(power[:, :-1], first_bins, axis=1) / widths
        return analysis.decibels(np.percentile(bands, 95, axis=0))


def measure(audio: Audio) -> Measurement:
    """Measure a recording.

    Raises:
        RecordingError: The recording has no samples.
    """
    if len(audio.samples) == 0:
        raise RecordingError.no_audio("the recording")
    samples = audio.samples - np.float32(np.mean(audio.samples, dtype=np.float64))
    common = resample(samples, audio.sample_rate, _ANALYSIS_RATE)
    level_db = analysis.levels_db(common, _ANALYSIS_RATE)
    is_speech = analysis.speech_mask(common, _ANALYSIS_RATE)[: len(level_db)]
    hop = round(HOP_S * _ANALYSIS_RATE)
    is_live = analysis.decibels(np.var(analysis.frames(common, hop, hop), axis=1)) > _MUTED_DB
    is_flat = _flat_runs(samples)
    frame = np.minimum(np.flatnonzero(is_flat) / audio.sample_rate / HOP_S, len(level_db) - 1).astype(np.int64)
    is_clipped = np.zeros(len(level_db), bool)
    is_clipped[frame] = True
    slow = resample(samples, audio.sample_rate, _PITCH_RATE)
    block = _PITCH_BLOCK_S * _PITCH_RATE
    lead = round(1.5 / analysis.PITCH_FLOOR_HZ / HOP_S)  # hops to the center of the first pitch frame
    pitch_hz = np.zeros(len(level_db))
    for start in range(0, len(slow), block):
        found = analysis.pitch_track(slow[start : start + block], _PITCH_RATE)
        first = round(start / _PITCH_RATE / HOP_S) + lead
        found = found[: max(0, len(level_db) - first)]
        pitch_hz[first : first + len(found)] = found
    return Measurement(
        samples=samples,
        sample_rate=audio.sample_rate,
        level_db=level_db,
        is_live=is_live,
        is_speech=is_speech,
        pitch_hz=np.where(is_speech, pitch_hz, 0.0),
        is_clipped=is_clipped,
        clipped_share=float(is_flat.mean()) if len(is_flat) else 0.0,
    )


def level_over_time(audio: Audio, columns: int) -> list[float]:
    """Return the level in dBFS RMS, at least -120, of `columns` equal parts of a recording."""
    edges = np.linspace(0, len(audio.samples), columns + 1).astype(np.int64)
    parts = [audio.samples[start:end] for start, end in pairwise(edges)]
    power = np.array([float(np.mean(np.square(part), dtype=np.float64)) if len(part) else 0.0 for part in parts])
    return [float(level) for level in analysis.decibels(power)]


def _flat_runs(samples: Samples) -> Flags:
    """Return which samples are in a flat run at the highest or the lowest value."""
    flat = np.zeros(len(samples), bool)
    for signed in (samples, -samples):
        peak = float(signed.max(initial=0.0))
        is_near = signed >= _CLIPPED_NEAR * max(peak, 1e-6)
        is_level = np.abs(np.diff(signed)) <= _CLIPPED_STEP * peak
        joined = is_near[1:] & is_near[:-1] & is_level
        edges = np.flatnonzero(np.diff(np.concatenate(([0], joined.astype(np.int8), [0])))).reshape(-1, 2)
        for start, end in edges[edges[:, 1] - edges[:, 0] >= _CLIPPED_RUN - 1]:
            flat[start : end + 1] = True
    return flat
