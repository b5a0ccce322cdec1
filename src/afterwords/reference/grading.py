"""Grade recordings for cloning from A to F, with a reason and advice per measure.

`RULES` has the limits of every measure and their reasons. Echo and music are not graded: no measure here distinguishes
them reliably from a lively speaker.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from afterwords.audio.audio import Audio
from afterwords.reference.measurement import Measurement, measure
from afterwords.reference.transcription import Word, coverage, join_words, surplus

GRADES: Final = "ABCDF"
LONG_PAUSE_S: Final = 1.5  # cloned voices repeat such a pause in the middle of a sentence
SNR_MAX_DB: Final = 80.0  # digital silence beyond
_WIDE_SIGN_CHARS = 3  # a Chinese, Japanese or Korean character takes about as long to say as three letters


@dataclass(frozen=True, slots=True)
class Finding:
    """One measure of a recording.

    Attributes:
        measure: Name, such as "noise".
        value: Rounded.
        unit: Unit of the value.
        grade: A to F; None for information only.
        reason: The value and the rule in one sentence.
        advice: How to improve it; empty for an A.
    """

    measure: str
    value: float
    unit: str
    grade: str | None
    reason: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """The overall grade of a recording and its findings, most important first."""

    grade: str
    duration_s: float
    sample_rate: int
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report in plain types, for JSON."""
        return asdict(self) | {"findings": [asdict(finding) for finding in self.findings]}


@dataclass(frozen=True, slots=True)
class Rule:
    """How a measured value maps to a grade.

    Attributes:
        unit: Unit of the value.
        advice: How to improve it.
        at_least: Lowest values of an A, B, C and D.
        at_most: Highest values of an A, B, C and D.
        leniency: Grades by which it counts less in the overall grade, since preparation corrects part of it.
        digits: Decimal places.
    """

    unit: str
    advice: str
    at_least: tuple[float, float, float, float] | None = None
    at_most: tuple[float, float, float, float] | None = None
    leniency: int = 0
    digits: int = 0

    def grade(self, value: float) -> str:
        steps = [value < limit for limit in self.at_least or ()], [value > limit for limit in self.at_most or ()]
        return GRADES[max(map(sum, steps))]

    def terms(self) -> str:
        """Return the rule as a clause that follows the fact."""
        if self.at_least and self.at_most:
            best, worst = (
                f"{self.at_least[0]:g} to {self.at_most[0]:g}",
                f"{self.at_least[3]:g} or above {self.at_most[3]:g}",
            )
            return f"{best} is an A, below {worst} an F"
        if self.at_least:
            return f"{self._shown(self.at_least[0])} or more is an A, less than {self._shown(self.at_least[3])} an F"
        if self.at_most:
            best, worst = self._shown(self.at_most[0]), self._shown(self.at_most[3])
            return f"{'none' if self.at_most[0] == 0 else f'at most {best}'} is an A, more than {worst} an F"
        return ""

    def _shown(self, limit: float) -> str:
        return f"{limit:g}{'' if self.unit == '%' else ' '}{self.unit}"


RULES: Final = {
    # Zero-shot models use prompts of 10 to 15 s, and state 3 s as the minimum.
    "length": Rule("s", "record 10 to 15 s in one go", at_least=(10, 7, 5, 3), digits=1),
    # Two thirds of read speech are voiced. Under 2 s give neither pitch nor timbre.
    "voiced": Rule(
        "s", "speak in full sentences, aloud rather than in a whisper", at_least=(5.5, 4, 3, 2), digits=1
    ),
    # Speech near a good microphone in a quiet room is 30 dB or more above the noise; at 13 dB the noise is cloned too.
    "noise": Rule(
        "dB", "record in a quiet room, a hand's width from the microphone", at_least=(30, 20, 13, 7)
    ),
    # One sample in ten thousand is a single plosive; at one in two hundred, vowels get harsh.
    "clipping": Rule(
        "%", "turn the microphone down and record again; clipping can't be repaired",
        at_most=(0.01, 0.05, 0.5, 2), digits=2,
    ),
    # Wideband telephony ends at 7 kHz (ITU-T G.722), the old telephone at 3.4 (G.712); an s reaches above 10.
    "bandwidth": Rule(
        "kHz", "use the original file, recorded at 44.1 or 48 kHz, rather than a call or a compressed copy",
        at_least=(10, 6.5, 5, 3), digits=1,
    ),
    # Normalization corrects it, but at -50 dBFS a 16-bit file has 7 bits left for the voice.
    "level": Rule("dBFS", "move closer to the microphone or turn it up", at_least=(-35, -42, -50, -58), leniency=1),
    "pause": Rule(
        "s", "speak without long pauses, or cut them out", at_most=(LONG_PAUSE_S, 2, 3, 5), leniency=1, digits=1
    ),
    # Silence at the edges is trimmed; it counts only if it is most of the file.
    "edges": Rule("%", "start to speak at once, and stop when you are done", at_most=(20, 40, 60, 80), leniency=2),
    # Read English has 12 to 18 letters per second with short pauses; 4 and 30 are impossible.
    "pace": Rule(
        "characters/s", "check that the transcript has exactly the spoken words",
        at_least=(8, 6, 5, 4), at_most=(22, 25, 28, 30),
    ),
    # A clone speaks the words that its transcript lacks before its own text. A tenth allows for recognition errors.
    "coverage": Rule("%", "add the missing words to the transcript, or omit it", at_least=(90, 80, 70, 60)),
    "surplus": Rule("%", "remove the words that are not spoken", at_most=(10, 20, 30, 40)),
}  # fmt: skip


def examine(audio: Audio, *, transcript: str | None = None, words: Sequence[Word] | None = None) -> Report:
    """Grade a recording for cloning, with reasons. Silence is an F.

    Args:
        audio: A recording of any length; half an hour takes some seconds.
        transcript: Its transcript, if known.
        words: Recognized words with times; the transcript is compared with them.

    Raises:
        RecordingError: The recording has no samples.
    """
    return report_on(measure(audio), transcript=transcript, words=words)


def report_on(measurement: Measurement, *, transcript: str | None, words: Sequence[Word] | None) -> Report:
    """Grade a measured recording."""
    findings = list(_findings(measurement, transcript, words))
    counted = [
        max(0, GRADES.index(finding.grade) - RULES[finding.measure].leniency)
        for finding in findings
        if finding.grade is not None
    ]
    return Report(
        grade=GRADES[max(counted)],
        duration_s=round(measurement.duration_s, 3),
        sample_rate=measurement.sample_rate,
        findings=tuple(findings),
    )


def _finding(measure: str, value: float, fact: str) -> Finding:
    rule = RULES[measure]
    grade = rule.grade(value)
    shown = f"{value:,.{rule.digits}f}"
    return Finding(
        measure=measure,
        value=round(value, max(rule.digits, 1)),
        unit=rule.unit,
        grade=grade,
        reason=f"{fact.format(shown)}; {rule.terms()}.",
        advice="" if grade == "A" else rule.advice,
    )


def _findings(measurement: Measurement, transcript: str | None, words: Sequence[Word] | None) -> Iterator[Finding]:
    yield _finding("length", measurement.speech_s, f"{{}} s of the {measurement.duration_s:.1f} s are speech")
    yield _finding("voiced", measurement.voiced_s, "{} s of it are voiced")
    power = measurement.speech_power()
    if power > 0:
        background = measurement.background_power()
        snr_db = SNR_MAX_DB
        if background > 0:  # without the noise in the speech
            snr_db = float(np.clip(10 * np.log10(max(power - background, 1e-12) / background), 0, SNR_MAX_DB))
        yield _finding("noise", snr_db, "The speech is {} dB above the background")
        yield _finding("clipping", 100 * measurement.clipped_share, "{}% of the samples are clipped")
        yield _finding("bandwidth", measurement.bandwidth_hz() / 1000, "The sound reaches up to {} kHz")
        fact = f"The speech is at {{}} dBFS, its peak at {20 * np.log10(measurement.peak()):.0f} dBFS"
        yield _finding("level", 10 * float(np.log10(power)), fact)
    if measurement.speech_s > 0:
        start_s, end_s = measurement.speech_span()
        inner = [end - start for start, end in measurement.pauses(0) if start > start_s and end < end_s]
        yield _finding("pause", max(inner, default=0.0), "The longest pause lasts {} s")
        edges = max(0.0, 100 * (1 - (end_s - start_s) / measurement.duration_s))
        yield _finding("edges", edges, "{}% of the recording is silence before and after the speech")
    median_hz, spread_st = measurement.pitch()
    if median_hz > 0:
        yield Finding("pitch", round(median_hz, 1), "Hz", None, f"The median pitch is {median_hz:.0f} Hz.")
        fact = f"The pitch varies by {spread_st:.1f} semitones (standard deviation)."
        yield Finding("spread", round(spread_st, 1), "semitones", None, fact)
    text = transcript if transcript is not None else join_words(word.text for word in words or ())
    if text and measurement.speech_s > 0:
        spoken = (c for c in text if c.isalnum() or c == " ")
        n_letters = sum(_WIDE_SIGN_CHARS if unicodedata.east_asian_width(c) in "WF" else 1 for c in spoken)
        fact = "The transcript has {} characters per second of speech"
        yield _finding("pace", n_letters / measurement.speech_s, fact)
    if transcript and words and measurement.speech_s > 0:
        yield _finding("coverage", 100 * coverage(transcript, words), "The transcript has {}% of the recognized words")
        fact = "{}% of the transcript's words were not recognized in the recording"
        yield _finding("surplus", 100 * surplus(transcript, words), fact)
