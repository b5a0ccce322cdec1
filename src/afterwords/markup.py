"""Markup in a text to speak: pauses, changes of voice and emotion in brackets, and a subset of SSML.

`speech.speak` speaks a Script, so that all doors read the same markup. Other markup is spoken as it is written, with a
notice.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from typing import Final
from xml.parsers import expat

from afterwords.errors import TextError
from afterwords.models import LexiconEntry, Reading, WordTiming
from afterwords.text import expected_speech_s, is_speakable

MAX_PAUSE_S: Final = 5.0
"""Longest pause. Its tag has ten characters, so `max_speech_s` holds for a text of pauses, too."""
MIN_RATE, MAX_RATE = 0.5, 2.0
MAX_NOTICES: Final = 10

_BRACKETS = re.compile(
    r"\[(?P<kind>pause|voice)\b(?P<value>[^\[\]\n]*+)(?P<inner>(?:\[[^\[\]\n]*+\][^\[\]\n]*+)*+)(?P<end>\])?"
    r"|\[(?P<emotion>[a-z][a-z-]{1,30}+)\]",
    re.IGNORECASE,
)
_DURATION = re.compile(r"\s*(?P<number>\d{1,6}(?:\.\d{1,6})?|\.\d{1,6})\s?(?P<unit>ms|s)\s*", re.IGNORECASE)
_RATE = re.compile(r"(?P<sign>[+-]?)(?P<number>\d{1,4}(?:\.\d{1,4})?)(?P<percent>%?)")
_STRENGTHS: Final = {"none": 0.0, "x-weak": 0.1, "weak": 0.25, "medium": 0.5, "strong": 0.8, "x-strong": 1.2}
_RATES: Final = {"x-slow": 0.6, "slow": 0.8, "medium": 1.0, "default": 1.0, "fast": 1.25, "x-fast": 1.6}
_ELEMENTS: Final = frozenset({"audio", "emphasis", "lang", "mark", "phoneme", "say-as", "speak", "sub", "voice"})
"""Elements that a notice may name; other names may be anything."""
_LETTER_BY_LETTER: Final = frozenset({"characters", "spell-out", "verbatim", "digits"})


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a text that is spoken in one way.

    Attributes:
        text: What is spoken; empty if only a pause is left at the end.
        starts: For each of its characters, the position in the text with markup.
        ends: For each of its characters, the position after it, or after all that an alias replaces.
        pause_s: Silence before it at a speed of 1, in seconds.
        rate: Speaking rate relative to the rest of the text.
        voice: Name of another voice that speaks it; None is the voice of the request.
        emotion: Name of a take of the voice; None is its recording.
        pronunciations: IPA of words of the text that stand for others.
    """

    text: str = field(repr=False)
    starts: Sequence[int] = field(repr=False)
    ends: Sequence[int] = field(repr=False)
    pause_s: float = 0.0
    rate: float = 1.0
    voice: str | None = None
    emotion: str | None = None
    pronunciations: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Script:
    """A text with its markup read.

    Attributes:
        source: The text with markup.
        segments: Its parts, in order.
        notices: Sentences about markup that is spoken as text or ignored. They are ASCII and don't repeat the text.
    """

    source: str = field(repr=False)
    segments: tuple[Segment, ...]
    notices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The spoken text, without markup."""
        return " ".join(segment.text for segment in self.segments if segment.text)

    def expected_s(self, *, speed: float = 1.0) -> float:
        """Return about how long the text takes to speak, in seconds."""
        return sum(
            segment.pause_s / speed + expected_speech_s(segment.text, speed=speed * segment.rate)
            for segment in self.segments
        )

    def words_in_source(self, words: Iterable[WordTiming], segment: Segment | None = None) -> list[WordTiming]:
        """Return words with their positions in the text with markup; an alias is one word there.

        Args:
            words: Words of a segment, in order.
            segment: The segment; None if the words are those of `text`.
        """
        if segment is None:
            spoken = [each for each in self.segments if each.text]
            starts: Sequence[int] = [at for each in spoken for at in (*each.starts, each.ends[-1])]
            ends: Sequence[int] = [at for each in spoken for at in (*each.ends, each.ends[-1])]
        else:
            starts, ends = segment.starts, segment.ends
        found: list[WordTiming] = []
        for word in words:
            start, end = starts[word.start], ends[word.start + len(word.text) - 1]
            if found and found[-1].start == start:
                found[-1] = found[-1].model_copy(update={"end_s": word.end_s})
            elif end > start:
                found.append(word.model_copy(update={"text": self.source[start:end], "start": start}))
        return found


def parse(
    text: str,
    *,
    emotions: Collection[str] = (),
    has_voices: bool = False,
    lexicon: tuple[LexiconEntry, ...] = (),
    reads_ipa: bool = True,
) -> Script:
    """Read the markup of a validated text.

    Args:
        text: The text. If it begins with `<speak`, it is SSML; otherwise it may have tags in brackets.
        emotions: Names of the takes of the voice; other words in brackets are text.
        has_voices: Whether `[voice:name]` changes the voice, as in a narration; otherwise it is text.
        lexicon: Words that are spoken in another way.
        reads_ipa: Whether the engine reads IPA; otherwise only aliases count.

    Raises:
        TextError: It is SSML without any text or pause.
    """
    script = _Writer(text, lexicon, reads_ipa=reads_ipa)
    if not text.lstrip().startswith("<speak"):
        _read_brackets(text, script, emotions, has_voices=has_voices)
        return script.finish()
    try:
        _SsmlReader(text, script).read()
    except expat.ExpatError as error:
        why = f"it is not valid XML ({expat.errors.messages[error.code]}, line {error.lineno})"
        script = _Writer(text, lexicon, reads_ipa=reads_ipa)
        script.write(text, 0)
        script.note(f"The SSML is spoken as text: {why}.")
    return script.finish()


def reading_of(text: str, *, lexicon: tuple[LexiconEntry, ...], emotions: Collection[str]) -> Reading:
    """Return the part of a lexicon, and of the names of takes, that a text may use. It reads the text in the same way.

    Raises:
        TextError: As for `parse`.
    """
    written, spoken = text.lower(), _fold(parse(text).text) if lexicon else ""
    return Reading(
        lexicon=tuple(entry for entry in lexicon if _fold(entry.word) in spoken),
        emotions=tuple(sorted(name for name in {*emotions} if f"[{name}]" in written)),
    )


class _Writer:
    """Collects what is spoken, and ends a segment where the way of speaking changes."""

    def __init__(self, source: str, lexicon: tuple[LexiconEntry, ...], *, reads_ipa: bool) -> None:
        self._source = source
        any_case = {_fold(entry.word): entry for entry in lexicon if entry.word == entry.word.lower()}
        self._lexicon = any_case | {entry.word: entry for entry in lexicon}
        self._words = _pattern(lexicon)
        self.reads_ipa = reads_ipa
        self._segments: list[Segment] = []
        self._notices: dict[str, None] = {}
        self._parts: list[str] = []
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._pronunciations: dict[str, str] = {}
        self._pause_s = 0.0
        self.rate = 1.0
        self.voice: str | None = None
        self.emotion: str | None = None

    def write(self, text: str, start: int, end: int | None = None) -> None:
        """Add spoken text.

        Args:
            text: The text.
            start: Its position in the source.
            end: Where the part of the source ends that the text replaces; None if it is that part. Then words of the
                lexicon are replaced.
        """
        if end is not None:
            self._add(text, [start] * len(text), [end] * len(text))
            return
        at = 0
        for found in self._words.finditer(text) if self._words else ():
            entry = self._lexicon.get(found[0]) or self._lexicon[_fold(found[0])]
            self._add(text[at : found.start()], range(start + at, start + found.start()))
            self.pronounce(found[0], start + found.start(), start + found.end(), ipa=entry.ipa, alias=entry.alias)
            at = found.end()
        self._add(text[at:], range(start + at, start + len(text)))

    def pronounce(self, word: str, start: int, end: int, *, ipa: str | None, alias: str | None = None) -> None:
        """Add a word of the source with its sounds if the engine reads them, or else its alias if it has one."""
        if ipa and self.reads_ipa:
            alias = _stand_in(ipa, is_capital=word[:1].isupper())
            self._pronunciations[alias.lower()] = ipa
        elif ipa and not alias:
            self.note("The backend does not read IPA, so words with sounds but no alias are spoken as written.")
        self.write(alias or word, start, end)

    def _add(self, text: str, starts: Sequence[int], ends: Sequence[int] | None = None) -> None:
        self._parts.append(text)
        self._starts += starts
        self._ends += range(starts[0] + 1, starts[-1] + 2) if ends is None and starts else ends or ()

    def pause(self, seconds: float) -> None:
        """Add silence."""
        self.end_segment()
        self._pause_s += seconds

    def end_segment(self) -> None:
        """End the segment before the way of speaking changes; text without a sound is left out."""
        text = "".join(self._parts)
        if is_speakable(text):
            self._append(text)
        self._parts, self._starts, self._ends, self._pronunciations = [], [], [], {}

    def _append(self, text: str) -> None:
        self._segments.append(
            Segment(
                text,
                tuple(self._starts),
                tuple(self._ends),
                self._pause_s,
                self.rate,
                self.voice,
                self.emotion,
                self._pronunciations,
            )
        )
        self._pause_s = 0.0

    def note(self, notice: str) -> None:
        """Add a notice, once."""
        if len(self._notices) < MAX_NOTICES:
            self._notices[notice] = None

    def finish(self) -> Script:
        """Return the script."""
        if not self._segments and "".join(self._parts) == self._source:  # no markup: nothing was moved
            n_chars = len(self._source)
            plain = Segment(self._source, range(n_chars), range(1, n_chars + 1))
            return Script(self._source, (plain,), tuple(self._notices))
        self.end_segment()
        if self._pause_s:
            self._append("")
        if not self._segments:
            raise TextError(code="empty_text")
        return Script(self._source, tuple(self._segments), tuple(self._notices))


@lru_cache(maxsize=32)
def _pattern(lexicon: tuple[LexiconEntry, ...]) -> re.Pattern[str] | None:
    """Return a pattern for the words of a lexicon, of several the longest."""
    words = sorted({entry.word for entry in lexicon}, key=len, reverse=True)
    each = [f"(?i:{re.escape(word)})" if word == word.lower() else re.escape(word) for word in words]
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(each)})(?![^\W_])") if each else None


def _fold(word: str) -> str:
    """Return the same for all words that `re.IGNORECASE` finds equal; a folded İ or ı would not be i."""
    return word.replace("İ", "i").casefold().replace("ı", "i")


def _stand_in(ipa: str, *, is_capital: bool) -> str:
    """Return a word of letters that no text has, for sounds: an engine looks it up in `SpeechTask.pronunciations`."""
    digest = sha256(ipa.encode()).digest()[:6]
    return ("Zq" if is_capital else "zq") + "".join(chr(ord("a") + byte % 26) for byte in digest) + "qz"


def _pause_s(written: str, script: _Writer) -> float | None:
    """Return a written duration in seconds, at most MAX_PAUSE_S; None if it is not one."""
    found = _DURATION.fullmatch(written)
    if found is None:
        return None
    seconds = float(found["number"]) / (1000 if found["unit"].lower() == "ms" else 1)
    if seconds > MAX_PAUSE_S:
        script.note(f"A pause was shortened to {MAX_PAUSE_S:g} s, the longest; several in a row add up.")
    return min(seconds, MAX_PAUSE_S)


# -- brackets ------------------------------------------------------------------------------------------------


def _read_brackets(text: str, script: _Writer, emotions: Collection[str], *, has_voices: bool) -> None:
    at = 0
    while found := _BRACKETS.search(text, at):
        script.write(text[at : found.start()], at)
        at = found.end() if found["end"] or found["emotion"] else found.end("value")
        value = found["value"] or ""
        kind = (found["kind"] or "").lower()
        where = f"The tag at position {found.start()} is spoken as text:"
        problem = ""
        if found["emotion"]:
            name = found["emotion"].lower()
            if name in emotions:
                script.end_segment()
                script.emotion = name
            else:
                problem = "the voice has no take of that name."
        elif not found["end"]:
            problem = "its closing bracket is missing."
        elif found["inner"]:
            problem = "it contains another tag."
        elif kind == "pause" and (seconds := _pause_s(value.removeprefix(":"), script)) is not None:
            script.pause(seconds)
        elif kind == "pause":
            problem = "a pause needs a duration, as in [pause 1.5s]."
        elif not value.startswith(":"):
            problem = "a voice needs a name, as in [voice:anna]."
        elif has_voices:
            script.end_segment()
            script.voice = value[1:].strip() or None
        else:
            problem = "one voice speaks here; `afterwords narrate` reads with several."
        if problem:
            script.write(text[found.start() : at], found.start())
            script.note(f"{where} {problem}")
    script.write(text[at:], at)


# -- SSML ----------------------------------------------------------------------------------------------------


class _SsmlReader:
    """Reads SSML. A document type, and with it any entity, is impossible after `<speak`: it is a syntax error there.

    Source: https://www.w3.org/TR/speech-synthesis11/
    """

    def __init__(self, text: str, script: _Writer) -> None:
        self.script = script
        self._text = text
        self._data = text.encode()
        self._byte = self._at = 0  # the same place, in bytes and in characters
        self._open: list[_Element] = []
        self._parser = expat.ParserCreate("UTF-8")
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters

    def read(self) -> None:
        """Read the text.

        Raises:
            ExpatError: It is not well-formed.
        """
        self._parser.Parse(self._data, True)

    def _position(self) -> int:
        """Return the position of the current event in the text."""
        byte = self._parser.CurrentByteIndex
        self._at += len(self._data[self._byte : byte].decode())
        self._byte = byte
        return self._at

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        element = _Element(self._position(), self.script.rate)
        owner = self._open[-1] if self._open else None
        self._open.append(element)
        if owner and owner.replacement is not None:  # within an alias, only the alias counts
            element.replacement = ""
            return
        match name:
            case "break":
                self._break(attributes)
            case "sub" if "alias" in attributes:
                element.replacement = attributes["alias"]
            case "phoneme" if attributes.get("alphabet", "ipa") == "ipa" and attributes.get("ph", "").strip():
                element.ipa = attributes["ph"].strip()
            case "prosody":
                self._prosody(attributes, element.rate)
            case "say-as" if "interpret-as" in attributes:
                element.say_as = attributes["interpret-as"].lower()
            case "speak" if owner is None:
                pass
            case "p" | "s":
                self._end_sentence()
            case _:
                shown = f"<{name}>" if name in _ELEMENTS else "an unknown element"
                self.script.note(f"SSML: {shown} is not supported here, or lacks an attribute; it is ignored.")

    def _break(self, attributes: dict[str, str]) -> None:
        seconds: float | None = _STRENGTHS.get(attributes.get("strength", "medium"))
        if "time" in attributes:
            seconds = _pause_s(attributes["time"], self.script)
        if seconds is None:
            self.script.note("SSML: a <break> is ignored: its time must be like 1.5s or 500ms.")
        elif seconds:
            self.script.pause(seconds)

    def _prosody(self, attributes: dict[str, str], before: float) -> None:
        if set(attributes) - {"rate"}:
            self.script.note("SSML: of <prosody>, only the rate is read.")
        if (written := attributes.get("rate")) is None:
            return
        rate = _RATES.get(written.strip().lower())
        found = _RATE.fullmatch(written.strip())
        if found:
            value = float(found["number"]) / (100 if found["percent"] else 1)
            rate = value if not found["sign"] else 1 + value if found["sign"] == "+" else 1 - value
        if rate is None:
            self.script.note("SSML: a rate is ignored: it must be like 80%, +20%, 1.2 or slow.")
            return
        self.script.end_segment()
        self.script.rate = min(MAX_RATE, max(MIN_RATE, before * rate))

    def _end(self, name: str) -> None:
        element = self._open.pop()
        end = self._position()
        if self._text.startswith("</", end):  # and not the end of <…/>
            end = self._text.index(">", end) + 1
        if element.replacement:
            self.script.write(element.replacement, element.start, end)
        if element.rate != self.script.rate:
            self.script.end_segment()
            self.script.rate = element.rate
        if name in {"p", "s"}:
            self._end_sentence()

    def _end_sentence(self) -> None:
        self.script.write("\n\n", self._at, self._at)

    def _characters(self, text: str) -> None:
        start = self._position()
        element = self._open[-1]
        if element.replacement is not None:
            return
        if element.ipa and text.strip():
            self.script.pronounce(text, start, start + len(text), ipa=element.ipa)
            if self.script.reads_ipa:  # text comes in parts, at line ends and entities, but the sounds once
                element.replacement = ""
            return
        end = None
        if element.say_as in _LETTER_BY_LETTER:
            text, end = " ".join(filter(str.isalnum, text)), start + len(text)
        elif self._text[start] == "&" and not self._text.startswith(text, start):  # an entity such as &lt;
            end = self._text.index(";", start) + 1
        self.script.write(text, start, end)


@dataclass(slots=True)
class _Element:
    """An open element: where it starts, what is spoken in its place, and the rate that returns after it."""

    start: int
    rate: float
    replacement: str | None = None
    ipa: str | None = None
    say_as: str | None = None
