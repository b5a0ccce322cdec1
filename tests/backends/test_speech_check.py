"""Verified speech: what is found to be wrong, and which attempt is kept."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import afterwords as aw
from afterwords.audio.audio import Audio, decode
from afterwords.audio.effects import resample
from afterwords.backends.base import Chunk, Reference
from afterwords.backends.speech_check import SpeechChecker, _word_faults
from afterwords.backends.tone import ToneEngine
from afterwords.errors import InvalidOptionError, SynthesisError, UnavailableError
from afterwords.models import SpeechFault, SpeechTask, Verification
from afterwords.reference.transcription import Recognition, _readings
from benchmarks.verification import measure
from tests.conftest import READER
from tests.error_codes import has_code

TEXT = "Had he married a more amiable woman, he might have been made still more respectable than he was."
START_S, END_S = 15.6, 21.3
"""Where the reader says it."""
FOUND_MIN, FALSE_ALARMS_MAX = 0.92, 0.05
"""The limits reach 0.95 and 0."""


@pytest.fixture(scope="module")
def spoken() -> Audio:
    """Return the recording of TEXT."""
    reader = decode(READER)
    return Audio(reader.samples[round(START_S * reader.sample_rate) : round(END_S * reader.sample_rate)], 16_000)


class TakesEngine(ToneEngine):
    """An engine that speaks one of several recordings, by its seed; None raises a SynthesisError."""

    sample_rate = 16_000

    def __init__(self, *takes: NDArray[np.float32] | None) -> None:
        self.takes = takes

    def synthesize(self, task: SpeechTask) -> Generator[Chunk, None, None]:
        take = self.takes[task.seed or 0]
        if take is None:
            raise SynthesisError.for_backend("tone", why="there is no end")
        yield Chunk(take[:8000])
        yield Chunk(take[8000:])


def verify(engine: TakesEngine) -> tuple[NDArray[np.float32], Verification]:
    checker = SpeechChecker(None)
    task = SpeechTask(text=TEXT, lang="en", backend="tone", voice_id="me", prompt=b"known", seed=0)
    chunks = list(checker.synthesize(engine, task, start_s=2.0, speed=1.0))
    assert not len(chunks[0].samples), "the reader of the stream sees that the work goes on"
    return np.concatenate([chunk.samples for chunk in chunks]), checker.verification


@pytest.mark.usefixtures("whisper")
def test_faulty_sentence_is_spoken_again(spoken: Audio) -> None:
    cut = spoken.samples[: round(4.7 * spoken.sample_rate)]
    samples, found = verify(TakesEngine(cut, spoken.samples, None))
    (sentence,) = found.sentences
    assert found.has_passed
    assert [attempt.seed for attempt in sentence.attempts] == [0, 1]
    assert (sentence.kept, sentence.faults) == (1, ())
    assert SpeechFault.MISSING_END in sentence.attempts[0].faults
    assert np.array_equal(samples[: len(spoken.samples)], spoken.samples)
    assert (sentence.text, sentence.start_s) == (TEXT, 2.0)
    assert sentence.end_s == pytest.approx(2.0 + spoken.duration_s, abs=0.01)


@pytest.mark.usefixtures("whisper")
@pytest.mark.parametrize("stand_in", ["zqabcdefqz", "Zqabcdefqz"])
def test_words_of_a_sentence_with_sounds_are_not_compared(spoken: Audio, stand_in: str) -> None:
    checker = SpeechChecker(None)
    text = TEXT.replace("Had", stand_in)
    sounds = {"zqabcdefqz": r"h\1d"}
    task = SpeechTask(
        text=text, lang="en", backend="tone", voice_id="me", prompt=b"known", pronunciations=sounds, seed=0
    )
    list(checker.synthesize(TakesEngine(spoken.samples, None), task, start_s=0, speed=1))
    (sentence,) = checker.verification.sentences
    assert (sentence.faults, len(sentence.attempts)) == ((), 1)
    assert sentence.text == TEXT.replace("Had", r"/h\1d/")


@pytest.mark.usefixtures("whisper")
def test_best_attempt_is_kept_if_no_attempt_is_right(spoken: Audio) -> None:
    rate = spoken.sample_rate
    middle = round(2.3 * rate)
    silent = np.concatenate([spoken.samples[:middle], np.zeros(round(1.5 * rate), np.float32), spoken.samples[middle:]])
    samples, found = verify(TakesEngine(np.zeros(rate, np.float32), silent, None))
    (sentence,) = found.sentences
    assert not found.has_passed
    assert (len(sentence.attempts), sentence.kept) == (2, 1)
    assert sentence.faults == (SpeechFault.SILENCE,)
    assert {SpeechFault.WORDS, SpeechFault.DURATION} <= {*sentence.attempts[0].faults}
    assert np.array_equal(samples[: len(silent)], silent)


@pytest.mark.usefixtures("whisper")
def test_another_speaker_is_a_fault(spoken: Audio) -> None:
    higher = resample(spoken.samples, 16_000, 8_000)
    attempt = SpeechChecker(Reference(higher, 16_000)).check(spoken, TEXT, lang="en")
    assert attempt.faults == (SpeechFault.SPEAKER,)


@pytest.mark.usefixtures("whisper")
def test_emoji_may_be_left_out(spoken: Audio) -> None:
    attempt = SpeechChecker(None).check(spoken, TEXT.replace("woman", "woman 👰"), lang="en")
    assert (attempt.faults, attempt.word_error_rate) == ((), 0)


def test_written_forms_are_compared_as_words() -> None:
    assert _readings("$5 at 9:30 👍", "en") == [
        "five dollars at nine thirty thumbs up",
        "five dollars at nine thirty",
        "$5 at 9:30",
    ]
    assert _readings("20 %", "de") == ["zwanzig Prozent", "20 %"]
    assert _readings("👍", "de") == ["👍"]


def test_engine_that_fails_at_once_raises() -> None:
    with pytest.raises(SynthesisError):
        verify(TakesEngine(None))


def recognition(text: str, recognized: str, margin: float) -> Recognition:
    from afterwords.reference.transcription import _opcodes

    given, found = tuple(text.split()), tuple(recognized.split())
    runs = tuple(code[1:] for code in _opcodes([*given], [*found]) if code[0] != "equal")
    return Recognition(recognized, (), given, found, runs, margin)


@pytest.mark.parametrize(
    ("text", "recognized", "margin", "faults"),
    [
        ("it costs 5 50 does it", "it costs five dollars and fifty cents does it", 3.0, []),
        ("four hours of steady work", "4 hours of steadywork", 3.0, []),
        ("the small pup gnawed a hole", "the small pup not a hole", 7.9, []),
        ("the small pup gnawed a hole", "the small pup made a hole", 15.0, [SpeechFault.WORDS]),
        ("keep the dog out", "keep the cat in", 6.0, [SpeechFault.WORDS]),
        ("sit down my friend", "my friend", 8.0, [SpeechFault.WORDS, SpeechFault.MISSING_START]),
        ("sit down my friend", "sit down my", 6.0, [SpeechFault.MISSING_END]),
        ("we sat by the fire", "we sat by the by the fire", 0.0, [SpeechFault.REPETITION]),
        ("good morning", "morning good", 2.2, [SpeechFault.WORDS, SpeechFault.MISSING_END]),
        ("thank you", "you", 0.5, [SpeechFault.MISSING_START]),
        ("a thick fog came in", "thick fog came in", 4.5, []),
        ("he saw the plan of a barn", "he saw the clan of a bar", 7.6, []),
        ("stop", "stop stop", 0.0, [SpeechFault.REPETITION]),
        ("all in all it is all in all", "all in all it is all in all", 0.0, []),
        ("good night", "", 1.1, [SpeechFault.WORDS]),
        ("good night", "good night is what i want to say", 0.0, [SpeechFault.WORDS]),
    ],
)
def test_differences_count_if_the_sound_fits_them(
    text: str, recognized: str, margin: float, faults: list[SpeechFault]
) -> None:
    assert _word_faults(recognition(text, recognized, margin)) == faults


@pytest.mark.usefixtures("whisper", "me")
def test_verified_speech_keeps_times_and_positions() -> None:
    text = "Good morning to you all, and to everybody else. [pause 1s] It is late, isn't it?"
    speech = aw.say(text, verify=True, timestamps=True, speed=2.0)
    assert speech.verification is not None
    assert not speech.verification.has_passed, "a tone says nothing"
    first, second = speech.verification.sentences
    assert (first.text, second.text) == ("Good morning to you all, and to everybody else.", "It is late, isn't it?")
    assert [len(each.attempts) for each in (first, second)] == [1, 1], "the engine does not sample"
    assert second.start_s == pytest.approx(first.end_s + 0.5, abs=0.05)
    assert second.end_s == pytest.approx(speech.duration_s, abs=0.02)
    assert speech.alignment is not None
    words = {word.text: word for word in speech.alignment.words}
    assert words["late"].start_s == pytest.approx(second.start_s + 6 * 0.06 / 2, abs=0.02)
    assert "late" not in repr(speech.verification)


@pytest.mark.usefixtures("me")
def test_verification_needs_a_whole_text_and_whisper(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidOptionError):
        aw.stream(iter(["Hello."]), verify=True)
    # Patched, because the tests have faster-whisper.
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(UnavailableError, check=has_code("verification_unavailable")) as caught:
        aw.stream("Hello.", verify=True)
    assert "transcribe" in str(caught.value.hint)


@pytest.mark.usefixtures("me")
def test_english_model_can_not_verify_other_languages(whisper: Path) -> None:
    assert whisper.is_dir()
    with pytest.raises(UnavailableError, check=has_code("verification_unavailable")):
        aw.stream("Guten Tag.", lang="de", verify=True)


@pytest.mark.soak
@pytest.mark.usefixtures("whisper")
def test_planted_faults_are_found() -> None:
    figures, _ = measure(["second"])
    assert figures.found("second") >= FOUND_MIN
    assert figures.reported["second", None] <= FALSE_ALARMS_MAX * figures.n["second", None]
