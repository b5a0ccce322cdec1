"""Validation of texts and names, and splitting into sentences and chunks."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from afterwords.errors import InvalidInputError, TextError, UnsupportedLangError
from afterwords.text import (
    CLAUSE_PAUSE_S,
    LANGS,
    MAX_REQUEST_CHARS,
    SENTENCE_PAUSE_S,
    TINY_CHARS,
    UNIT_MAX_CHARS,
    Granularity,
    LiveSplitter,
    check_name,
    check_text,
    expected_speech_s,
    is_speakable,
    max_speech_s,
    normalize_lang,
    pause_after_s,
    printable,
    split_chunks,
    split_live,
    split_sentences,
)
from tests.error_codes import has_code

# Made of what the rules look at, so that hypothesis meets their seams.
PROSE = st.lists(
    st.sampled_from(
        [*"aZ5.!?…。！？,;:—、\"'”»«()「」 \n\t\r\u00a0\u2028\u2029と中가́", "Mr.", "U.S.", "\n\n", "3.14", "e.g."]
    )
).map("".join)


def without_space(text: str) -> str:
    return "".join(text.split())


# -- what may be spoken --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["hello", "a\tb\nc", "5", "😀", "€", "你好", "e\u0301"])
def test_valid_text_is_returned_unchanged(text: str) -> None:
    assert check_text(text) == text


def test_line_ends_become_newlines_without_a_bom() -> None:
    assert check_text("\ufeffone\r\ntwo\rthree\n") == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    "text", ["", " \n\t", "\u200b\u200d\u2060", "\ufeff", "\u0301\u0301", "...", "!?", "—", "\u3164"]
)
def test_text_without_letters_is_rejected(text: str) -> None:
    with pytest.raises(TextError, check=has_code("empty_text")):
        check_text(text)


@pytest.mark.parametrize("blank", ["\x0b", "\x0c", "\x85", "\u2028", "\r\n\x0c\n", "\u2029"])
def test_page_breaks_become_newlines(blank: str) -> None:
    assert set(check_text(f"a{blank}b")) == {"a", "b", "\n"}


@pytest.mark.parametrize("character", ["\0", "\x07", "\x1b", "\x1f", "\x7f", "\x84", "\x9f"])
def test_control_character_is_rejected_with_its_position(character: str) -> None:
    with pytest.raises(TextError, match=f"U\\+{ord(character):04X} at position 4", check=has_code("control_character")):
        check_text(f"a\r\nb{character}c")


def test_lone_surrogate_is_rejected_first() -> None:
    with pytest.raises(TextError, match="position 1", check=has_code("invalid_unicode")):
        check_text("\0\ud800" + "a" * MAX_REQUEST_CHARS)


def test_control_character_is_rejected_before_length() -> None:
    with pytest.raises(TextError, check=has_code("control_character")):
        check_text("a" * MAX_REQUEST_CHARS + "\x1b")


def test_length_is_counted_in_code_points() -> None:
    assert check_text("😀" * 5_000) == "😀" * 5_000
    with pytest.raises(TextError, match="5,001 characters", check=has_code("text_too_long")):
        check_text("😀" * 5_001)


def test_many_combining_marks_are_too_long_not_empty() -> None:
    with pytest.raises(TextError, check=has_code("text_too_long")):
        check_text("\u0301" * 10_000)


@given(st.text(max_size=60))
def test_check_text_is_idempotent(text: str) -> None:
    try:
        checked = check_text(text)
    except TextError:
        return
    assert check_text(checked) == checked


# -- names and languages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "speed", "seconds"), [("", 1.0, 10), ("a" * 100, 1.0, 70), ("a" * 100, 2.0, 35), ("a" * 100, 0.5, 140)]
)
def test_max_speech_s_depends_on_length_and_speed(text: str, speed: float, seconds: float) -> None:
    assert max_speech_s(text, speed=speed) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "speed", "seconds"),
    [("a" * 100, 1.0, 6.8), ("a" * 100, 2.0, 3.4), ("你好", 1.0, 0.4), ("カナ", 1.0, 0.4), ("한글 a", 1.0, 0.536)],
)
def test_expected_speech_s_depends_on_script_and_speed(text: str, speed: float, seconds: float) -> None:
    assert expected_speech_s(text, speed=speed) == pytest.approx(seconds)


def test_name_is_composed_and_stripped() -> None:
    assert check_name("  Rene\u0301 — 声 ") == "René — 声"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        "a" * 201,
        "a\nb",
        "a\x1b[31m",
        "\u202eevil",
        "a\u200bb",
        "a\ud800",
        "a\u2028b",
        "\u3164",
        "\u0301",
        "\0",
    ],
)
def test_names_with_hidden_characters_are_rejected(name: str) -> None:
    with pytest.raises(InvalidInputError, check=has_code("invalid_name")):
        check_name(name)


def test_name_of_200_characters_is_accepted() -> None:
    assert check_name("声" * 200) == "声" * 200


@pytest.mark.parametrize(("lang", "code"), [("en", "en"), ("en-US", "en"), ("EN_us", "en"), (" zh-Hans-CN ", "zh")])
def test_language_tag_is_reduced_to_its_language(lang: str, code: str) -> None:
    assert normalize_lang(lang) == code


@pytest.mark.parametrize("lang", ["", "tlh", "english", "e", "\x1b[31m", "x" * 60_000])
def test_unknown_language_is_rejected_in_a_short_message(lang: str) -> None:
    with pytest.raises(UnsupportedLangError) as refused:
        normalize_lang(lang)
    assert refused.value.message.isprintable()
    assert len(refused.value.message) < 300
    assert all(code in refused.value.message for code in LANGS)


def test_printable_escapes_control_characters() -> None:
    assert printable("Zoë 声\x1b[2J\u202e\n😀") == "Zoë 声\\x1b[2J\\u202e\\n😀"


# -- sentences -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expected",
    [
        ["Mr. Smith met Dr. Jones, e.g. at St. Paul's.", "They left."],
        ["J. R. R. Tolkien wrote it.", "J. A. Smith read it."],
        ["I live in the U.S.", "He does not."],
        ["The U.S. Army came at 5 p.m. on Monday."],
        ["Take plan B.", "Then go."],
        ["No. 5 is alive.", "No.", "I won't."],
        ["On Mar. 7 we met.", "See you Sat. May 5 or Sun. 6.", "He sat.", "In the Sun.", "Vol. IV is out."],
        ["It cost 3.14 at 10.30 on example.com.", "Good."],
        ["It was 1999.", "The war ended."],
        ["Well...", "I think so.", "It was... odd.", "Wait… what?"],
        ["What?!", "No!!", "Really?"],
        ['"Stop!" she cried.', "He said “no.”", "(See above.)", "'Fine.'", "Good."],
        ["Bonjour !", "« Oui ! » dit-il.", "« Non. »", "Bien."],
        ["Er ging.", "»Warum?« fragte sie.", "Am 3. Mai kam er, z. B. um zehn."],
        ["¿Qué?", "¡No!", "El Sr. García llegó.", "Sí."],
        ["Привет.", "А. С. Пушкин родился в Москве.", "Да!"],
        ["안녕하세요.", "반갑습니다!"],
        ["i like it.", "mr. smith does too.", "ok?", "yes."],
        ["🎉 Done!", "🎉 Next."],
    ],
)
def test_sentences_end_at_full_stops_only(expected: list[str]) -> None:
    assert split_sentences(" ".join(expected)) == expected


@pytest.mark.parametrize(
    "expected",
    [
        ["你好。", "我很好！", "你呢？", "真的吗?", "我不信……是吗？！"],
        ["「行く。」と言った。", "「はい。」", "次です。"],
    ],
)
def test_chinese_and_japanese_stops_need_no_space(expected: list[str]) -> None:
    assert split_sentences("".join(expected)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a line that\nis wrapped", ["a line that is wrapped"]),
        ("It ended.\nthen more", ["It ended.", "then more"]),
        ("He met Mr.\nSmith", ["He met Mr. Smith"]),
        ("A title\n\nThe body", ["A title", "The body"]),
        ("A title\r\n \r\nThe body", ["A title", "The body"]),
        ("You need:\nflour", ["You need:", "flour"]),
        ("1. Eggs\n2. Milk\n- Tea", ["1. Eggs", "2. Milk", "- Tea"]),
        ("一行\n続き", ["一行続き"]),
        ("", []),
        (" \n\n ", []),
        ("...", ["..."]),
    ],
)
def test_wrapped_lines_are_joined(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


@given(PROSE | st.text())
def test_sentences_keep_every_character_but_space(text: str) -> None:
    assert without_space("".join(split_sentences(text))) == without_space(text)


@given(PROSE | st.text())
def test_no_sentence_is_empty_or_has_a_line_end(text: str) -> None:
    assert all(sentence == " ".join(sentence.split()) != "" for sentence in split_sentences(text))


# -- chunks --------------------------------------------------------------------------------------------------


def test_each_sentence_is_its_own_chunk() -> None:
    text = "The first sentence stands alone. The second one does as well."
    assert split_chunks(text, max_chars=200) == ["The first sentence stands alone.", "The second one does as well."]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes. That is how it was done.", ["Yes. That is how it was done."]),
        ("That is how it was done. Yes.", ["That is how it was done. Yes."]),
        ("はい。そうです。", ["はい。そうです。"]),
        ("... That is how it was done.", ["... That is how it was done."]),
        (
            "That is how it was done.\n\n* * *\n\nAnd that is all of it.",
            ["That is how it was done. * * *", "And that is all of it."],
        ),
    ],
)
def test_tiny_sentences_are_merged_with_a_neighbor(text: str, expected: list[str]) -> None:
    assert split_chunks(text, max_chars=100) == expected


def test_tiny_sentence_stays_alone_if_both_do_not_fit() -> None:
    assert split_chunks("Yes. That is how it was done.", max_chars=25) == ["Yes.", "That is how it was done."]


def test_long_sentence_is_split_at_clause_marks() -> None:
    text = "When the rain had stopped, and the sun came out, we all went home, where it was warm."
    assert split_chunks(text, max_chars=60) == [
        "When the rain had stopped, and the sun came out,",
        "we all went home, where it was warm.",
    ]


def test_long_clause_is_split_at_spaces() -> None:
    assert split_chunks("one two three four five", max_chars=12) == ["one two", "three four", "five"]
    assert split_chunks("a" * 25, max_chars=10) == ["a" * 10, "a" * 10, "a" * 5]


def test_numbers_are_not_split_at_commas() -> None:
    text = "It was about 1,000,000 of them at 10:30"
    assert split_chunks(text, max_chars=20) == ["It was about", "1,000,000 of", "them at 10:30"]


def test_forced_split_keeps_combining_marks() -> None:
    family = "👨\u200d👩\u200d👧"
    assert split_chunks("e\u0301" * 6, max_chars=5) == ["e\u0301" * 2] * 3
    assert split_chunks(family * 3, max_chars=7) == [family] * 3


def test_first_chunk_ends_early_at_a_clause_mark() -> None:
    text = "Once the night had come, they lit the lamps and sat down to eat. Then they slept until the day."
    early = split_chunks(text, max_chars=200, first_max_chars=30)
    assert early[:2] == ["Once the night had come,", "they lit the lamps and sat down to eat."]
    assert split_chunks(text, max_chars=200, first_max_chars=10) == split_chunks(text, max_chars=200)


@given(PROSE | st.text(), st.integers(1, 60), st.none() | st.integers(1, 30))
def test_every_chunk_fits_and_is_speakable(text: str, max_chars: int, first_max_chars: int | None) -> None:
    found = split_chunks(text, max_chars=max_chars, first_max_chars=first_max_chars)
    assert all(1 <= len(chunk) <= max_chars and is_speakable(chunk) for chunk in found)


@given(PROSE | st.text(), st.integers(1, 60), st.none() | st.integers(1, 30))
def test_chunks_keep_every_letter(text: str, max_chars: int, first_max_chars: int | None) -> None:
    def spoken(part: str) -> str:
        return "".join(c for c in part if unicodedata.category(c)[0] in "LNS" and is_speakable(c))

    found = split_chunks(text, max_chars=max_chars, first_max_chars=first_max_chars)
    assert spoken("".join(found)) == spoken(text)


def test_no_two_tiny_neighbors_remain() -> None:
    found = split_chunks("Yes. No. Oh! Ah. " * 20, max_chars=80)
    assert all(len(chunk) > TINY_CHARS for chunk in found)


# -- text that is still being written --------------------------------------------------------------------------


@given(PROSE, st.sampled_from(["sentence", "clause"]))
@example("aaaU.S.3.14. —U.S.", "clause")
def test_units_are_the_text_however_it_is_cut(text: str, by: Granularity) -> None:
    at_once, by_character = LiveSplitter(by), LiveSplitter(by)

    units = at_once.feed(text) + at_once.flush()
    same = [unit for character in text for unit in by_character.feed(character)] + by_character.flush()

    assert "".join(units) == text
    assert same == units
    assert all(is_speakable(unit) for unit in units[:-1])
    assert all(units)


@pytest.mark.parametrize(
    "expected",
    [
        ["Good morning, Dr. Smith. ", "The price is 3.14 dollars, e.g. at https://a.b/c?d=1.5, or more. ", "Is it?"],
        [
            "She was late... ",
            "“Where have you been all this time?” he asked. ",
            "There was no answer to that question.",
        ],
        ["# Two reasons to read\n", "- The first is that it is short enough.\n", "- The second one."],
        ["今天天气很好。", "我们去公园散步吧！「本当？」と言った。", "これは長い文章です。"],
    ],
)
def test_units_are_sentences(expected: list[str]) -> None:
    assert list(split_live(["".join(expected)])) == expected


def test_unit_is_complete_once_the_next_word_is() -> None:
    splitter = LiveSplitter()

    assert splitter.feed("It is a quarter past 3.") == []
    assert splitter.feed(" So") == []
    assert splitter.feed(" then") == ["It is a quarter past 3. "]


def test_clauses_start_earlier_than_sentences() -> None:
    text = "Well, once upon a time, there was a king."

    assert LiveSplitter("clause").feed(text) == ["Well, once upon a time, "]
    assert LiveSplitter("sentence").feed(text) == []


def test_text_without_punctuation_is_split() -> None:
    splitter = LiveSplitter()
    units = splitter.feed("word " * 500)

    assert len(units) > 5
    assert max(map(len, units)) <= UNIT_MAX_CHARS


def test_units_without_letters_are_left_out() -> None:
    assert list(split_live(["Hello there, how are you?\n\n", "***"])) == ["Hello there, how are you?\n\n"]


def test_pause_is_longer_after_a_sentence() -> None:
    assert [pause_after_s(unit) for unit in ("He said: “Yes.” ", "Item\n", "好。")] == [SENTENCE_PAUSE_S] * 3
    assert pause_after_s("once upon a time, ") == CLAUSE_PAUSE_S
