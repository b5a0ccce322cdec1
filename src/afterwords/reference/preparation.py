"""Prepare a recording as a reference: check it, cut it with its transcript, normalize the level, grade it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil, floor
from typing import Final

import numpy as np

from afterwords.audio.analysis import Samples
from afterwords.audio.audio import DURATION_MAX_S, Audio
from afterwords.audio.effects import resample
from afterwords.audio.wav import REFERENCE_MIN_S, SAMPLE_RATE_MIN, canonical_wav, check_not_silent
from afterwords.errors import RecordingError
from afterwords.reference.grading import Report, report_on
from afterwords.reference.measurement import Measurement, measure
from afterwords.reference.transcription import Word, coverage, held_words, join_words, match_words, surplus
from afterwords.reference.window import WINDOW_MAX_S, Window, choose_window, whole_window

VOICED_MIN_S: Final = 2.0  # of the window; less is an F and is refused
SPEECH_LEVEL_DB: Final = -23.0  # dBFS RMS of the speech; the program loudness of EBU R 128
PEAK_MAX_DB: Final = -1.0  # dBFS; headroom for the overshoot of a codec
RATE_MAX: Final = 48_000  # Hz; no voice has energy above 24 kHz
COVERED_WHOLE: Final = 0.9  # above it, words that a transcript lacks may be recognition errors: nothing is cut
SURPLUS_MAX: Final = 0.5  # above this share of unrecognized words, the transcript belongs to another recording


@dataclass(frozen=True, slots=True)
class PreparedReference:
    """A recording prepared for cloning.

    Attributes:
        samples: Shape (n_samples,), float32 mono in [-1, 1]: the best window, without offset, at a normalized level.
        sample_rate: In Hz: that of the file, between 8 and 48 kHz.
        text: Transcript of exactly these samples, if known.
        is_transcript_dropped: A transcript was given, but could not be cut with the window.
        window: The part of the recording.
        report: The grade of this window before normalization.
        wav: The samples as a canonical WAV file.
    """

    samples: Samples = field(repr=False)
    sample_rate: int
    text: str | None = field(repr=False)
    is_transcript_dropped: bool
    window: Window
    report: Report
    wav: bytes = field(repr=False)


def prepare(
    audio: Audio,
    *,
    source: str,
    transcript: str | None,
    words: Sequence[Word] | None = None,
    max_s: float = WINDOW_MAX_S,
) -> PreparedReference:
    """Prepare a recording: cut the best window and its transcript, normalize the level.

    Args:
        audio: 5 s to 30 min of one speaker.
        source: Name of the recording in error messages.
        transcript: Its transcript, if known.
        words: Recognized words with times. Without them, a transcript is kept only if the window has all speech.
        max_s: Longest window in seconds.

    Raises:
        RecordingError: Shorter than 5 s or longer than 30 min, silent, NaN or infinite samples, or less than 2 s of
            voiced speech in the window.
    """
    if audio.duration_s < REFERENCE_MIN_S:
        raise RecordingError.too_short(source, duration_s=audio.duration_s, minimum_s=REFERENCE_MIN_S)
    if audio.duration_s > DURATION_MAX_S:
        raise RecordingError.too_long(source, duration_s=audio.duration_s, maximum_s=DURATION_MAX_S)
    if not np.isfinite(audio.samples).all():
        raise RecordingError.non_finite(source)
    check_not_silent(audio.samples, source)
    measurement = measure(audio)
    missing: list[Word] = []  # the recognized words that the transcript lacks, unless they are recognition errors
    if (
        transcript is not None
        and words
        and surplus(transcript, words) <= SURPLUS_MAX
        and coverage(transcript, words) < COVERED_WHOLE
    ):
        held = held_words(transcript, words)
        missing = [word for word, is_held in zip(words, held, strict=True) if not is_held]
    window = choose_window(measurement, max_s=max_s, words=words, missing=missing)
    start, end = floor(window.start_s * measurement.sample_rate), ceil(window.end_s * measurement.sample_rate)
    cut = measure(Audio(measurement.samples[start:end], measurement.sample_rate))
    if cut.voiced_s < VOICED_MIN_S:
        raise RecordingError(
            f"{source} contains {cut.voiced_s:.1f} s of voiced speech, but {VOICED_MIN_S:g} s are needed.",
            code="no_voice",
        )
    text = _transcript_of(measurement, window, transcript, words)
    sample_rate = min(max(cut.sample_rate, SAMPLE_RATE_MIN), RATE_MAX)
    samples = resample(cut.samples, cut.sample_rate, sample_rate)
    peak = float(np.abs(samples).max(initial=0.0))
    rms = max(cut.speech_power(), 1e-12) ** 0.5
    gain = min(10 ** (SPEECH_LEVEL_DB / 20) / rms, 10 ** (PEAK_MAX_DB / 20) / max(peak, 1e-6))
    samples = (samples * np.float32(gain)).astype(np.float32)
    return PreparedReference(
        samples=samples,
        sample_rate=sample_rate,
        text=text,
        is_transcript_dropped=transcript is not None and text is None,
        window=window,
        report=report_on(cut, transcript=text, words=_words_in(measurement, window, words or ())),
        wav=canonical_wav(samples, sample_rate),
    )


def _transcript_of(
    measurement: Measurement, window: Window, transcript: str | None, words: Sequence[Word] | None
) -> str | None:
    """Return the transcript of a window, from the given one before the recognized words; None if unknown."""
    if transcript is not None and window == whole_window(measurement):
        return transcript.strip() or None
    if words and transcript is not None:
        is_matching = surplus(transcript, words) <= SURPLUS_MAX
        words = match_words(transcript, words) if is_matching else ()
    return join_words(word.text for word in _words_in(measurement, window, words or ())) or None


def _words_in(measurement: Measurement, window: Window, words: Sequence[Word]) -> list[Word]:
    """Return the words in a window, with times from its start."""
    return [
        replace(word, start_s=word.start_s - window.start_s, end_s=word.end_s - window.start_s)
        for word in words
        if measurement.contains(word, window.start_s, window.end_s)
    ]
