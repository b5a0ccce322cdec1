"""Numbers and percentages of languages other than English, by num2words."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from num2words import num2words

_PERCENT: Final = {
    "de": "Prozent", "es": "por ciento", "fr": "pour cent", "it": "per cento", "pt": "por cento", "ru": "процентов",
}  # fmt: skip
"""The languages whose numbers have a decimal comma and are spelled out, with their word for percent."""
_NUMBER = re.compile(
    r"(?<![\w.,:/])(?:[-−](?=\d))?(?P<whole>\d{1,3}(?:[.\u00a0\u202f'’]\d{3})++|\d++)(?:,(?P<decimals>\d++))?"
    r"(?P<percent>\s?%)?(?!\w|[.,:/-]\d)"
)
_SPACED = re.compile(r"(?<=\d) (?=\d{3}(?!\d))")  # French and Russian group thousands with a space
_SAYABLE_DIGITS: Final = 15  # longer numbers are read digit by digit


def spell_numbers(text: str, lang: str) -> str:
    """Return a text with words for its numbers; clock times, dates and numbers with letters stay as they are."""
    if lang not in _PERCENT:
        return text
    if lang in {"fr", "ru"}:
        text = _SPACED.sub("\u202f", text)

    def say(found: re.Match[str]) -> str:
        whole = re.sub(r"\D", "", found["whole"])
        if len(whole) > _SAYABLE_DIGITS or (len(whole) > 1 and whole[0] == "0"):
            said = " ".join(num2words(int(digit), lang=lang) for digit in whole + (found["decimals"] or ""))
        else:
            value = Decimal(f"{whole}.{found['decimals']}" if found["decimals"] else whole)
            said = num2words(value if found[0][0].isdecimal() else -value, lang=lang)
        return f"{said} {_PERCENT[lang]}" if found["percent"] else said

    return _NUMBER.sub(say, text)
