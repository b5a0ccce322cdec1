"""Speech of a fast enrollment: intelligibility, similarity, pitch, loudness, pauses."""

from __future__ import annotations

from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from afterwords.audio.analysis import keep_speech, measure_pitch
from afterwords.audio.audio import Audio
from afterwords.backends.base import Reference
from afterwords.backends.lite.engine import CLAUSE_PAUSE_S, SENTENCE_PAUSE_S, LiteEngine
from afterwords.backends.lite.g2p import tokens
from afterwords.backends.lite.kokoro import Kokoro
from afterwords.backends.lite.profile import LiteProfile
from afterwords.backends.lite.speaker import embed
from afterwords.backends.lite.styles import style_space
from afterwords.models import SpeechTask
from afterwords.reference.transcription import transcribe
from tests.lite_voice import Enrolment

TEXT = (
    "The old farmer, who lived alone, walked to the market with his dog. "
    "He bought some bread, a dozen apples, and a bottle of milk from the woman at the corner. "
    "On the way home it began to rain, so they waited under a tree until the sun came out again and the road was dry. "
    "Was he glad?"
)
RATE = LiteEngine.sample_rate
Array = NDArray[np.float32]


def say(text: str, prompt: bytes) -> list[Array]:
    task = SpeechTask(text=text, lang="en", backend="lite", voice_id="1", prompt=prompt)
    return [chunk.samples for chunk in ENGINE.synthesize(task)]


ENGINE = LiteEngine()


@pytest.fixture(scope="module")
def chunks(enrolment: Enrolment) -> list[Array]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFTERWORDS_HOME", str(enrolment.home))
        return say(TEXT, enrolment.prompt)


@pytest.fixture(scope="module")
def passage(chunks: list[Array]) -> Array:
    return np.concatenate(chunks)


def words(text: str) -> list[str]:
    return [word.strip(".,!?").lower() for word in text.split()]


def test_passage_is_intelligible(passage: Array, whisper: Path) -> None:
    recognized = transcribe(Audio(samples=passage, sample_rate=RATE), lang="en").text
    said, understood = words(TEXT), words(recognized)
    changes = SequenceMatcher(None, said, understood, autojunk=False).get_opcodes()
    errors = sum(max(b - a, d - c) for tag, a, b, c, d in changes if tag != "equal")
    assert errors / len(said) <= 0.2, recognized


def test_voice_beats_the_nearest_stock_voice(
    passage: Array, enrolment: Enrolment, unused: Reference, kokoro: Kokoro
) -> None:
    ids, space = tokens(TEXT[:150]), style_space()
    stock = space.voices[space.names.index(LiteProfile.from_bytes(enrolment.prompt).nearest_stock)]
    target = embed(unused.samples, unused.sample_rate)
    plain = embed(kokoro.speak(ids, stock[len(ids) - 1]).samples, RATE) @ target
    assert embed(passage, RATE) @ target > plain + 0.05


def test_pitch_matches_the_speaker(passage: Array, enrolled: Reference) -> None:
    own = measure_pitch(enrolled.samples, enrolled.sample_rate).median_hz
    assert abs(12 * np.log2(measure_pitch(passage, RATE).median_hz / own)) < 2


def test_loudness_is_normalized(passage: Array) -> None:
    loudness = 20 * np.log10(np.sqrt(np.mean(np.square(keep_speech(passage, RATE)))))
    assert -26 < loudness < -18
    assert np.abs(passage).max() <= 0.97


def test_long_text_comes_in_pieces_with_a_short_first(chunks: list[Array]) -> None:
    assert len(chunks) >= 5
    assert len(chunks[0]) < 3.5 * RATE
    assert max(len(chunk) for chunk in chunks) < 12 * RATE


def test_pieces_join_without_clicks(chunks: list[Array]) -> None:
    for left, right in pairwise(chunks):
        joint = np.concatenate([left[-200:], right[:40]])
        assert np.abs(np.diff(joint)).max() < 0.01
        assert right[0] == 0


def test_pause_after_sentence_is_longer_than_after_clause(chunks: list[Array]) -> None:
    def silence_s(chunk: Array) -> float:
        return (len(chunk) - 1 - int(np.flatnonzero(chunk)[-1])) / RATE

    assert silence_s(chunks[0]) == pytest.approx(CLAUSE_PAUSE_S, abs=0.002)  # "The old farmer, who lived alone,"
    assert silence_s(chunks[1]) == pytest.approx(SENTENCE_PAUSE_S, abs=0.002)
    assert silence_s(chunks[-1]) == pytest.approx(SENTENCE_PAUSE_S, abs=0.002)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The train leaves at 12:30 from platform 4.", "12"),
        ("Wait… what?! (No — really; it's “true”.) Hello, Zoë! 🙂", "hello"),
    ],
)
def test_digits_marks_and_emoji_are_synthesized(text: str, expected: str, enrolment: Enrolment, whisper: Path) -> None:
    samples = np.concatenate(say(text, enrolment.prompt))
    recognized = transcribe(Audio(samples=samples, sample_rate=RATE), lang="en").text
    assert expected in recognized.lower().replace("twelve", "12")


def test_question_of_one_word_is_synthesized(enrolment: Enrolment) -> None:
    samples = np.concatenate(say("Really?", enrolment.prompt))
    assert 0.3 * RATE < len(samples) < 2 * RATE
    assert measure_pitch(samples, RATE).voiced_s > 0.2
