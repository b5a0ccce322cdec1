"""Subtitles of speech as SRT and WebVTT, from its alignment: called by `say` and `narrate`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, pairwise
from textwrap import wrap
from typing import Final, NamedTuple

from afterwords.models import Alignment, word_spans
from afterwords.text import split_sentences

LINE_CHARS: Final = 42
LINES: Final = 2
MIN_S, MAX_S = 1.0, 6.0
"""How long a subtitle is shown. Source of the limits: Netflix's English timed text style guide, with 7 s there."""
_CLAUSE_END: Final = re.compile("[.,;:!?…—–、。，；：！？]")


@dataclass(frozen=True, slots=True)
class Cue:
    """A subtitle, with its times in seconds."""

    start_s: float
    end_s: float
    lines: tuple[str, ...]


def to_srt(speech: Alignment | Sequence[Cue]) -> str:
    """Return the subtitles of speech as an SRT file."""
    blocks = [
        "\n".join((str(number), f"{_clock(cue.start_s, ',')} --> {_clock(cue.end_s, ',')}", *cue.lines, ""))
        for number, cue in enumerate(cues(speech) if isinstance(speech, Alignment) else speech, 1)
    ]
    return "\n".join(blocks)


def to_vtt(speech: Alignment | Sequence[Cue]) -> str:
    """Return the subtitles of speech as a WebVTT file."""
    blocks = [
        "\n".join(
            (f"{_clock(cue.start_s, '.')} --> {_clock(cue.end_s, '.')}", escape("\n".join(cue.lines), quote=False), "")
        )
        for cue in (cues(speech) if isinstance(speech, Alignment) else speech)
    ]
    return "\n".join(("WEBVTT\n", *blocks))


def _clock(seconds: float, mark: str) -> str:
    minutes, ms = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{ms // 1000:02}{mark}{ms % 1000:03}"


class _Unit(NamedTuple):
    """A word with the punctuation and spaces around it: from `start` to `end`, and the word itself."""

    start: int
    end: int
    word_start: int
    word_end: int
    ends_sentence: bool


def cues(alignment: Alignment) -> list[Cue]:
    """Return the subtitles of speech: at most two lines of 42 characters, for 1 to 6 s, that end at punctuation.

    A subtitle is shorter than 1 s if the next one begins, and longer than 6 s if one word is.
    """
    text = "".join(alignment.characters)

    def shown(units: Sequence[_Unit]) -> str:
        return " ".join(text[units[0].start : units[-1].end].split())

    def times(units: Sequence[_Unit]) -> tuple[float, float]:
        return alignment.start_s[units[0].word_start], alignment.end_s[units[-1].word_end - 1]

    def fits(units: Sequence[_Unit]) -> bool:
        start_s, end_s = times(units)
        return len(units) == 1 or (len(_wrap(shown(units))) <= LINES and end_s - start_s <= MAX_S)

    groups: list[list[_Unit]] = [[]]
    for unit in _units(text):
        while not fits([*groups[-1], unit]):
            split = _best_end(text, groups[-1])
            groups[-1:] = [groups[-1][:split], groups[-1][split:]]
        groups[-1].append(unit)
        start_s, end_s = times(groups[-1])
        if unit.ends_sentence and end_s - start_s >= MIN_S:
            groups.append([])
    groups = [group for group in groups if group]
    if len(groups) > 1 and fits(groups[-2] + groups[-1]) and times(groups[-1])[1] - times(groups[-1])[0] < MIN_S:
        groups[-2:] = [groups[-2] + groups[-1]]
    starts = [times(group)[0] for group in groups] + list(alignment.end_s[-1:])
    return [
        Cue(start_s, max(times(group)[1], min(start_s + MIN_S, next_s)), tuple(_balanced(shown(group))))
        for group, (start_s, next_s) in zip(groups, pairwise(starts), strict=True)
    ]


def _balanced(text: str) -> list[str]:
    """Split the text of a subtitle into as few lines as needed, of similar lengths."""
    lines = _wrap(text)
    widths = range(len(text) // len(lines), LINE_CHARS)
    return next((split for width in widths if len(split := _wrap(text, width)) == len(lines)), lines)


def _wrap(text: str, width: int = LINE_CHARS) -> list[str]:
    return wrap(text, width, break_on_hyphens=False)


def _best_end(text: str, units: Sequence[_Unit]) -> int:
    """Return after how many words to end a subtitle: the last clause in its second half, or all of them."""
    for count in range(len(units), len(units) // 2, -1):
        if _CLAUSE_END.search(text, units[count - 1].word_end, units[count - 1].end):
            return count
    return len(units)


def _units(text: str) -> list[_Unit]:
    """Split a text between its words: at the last space, or after the punctuation if there is none."""
    spans = word_spans(text)
    if not spans:
        return []
    cuts = [0]
    for (_, end), (start, _) in pairwise(spans):
        spaces = [at for at in range(end, start) if text[at].isspace()]
        cuts.append(spaces[-1] + 1 if spaces else start)
    n_sounds = list(accumulate((not character.isspace() for character in text), initial=0))
    sentence_ends = set(accumulate(len("".join(sentence.split())) for sentence in split_sentences(text)))
    units = []
    for (start, end), (word_start, word_end) in zip(pairwise([*cuts, len(text)]), spans, strict=True):
        is_long = len(text[start:end].strip()) > LINES * LINE_CHARS  # an address, for example
        parts = range(start + LINE_CHARS, end, LINE_CHARS) if is_long else ()
        for first, last in pairwise([start, *parts, end]):
            inner_start = min(max(first, word_start), last - 1)
            inner_end = max(min(last, word_end), inner_start + 1)
            if text[first:last].strip():
                ends_sentence = last == end and n_sounds[end] in sentence_ends
                units.append(_Unit(first, last, inner_start, inner_end, ends_sentence))
    return units
