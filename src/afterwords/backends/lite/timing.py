"""Find the written words that `lite` speaks: numbers and abbreviations are spelled out before they are spoken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Final

import numpy as np
from numpy.typing import NDArray

from afterwords.backends.lite.g2p import has_sound, plain_words
from afterwords.backends.lite.kokoro import FRAME, SAMPLE_RATE, KokoroOutput
from afterwords.models import WordTiming, word_spans
from afterwords.text import split_sentences

LEAD: Final = round(0.04 * SAMPLE_RATE)
"""Samples by which sounds begin before their frames: measured at the ends of the silences of pauses."""


class WrittenWords:
    """The written word of each spoken word of a text.

    Args:
        text: The text.
        plain: Its `plain_words`.
    """

    def __init__(self, text: str, plain: str) -> None:
        self._text, self._spans = text, word_spans(text)
        self._spoken = "".join(plain.split())
        self._at = 0
        self._sentences = zip(split_sentences(text), plain.split("\n\n"), strict=True)
        self._n_words = 0
        self._owners: list[int] = []  # for each character of _spoken, the index of its written word

    def timed(
        self, piece: str, phonemes: Sequence[tuple[int, int]], times: NDArray[np.float64]
    ) -> Iterator[WordTiming]:
        """Yield the written words of a piece of the plain text with their times. Pieces come in the order of the text.

        Args:
            piece: The piece.
            phonemes: What `pronounce` returned for it.
            times: Shape (n, 2), start and end of each phoneme in seconds from the start of the utterance.
        """
        self._at = self._spoken.index("".join(piece.split()), self._at)
        found: dict[int, tuple[float, float]] = {}  # the times of each written word, by its index
        for index, word in enumerate(piece.split()):
            while len(self._owners) <= self._at:
                self._read_sentence()
            owner = self._owners[self._at]
            self._at += len(word)
            sounds = [
                time for time, (token, at) in zip(times, phonemes, strict=True) if at == index and has_sound([token])
            ]
            if sounds:
                found[owner] = (found[owner][0] if owner in found else float(sounds[0][0]), float(sounds[-1][1]))
        for owner, (start_s, end_s) in found.items():
            start, end = self._spans[owner]
            yield WordTiming(text=self._text[start:end], start=start, start_s=start_s, end_s=end_s)

    def _read_sentence(self) -> None:
        sentence, plain = next(self._sentences)
        written = [sentence[start:end] for start, end in word_spans(sentence)]
        for word, index in zip(plain.split(), match(written, plain.split()), strict=True):
            self._owners += [self._n_words + index] * len(word)
        self._n_words += len(written)


def match(written: Sequence[str], spoken: Sequence[str]) -> list[int]:
    """Return the index of the written word of each spoken word of a sentence.

    Each written word is spelled out alone. Where that differs from the sentence, the words in between are distributed
    evenly.
    """
    expected = [(sound, index) for index, word in enumerate(written) for sound in _sounds(word)]
    expected = expected or [("", 0)]
    sounds = [_bare(word) for word in spoken]
    owners = []
    for _, start, end, first, last in SequenceMatcher(
        None, [sound for sound, _ in expected], sounds, autojunk=False
    ).get_opcodes():
        for step in range(last - first):
            at = start + step * (end - start) // (last - first)
            owners.append(expected[min(at, len(expected) - 1)][1])
    return owners


def _sounds(word: str) -> list[str]:
    """Return the words that speak a written word."""
    if word.isascii() and word.isalpha():
        return [word.lower()]
    return [sound for part in plain_words(word).split() if (sound := _bare(part))]


def token_times(outputs: Sequence[KokoroOutput], ranges: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """Return start and end in seconds of each token, shape (n_tokens, 2), after the outputs were cut and joined.

    Args:
        outputs: What the network returned.
        ranges: Start and end of the part of each that is used, in samples.
    """
    parts, offset = [], 0
    for output, (start, end) in zip(outputs, ranges, strict=True):
        edges = np.cumsum(output.frames[:-1], dtype=np.float64) * FRAME - LEAD
        edges = offset + np.clip(edges - start, 0, end - start)
        parts.append(np.stack([edges[:-1], edges[1:]], axis=1))
        offset += end - start
    return np.concatenate(parts) / SAMPLE_RATE


def _bare(word: str) -> str:
    return "".join(filter(str.isalpha, word)).lower()
