"""Text before synthesis: validated, split into sentences, packed into chunks.

The CLI, the SDK and the server validate with `check_text`, so that all of them reject the same text; engines split with
`split_chunks`; `LiveSplitter` splits a text that is still being written.
"""

from __future__ import annotations

import re
import unicodedata
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedReader
from math import ceil
from pathlib import Path
from typing import BinaryIO, Literal

from afterwords.errors import FileError, InvalidInputError, TextError, UnsupportedLangError
from afterwords.models import NAME_MAX_CHARS

LANGS = ("en", "zh", "ja", "ko", "es", "fr", "de", "it", "pt", "ru")
"""Languages that at least one backend speaks, as two-letter codes."""

MAX_REQUEST_CHARS = 5_000
"""Code points in an API request."""

MAX_LOCAL_CHARS = 100_000
"""Code points in a text for local synthesis, about two hours of speech."""

_MAX_BYTES = 4 * MAX_LOCAL_CHARS + 3
"""Bytes of the longest valid text: four per character, and a byte order mark."""

TINY_CHARS = 12
"""A chunk of at most this length is merged with its neighbor: alone, "Yes." sounds clipped and costs a whole pass."""

MAX_SPEECH_BASE_S, MAX_SPEECH_S_PER_CHARACTER = 10.0, 0.6
"""Limits above which audio can't be its text; speech takes 0.07 s per character in English and 0.25 s in Chinese."""

EXPECTED_S_PER_CHARACTER, EXPECTED_S_PER_SYLLABLE = 0.068, 0.2
"""Speaking rates of English, and of Chinese characters, kana and Hangul. The shipped recording has 0.066 s a character,
`lite` took 0.055 to 0.068 s for 904 characters in five voices; announcers of NHK read 300 Japanese ones a minute."""

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_LINE_END = re.compile(r"\r\n|[\r\x0b\x0c\x85\u2028]")  # with page breaks, which text copied from PDF files contains
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_BLANKS = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # fillers: letters or symbols in Unicode, but invisible


def check_text(text: str, *, max_chars: int = MAX_REQUEST_CHARS) -> str:
    """Validate a text and return it without a byte order mark, and with newlines for all line ends and page breaks.

    Raises:
        TextError: The text has a lone surrogate, a control character other than whitespace, more than `max_chars` code
            points, or no letter, digit or symbol.
    """
    if broken := _SURROGATE.search(text):
        raise TextError(f"The text is not valid Unicode at position {broken.start()}.", code="invalid_unicode")
    if control := _CONTROL.search(text):
        raise TextError(
            f"The text contains the control character U+{ord(control.group()):04X} at position {control.start()}; "
            "of those, only tabs, line ends and page breaks are allowed.",
            code="control_character",
        )
    text = _LINE_END.sub("\n", text.lstrip("\ufeff")).replace("\u2029", "\n\n")
    if len(text) > max_chars:
        raise TextError(f"The text has {len(text):,} characters; the limit is {max_chars:,}.", code="text_too_long")
    if not is_speakable(text):
        raise TextError(code="empty_text")
    return text


def is_speakable(text: str) -> bool:
    """Return whether a text has a letter, digit or symbol; punctuation alone is silent."""
    return any(unicodedata.category(c)[0] in "LNS" and c not in _BLANKS for c in text)


def describe_left_out(backend: str, words: Sequence[str]) -> str:
    """Return a sentence that names the words of a text that a backend can't speak."""
    shown = ", ".join(printable(word[:40]) for word in words[:5]) + (", …" if len(words) > 5 else "")
    which = "a word" if len(words) == 1 else f"{len(words)} words"
    return f"{backend} can't speak {which} of the text and leaves out: {shown}"


def max_speech_s(text: str, *, speed: float = 1.0) -> float:
    """Return the longest plausible duration of a text in seconds; longer audio means that the engine missed the end."""
    return (MAX_SPEECH_BASE_S + MAX_SPEECH_S_PER_CHARACTER * len(text)) / speed


def expected_speech_s(text: str, *, speed: float = 1.0) -> float:
    """Return about how long a text takes to speak, in seconds."""
    n_syllables = len(_SYLLABLE.findall(text))
    return (EXPECTED_S_PER_CHARACTER * (len(text) - n_syllables) + EXPECTED_S_PER_SYLLABLE * n_syllables) / speed


def check_name(name: str) -> str:
    """Validate the name of a voice and return it in NFC, without surrounding space.

    Raises:
        InvalidInputError: The name is empty, invisible or too long, or contains a control or format character, such as
            one that reverses the reading direction.
    """
    name = unicodedata.normalize("NFC", name).strip()
    hidden = [character for character in name if unicodedata.category(character) in _UNPRINTABLE]
    problem = ""
    if not name:
        problem = "is empty"
    elif len(name) > NAME_MAX_CHARS:
        problem = f"has {len(name):,} characters; the limit is {NAME_MAX_CHARS}"
    elif hidden:
        problem = f"contains the invisible character U+{ord(hidden[0]):04X}"
    elif all(c.isspace() or c in _BLANKS or unicodedata.category(c)[0] == "M" for c in name):
        problem = "has no visible character"
    if problem:
        raise InvalidInputError(f"The voice name {problem}.", code="invalid_name")
    return name


def printable(text: str) -> str:
    """Return a text with escapes for characters that a terminal would act on or hide."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in _UNPRINTABLE else c for c in text)


def normalize_lang(lang: str) -> str:
    """Return the two-letter code of a language tag: "en" for "en-US" and "EN_us".

    Raises:
        UnsupportedLangError: No backend speaks the language.
    """
    code = re.split("[-_]", lang.strip(), maxsplit=1)[0].lower()
    if code not in LANGS:
        raise UnsupportedLangError.for_lang(lang[:40], supported=LANGS)
    return code


# -- sentences -----------------------------------------------------------------------------------------------

_CJK = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"  # no Hangul: Korean has spaces
_SYLLABLE = re.compile(f"[{_CJK}\uac00-\ud7a3]")
_CJK_MARKS = "\u3001\u3002\u300c-\u300f\uff01\uff0c\uff1a\uff1b\uff1f\uff61"
_CJK_STOPS = "。！？｡"
_CLOSERS = "\"'”’»›«)\\]}」』）】〉》"

_BREAK = re.compile(  # a blank line, or a line that starts a list item or a line of dialog
    r"\n\s*\n|\u2029|\n(?=[ \t]*(?:[-*•‣–—]|\d{1,2}[.)])\s)"
)
_CJK_LINE_END = re.compile(rf"(?<=[{_CJK}{_CJK_MARKS}])\s*\n\s*(?=[{_CJK}{_CJK_MARKS}])")
_SPACE = re.compile(r"\s+")
_STOP = re.compile(  # French has a space before », with which German opens a quotation
    rf"(?P<mark>[.!?…{_CJK_STOPS}]+|:(?=\n))(?P<close>(?:[{_CLOSERS}]|\s»(?=[\s.,;:!?)]|$))*)"
)
_TOKEN_BEFORE = re.compile(r"[^\W_]+(?:[.'’-][^\W_]+)*$")
_WORD_AFTER = re.compile(r"[^\w\s]*(\w+)(\.?)")
_DOTTED = re.compile(r"[^\W\d_](?:\.[^\W\d_])+")
_ROMAN = re.compile(r"[IVXL]{2,}|[VX]")  # "I" is a word
_QUOTED_ON = "とっ、，,"  # after 「…」 these continue the sentence that contains the quotation


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# A period after one of these never ends a sentence.
_TITLES = _words(
    "mr mrs ms mx dr prof gen col capt lt sgt cpl pvt maj adm cmdr rev hon gov sen rep pres supt messrs mme mlle sra "
    "srta dra sig dott fr hr dipl "
    "e.g i.e eg ie cf vs viz approx incl excl esp ca bzw bspw z.b d.h m.e vgl p.ex т.е напр"
)
# A period after one of these ends a sentence only if the next word is likely to start one.
_ABBREVIATIONS = _words(
    "st mt ft etc inc ltd co corp jr sr esq bros dept govt assn univ ave blvd rd hwy pkwy apt bldg edn al "
    "a.m p.m ph.d m.d u.s u.k u.n u.s.a u.a usw evtl tel hrs mins secs yrs lbs oz tsp tbsp "
    "jan feb apr jun jul aug sep sept oct nov dec mon tue tues thu thur thurs fri г гг др ул"
)
# Months and days whose abbreviation is also a word: no end before a number or a month, as in "On Mar. 7".
_DATED = _words("Mar Sat Sun Wed")
_AFTER_A_DAY = _words(
    "january february march april may june july august september october november december "
    "jan feb mar apr jun jul aug sep sept oct nov dec"
)
# Before a number these abbreviate "number", "page" and similar words.
_NUMBERED = _words("no nos nr núm num ext est eq fig figs vol vols p pp ch chap sec art abs bd n")
_MONTHS = _words("januar februar märz april mai juni juli august september oktober november dezember")
_STARTERS = _words(
    "a after all although an and another any are as at before both but by can did do does each every few finally "
    "first for from had has have he her here his how however i if in is it its last later many maybe meanwhile "
    "most my no nobody not nothing now of on once one or our perhaps please she should since so some soon "  # quoted
    "such that the their then there these they this those though to today tomorrow two was we well were what when "
    "where which while who why will with yes yesterday yet you your "
    "der die das ein eine er sie es wir ich und aber dann le la les un une il elle nous je et mais el los las pero"
)


def split_sentences(text: str) -> list[str]:
    """Split a text into sentences.

    This handles abbreviations, initials, numbers, ellipses, quotations, lists, wrapped lines, and the punctuation of
    Chinese and Japanese. Runs of whitespace become one space; every other character is kept, in order.

    Source: the "golden rules" of pragmatic_segmenter (github.com/diasks2/pragmatic_segmenter), without its language
    argument.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n")
    has_case = text != text.lower()
    sentences = []
    for part in _BREAK.split(text):
        block = _CJK_LINE_END.sub("", part)
        block = _SPACE.sub(lambda run: "\n" if "\n" in run.group() else " ", block.strip())
        start = 0
        for stop in _STOP.finditer(block):
            if stop.end() < len(block) and _is_end(block, start, stop, has_case=has_case):
                sentences.append(" ".join(block[start : stop.end()].split()))
                start = stop.end()
        if rest := block[start:].split():
            sentences.append(" ".join(rest))
    return sentences


def _is_end(block: str, start: int, stop: re.Match[str], *, has_case: bool) -> bool:
    """Return whether the sentence that starts at `start` ends at this stop, which is not the last of the block."""
    mark, closers, after = stop["mark"], stop["close"], block[stop.end()]
    if any(c in _CJK_STOPS for c in mark):
        return not (closers and after in _QUOTED_ON)
    if not after.isspace():
        return mark[-1] in "!?" and re.match(f"[{_CJK}]", after) is not None
    is_line_end = after == "\n"
    continues = has_case and block[stop.end() + 1].islower() and not is_line_end
    if mark != ".":
        return not continues or (not closers and ("!" in mark or "?" in mark))
    if continues:
        return False
    # A period before a space ends a sentence, or an abbreviation, initial or number.
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
        starts = word.casefold() in _STARTERS and not (len(word) == 1 and dot)
        starts = starts and not (has_case and word[:1].islower())
        return starts or (not is_initial and is_line_end)
    if token.isdecimal():
        is_item = len(token) <= 2 and block[start : stop.start()].strip() == token
        return not is_item and not (len(token) <= 2 and word.casefold() in _MONTHS)
    return True


# -- chunks --------------------------------------------------------------------------------------------------

_CLAUSE_END = re.compile(rf"[;:,][{_CLOSERS}]*(?=\s)|[—、，；：](?=.)|(?<=\s)[–-](?=\s)")


def split_chunks(text: str, *, max_chars: int, first_max_chars: int | None = None) -> list[str]:
    """Split a text into chunks that an engine speaks in one pass: sentences, or parts of long ones.

    A long sentence is split into parts of similar length at clause marks, else at spaces, else anywhere. Tiny sentences
    are merged with a neighbor; parts that can't be spoken are merged or left out.

    Args:
        text: Validated text.
        max_chars: Code points in a chunk at most.
        first_max_chars: End the first chunk at a clause mark within this length, if there is one, so that audio starts
            early.

    Returns:
        Chunks of 1 to `max_chars` code points, each with something to speak.
    """
    parts = []
    for sentence in split_sentences(text):
        rest = sentence
        while len(rest) > max_chars:
            end = _split_point(rest, max_chars)
            parts.append(rest[:end].rstrip())
            rest = rest[end:].lstrip()
        if rest:
            parts.append(rest)
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
    packed = [chunk for chunk in packed if is_speakable(chunk)]
    if packed and first_max_chars is not None and len(packed[0]) > first_max_chars:
        ends = [m.end() for m in _CLAUSE_END.finditer(packed[0]) if TINY_CHARS < m.end() <= first_max_chars]
        for end in reversed(ends):
            head, tail = packed[0][:end].rstrip(), packed[0][end:].lstrip()
            if is_speakable(head) and is_speakable(tail):
                packed[:1] = [head, tail]
                break
    return packed


def _split_point(sentence: str, max_chars: int) -> int:
    """Return where to end the first part: near the length that makes all parts similar, so that none is tiny."""
    ideal = ceil(len(sentence) / ceil(len(sentence) / max_chars))
    window = sentence[: max_chars + 1]
    for breaks in (_CLAUSE_END, _SPACE):
        ends = [m.end() if breaks is _CLAUSE_END else m.start() for m in breaks.finditer(window)]
        if fitting := [end for end in ends if ideal // 2 < end <= max_chars]:
            return min(fitting, key=lambda end: abs(end - ideal))
    cut = max_chars
    while cut > 1 and (
        "\u200d" in sentence[cut - 1 : cut + 1]  # a split here would separate a character from its marks
        or unicodedata.category(sentence[cut])[0] == "M"
        or "\U0001f3fb" <= sentence[cut] <= "\U0001f3ff"
    ):
        cut -= 1
    return cut if cut > 1 else max_chars


def _is_tiny(part: str) -> bool:
    return len(part) <= TINY_CHARS or not is_speakable(part)


def _join(left: str, right: str) -> str:
    is_cjk = re.match(f"[{_CJK}{_CJK_MARKS}]", left[-1]) and re.match(f"[{_CJK}{_CJK_MARKS}]", right[0])
    return left + ("" if is_cjk else " ") + right


# -- text that is still being written ------------------------------------------------------------------------

Granularity = Literal["sentence", "clause"]

FIRST_UNIT_S, UNIT_S = 0.8, 2.5
"""Shortest speech of the first unit, which starts the audio, and of later ones, which sound better long."""
UNIT_MAX_CHARS = 280
"""Longest unit: text without punctuation is split there, as an engine would."""
SENTENCE_PAUSE_S, CLAUSE_PAUSE_S = 0.15, 0.06
"""Silence between two units, after a sentence and elsewhere."""
_WORD_MAX = 24  # characters after which a word counts as complete: Chinese has no spaces
_UNIT_BREAK = re.compile(rf"(?:{_BREAK.pattern})|(?:^|\n)#{{1,6}} [^\n]*\n")  # also the heading of a Markdown text


class LiveSplitter:
    """Split a text that is still being written into units to speak.

    The units together are the text, character for character. A unit ends once the text after it shows that it does: the
    period of "3." may turn out to be a decimal point. It does not depend on how the text was cut into pieces.

    Args:
        by: End units at sentences, or also at clauses, which starts the audio earlier.
    """

    def __init__(self, by: Granularity = "sentence") -> None:
        self._marks = [_UNIT_BREAK, _STOP, *([_CLAUSE_END] if by == "clause" else [])]
        self._rest = ""
        self._minimum_s = FIRST_UNIT_S
        self._has_case = False

    def feed(self, piece: str) -> list[str]:
        """Add a piece of the text, and return the units that are complete."""
        self._rest += piece
        return self._take(is_whole=False)

    def flush(self) -> list[str]:
        """Return the rest of the text as units. The last one may have nothing to speak, see `is_speakable`."""
        units = self._take(is_whole=True)
        if self._rest:
            units.append(self._rest)
            self._rest = ""
        return units

    def _take(self, *, is_whole: bool) -> list[str]:
        units = []
        while end := self._find_end(is_whole=is_whole):
            units.append(self._rest[:end])
            self._has_case = self._has_case or units[-1] != units[-1].lower()
            self._rest = self._rest[end:]
            self._minimum_s = UNIT_S
        return units

    def _find_end(self, *, is_whole: bool) -> int | None:
        """Return where the first unit of the rest ends, after its whitespace, if that is certain."""
        window = self._rest[: UNIT_MAX_CHARS + 1]
        first = next((i for i, character in enumerate(window) if is_speakable(character)), len(window))
        ends: list[int] = []
        undecided = len(self._rest) + 1  # the first place that more text may show to be an end
        for marks in self._marks:
            for mark in marks.finditer(window):
                if mark.end() <= first:
                    continue
                end = self._skip_space(mark.end())
                if end is None or not self._is_long(
                    self._rest[:end]
                ):  # more text could belong to the mark, or the space
                    continue
                is_end = self._is_stop(mark, end, is_whole=is_whole) if marks is _STOP else True
                if is_end is None:
                    undecided = end
                elif is_end:
                    ends.append(end)
                if is_end is not False:
                    break
        if ends and min(ends) <= undecided:
            return min(ends)
        if undecided <= len(self._rest):
            return None
        return _split_point(window, UNIT_MAX_CHARS) if len(window) > UNIT_MAX_CHARS else None

    def _skip_space(self, position: int) -> int | None:
        """Return where the whitespace after a position ends; None if the text ends first."""
        while position < len(self._rest):
            if not self._rest[position].isspace():
                return position
            position += 1
        return None

    def _is_stop(self, stop: re.Match[str], end: int, *, is_whole: bool) -> bool | None:
        """Return whether a sentence ends at this stop; None until the next word is there, which decides it."""
        space = self._rest[stop.end() : end]
        following = self._rest[end : end + _WORD_MAX]
        if stop["mark"] == ".":
            word = _WORD_AFTER.match(following)
            if not is_whole and len(following) < _WORD_MAX and (word is None or word.end() == len(following)):
                return None
            following = following[: word.end() + 1] if word else following
        else:
            following = following[0]
        block = self._rest[: stop.end()] + ("\n" if "\n" in space else " " if space else "") + following
        start = max((mark.end() for mark in _UNIT_BREAK.finditer(stop.string) if mark.end() <= stop.start()), default=0)
        return _is_end(block, start, stop, has_case=self._has_case or block != block.lower())

    def _is_long(self, unit: str) -> bool:
        return is_speakable(unit) and expected_speech_s(unit.strip()) >= self._minimum_s


def split_live(pieces: Iterable[str], by: Granularity = "sentence") -> Iterator[str]:
    """Yield the units of a text that have something to speak, as soon as each is complete."""
    splitter = LiveSplitter(by)
    for piece in pieces:
        yield from filter(is_speakable, splitter.feed(piece))
    yield from filter(is_speakable, splitter.flush())


def pause_after_s(unit: str) -> float:
    """Return the silence between a unit and the next one, in seconds."""
    is_sentence = (
        unit.rstrip().rstrip("*_" + "\"'”’»›«)]}」』）】〉》").endswith((*".!?…", *_CJK_STOPS)) or "\n" in unit
    )
    return SENTENCE_PAUSE_S if is_sentence else CLAUSE_PAUSE_S


def read_pieces(source: BufferedReader) -> Iterator[str]:
    """Yield a UTF-8 text as it arrives in an open file.

    Raises:
        TextError: It is not UTF-8.
    """
    decoder = getincrementaldecoder("utf-8-sig")()
    n_bytes = 0
    # Past the buffer: if a thread holds its lock when the program ends, Python aborts.
    unbuffered = getattr(source, "raw", source)
    try:
        while data := unbuffered.read(64 * 1024):
            yield decoder.decode(data)
            n_bytes += len(data)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        why = f"The text is not valid Unicode after byte {n_bytes:,}."
        raise TextError(why, code="invalid_unicode") from None


def read_text(source: Path | BinaryIO) -> str:
    """Read a UTF-8 text from a path or an open file.

    Raises:
        FileError: The path is not a regular file, or can't be read.
        TextError: The text is longer than MAX_LOCAL_CHARS, so not all of it was read; or it is not UTF-8.
    """
    if isinstance(source, Path):
        try:
            if source.exists() and not source.is_file():  # opening a FIFO would block
                why = "it is a folder" if source.is_dir() else "it is not a regular file"
                raise FileError.unreadable(source, why)
            with source.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            why = (getattr(error, "strerror", None) or str(error)).lower()
            raise FileError.unreadable(source, why) from error
    else:
        content = source.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        why = f"The text has more characters than are spoken at once; the limit is {MAX_LOCAL_CHARS:,}."
        raise TextError(why, code="text_too_long")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        why = f"The text is not valid Unicode at position {error.start}."
        raise TextError(why, code="invalid_unicode") from error
