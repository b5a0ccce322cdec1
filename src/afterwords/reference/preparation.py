"""A recording made into a reference: checked, cut with its transcript, levelled, graded."""

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
from afterwords.errors import (
    NonFiniteAudioError,
    ReferenceTooLongError,
    ReferenceTooShortError,
    UnvoicedReferenceError,
)
from afterwords.reference.hearing import Hearing, listen
from afterwords.reference.report import Report, report_on
from afterwords.reference.transcription import Word, coverage, held_words, join_words, match_words, surplus
from afterwords.reference.window import WINDOW_MAX_S, Window, choose_window, whole_window

VOICED_MIN_S: Final = 2.0  # of the window; less is an F in the report, and what no engine is given
SPEECH_LEVEL_DB: Final = -23.0  # dBFS RMS of the speech, after the programme loudness of EBU R 128
PEAK_MAX_DB: Final = -1.0  # dBFS; a codec may overshoot by that much
RATE_MAX: Final = 48_000  # Hz; nothing above 24 kHz is voice
COVERED_WHOLE: Final = 0.9  # above this share the words a transcript lacks may be mishearings: nothing is cut away
SURPLUS_MAX: Final = 0.5  # above this share of words not heard, the transcript is of something else: it can't be cut


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a voice is made from.

    Attributes:
        samples: shape (n_samples,), float32 mono in [-1, 1]: the best window, without offset, levelled.
        sample_rate: in Hz: the file's own, between 8 and 48 kHz.
        text: transcript of exactly these samples; None where it is not known.
        transcript_was_cut_away: a transcript was given, and could not be cut with the window.
        window: where in the recording it lies.
        report: the doctor's on this window as it was recorded, before levelling.
        wav: these samples as a canonical WAV file.
    """

    samples: Samples = field(repr=False)
    sample_rate: int
    text: str | None = field(repr=False)
    transcript_was_cut_away: bool
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
) -> Prepared:
    """Make a reference of a recording: its best window, levelled, with the transcript of just that.

    Args:
        audio: 5 s to 30 min of one speaker.
        source: what messages call it.
        transcript: what is said in it, if its owner knows.
        words: what was heard in it, with times; without them a transcript can't be cut, and is kept only if the
            window holds all the speech.
        max_s: the longest window, in seconds.

    Raises:
        ReferenceTooShortError, ReferenceTooLongError: shorter than 5 s or longer than 30 min.
        NonFiniteAudioError: samples that are NaN or infinite.
        SilentAudioError: nothing but silence or a constant offset.
        UnvoicedReferenceError: less than 2 s of voiced speech in the window.
    """
    hearing = _heard(audio, source)
    window = choose_window(hearing, max_s=max_s, words=words, untold=_untold(transcript, words))
    cut = listen(_cut(hearing, window))
    if cut.voiced_s < VOICED_MIN_S:
        raise UnvoicedReferenceError(source, voiced_s=cut.voiced_s, minimum_s=VOICED_MIN_S)
    text = _text_of(hearing, window, transcript, words)
    samples, sample_rate = _levelled(cut)
    return Prepared(
        samples=samples,
        sample_rate=sample_rate,
        text=text,
        transcript_was_cut_away=transcript is not None and text is None,
        window=window,
        report=report_on(cut, transcript=text, words=_words_within(hearing, window, words or ())),
        wav=canonical_wav(samples, sample_rate),
    )


def _heard(audio: Audio, source: str) -> Hearing:
    if audio.duration_s < REFERENCE_MIN_S:
        raise ReferenceTooShortError(source, duration_s=audio.duration_s, minimum_s=REFERENCE_MIN_S)
    if audio.duration_s > DURATION_MAX_S:
        raise ReferenceTooLongError(source, duration_s=audio.duration_s, maximum_s=DURATION_MAX_S)
    if not np.isfinite(audio.samples).all():
        raise NonFiniteAudioError(source)
    check_not_silent(audio.samples, source)
    return listen(audio)


def _untold(transcript: str | None, words: Sequence[Word] | None) -> list[Word]:
    """The heard words that a transcript of this recording lacks, where they are more than mishearing explains."""
    if transcript is None or not words or surplus(transcript, words) > SURPLUS_MAX:
        return []
    if coverage(transcript, words) >= COVERED_WHOLE:
        return []
    return [word for word, is_held in zip(words, held_words(transcript, words), strict=True) if not is_held]


def _text_of(hearing: Hearing, window: Window, transcript: str | None, words: Sequence[Word] | None) -> str | None:
    """The transcript of a window: its owner's words before the heard ones; None where it can't be told."""
    if transcript is not None and window == whole_window(hearing):
        return transcript.strip() or None
    if words and transcript is not None:
        is_of_this = surplus(transcript, words) <= SURPLUS_MAX
        words = match_words(transcript, words) if is_of_this else ()
    return join_words(word.text for word in _words_within(hearing, window, words or ())) or None


def _words_within(hearing: Hearing, window: Window, words: Sequence[Word]) -> list[Word]:
    """The words that lie in a window, their times counted from its start."""
    return [
        replace(word, start_s=word.start_s - window.start_s, end_s=word.end_s - window.start_s)
        for word in words
        if hearing.holds(word, window.start_s, window.end_s)
    ]


def _cut(hearing: Hearing, window: Window) -> Audio:
    start, end = floor(window.start_s * hearing.sample_rate), ceil(window.end_s * hearing.sample_rate)
    return Audio(hearing.samples[start:end], hearing.sample_rate)


def _levelled(cut: Hearing) -> tuple[Samples, int]:
    """Bring the speech to SPEECH_LEVEL_DB, or as near as its peak allows, at a rate that is kept and sent."""
    sample_rate = min(max(cut.sample_rate, SAMPLE_RATE_MIN), RATE_MAX)
    samples = resample(cut.samples, cut.sample_rate, sample_rate)
    peak = float(np.abs(samples).max(initial=0.0))
    rms = max(cut.speech_power(), 1e-12) ** 0.5
    gain = min(10 ** (SPEECH_LEVEL_DB / 20) / rms, 10 ** (PEAK_MAX_DB / 20) / max(peak, 1e-6))
    return (samples * np.float32(gain)).astype(np.float32), sample_rate
