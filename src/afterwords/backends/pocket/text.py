"""Text for Pocket TTS: in words, and in sentences as long as it was trained on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from afterwords.errors import TextError
from afterwords.normalization import normalize
from afterwords.normalization.english import has_words, unspoken
from afterwords.text import split_chunks

MAX_TOKENS: Final = 50
"""The package's longest chunk: in longer ones, words are skipped. Source: kyutai-labs/pocket-tts, issue 38."""
MAX_CHARS: Final = 200
"""The longest sentence that is tried at once: English has three to four characters in a token."""
MIN_PART_CHARS: Final = 30
"""A shorter part of a sentence sounds like a list."""
SENTENCE_PAUSE_S, CLAUSE_PAUSE_S, PARAGRAPH_PAUSE_S = 0.15, 0.05, 0.45
"""Silence after a sentence. The package joins chunks without any, and gives none to a line break (issues 153, 175)."""
_PARAGRAPH: Final = re.compile(r"\n\s*\n")
_ENDS: Final = tuple(".!?…")
_CLOSERS: Final = "\"'”’»)] "


@dataclass(frozen=True, slots=True)
class Sentence:
    """Text to generate at once, and the silence that follows it in seconds."""

    text: str
    pause_s: float


def split(text: str, n_tokens: Callable[[str], int]) -> list[Sentence]:
    """Split a text into sentences of at most MAX_TOKENS tokens, in words, without those in another script.

    Raises:
        TextError: Nothing of the text can be spoken.
    """
    found: list[Sentence] = []
    for paragraph in _PARAGRAPH.split(text):
        pieces = list(_pieces(normalize(paragraph, "en"), n_tokens, MAX_CHARS))
        for piece in pieces:
            is_sentence = piece.rstrip(_CLOSERS).endswith(_ENDS)
            found.append(Sentence(piece, SENTENCE_PAUSE_S if is_sentence else CLAUSE_PAUSE_S))
        if pieces:
            found[-1] = Sentence(pieces[-1], PARAGRAPH_PAUSE_S)
    if not found:
        check_script(text)
        raise TextError(code="empty_text")
    found[-1] = Sentence(found[-1].text, 0.0)
    return found


def _pieces(text: str, n_tokens: Callable[[str], int], max_chars: int) -> Iterator[str]:
    for piece in split_chunks(text, max_chars=max_chars):
        if not any(map(str.isalnum, piece)):
            continue  # the model would speak seconds of something for punctuation or symbols alone
        if n_tokens(piece) <= MAX_TOKENS or len(piece) == 1:
            yield piece
        else:
            yield from _pieces(piece, n_tokens, len(piece) // 2)


def split_again(text: str, n_tokens: Callable[[str], int]) -> list[str]:
    """Split a sentence that was too much for the model, at a clause if it has one; a short one remains."""
    return list(_pieces(text, n_tokens, max(MIN_PART_CHARS, len(text) * 2 // 3)))


def check_script(text: str) -> list[str]:
    """Return the words of a text that are left out, because they are in another script.

    Raises:
        TextError: All words are.
    """
    words = unspoken(text)
    if words and not has_words(text):
        why = "The backend pocket can't read the script that the text is written in."
        raise TextError(why, code="unspeakable_text")
    return words
