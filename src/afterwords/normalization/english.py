"""Spell out written English: numbers, dates, money, units, signs, abbreviations.

Engines drop or misread what they can't pronounce ("1945—and", "−10", "½"). The result has only letters and punctuation.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from typing import Final

from num2words import num2words

from afterwords.normalization import web
from afterwords.normalization.rules import Rule, Say, apart, compile_rules

_SAYABLE_DIGITS: Final = 15  # longer numbers are read digit by digit


def spell(text: str) -> str:
    """Spell out one sentence in letters and punctuation; letters of other scripts are dropped (see `unspoken`)."""
    text = _plain(web.name_emoji(text))
    for pattern, said in _RULES:
        text = pattern.sub(said, text)
    return text.strip()


def unspoken(text: str) -> list[str]:
    """Return the distinct words with a letter that has no English sound."""
    if text.isascii():
        return []
    words = (word.strip(_QUOTING) for word in text.split() if not word.isascii())
    return list(dict.fromkeys(word for word in words if _GREEK_WORD.search(word) or any(map(_is_foreign, word))))


def has_words(text: str) -> bool:
    """Return whether a text has a letter or digit with an English sound."""
    return any(character.isalnum() for character in _plain(web.name_emoji(text)))


def _words(text: str) -> list[str]:
    return text.split()


# -- characters ----------------------------------------------------------------------------------------------

_QUOTING: Final = ".,;:!?\"'()[]{}“”‘’«»„…—–-"
_CHARACTERS: Final = str.maketrans(
    {"ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L"}
    | {"đ": "d", "Đ": "D", "ð": "th", "Ð": "Th", "þ": "th", "Þ": "Th", "ı": "i", "ħ": "h", "Ħ": "H", "ŋ": "ng"}
    | {"ə": "e", "Ə": "E", "ƒ": "f", "ĸ": "k", "ŧ": "t", "Ŧ": "T"}
    | dict.fromkeys("\u02bc\u02b9\u02bb\u02bd\u02c8\u201b\uff07\u00b4\uff40", "'")
    | dict.fromkeys("\u2010\u2011\ufe63\uff0d\u2043", "-")
    | dict.fromkeys("\u2012\ufe58", "–")
    | dict.fromkeys("\u2015\u2e3a\u2e3b", "—")
    | dict.fromkeys("\u2796", "−")
    | dict.fromkeys("\u201e\u201f\u00ab\u00bb\uff02", '"')
    | {
        "\u2215": "/",
        "\u201a": ",",
        "\u2217": "*",
        "\u2022": "·",
        "\u2103": "°C",
        "\u2109": "°F",
        "\u2116": "No. ",
        "™": "",
        "®": "",
    }
    | {"\u00b5": "μ", "\u00ad": "", "\u200b": " "}
)
_GREEK_NAMES: Final = _words(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau "
    "upsilon phi chi psi omega"
)
_GREEK: Final = {
    letter: f" {name.title() if letter.isupper() else name} "
    for letters in ("αβγδεζηθικλμνξοπρστυφχψω", "ΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩ")
    for letter, name in zip(letters, _GREEK_NAMES, strict=True)
}
"""Names of single letters, as in "β-carotene"; several letters are a Greek word."""
_KEPT: Final = frozenset("★“”‘’…—–−÷×±°′″⁄≈≠≤≥<>∞√→·μ¢£€¥₹₽₩₺₴₪₫₦฿₱₿§‰©")
_RAISED: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")


def _plain(text: str) -> str:
    """Return Latin letters without marks, digits 0 to 9, spoken signs and single spaces; drop the rest."""
    text = _SUPERSCRIPT.sub(lambda found: f"^{found[0].translate(_RAISED)} ", text)
    text = _SPACES.sub(" ", text.translate(_CHARACTERS))
    if not text.isascii():
        text = _GREEK_LETTER.sub(lambda found: _GREEK.get(found[0], found[0]), text)
        plain = []
        for character in text:
            kind = unicodedata.category(character)
            if character.isascii() or character in _KEPT:
                plain.append(character)
            elif kind == "Nd":
                plain.append(str(unicodedata.decimal(character)))
            elif kind[0] in "LNS":
                letters = "".join(c for c in unicodedata.normalize("NFKD", character) if c.isascii() or c in _KEPT)
                is_apart = "⁄" in letters or (kind == "No" and not "₀" <= character <= "₉")
                plain.append(f" {letters} " if is_apart else letters or " ")
            elif kind[0] not in "MC":
                plain.append(" ")
        text = "".join(plain)
    return _SPACES.sub(" ", text)


@cache
def _is_foreign(character: str) -> bool:
    """Return whether `_plain` drops a letter."""
    is_letter = unicodedata.category(character)[0] == "L" and not character.isascii()
    return is_letter and not _plain(character).strip()


_GREEK_WORD: Final = re.compile(r"[\u0370-\u03ff\u1f00-\u1fff]{2}")
_SPACES: Final = re.compile(r"\s+")
_SUPERSCRIPT: Final = re.compile(r"(?<=[A-Za-z0-9)])[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]++")
_GREEK_LETTER: Final = re.compile(
    r"(?<![\u0370-\u03ff\u1f00-\u1fff])(?!μ[A-Za-z])[Α-Ωα-ω](?![\u0370-\u03ff\u1f00-\u1fff])(?! [\u0370-\u03ff]{2})"
)

# -- numbers in words ----------------------------------------------------------------------------------------


_DIGITS: Final = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def _one_by_one(digits: str) -> str:
    return " ".join(_DIGITS[int(digit)] for digit in digits if digit.isdigit())


def _cardinal(digits: str) -> str:
    if len(digits) > _SAYABLE_DIGITS or (len(digits) > 1 and digits[0] == "0"):
        return _one_by_one(digits)
    return _in_words(num2words(int(digits)))


def _ordinal(digits: str) -> str:
    return _in_words(num2words(int(digits), to="ordinal")) if len(digits) <= _SAYABLE_DIGITS else _one_by_one(digits)


def _in_words(words: str) -> str:
    return " ".join(word for word in re.split("[^a-z]+", words) if word != "and")


def _number(written: str, *, is_amount: bool = False) -> str:
    """Spell a number with thousands and decimals; four digits are a year, in pairs, unless it is an amount."""
    whole, *decimals = written.replace(",", "").split(".")
    if not decimals:
        if len(whole) != 4 or whole[0] == "0" or "," in written or is_amount:
            return _cardinal(whole)
        return _in_words(num2words(int(whole), to="year"))
    if len(decimals) == 1:
        return f"{_cardinal(whole) + ' ' if whole else ''}point {_one_by_one(decimals[0])}"
    return " point ".join(_cardinal(part) for part in (whole, *decimals) if part)  # a version, an address


def _plural(words: str) -> str:
    if words.endswith("y"):
        return words[:-1] + "ies"
    return words.removeprefix("one ") + ("es" if words.endswith("x") else "s")


def _value(written: str) -> float:
    return float(written.replace(",", "")) if written.count(".") < 2 else 0.0


_NUM: Final = r"\d++(?:[.,]\d++)*+"
_ALONE: Final = r"(?<!\d)(?<!\d[.,])"  # before a number: not within one
_AMOUNT: Final = rf"{_ALONE}(?:{_NUM}|(?<![\w.])\.{_NUM})"

_RULES: list[Rule] = [*web.RULES]
"""All rules, in the order of this file, in which they apply."""


def _rule(pattern: str) -> Callable[[Say], Say]:
    """Add a function as a rule."""

    def add(say: Say) -> Say:
        _RULES.extend(compile_rules((pattern, say)))
        return say

    return add


# -- abbreviations -------------------------------------------------------------------------------------------


def _also_in_capitals(words: dict[str, str]) -> dict[str, str]:
    return {short.upper(): word for short, word in words.items() if short[0].isupper()} | words


_TITLES: Final = _also_in_capitals(
    {
    "Lt": "Lieutenant", "Capt": "Captain", "Col": "Colonel", "Gen": "General", "Maj": "Major", "Sgt": "Sergeant",
    "Cpl": "Corporal", "Pvt": "Private", "Adm": "Admiral", "Cmdr": "Commander", "Gov": "Governor", "Sen": "Senator",
    "Rep": "Representative", "Pres": "President", "Rev": "Reverend", "Hon": "Honorable", "Prof": "Professor",
    "Fr": "Father", "Supt": "Superintendent", "Mt": "Mount", "Ft": "Fort",
}
)  # fmt: skip
"""Spelled out before a name."""
_SHORT: Final = _also_in_capitals(
    {
    "Mr": "Mister", "Mrs": "Missus", "Jr": "Junior", "Sr": "Senior", "Esq": "Esquire", "Inc": "Incorporated",
    "Ltd": "Limited", "Corp": "Corporation", "Co": "Company", "Cos": "Companies", "Bros": "Brothers",
    "Assn": "Association", "Univ": "University", "Dept": "Department", "Govt": "Government", "Ave": "Avenue",
    "Blvd": "Boulevard", "Rd": "Road", "Hwy": "Highway", "Pkwy": "Parkway", "Apt": "Apartment", "Bldg": "Building",
    "Mts": "Mountains", "Intl": "International", "Natl": "National", "dept": "department", "approx": "approximately",
    "etc": "et cetera", "vs": "versus", "viz": "namely", "cf": "compare", "incl": "including", "govt": "government",
    "assoc": "associate", "misc": "miscellaneous", "edn": "edition", "esp": "especially", "Approx": "Approximately",
    "hrs": "hours", "yrs": "years", "mins": "minutes", "secs": "seconds", "tsp": "teaspoon", "tbsp": "tablespoon",
    "Tbsp": "tablespoon",
}
)  # fmt: skip
"""Spelled out before a period."""
_LATIN: Final = {
    "e.g": "for example", "i.e": "that is", "et al": "et al", "a.k.a": "also known as", "Ph.D": "P.H.D.",
    "Ph.Ds": "P.H.D.s", "w/o": "without", "w/": "with ", "c/o": "care of",
}  # fmt: skip
_NUMBERED: Final = {
    "No": "number", "no": "number", "NO": "number", "Nos": "numbers", "nos": "numbers", "p": "page", "pp": "pages",
    "Fig": "Figure", "Figs": "Figures", "fig": "figure", "Vol": "Volume", "vol": "Volume", "Ch": "Chapter",
    "ch": "Chapter", "Sec": "Section", "sec": "section", "Art": "Article", "Eq": "Equation", "ext": "extension",
    "est": "established", "Est": "Established",
    "Ext": "Extension", "ca": "circa", "c": "circa", "b": "born", "d": "died",
}  # fmt: skip
"""Spelled out before a number."""
_MONTHS: Final = _words("January February March April May June July August September October November December")
_MONTH: Final = {month[:3]: month for month in _MONTHS if month != "May"} | {"Sept": "September"}
_DAY: Final = {
    "Mon": "Monday", "Tue": "Tuesday", "Tues": "Tuesday", "Wed": "Wednesday", "Thu": "Thursday", "Thur": "Thursday",
    "Thurs": "Thursday", "Fri": "Friday", "Sat": "Saturday", "Sun": "Sunday",
}  # fmt: skip
_CALENDAR: Final = _MONTH | _DAY
_IS_END: Final = r"(?=[\"'”’)\]]*+$)"
_WHEN: Final = "in|on|by|since|until|till|from|to|through|this|last|next|every|early|late|mid|of"


def _expanded(words: dict[str, str]) -> Say:
    """Return `before` and the word for `short`; keep the period if it also ends the sentence."""

    def say(found: re.Match[str]) -> str:
        groups = found.groupdict()
        return groups.get("before", "") + words[found["short"]] + ("." if groups.get("end") is not None else "")

    return say


def _any(words: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


_RULES += compile_rules(
    (r"(?<=[A-Za-z])[‘’](?=[A-Za-z])", "'"),
    (
        rf"(?<![\w.])(?P<short>{_any(_NUMBERED)})\. ?(?=\d|(?:[IVXL]{{2,}}+|[VX])\b)",
        lambda found: f"{_NUMBERED[found['short']]} ",
    ),
    (r"(?<=\d[snrt][tdh] )c\.(?=[ ,;])", "century"),
    (r"\bWW(?P<which>II?)\b", r"World War \g<which>"),
    (r"(?<!\w)#(?=\d)", "number "),
    (rf"(?<![\w.])(?P<short>{_any(_TITLES)})\.(?= [A-Z])", _expanded(_TITLES)),
)


@_rule(
    r"(?<![\w.'])(?P<place>(?:[A-Z][a-z]++|\d++(?:st|nd|rd|th)) )?(?P<short>St|Dr)\."
    rf"(?:(?P<name>(?= [A-Z]))|(?P<end>{_IS_END})|)"
)
def _street(found: re.Match[str]) -> str:
    """Expand St. and Dr.: Saint and Doctor before a name, Street and Drive after one."""
    saint, street = ("Saint", "Street") if found["short"] == "St" else ("Doctor", "Drive")
    place, has_end = found["place"] or "", found["end"] is not None
    if not place[:1].isdigit() if found["name"] is not None else not (place or has_end):
        return place + saint
    return place + street + "." * has_end


_RULES += compile_rules(
    (rf"(?<![\w.])(?P<short>{_any(_SHORT)})\.(?P<end>{_IS_END})?", _expanded(_SHORT)),
    (rf"(?<![\w.])(?P<short>e\.g|i\.e|a\.k\.a|et al|Ph\.D)\.?(?!\w)(?P<end>(?<=\.){_IS_END})?", _expanded(_LATIN)),
    (r"(?<![\w/])(?P<short>w/o|c/o|w/)(?![/\d])(?=[ \w])", _expanded(_LATIN)),
    (r"\bvs\b", "versus"),
    (
        rf"\b(?P<first>{_any(_CALENDAR)})\.?(?: ?[-–—] ?|/)(?P<short>{_any(_CALENDAR)})\b\.?"
        rf"(?P<end>(?<=\.){_IS_END})?",
        lambda found: f"{_CALENDAR[found['first']]} to {_expanded(_CALENDAR)(found)}",
    ),
    (
        rf"(?<![\w.])(?P<short>{_any(_CALENDAR)})\.(?=[,;]|'s| [a-z0-9(]| (?:{_any([*_MONTHS, *_MONTH])})\b)",
        _expanded(_CALENDAR),
    ),
    (rf"(?<=\d )(?P<short>{_any(_MONTH)})\.?(?P<end>(?<=\.){_IS_END})?(?![\w'])", _expanded(_MONTH)),
    (rf"\b(?P<short>{_any(_MONTH)})(?= \d)", _expanded(_MONTH)),
    (
        rf"(?P<before>\b(?:{_WHEN}) )(?P<short>{_any(_CALENDAR)})\.(?P<end>{_IS_END})?",
        _expanded(_CALENDAR),
    ),
    (
        rf"(?P<before>(?:day,?|ary,?|ber,?) (?:and|or) )(?P<short>{_any(_CALENDAR)})\.(?P<end>{_IS_END})?",
        _expanded(_CALENDAR),
    ),
)

# -- Roman numerals ------------------------------------------------------------------------------------------

_ROMAN: Final = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
_RULERS: Final = _words(
    "Henry Louis Charles James George Edward Richard William Elizabeth Mary Paul Pius Benedict Leo Gregory Innocent "
    "Clement Urban Alexander Nicholas Peter Philip Frederick Napoleon Ivan Ramses Ptolemy Francis Ferdinand Otto "
    "Catherine Harald Haakon Gustav Christian Wilhelm Franz Sixtus Boniface Callixtus Ludwig Alfonso"
)
_COUNTED: Final = _words("Chapter Act Scene Volume Book Type Phase Appendix War Section Article Title Stage")
_AFTER_A_RULER: Final = re.compile(r"[,.;)]| (?:was|of|and|died|ruled|reigned)\b")  # so "I" is not a pronoun
_NEVER_COUNTED: Final = _words("The A An In On At And Or To For With My Your His Her Our Their An")


def _value_of(numeral: str) -> int:
    values = [_ROMAN[letter] for letter in numeral.upper()]
    return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))


@_rule(
    r"\b(?P<before>[A-Z][A-Za-z]++) "
    r"(?P<numeral>(?=[XVI]|[XL]{2}[XVI]|L[XVI]{2})(?:XL|L?X{0,3})(?:IX|IV|V?I{0,3}))(?![\w'’.]\w|\w)"
)
def _roman(found: re.Match[str]) -> str:
    before, numeral = found["before"], found["numeral"]
    value = _value_of(numeral)
    key = before.title()
    is_name = key in _RULERS and (numeral == "V" or _AFTER_A_RULER.match(found.string, found.end()) is not None)
    if (len(numeral) == 1 and key not in _COUNTED and not is_name) or key in _NEVER_COUNTED:
        return found[0]
    return f"{before} the {_ordinal(str(value))}" if key in _RULERS else f"{before} {_cardinal(str(value))}"


_RULES += compile_rules(
    (
        r"\b(?P<before>[Tt]ype|[Ff]actor|[Ss]cene|[Aa]ct|[Pp]ages?|[Cc]hapter|[Pp]art|[Vv]olume|[Pp]hase|[Ss]tage|[Ll]evel|pp?\.)"
        r" (?P<numeral>(?=[xvi])x{0,3}(?:ix|iv|v?i{0,3})|[XVI]{2,}+|V)(?![\w'’])",
        lambda found: f"{found['before']} {_value_of(found['numeral'])}",
    ),
    (
        r"\b(?P<numeral>[XVI]{2,})(?=(?:st|nd|rd|th)? [Cc]entur)",
        lambda found: _ordinal(str(_value_of(found["numeral"]))),
    ),
    (
        r"(?<![\w.'’-])(?P<numeral>(?=[MDCLXVI]{4})M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3}))(?![\w'’-])",
        lambda found: str(_value_of(found["numeral"])),
    ),
)

# -- dates, clock times, telephone numbers -------------------------------------------------------------------

_HALVES: Final = {"a": "a.m.", "p": "p.m."}  # as the dictionaries have them; "A" alone is an article


def _date(year: str, month: str, day: str, otherwise: str) -> str:
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return otherwise
    return f"{_MONTHS[int(month) - 1]} {_ordinal(str(int(day)))}, {year}"


def _telephone(found: re.Match[str]) -> str:
    groups = re.findall(r"\d+", found[0])
    return ("plus " if found[0][0] == "+" else "") + ", ".join(_one_by_one(group) for group in groups)


@_rule(r"(?<![\w-])(?P<year>\d{4})[-/](?P<month>\d\d)[-/](?P<day>\d\d)(?![\d-])(?P<time>T(?=\d\d:))?")
def _iso_date(found: re.Match[str]) -> str:
    return _date(found["year"], found["month"], found["day"], found[0]) + (", " if found["time"] else "")


@_rule(r"(?<![\d/.])(?P<first>\d{1,2})/(?P<second>\d{1,2})/(?P<year>\d{4}|\d\d)(?![\d/])")
def _slashed_date(found: re.Match[str]) -> str:
    """Spell a date, with the month first unless that is impossible."""
    first, second, year = found["first"], found["second"], found["year"]
    month, day = (second, first) if int(first) > 12 else (first, second)
    if len(year) == 2:
        year = f"{'19' if int(year) > 50 else '20'}{year}"
    return _date(year, month, day, f"{int(first)} slash {int(second)} slash {year}")


@_rule(
    r"(?P<before>\b(?:[Oo]n|[Ss]ince|[Uu]ntil|[Bb]efore|[Aa]fter|[Dd]ue|[Dd]ated|week of) )"
    r"(?P<month>1[0-2]|0?[1-9])/(?P<day>3[01]|[12]\d|0?[1-9])(?![\d/])"
)
def _day(found: re.Match[str]) -> str:
    month, day = int(found["month"]), int(found["day"])
    return f"{found['before']}{_MONTHS[month - 1]} {day}" if day not in _PARTS or month >= day else found[0]


_RULES += compile_rules(
    (
        rf"\b(?P<month>{'|'.join(_MONTHS)}) (?P<day>3[01]|[12]\d|0?[1-9])(?=, ?\d{{4}}\b)",
        lambda found: f"{found['month']} {_ordinal(str(int(found['day'])))}",
    ),
    (
        r"(?<![\d.])(?P<day>\d{1,2})\.(?P<month>\d{1,2})\.(?P<year>\d{4})(?![\d.]\d)(?!\d)",
        lambda found: _date(found["year"], found["month"], found["day"], found[0]),
    ),
    (r"(?<!\w)\+\d{1,3}(?:[ .-]?\(?\d{1,6}\)?){2,6}(?![\w-]|[.,]\d)", _telephone),
    (r"(?<![\w-])(?:\+?\d{1,2}[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-])", _telephone),
)


@_rule(r"(?<![\w.,-])(?P<first>[2-9]\d\d)-(?P<second>\d{4})(?![\w-]|[.,]\d)")
def _short_telephone(found: re.Match[str]) -> str:
    first, second = found["first"], found["second"]
    if first.endswith("0") and second.endswith("00"):
        return f"{first} to {_number(second)}"
    return f"{_one_by_one(first)}, {_one_by_one(second)}"


_RULES += compile_rules((r"(?<![\w-])\d++(?:-\d++){2,}+(?!\w)", _telephone))  # an ISBN, an account


@_rule(
    r"(?<![\d:.])(?P<hour>[01]?\d|2[0-4]):(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?(?![\d:])"
    r"(?: ?(?P<half>[AaPp]\.?[Mm]\b(?:\.(?! [A-Z]|$))?))?(?P<to> ?[-–—] ?(?=\d{1,2}:\d\d)|)"
)
def _time(found: re.Match[str]) -> str:
    hour, minute, second, half = found["hour"], found["minute"], found["second"], found["half"]
    second = None if second == "00" else second
    said = [_cardinal(hour.lstrip("0") or "0")]
    if minute != "00" or second:
        said.append(f"oh {_cardinal(minute[1])}" if minute[0] == "0" else _cardinal(minute))
    elif not half:
        said.append("o'clock")
    said += [_cardinal(second.lstrip("0") or "0")] if second else []
    said += [_HALVES[half[0].lower()]] if half else []
    return " ".join(said) + found["to"].replace("-", " to ").replace("–", " to ").replace("—", " to ")


_RULES += compile_rules(
    (
        r"(?i)(?<=\d) ?(?P<half>[ap])\.?m\b(?:\.(?! [A-Z]|$))?(?P<to> ?[-–—] ?(?=\d)|)",
        lambda found: f" {_HALVES[found['half'].lower()]}{' to ' if found['to'] else ''}",
    ),
    (r"(?<=\d):(?=\d(?![\dA-Za-z]))", " to "),  # odds, a score
    (r"(?<=\d):(?=\d)", " "),
)

# -- signs between and before numbers ------------------------------------------------------------------------

_SCALES: Final = {"k": "thousand", "m": "million", "mn": "million", "b": "billion", "bn": "billion", "tn": "trillion"}
_SCALE: Final = r"(?:[ -]?(?i:thousand|million|billion|trillion|bn|mn|tn)|[kKmMbB])(?![A-Za-z0-9])"
_MONEY: Final = {
    "$": "dollars", "£": "pounds", "€": "euros", "¥": "yen", "₹": "rupees", "₽": "rubles", "₩": "won", "₺": "lira",
    "₴": "hryvnias", "₪": "shekels", "₫": "dong", "₦": "naira", "฿": "baht", "₱": "pesos", "₿": "bitcoins",
}  # fmt: skip
_CENTS: Final = {"$": "cents", "£": "pence", "€": "cents"}
_CODES: Final = {
    "USD": "US dollars", "EUR": "euros", "GBP": "pounds", "JPY": "yen", "CAD": "Canadian dollars", "INR": "rupees",
    "AUD": "Australian dollars", "CHF": "Swiss francs", "CNY": "yuan",
}  # fmt: skip
_COUNTRIES: Final = {"US": "US ", "A": "Australian ", "AU": "Australian ", "C": "Canadian ", "CA": "Canadian "}
_SIGNS: Final = "".join(map(re.escape, _MONEY))


def _singular(words: str) -> str:
    first, *rest = words.split(" ", 1)
    if first in {"US", "Canadian", "Australian", "Swiss", "square", "cubic"} and rest:
        return f"{first} {_singular(rest[0])}"
    one = {"feet": "foot", "inches": "inch", "pence": "penny"}.get(first, first.removesuffix("s"))
    return " ".join([one, *rest])


def _scale(written: str | None) -> str:
    word = (written or "").strip(" -").lower()
    return f" {_SCALES.get(word, word)}" if word else ""


def _amount(found: re.Match[str]) -> str:
    return _number(found["number"], is_amount=True) + _scale(found["scale"])


_RULES += compile_rules((r"(?<=\d)['’](?=\d{3}(?!\d))", ""))  # Swiss thousands


@_rule(
    rf"(?P<sign>[{_SIGNS}]) ?(?P<low>{_NUM})(?P<scale>{_SCALE})?(?: ?(?:[-–—]|\bto\b) ?(?P=sign) ?|[-–—])"
    rf"(?P<high>{_NUM})(?P<scale2>{_SCALE})?"
)
@apart
def _money_range(found: re.Match[str]) -> str:
    low, high = (_number(found[name], is_amount=True) for name in ("low", "high"))
    scales = _scale(found["scale"]), _scale(found["scale2"])
    return f"{low}{scales[0]} to {high}{scales[1]} {_MONEY[found['sign']]} "


_RULES += compile_rules(
    (rf"(?<!\d)(?P<sign>[{_SIGNS}])[-−–](?=\.?\d)", r" minus \g<sign>"),
    (r"[-−–](?= ?[$£€¥₹] ?\.?\d)(?<![\w.,%)]-)(?<![\w.,%)]–)", " minus "),
)


@_rule(
    rf"(?P<left>{_ALONE}(?P<low>{_NUM})(?:%|°[CF]?)?)(?P<before> ?)(?P<dash>[-–—−])(?P<after> ?)"
    rf"(?P<right>\+)?(?=(?P<high>{_NUM})(?P<equals> ?=)?)"
)
def _between(found: re.Match[str]) -> str:
    """Return the word for a dash between two numbers: "to", "minus", or a pause."""
    left, dash, right = found["left"], found["dash"], found["right"]
    low, high = found["low"], found["high"]
    is_spaced = bool(found["before"] and found["after"])
    is_rising = _value(low) < _value(high)
    if len(low) == 4 and len(high) == 2:  # years
        is_range = low.isdigit() and high.isdigit() and int(high) > 12 and int(low[2:]) < int(high)
    else:
        is_short = max(len(part) for number in (low, high) for part in number.split(",")) <= 4
        is_range = is_short and (is_rising or max(len(low), len(high)) <= 3)
    if dash == "−" or found["equals"] or (found["before"] and not found["after"]):
        said = " minus "
    elif dash == "—" and not is_rising:
        said = " — "
    elif is_spaced:
        said = " to " if is_rising else " minus " if dash == "-" else " — "
    elif dash == "-" and not is_range:
        said = " "
    else:
        said = " to "
    return f"{left}{said}{right or ''}"


_RULES += compile_rules(
    (r"(?<=\d[\"'’”′″])[-–—](?=\d)", " to "),
    (r"(?:(?<=\d[A-Za-z])|(?<=\d[A-Za-z]{2}))[-–—](?=\d++[A-Za-z])", " to "),  # 3k–5k, 10kg-20kg
    (r"(?<![\w.,%)\]}])[-–−](?=\.?\d)", " minus "),
    (r"(?<=%)[-–](?=\d)", " to "),
    (r"(?<=\d)[-–—](?=(?:present|now|today|date)\b)", " to "),
    (r"(?:(?<=[^A-Za-z'’][b-hj-z])|(?<=^[b-hj-z])|(?<=\))) - (?=\d|[b-hj-z]\b)", " minus "),
    (r"−", " minus "),
    (r"(?<=\d),(?=\d)(?!\d{3}(?!\d))", ", "),  # a list; what groups thousands stays
    (r"(?<=\d) ?\* ?(?=\d)", " times "),
    (r"(?<=\d) / (?=\d)|(?<=\))/(?=\w)", " divided by "),
    (r"(?<=\d) ?[xX] ?(?=\d)", " by "),
)


@_rule(
    rf"(?P<article>\b[Aa]n? )?(?:(?<![A-Za-z])(?P<country>US|AU|CA|A|C))?(?P<sign>[{_SIGNS}]) ?"
    rf"(?P<number>{_NUM}|\.\d++)(?P<scale>{_SCALE})?(?:(?<!\D\D) ?(?P<code>USD|CAD|AUD)\b)?"
    r"(?P<noun>(?=[ -][a-z]))?"
)
@apart
def _sum(found: re.Match[str]) -> str:
    """Spell an amount of money: "$5.50" has cents, "£5.50 million" has not."""
    sign, written, scale = found["sign"], found["number"], _scale(found["scale"])
    unit = _COUNTRIES.get(found["country"] or "", "") + _MONEY[sign] if found["code"] is None else _CODES[found["code"]]
    whole, _, decimals = written.replace(",", "").partition(".")
    if scale or not decimals or len(decimals) > 2 or "." in decimals or sign not in _CENTS:
        if scale and decimals:
            written = written.rstrip("0").rstrip(".")
        is_one = written == "1" and not scale
        is_measure = found["article"] is not None and found["noun"] is not None and not is_one
        unit = _singular(unit) if is_one or is_measure else unit
        return f"{found['article'] or ''}{_number(written, is_amount=True)}{scale} {unit}"
    cents = int(decimals.ljust(2, "0"))
    parts = []
    if whole.strip("0") or not cents:
        parts.append(f"{_cardinal(whole or '0')} {_singular(unit) if whole.lstrip('0') == '1' else unit}")
    if cents:
        parts.append(f"{_cardinal(str(cents))} {_singular(_CENTS[sign]) if cents == 1 else _CENTS[sign]}")
    return f"{found['article'] or ''}{' and '.join(parts)} "


_RULES += compile_rules(
    (
        rf"(?P<number>{_AMOUNT})(?P<scale>{_SCALE})? ?(?P<sign>[{_SIGNS}])(?!\d)",
        apart(
            lambda found: (
                f"{_amount(found)} "
                f"{_singular(_MONEY[found['sign']]) if found['number'] == '1' else _MONEY[found['sign']]}"
            )
        ),
    ),
    (
        rf"\b(?P<code>{'|'.join(_CODES)}) ?(?P<number>{_NUM})(?P<scale>{_SCALE})?",
        apart(lambda found: f"{_amount(found)} {_CODES[found['code']]}"),
    ),
    (rf"(?<=\d|n) ?(?P<code>{'|'.join(_CODES)})\b", lambda found: f" {_CODES[found['code']]}"),
    (r"(?<=\d) ?¢", " cents"),
    (rf"(?P<sign>[{_SIGNS}])(?P=sign)*+", lambda found: f" {_singular(_MONEY[found['sign']])} "),
    (r"(?<=dollars|.pounds|..euros) ?/ ?(?=[a-z])", " per "),
)

# -- units ---------------------------------------------------------------------------------------------------

_UNITS: Final = {
    "km/h": "kilometers per hour", "kph": "kilometers per hour", "mph": "miles per hour", "km": "kilometers",
    "cm": "centimeters", "mm": "millimeters", "nm": "nanometers", "μm": "micrometers", "m": "meters", "kg": "kilograms",
    "mg": "milligrams", "μg": "micrograms", "g": "grams", "lb": "pounds", "lbs": "pounds", "oz": "ounces", "ft": "feet",
    "yd": "yards", "mi": "miles", "sq ft": "square feet", "ml": "milliliters", "mL": "milliliters", "dl": "deciliters",
    "L": "liters", "l": "liters", "gal": "gallons", "tsp": "teaspoons", "tbsp": "tablespoons", "Tbsp": "tablespoons",
    "qt": "quarts", "pt": "pints", "ms": "milliseconds", "s": "seconds", "sec": "seconds", "secs": "seconds",
    "min": "minutes", "mins": "minutes", "h": "hours", "hr": "hours", "hrs": "hours", "yr": "years", "yrs": "years",
    "Hz": "hertz", "kHz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz", "kB": "kilobytes", "KB": "kilobytes",
    "MB": "megabytes", "GB": "gigabytes", "TB": "terabytes", "Mbps": "megabits per second",
    "Gbps": "gigabits per second", "kW": "kilowatts", "MW": "megawatts", "GW": "gigawatts", "kWh": "kilowatt hours",
    "kcal": "kilocalories", "mmol": "millimoles", "mol": "moles", "J": "joules", "kJ": "kilojoules", "mM": "millimolar",
    "μM": "micromolar", "μL": "microliters", "μl": "microliters", "μs": "microseconds", "Pa": "pascals",
    "kPa": "kilopascals", "hPa": "hectopascals", "dB": "decibels", "rpm": "revolutions per minute",
    "W": "watts", "V": "volts", "mV": "millivolts", "kV": "kilovolts", "mA": "milliamps", "mAh": "milliamp hours",
    "Wh": "watt hours", "hp": "horsepower", "psi": "pounds per square inch", "mpg": "miles per gallon",
    "ha": "hectares", "fps": "frames per second", "dpi": "dots per inch", "fl oz": "fluid ounces",
    "bps": "bits per second", "kbps": "kilobits per second", "mmHg": "millimeters of mercury", "mbar": "millibars",
    "GiB": "gibibytes", "MiB": "mebibytes", "Gb": "gigabits", "Mb": "megabits", "PB": "petabytes",
    "Nm": "newton meters", "cal": "calories",
    "sq km": "square kilometers", "sq mi": "square miles", "sq m": "square meters", "cu ft": "cubic feet",
    "ppm": "parts per million", "bpm": "beats per minute",
}  # fmt: skip
_OWN: Final = [*_words("km/h kph mph km cm mm kg mg lbs ft ml mL hrs kHz MHz GHz kB MB GB TB kWh Mbps"), "sq ft"]
"""Unambiguous units, spelled out also without a number."""
_UNIT: Final = _any(_UNITS)
_PER: Final = "day|week|wk|month|mo|year|yr|hour|hr|min|minute|second|sec|person|night|L|mL|dL|kg|mol|m|s|h"
_PERIODS: Final = {
    "wk": "week", "mo": "month", "yr": "year", "hr": "hour", "min": "minute", "sec": "second", "L": "liter",
    "mL": "milliliter", "dL": "deciliter", "mol": "mole", "m": "meter", "s": "second", "h": "hour",
}  # fmt: skip
_TOP: Final = re.compile(r"(?P<whole>\d[ -])?\d{1,4}[/⁄]$")  # the upper part of a fraction
_PARTS: Final = frozenset({2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 20, 32, 64, 1000})


def _measured(unit: str, power: str | None, *, is_one: bool) -> str:
    said = {"2": "square ", "3": "cubic "}.get((power or "").strip(" ^"), "") + _UNITS[unit]
    return _singular(said) if is_one else said


_RULES += compile_rules(
    (
        r"(?<=\d)° ?(?P<minutes>\d{1,2})['′’](?: ?(?P<seconds>\d{1,2}(?:\.\d++)?)(?:[\"″”]|''))?",
        apart(
            lambda found: (
                f"degrees {found['minutes']} minutes {found['seconds'] or ''}{' seconds' * bool(found['seconds'])}"
            )
        ),
    ),
    (
        r"(?<!\d)(?P<feet>\d{1,3})['′’] ?(?P<inches>\d{1,2}(?:\.\d)?)(?:[\"″”]|''|’’|′′)",
        apart(
            lambda found: (
                f"{found['feet']} {'foot' if found['feet'] == '1' else 'feet'} "
                f"{found['inches']} {'inch' if found['inches'] == '1' else 'inches'}"
            )
        ),
    ),
    (r"(?<=\d)′", " feet"),
    (r"(?<=\d)″", " inches"),
    (r"(?<=\d) in\.(?= [a-z]|,)|(?<=\d/\d) in\.(?=$)", " inches"),
    (
        r"(?<!\d)(?P<one>\d{1,3})(?P<mark>['’\"”]) ?[x×] ?(?P<other>\d{1,3})(?P=mark)",
        apart(
            lambda found: "{1} {0} by {2} {0}".format("feet" if found["mark"] in "'’" else "inches", *found.group(1, 3))
        ),
    ),
    (r"(?<=\d)m ?(?P<seconds>\d{1,2})s\b", r" minutes \g<seconds> seconds"),
    (r"(?<=\d)h ?(?P<minutes>\d{1,2}) ?m(?:in)?\b", r" hours \g<minutes> minutes"),
    (r"(?<=\d)h ?(?=\d{1,2} minutes)", " hours "),
    (r"(?<=\d)M(?= [a-z]{3})", " million"),
    (
        rf"(?P<number>{_ALONE}\d++\.\d++)(?P<scale>[MB])(?![A-Za-z0-9])",
        apart(lambda found: _number(found["number"]) + _scale(found["scale"])),
    ),
    (rf"(?P<number>{_ALONE}\d++\.\d++)/(?=(?:4|5|10|20|100)(?!\d))", r"\g<number> out of "),
    (r"(?<=\d) sq\. ft\b", " sq ft"),
    (r"(?<=\d) fl\. ?oz\b", " fl oz"),
    (r"(?<=\d) ?A(?=[,;.)]|$| (?:and|at|or|of)\b)", " amps"),
    (r"(?<!\d)(?P<high>\d{2,3})/(?P<low>\d{2,3})(?= ?mmHg)", r"\g<high> over \g<low>"),
    (r" ?° ?C\b", " degrees Celsius"),
    (r" ?° ?F\b", " degrees Fahrenheit"),
    (r"(?<![\d.,])(?:1°|1 degrees\b)", "1 degree"),
)


@_rule(
    rf"(?P<number>{_ALONE}{_NUM})(?P<gap>[ -]?)(?P<unit>{_UNIT})(?P<power>\^[23] ?)?"
    rf"(?: ?/ ?(?P<per>{_UNIT})(?P<power2>\^[23] ?)?)?(?![A-Za-z0-9]|/\w++/)(?:\.(?= [a-z0-9(]|[,;]))?"
)
def _unit(found: re.Match[str]) -> str:
    number, unit = found["number"], found["unit"]
    if found["gap"] == "" and unit in {"s", "l"} and "." not in number and not found["per"]:
        return found[0]  # "the 1990s"
    before = _TOP.search(found.string, max(0, found.start() - 8), found.start())
    is_one = (found["gap"] == "-" or number == "1") if before is None else not before["whole"]
    said = f"{number} {_measured(unit, found['power'], is_one=is_one)}"
    if found["per"]:
        said += f" per {_measured(found['per'], found['power2'], is_one=True)}"
    return said


_RULES += compile_rules(
    (rf"(?<=[A-Za-z])\.?/(?=(?:{_PER})\b)", " per "),
    (r"(?<=\bper )(?P<unit>wk|mo|yr|hr|min|sec|L|mL|dL|mol|m|s|h)\b", lambda found: _PERIODS[found["unit"]]),
    (
        rf"(?<![A-Za-z0-9/-])(?P<one>(?:a|per|each|every|one|half) )?(?P<unit>{'|'.join(_OWN)})(?![\w/])",
        lambda found: (found["one"] or "") + _measured(found["unit"], None, is_one=bool(found["one"])),
    ),
)


@_rule(
    r"(?:(?<!\d)(?<!\d[.,/])(?P<whole>\d++)(?: ?-? ?))?(?<![\d/])(?<!\d[.,])(?P<top>\d{1,4})(?P<slash>[/⁄])"
    r"(?P<bottom>\d{1,4})(?![\d/]|[.,]\d)(?P<equals>(?= ?=))?"
)
@apart
def _fraction(found: re.Match[str]) -> str:
    whole, top, bottom = found["whole"], found["top"], found["bottom"]
    if found["slash"] == "/" and (int(bottom) not in _PARTS or int(top) >= int(bottom)):
        said = " slash "
        if (top, bottom) in {("24", "7"), ("9", "11"), ("50", "50")}:
            said = " "
        elif found["equals"] is not None:
            said = " divided by "
        elif top == bottom or bottom in {"10", "100"}:
            said = " out of "
        return f"{_number(whole) + ' ' if whole else ''}{_number(top)}{said}{_number(bottom)}"
    part = {"2": "half", "4": "quarter"}.get(bottom) or (_ordinal(bottom) if int(bottom) else "zero")
    if top == "1":
        said = f"{'an' if part.startswith('eigh') else 'a'} {part}"
    else:
        said = f"{_number(top)} {'halves' if part == 'half' else _plural(part)}"
    return f"{_number(whole)} and {said} " if whole else f"{said} "


_RULES += compile_rules((r"(?<=\d)/(?=\d)", " slash "))

# -- remaining numbers and signs -----------------------------------------------------------------------------

_SYMBOLS: Final = {
    "°": " degrees ", "=": " equals ", "×": " times ", "÷": " divided by ", "±": " plus or minus ",
    "^": " to the power of ", "≤": " at most ", "≥": " at least ", "→": " to ", "≠": " is not ",
    "√": " the square root of ", "∞": " infinity ", "§": " section ", "‰": " per thousand ", "μ": " micro ",
    "©": " copyright ", "⁄": " slash ", "%": " percent ", "&": " and ", "@": " at ", "+": " plus ", "¢": " cents ",
}  # fmt: skip


@_rule(r"(?<=[A-Za-z0-9)])\^(?P<power>[+-]?\d++)")
def _powered(found: re.Match[str]) -> str:
    power = found["power"]
    said = f" to the power of {'minus ' * (power[0] == '-')}{_cardinal(power.lstrip('+-'))} "
    return {"2": " squared ", "3": " cubed "}.get(power, said)


_RULES += compile_rules(
    (r"[~≈](?= ?\d)", " about "),
    (r"(?<=\d)★", " star "),
    (r"(?:^|(?<=[=(])) ?-(?=[a-z]\b)", " minus "),
    (r"<(?= ?\d)| < ", " less than "),
    (r"(?<!-)>(?= ?\d)| > ", " greater than "),
    (r"(?<!-)-++>|=>", " to "),
    (r"\b(?P<letter>[CF])#(?!\w)", r"\g<letter> sharp"),
    (r"#(?=[A-Za-z])", " hashtag "),
    (r"\b(?P<said>[Cc]opyright) ?(?:©|\([Cc]\))", r"\g<said>"),
    (r"\bv\.?(?=\d)", "version "),
    (r"(?<=[\w)])\((?P<within>\w{1,3})\)", lambda found: "s" if found["within"] == "s" else f" {found['within']} "),
    (r"(?<=m)\.\.(?!\.)", "."),
    (r"(?<!\w)['‘’](?=\d\ds?\b(?!['’]))", ""),
)


@_rule(rf"(?P<letter>(?<=[A-Z]))?(?P<number>{_AMOUNT})(?:(?P<end>st|nd|rd|th|['’]?s)(?![A-Za-z]))?")
@apart
def _counted(found: re.Match[str]) -> str:
    """Spell a remaining number with its suffix: "2nd", "1990s", "'90s"."""
    written, end = found["number"], found["end"]
    glue = "-" if found["letter"] is not None else ""  # in "A4", "A" is not an article
    if end in {"st", "nd", "rd", "th"} and "." not in written:
        said = _ordinal(written.replace(",", ""))
    else:
        said = _number(written)
        said = _plural(said) if end and end[-1] == "s" else f"{said} {end or ''}"
    return f"{glue}{said}"


_RULES += compile_rules(
    (r"\d++", apart(lambda found: _cardinal(found[0]))),  # any remaining digits
    ("[" + re.escape("".join(_SYMBOLS)) + "]", lambda found: _SYMBOLS[found[0]]),
    (r"(?<=\b[A-Z])–(?=[A-Z]\b)|(?<=\bA)-(?=Z\b)", " to "),
    (r"(?<=[A-Za-z])–(?=[A-Za-z])", " "),
    (r"-{2,}+|[–—]|(?<= )-(?= )", " — "),
    (r"(?<![A-Za-z])-|-(?![A-Za-z])", " "),
    # The dictionaries drop a whole word with an unknown sign in it.
    (r"[^A-Za-z .,:;!?'\"()…“”‘’—-]|(?<=\w)\((?=\w)|(?<=\w)[\"“”](?=\w)", " "),
    (r"(?<=[,:;!?….)])(?=[\"“‘(]\w)|(?<=[,:;!?])(?='\w)|(?<=[,:;!?…])(?=\w)|(?<=[.,:;!?…)]\.)(?=\w)", " "),
    # An apostrophe next to another mark hides the word from the dictionaries.
    (r"(?<![A-Za-z])['‘’](?![A-Za-z])", ""),
    (r"(?<=[^ (“‘\"'])\(", " ("),
    (r"\)(?=[A-Za-z(])", ") "),
    (r"\( ", "("),
    (r" {2,}", " "),
    (r"— (?:— )++", "— "),
    (r"^ ?— | —(?= ?[.,:;!?…)])| — ?$", " "),
    (r" {1,3}(?=[.,:;!?…)](?:[ \"'”’.,:;!?…)]|$))", ""),
)
