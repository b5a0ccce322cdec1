"""The reference doctor: what is good and bad about a recording, in plain words, with a grade from A to F.

A rule a measure; the limits stand in one table with their reasons. Echo and music are not judged: nothing here tells
them from a lively speaker honestly.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from afterwords.audio.audio import Audio
from afterwords.reference.hearing import Hearing, listen
from afterwords.reference.transcription import Word, coverage, join_words, surplus

GRADES: Final = "ABCDF"
LONG_PAUSE_S: Final = 1.5  # cloned voices repeat a pause of this length in the middle of a sentence
SNR_MAX_DB: Final = 80.0  # reported at most: beyond it lies digital silence
_WIDE_SIGN_CHARS = 3  # a Chinese, Japanese or Korean sign takes about as long to say as three letters


@dataclass(frozen=True, slots=True)
class Finding:
    """One measure of a recording.

    Attributes:
        measure: its name, for example "noise".
        value: as measured, rounded.
        unit: of the value.
        grade: A to F; None where it is told for information only.
        reason: the value and the rule, in one sentence.
        advice: what to do about it; empty where nothing is to be done.
    """

    measure: str
    value: float
    unit: str
    grade: str | None
    reason: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What the doctor found: the grade of the whole, and the findings, most important measures first."""

    grade: str
    duration_s: float
    sample_rate: int
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report in plain types, for JSON."""
        return asdict(self) | {"findings": [asdict(finding) for finding in self.findings]}


@dataclass(frozen=True, slots=True)
class Rule:
    """How a number becomes a grade.

    Attributes:
        unit: of the number.
        advice: what to do below an A.
        at_least: the least value for an A, B, C and D; below the last it is an F.
        at_most: the greatest value for an A, B, C and D; above the last it is an F.
        mercy: by how many grades it counts as milder in the whole, because preparing the reference mends part of it.
        digits: shown after the point.
    """

    unit: str
    advice: str
    at_least: tuple[float, float, float, float] | None = None
    at_most: tuple[float, float, float, float] | None = None
    mercy: int = 0
    digits: int = 0

    def grade(self, value: float) -> str:
        steps = [value < limit for limit in self.at_least or ()], [value > limit for limit in self.at_most or ()]
        return GRADES[max(map(sum, steps))]

    def terms(self) -> str:
        """What the rule asks for, to stand after the fact."""
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
    # Zero-shot cloners take 10 to 15 s as their prompt, and publish 3 s as the least.
    "length": Rule("s", "record 10 to 15 s in one go", at_least=(10, 7, 5, 3), digits=1),
    # Two thirds of read speech are voiced. In under 2 s neither pitch nor timbre can be told.
    "voiced": Rule(
        "s", "speak in full sentences, aloud rather than in a whisper", at_least=(5.5, 4, 3, 2), digits=1
    ),
    # Speech in a quiet room near a good microphone lies 30 dB and more over it; at 13 the noise is cloned too.
    "noise": Rule(
        "dB", "record in a quiet room, a hand's width from the microphone", at_least=(30, 20, 13, 7)
    ),
    # Of all samples. One in ten thousand is a single plosive; at one in two hundred vowels turn harsh.
    "clipping": Rule(
        "%", "turn the microphone down and record again; cut tops can't be brought back",
        at_most=(0.01, 0.05, 0.5, 2), digits=2,
    ),
    # Wideband telephony ends at 7 kHz (ITU-T G.722), the old telephone at 3.4 (G.712); an s reaches past 10.
    "bandwidth": Rule(
        "kHz", "use the original file, recorded at 44.1 or 48 kHz, rather than a call or a compressed copy",
        at_least=(10, 6.5, 5, 3), digits=1,
    ),
    # Levelling mends it, but at -50 dBFS a 16-bit file has 7 bits left for the voice.
    "level": Rule("dBFS", "come nearer to the microphone or turn it up", at_least=(-35, -42, -50, -58), mercy=1),
    "pause": Rule(
        "s", "speak on without long pauses, or cut them out", at_most=(LONG_PAUSE_S, 2, 3, 5), mercy=1, digits=1
    ),
    # Silence at the edges is trimmed away; it only costs when it is most of the file.
    "edges": Rule("%", "begin to speak at once and stop the recording when done", at_most=(20, 40, 60, 80), mercy=2),
    # Read English runs at 12 to 18 letters a second with its short pauses; nobody reaches 30 or crawls at 4.
    "pace": Rule(
        "characters/s", "check that the transcript holds what is said, no more and no less",
        at_least=(8, 6, 5, 4), at_most=(22, 25, 28, 30),
    ),
    # Words that a transcript lacks come out of the clone's mouth before its own text. A tenth is for mishearing.
    "coverage": Rule("%", "add the words that the transcript lacks, or leave it out", at_least=(90, 80, 70, 60)),
    "surplus": Rule("%", "take out the words that are not said", at_most=(10, 20, 30, 40)),
}  # fmt: skip


def examine(audio: Audio, *, transcript: str | None = None, words: Sequence[Word] | None = None) -> Report:
    """Grade a recording for cloning, with reasons. Never refuses: silence is an F.

    Args:
        audio: of any length; half an hour takes some seconds.
        transcript: what is said in it, if known.
        words: what was heard in it, with times; a given transcript is held against them.

    Raises:
        NoAudioError: it has no samples.
    """
    return report_on(listen(audio), transcript=transcript, words=words)


def report_on(hearing: Hearing, *, transcript: str | None, words: Sequence[Word] | None) -> Report:
    """As `examine`, for a recording that was listened to before."""
    findings = [*_sound(hearing), *_silence(hearing), *_pitch(hearing), *_transcript(hearing, transcript, words)]
    counted = [
        max(0, GRADES.index(finding.grade) - RULES[finding.measure].mercy)
        for finding in findings
        if finding.grade is not None
    ]
    return Report(
        grade=GRADES[max(counted)],
        duration_s=round(hearing.duration_s, 3),
        sample_rate=hearing.sample_rate,
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


def _sound(hearing: Hearing) -> Iterator[Finding]:
    yield _finding("length", hearing.speech_s, f"{{}} s of the {hearing.duration_s:.1f} s are speech")
    yield _finding("voiced", hearing.voiced_s, "{} s of it are voiced")
    power = hearing.speech_power()
    if power == 0:
        return
    noise_db = _noise_db(power, hearing.background_power())
    yield _finding("noise", noise_db, "The speech lies {} dB above the background")
    yield _finding("clipping", 100 * hearing.clipped_share, "{}% of the samples are cut off at the peak")
    yield _finding("bandwidth", hearing.bandwidth_hz() / 1000, "The sound reaches up to {} kHz")
    peak_db = 20 * np.log10(hearing.peak())
    yield _finding("level", 10 * float(np.log10(power)), f"The speech has {{}} dBFS, its peak {peak_db:.0f} dBFS")


def _noise_db(power: float, background: float) -> float:
    """Signal-to-noise ratio in dB, the noise under the speech taken away from it; from 0 to SNR_MAX_DB."""
    if background <= 0:
        return SNR_MAX_DB
    return float(np.clip(10 * np.log10(max(power - background, 1e-12) / background), 0, SNR_MAX_DB))


def _silence(hearing: Hearing) -> Iterator[Finding]:
    if hearing.speech_s == 0:
        return
    start_s, end_s = hearing.speech_span()
    inner = [end - start for start, end in hearing.pauses(0) if start > start_s and end < end_s]
    yield _finding("pause", max(inner, default=0.0), "The longest pause lasts {} s")
    edges = 100 * (1 - (end_s - start_s) / hearing.duration_s)
    yield _finding("edges", max(0.0, edges), "{}% of the recording is silence before and after the speech")


def _pitch(hearing: Hearing) -> Iterator[Finding]:
    median_hz, spread_st = hearing.pitch()
    if median_hz > 0:
        yield Finding("pitch", round(median_hz, 1), "Hz", None, f"The voice lies at {median_hz:.0f} Hz.")
        fact = f"Its pitch moves by {spread_st:.1f} semitones (standard deviation)."
        yield Finding("spread", round(spread_st, 1), "semitones", None, fact)


def _transcript(hearing: Hearing, transcript: str | None, words: Sequence[Word] | None) -> Iterator[Finding]:
    text = transcript if transcript is not None else join_words(word.text for word in words or ())
    if not text or hearing.speech_s == 0:
        return
    fact = "The transcript has {} characters for each second of speech"
    yield _finding("pace", _letters(text) / hearing.speech_s, fact)
    if transcript is not None and words:
        yield _finding("coverage", 100 * coverage(transcript, words), "The transcript holds {}% of the words heard")
        yield _finding("surplus", 100 * surplus(transcript, words), "{}% of the transcript's words were not heard")


def _letters(text: str) -> int:
    return sum(
        _WIDE_SIGN_CHARS if unicodedata.east_asian_width(c) in "WF" else 1 for c in text if c.isalnum() or c == " "
    )
