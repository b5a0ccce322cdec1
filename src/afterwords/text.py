"""Text before it is spoken: checked, cut into sentences, packed into chunks.

Apart because every door (command line, library, server) must refuse and cut the same text in the same way. Pure
functions over strings but for `read_text`: no engine. The studio and the workers call `chunks`, all callers
`check_text`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import BinaryIO

from afterwords.errors import FileError, InvalidInputError, TextError, UnsupportedLangError
from afterwords.models import NAME_MAX_CHARS

LANGS = ("en", "zh", "ja", "ko", "es", "fr", "de", "it", "pt", "ru")
"""Every language that some backend speaks, as two-letter codes."""

MAX_REQUEST_CHARS = 5_000
"""Code points in one API request."""

MAX_LOCAL_CHARS = 100_000
"""Code points in one text spoken on this machine: about two hours of speech."""

_MAX_BYTES = 4 * MAX_LOCAL_CHARS + 3
"""No text that is taken has more: four bytes a character, and a byte order mark."""

TINY_CHARS = 12
"""A chunk of at most this length joins its neighbour: alone, "Yes." sounds clipped and costs a whole pass."""

LONGEST_SPEECH_BASE_S, LONGEST_SPEECH_S_PER_CHARACTER = 10.0, 0.6
"""Speech lasts 0.07 s a character in English and 0.25 s in Chinese; what outlasts this by far was never its text."""

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_LINE_END = re.compile(r"\r\n|[\r\x0b\x0c\x85\u2028]")  # page breaks too: they stand in text out of PDF files
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_BLANKS = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # fillers: letters and symbols to Unicode, blank to the eye


def check_text(text: str, *, max_chars: int = MAX_REQUEST_CHARS) -> str:
    """Return the text as it will be spoken: without a byte order mark, its line ends and page breaks all newlines.

    Raises:
        TextError: it holds half a character (a lone surrogate).
        TextError: it holds a control character other than a tab, a line end or a page break.
        TextError: it has more than `max_chars` code points.
        TextError: it holds no letter, digit or symbol.
    """
    if broken := _SURROGATE.search(text):
        raise TextError.invalid_unicode(position=broken.start())
    if control := _CONTROL.search(text):
        raise TextError(
            f"The text holds the control character U+{ord(control.group()):04X} at position {control.start()}; "
            "of those, only blanks (tabs, line ends, page breaks) are taken.",
            code="control_character",
        )
    text = _LINE_END.sub("\n", text.lstrip("\ufeff")).replace("\u2029", "\n\n")
    if len(text) > max_chars:
        raise TextError.too_long(length=len(text), maximum=max_chars)
    if not is_speakable(text):
        raise TextError(code="empty_text")
    return text


def is_speakable(text: str) -> bool:
    """Whether there is anything to say: a letter, a digit or a symbol. Punctuation alone is silence."""
    return any(unicodedata.category(c)[0] in "LNS" and c not in _BLANKS for c in text)


def left_out(backend: str, words: Sequence[str]) -> str:
    """Return the sentence that names the words of a text which a backend does not speak."""
    shown = ", ".join(printable(word[:40]) for word in words[:5]) + (", …" if len(words) > 5 else "")
    which = "a word" if len(words) == 1 else f"{len(words)} words"
    return f"{backend} can't speak {which} of the text, and leaves out: {shown}"


def longest_speech_s(text: str, *, speed: float = 1.0) -> float:
    """The longest that speech of a text may last, in seconds: a little for any, and 0.6 s a character, at the speed.

    What lasts longer ran away: an engine that did not find the end.
    """
    return (LONGEST_SPEECH_BASE_S + LONGEST_SPEECH_S_PER_CHARACTER * len(text)) / speed


def check_name(name: str) -> str:
    """Return the name of a voice as it is kept: composed (NFC), without space around it.

    Raises:
        InvalidInputError: it is empty, invisible or too long, or holds a control or format character, for example one
            that turns the reading direction round.
    """
    name = unicodedata.normalize("NFC", name).strip()
    if not name:
        raise InvalidInputError("A voice can't have that name: it is empty.", code="invalid_name")
    if len(name) > NAME_MAX_CHARS:
        raise InvalidInputError(
            f"A voice can't have that name: it has {len(name):,} characters, and at most {NAME_MAX_CHARS} are taken.",
            code="invalid_name",
        )
    for character in name:
        if unicodedata.category(character) in _UNPRINTABLE:
            raise InvalidInputError(
                f"A voice can't have that name: it holds the invisible character U+{ord(character):04X}.",
                code="invalid_name",
            )
    if all(c.isspace() or c in _BLANKS or unicodedata.category(c)[0] == "M" for c in name):
        raise InvalidInputError("A voice can't have that name: nothing of it can be seen.", code="invalid_name")
    return name


def printable(text: str) -> str:
    """Return foreign text as a terminal may show it: escapes stand for what it would act on or hide."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in _UNPRINTABLE else c for c in text)


def normalise_lang(lang: str) -> str:
    """Return the two-letter code of a language tag: "en-US" and "EN_us" are "en".

    Raises:
        UnsupportedLangError: no backend speaks it.
    """
    code = re.split("[-_]", lang.strip(), maxsplit=1)[0].lower()
    if code not in LANGS:
        raise UnsupportedLangError.for_lang(lang[:40], supported=LANGS)
    return code


# -- sentences -----------------------------------------------------------------------------------------------

_CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"  # no Hangul: Korean has spaces
_CJK_MARKS = "\u3001\u3002\u300c-\u300f\uff01\uff0c\uff1a\uff1b\uff1f\uff61"
_CJK_STOPS = "。！？｡"
_CLOSERS = "\"'”’»›«)\\]}」』）】〉》"

_BREAK = re.compile(  # a blank line, or a line that begins as an item of a list or as a turn of a dialogue
    r"\n\s*\n|\u2029|\n(?=[ \t]*(?:[-*•‣–—]|\d{1,2}[.)])\s)"
)
_CJK_LINE_END = re.compile(rf"(?<=[{_CJK}{_CJK_MARKS}])\s*\n\s*(?=[{_CJK}{_CJK_MARKS}])")
_SPACE = re.compile(r"\s+")
_STOP = re.compile(  # French sets a space before », where German opens a quotation with it
    rf"(?P<mark>[.!?…{_CJK_STOPS}]+|:(?=\n))(?P<close>(?:[{_CLOSERS}]|\s»(?=[\s.,;:!?)]|$))*)"
)
_TOKEN_BEFORE = re.compile(r"[^\W_]+(?:[.'’-][^\W_]+)*$")
_WORD_AFTER = re.compile(r"[^\w\s]*(\w+)(\.?)")
_DOTTED = re.compile(r"[^\W\d_](?:\.[^\W\d_])+")
_ROMAN = re.compile(r"[IVXL]{2,}|[VX]")  # "I" is a word
_QUOTED_ON = "とっ、，,"  # after 「…」 these go on with the sentence that quotes it


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A stop after one of these is never the end.
_TITLES = _words(
    "mr mrs ms mx dr prof gen col capt lt sgt cpl pvt maj adm cmdr rev hon gov sen rep pres supt messrs mme mlle sra "
    "srta dra sig dott fr hr dipl "
    "e.g i.e eg ie cf vs viz approx incl excl esp ca bzw bspw z.b d.h m.e vgl p.ex т.е напр"
)
# After one of these it is the end only where the next word likely begins a sentence.
_ABBREVIATIONS = _words(
    "st mt ft etc inc ltd co corp jr sr esq bros dept govt assn univ ave blvd rd hwy pkwy apt bldg edn al "
    "a.m p.m ph.d m.d u.s u.k u.n u.s.a u.a usw evtl tel hrs mins secs yrs lbs oz tsp tbsp "
    "jan feb apr jun jul aug sep sept oct nov dec mon tue tues thu thur thurs fri г гг др ул"
)
# Months and days whose short form is a word too: no end where a number or a month follows, as in "On Mar. 7".
_DATED = _words("Mar Sat Sun Wed")
_AFTER_A_DAY = _words(
    "january february march april may june july august september october november december "
    "jan feb mar apr jun jul aug sep sept oct nov dec"
)
# Before a number these stand for "number", "page" and the like.
_NUMBERED = _words("no nos nr núm num ext eq fig figs vol vols p pp ch chap sec art abs bd n")
_MONTHS = _words("januar februar märz april mai juni juli august september oktober november dezember")
_STARTERS = _words(
    "a after all although an and another any are as at before both but by can did do does each every few finally "
    "first for from had has have he her here his how however i if in is it its last later many maybe meanwhile "
    "most my no nobody not nothing now of on once one or our perhaps please she should since so some soon such "
    "that the their then there these they this those though to today tomorrow two was we well were what when "
    "where which while who why will with yes yesterday yet you your "
    "der die das ein eine er sie es wir ich und aber dann le la les un une il elle nous je et mais el los las pero"
)


def sentences(text: str) -> list[str]:
    """Cut a text into the pieces that a reader would take a breath between.

    Knows abbreviations, initials, numbers, ellipses, quotations, lists, wrapped lines, and the stops of Chinese and
    Japanese. Spaces are evened out; every other character is kept, in order.

    Source: the cases of pySBD's "golden rules" (github.com/diasks2/pragmatic_segmenter), answered without a language.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n")
    has_case = text != text.lower()
    return [sentence for block in _BREAK.split(text) for sentence in _sentences_of(block, has_case=has_case)]


def _sentences_of(block: str, *, has_case: bool) -> Iterator[str]:
    block = _CJK_LINE_END.sub("", block)
    block = _SPACE.sub(lambda run: "\n" if "\n" in run.group() else " ", block.strip())
    start = 0
    for stop in _STOP.finditer(block):
        if stop.end() < len(block) and _is_end(block, start, stop, has_case=has_case):
            yield " ".join(block[start : stop.end()].split())
            start = stop.end()
    if rest := block[start:].split():
        yield " ".join(rest)


def _is_end(block: str, start: int, stop: re.Match[str], *, has_case: bool) -> bool:
    """Whether the sentence that began at `start` ends at this stop, which is not the block's last character."""
    mark, closers, after = stop["mark"], stop["close"], block[stop.end()]
    if any(c in _CJK_STOPS for c in mark):
        return not (closers and after in _QUOTED_ON)
    if not after.isspace():
        return mark[-1] in "!?" and re.match(f"[{_CJK}]", after) is not None
    is_line_end = after == "\n"
    goes_on = has_case and block[stop.end() + 1].islower() and not is_line_end
    if mark == ".":
        return _is_full_stop(block, start, stop, has_case=has_case) and not goes_on
    if "!" in mark or "?" in mark:
        return not (closers and goes_on)
    return not goes_on


def _is_full_stop(block: str, start: int, stop: re.Match[str], *, has_case: bool) -> bool:
    """Whether a single dot before a space is more than the mark of an abbreviation, an initial or a number."""
    found = _TOKEN_BEFORE.search(block[max(start, stop.start() - 24) : stop.start()])
    token = found.group() if found else ""
    key = token.casefold()
    following = _WORD_AFTER.match(block, stop.end() + 1)
    word, dot = (following[1], following[2]) if following else ("", "")
    if key in _TITLES or (key in _NUMBERED and (word[:1].isdecimal() or _ROMAN.fullmatch(word))):
        return False
    if token in _DATED and (word[:1].isdecimal() or word.casefold() in _AFTER_A_DAY):
        return False
    is_initial = len(token) == 1 and token.lower() != token.upper()
    if is_initial or key in _ABBREVIATIONS or _DOTTED.fullmatch(token):
        begins = word.casefold() in _STARTERS and not (len(word) == 1 and dot)
        begins = begins and not (has_case and word[:1].islower())
        return begins or (not is_initial and block[stop.end()] == "\n")
    if token.isdecimal():
        is_item = len(token) <= 2 and block[start : stop.start()].strip() == token
        return not is_item and not (len(token) <= 2 and word.casefold() in _MONTHS)
    return True


# -- chunks --------------------------------------------------------------------------------------------------

_CLAUSE_END = re.compile(rf"[;:,][{_CLOSERS}]*(?=\s)|[—、，；：](?=.)|(?<=\s)[–-](?=\s)")


def chunks(text: str, *, max_chars: int, first_max_chars: int | None = None) -> list[str]:
    """Cut a text into what an engine speaks in one go: a sentence, or a part of a long one.

    A sentence too long is cut at clause marks, else at spaces, else anywhere, into parts of like length. Tiny
    sentences join a neighbour; what can't be spoken joins one or is left out.

    Args:
        text: already checked.
        max_chars: the most code points in a chunk.
        first_max_chars: end the first chunk at a clause mark within this length, if there is one, so that sound
            starts early.

    Returns:
        Chunks of 1 to `max_chars` code points, each with something to say.
    """
    parts = [part for sentence in sentences(text) for part in _cut(sentence, max_chars)]
    packed = _pack(parts, max_chars)
    if packed and first_max_chars is not None and len(packed[0]) > first_max_chars:
        packed[:1] = _cut_early(packed[0], first_max_chars)
    return packed


def _cut(sentence: str, max_chars: int) -> Iterator[str]:
    while len(sentence) > max_chars:
        end = _cut_point(sentence, max_chars)
        yield sentence[:end].rstrip()
        sentence = sentence[end:].lstrip()
    if sentence:
        yield sentence


def _cut_point(sentence: str, max_chars: int) -> int:
    """Where to end the first part: near the length at which all parts are alike, so that no scrap is left over."""
    ideal = ceil(len(sentence) / ceil(len(sentence) / max_chars))
    window = sentence[: max_chars + 1]
    for breaks in (_CLAUSE_END, _SPACE):
        ends = [m.end() if breaks is _CLAUSE_END else m.start() for m in breaks.finditer(window)]
        if fitting := [end for end in ends if ideal // 2 < end <= max_chars]:
            return min(fitting, key=lambda end: abs(end - ideal))
    cut = max_chars
    while cut > 1 and _is_joined(sentence[cut - 1], sentence[cut]):
        cut -= 1
    return cut if cut > 1 else max_chars


def _is_joined(left: str, right: str) -> bool:
    """Whether a cut here would part a character from its marks."""
    return "\u200d" in (left, right) or unicodedata.category(right)[0] == "M" or "\U0001f3fb" <= right <= "\U0001f3ff"


def _pack(parts: list[str], max_chars: int) -> list[str]:
    packed: list[str] = []
    for part in parts:
        joined = _join(packed[-1], part) if packed else part
        is_small = not is_speakable(part) or (packed and _is_tiny(packed[-1]))
        if packed and is_small and len(joined) <= max_chars:
            packed[-1] = joined
        else:
            packed.append(part)
    if len(packed) > 1 and _is_tiny(packed[-1]) and len(joined := _join(packed[-2], packed[-1])) <= max_chars:
        packed[-2:] = [joined]
    return [chunk for chunk in packed if is_speakable(chunk)]


def _is_tiny(part: str) -> bool:
    return len(part) <= TINY_CHARS or not is_speakable(part)


def _join(left: str, right: str) -> str:
    is_cjk = re.match(f"[{_CJK}{_CJK_MARKS}]", left[-1]) and re.match(f"[{_CJK}{_CJK_MARKS}]", right[0])
    return left + ("" if is_cjk else " ") + right


def _cut_early(chunk: str, first_max_chars: int) -> list[str]:
    ends = [m.end() for m in _CLAUSE_END.finditer(chunk) if TINY_CHARS < m.end() <= first_max_chars]
    for end in reversed(ends):
        head, tail = chunk[:end].rstrip(), chunk[end:].lstrip()
        if is_speakable(head) and is_speakable(tail):
            return [head, tail]
    return [chunk]


def read_text(source: Path | BinaryIO) -> str:
    """Read a text file, by its path or an open one, as UTF-8.

    Raises:
        FileError: it is not a file, or can't be read.
        TextError: it is longer than anything that is spoken here; not all of it was read.
        TextError: it is not UTF-8.
    """
    content = _content(source) if isinstance(source, Path) else source.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise TextError.too_long(length=len(content.decode("utf-8", "replace")), maximum=MAX_LOCAL_CHARS)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError.invalid_unicode(position=error.start) from error


def _content(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a FIFO would wait for somebody to write into it
            raise FileError.unreadable(path, why="it is a folder" if path.is_dir() else "it is not a regular file")
        with path.open("rb") as file:
            return file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise FileError.unreadable(path, why=(getattr(error, "strerror", None) or str(error)).lower()) from error
