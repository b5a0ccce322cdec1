"""Subtitles: their lines, times and ends, and what the two formats escape."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterwords.audio.subtitles import LINE_CHARS, MAX_S, MIN_S, cues, to_srt, to_vtt
from afterwords.models import Alignment, WordTiming

PER_CHARACTER_S = 0.06
TEXT = (
    "“Hello, Dr. Smith,” she said. Then she walked, very slowly, to the far end of the long corridor, where no one had "
    "been for years, and looked around. Yes. No.\nWas it here?"
)


def aligned(text: str, per_character_s: float = PER_CHARACTER_S) -> Alignment:
    return Alignment.from_words(text, [], len(text) * per_character_s)


def test_subtitles_end_at_punctuation() -> None:
    assert [" ".join(cue.lines) for cue in cues(aligned(TEXT))] == [
        "“Hello, Dr. Smith,” she said.",
        "Then she walked, very slowly, to the far end of the long corridor,",
        "where no one had been for years, and looked around.",
        "Yes. No. Was it here?",
    ]


def test_times_are_those_of_the_words() -> None:
    first, *_, last = cues(aligned(TEXT))
    assert first.start_s == pytest.approx(PER_CHARACTER_S)  # after the quotation mark
    assert first.end_s == pytest.approx(TEXT.index(". Then") * PER_CHARACTER_S)
    assert last.start_s == pytest.approx(TEXT.index("Yes") * PER_CHARACTER_S)


def test_lines_have_similar_lengths() -> None:
    (cue,) = cues(aligned("A sentence that is a bit too long for a line of a subtitle."))
    assert cue.lines == ("A sentence that is a bit too", "long for a line of a subtitle.")


def test_short_subtitle_stays_until_the_end() -> None:
    speech = aligned("Here is a sentence without a comma, which has one word too much for both lines of a subtitle!!!")
    last = cues(speech)[-1]
    assert last.end_s == speech.end_s[-1] < last.start_s + MIN_S


@given(text=st.text(st.sampled_from('abc ,.!\n明。é—"') | st.characters(codec="utf-8"), max_size=300))
def test_any_text_is_shown_once_within_limits(text: str) -> None:
    found = cues(aligned(text))
    shown = "".join(line for cue in found for line in cue.lines)
    if found:
        assert re.sub(r"\s", "", shown) == re.sub(r"\s", "", text)
    for cue in found:
        assert 1 <= len(cue.lines) <= 2
        assert all(len(line) <= LINE_CHARS for line in cue.lines)
        assert cue.end_s - cue.start_s <= MAX_S + 1e-6
    assert all(one.end_s <= other.start_s + 1e-9 for one, other in pairwise(found))


def test_formats_have_their_own_times_and_escapes() -> None:
    words = [
        WordTiming(text="3", start=0, start_s=3725.5, end_s=3726),
        WordTiming(text="so", start=8, start_s=3727, end_s=3728.25),
    ]
    speech = Alignment.from_words("3 < 4 & so", words, 4000)
    assert to_srt(speech) == "1\n01:02:05,500 --> 01:02:08,250\n3 < 4 & so\n"
    assert to_vtt(speech) == "WEBVTT\n\n01:02:05.500 --> 01:02:08.250\n3 &lt; 4 &amp; so\n"
