"""Splitting a text for Pocket TTS; no model is loaded."""

from __future__ import annotations

import pytest

from afterwords.backends.pocket.text import (
    CLAUSE_PAUSE_S,
    MAX_TOKENS,
    PARAGRAPH_PAUSE_S,
    SENTENCE_PAUSE_S,
    check_script,
    split,
)
from afterwords.errors import TextError
from tests.error_codes import has_code


def n_bytes(text: str) -> int:
    """Return a number of tokens: the most that a tokenizer with byte fallback can make of a text."""
    return len(text.encode())


def n_words(text: str) -> int:
    return len(text.split())


def test_sentences_have_pauses_and_paragraphs_longer_ones() -> None:
    text = "The harbour was quiet. Only the gulls noticed them!\n\nThey went ashore, “at last.”"
    assert [(sentence.text, sentence.pause_s) for sentence in split(text, n_words)] == [
        ("The harbour was quiet.", SENTENCE_PAUSE_S),
        ("Only the gulls noticed them!", PARAGRAPH_PAUSE_S),
        ("They went ashore, “at last.”", 0.0),
    ]


def test_long_sentence_is_split_at_clauses() -> None:
    clause = "when the boats came home and the nets were dry"
    first, second = split(f"{clause}, {clause}.", lambda text: 4 * n_words(text))
    assert (first.text, first.pause_s) == (f"{clause},", CLAUSE_PAUSE_S)
    assert second.text == f"{clause}."


@pytest.mark.parametrize(
    "text", ["and so on " * 10_000, "x" * 100_000, "é" * 3_000, "I. " * 2_000, "1234567890" * 500], ids=lambda t: t[:4]
)
def test_long_text_without_punctuation_is_split(text: str) -> None:
    sentences = split(text, n_bytes)
    assert max(n_bytes(sentence.text) for sentence in sentences) <= MAX_TOKENS
    kept = "".join(sentence.text for sentence in sentences)
    if not text[0].isdecimal():
        assert kept.replace(" ", "") == text.replace(" ", "").replace("é", "e")


@pytest.mark.parametrize(("text", "spoken"), [("A", "A"), ("7", "seven"), ("é", "e"), ("€", "euro"), ("a.", "a.")])
def test_single_character_is_a_sentence(text: str, spoken: str) -> None:
    assert [sentence.text for sentence in split(text, n_bytes)] == [spoken]


def test_written_forms_are_spoken_as_words() -> None:
    (sentence,) = split("Dr. Smith paid $5.50 on 3/12/2024 🙂", n_words)
    assert sentence.text == (
        "Doctor Smith paid five dollars and fifty cents on March twelfth, twenty twenty four slightly smiling face"
    )


@pytest.mark.parametrize("text", ["!!!", "…\n\n—", "“ ”", "\u2800"])
def test_text_without_letters_and_digits_is_refused(text: str) -> None:
    with pytest.raises(TextError, check=has_code("empty_text")):
        split(text, n_bytes)


def test_words_in_other_scripts_are_left_out_and_listed() -> None:
    text = "Ask Иван about the café, and 東京."
    assert check_script(text) == ["Иван", "東京"]
    assert split(text, n_words)[0].text == "Ask about the cafe, and."
    assert check_script("Ask Ivan.") == []
    for foreign in ("Привет, Иван!", "東京タワー"):
        for act in (check_script, lambda text: split(text, n_bytes)):
            with pytest.raises(TextError, check=has_code("unspeakable_text")):
                act(foreign)
