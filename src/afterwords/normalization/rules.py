"""Rules that replace written forms by words: patterns with a template or a function.

Every pattern runs in linear time: repeats are possessive (`++`), and a lookbehind prevents a match from starting
inside a repeat.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Say = Callable[[re.Match[str]], str]
Rule = tuple[re.Pattern[str], str | Say]


def compile_rules(*rules: tuple[str, str | Say]) -> list[Rule]:
    """Return rules with compiled patterns."""
    return [(re.compile(pattern), said) for pattern, said in rules]


def apart(say: Say) -> Say:
    """Separate spoken words from adjacent letters and digits, but not from quotation marks."""

    def said(found: re.Match[str]) -> str:
        text, words = found.string, say(found).strip()
        before = " " if text[max(0, found.start() - 1) : found.start()].isalnum() and words[:1] != "-" else ""
        return f"{before}{words}{' ' if text[found.end() : found.end() + 1].isalnum() else ''}"

    return said
