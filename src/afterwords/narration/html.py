"""The text of an HTML or XHTML page as headings and paragraphs, without what is not read aloud."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from html import escape
from html.parser import HTMLParser
from typing import Final, NamedTuple

SCENE_BREAK: Final = "* * *"
"""A paragraph without a letter or a digit, such as this, is a longer pause."""
CHAPTER_LEVEL: Final = 2
"""Headings up to this level begin a chapter."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_HEADINGS: Final = _names("h1 h2 h3 h4 h5 h6")
_BLOCKS: Final = _HEADINGS | _names(
    "address article aside blockquote body caption center dd details div dl dt figcaption figure footer form header hr "
    "li main ol p pre section summary table tbody td tfoot th thead tr ul"
)
_SKIPPED: Final = _names(
    "audio button iframe math nav noscript object rp rt script select style svg template textarea video"
)
_VOID: Final = _names("area base br col embed hr img input link meta source track wbr")
_SKIPPED_TYPES: Final = _names(
    "annoref backlink copyright-page doc-backlink doc-endnote doc-endnotes doc-footnote doc-index doc-noteref "
    "doc-pagebreak doc-pagelist doc-toc endnote endnotes footnote footnotes index landmarks loi lot noteref page-list "
    "pagebreak rearnote rearnotes toc"
)
"""Values of `epub:type` and `role`. Source: EPUB Structural Semantics Vocabulary 1.1, Digital Publishing WAI-ARIA."""
_SKIPPED_CLASSES: Final = _names("endnotes footnote footnotes pagenum pageno page-number pg-boilerplate")
"""Classes that many publishers, converters and Project Gutenberg use."""
_NOT_SHOWN: Final = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_NOTE_MARK: Final = re.compile(r"\s*[(\[]?\s*(?:\d{1,4}|[*†‡§¶]{1,3}|[a-z])\s*[)\]]?\s*")
_RAISED: Final = "\u2060"
"""Stands for the start of a superscript until its block ends; an invisible character, which is not read anyway."""
_SPACE: Final = re.compile(r"\s+")
_CLOSINGS: Final = {"<!--": "-->", "<![CDATA[": "]]>", "<!": ">", "<?": ">"}
_DECLARATION: Final = re.compile("|".join(map(re.escape, _CLOSINGS)))


class Block(NamedTuple):
    """A heading or a paragraph.

    Attributes:
        text: Its text; runs of whitespace are one space.
        level: 1 to 6 for a heading, 0 for a paragraph.
        chapter: Title of the chapter that begins here, if a table of contents says so.
    """

    text: str
    level: int = 0
    chapter: str | None = None


class Page(HTMLParser):
    """A page; broken markup never fails.

    Args:
        text: Its source.
        chapters: Titles by the ID of the element where the chapter begins; "" is the beginning of the page.

    Attributes:
        blocks: Its headings and paragraphs.
        title: Content of its `title` element.
        author: Author that a `meta` element names.
        lang: Language of the page.
    """

    def __init__(self, text: str, chapters: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.blocks: list[Block] = []
        self.title: str | None = None
        self.author: str | None = None
        self.lang: str | None = None
        self._chapters = dict(chapters or {})
        self._chapter = self._chapters.pop("", None)
        self._parts: list[str] = []
        self._level = 0
        self._skipped: list[str] = []  # open elements from the outermost skipped one
        self._n_skipped: Counter[str] = Counter()  # of each tag
        self._in_title = False
        self._title: list[str] = []
        self._link: int | None = None  # number of parts before an open link to a place in a book
        self.feed(_without_declarations(text))
        self.close()
        self._end_block()
        if self._chapters and self.blocks and self.blocks[0].chapter is None:  # the page has no such ID
            self.blocks[0] = self.blocks[0]._replace(chapter=next(iter(self._chapters.values())))
        self.title = _SPACE.sub(" ", "".join(self._title)).strip() or None

    def _skip(self, tag: str) -> None:
        self._skipped.append(tag)
        self._n_skipped[tag] += 1

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in {"html", "body"}:
            self.lang = given.get("lang") or given.get("xml:lang") or self.lang
        if tag == "meta" and given.get("name", "").lower() in {"author", "dc.creator"}:
            self.author = given.get("content", "").strip() or None
        if self._skipped:
            if tag not in _VOID:
                self._skip(tag)
            return
        if tag == "title":
            self._in_title = True
        if tag in _BLOCKS:
            self._end_block()
            if tag in _HEADINGS:
                self._level = int(tag[1])
        for name in ("id", "name"):
            if given.get(name, "") in self._chapters and (name == "id" or tag == "a"):
                self._end_block()
                self._chapter = self._chapters.pop(given[name])
        types = set(f"{given.get('epub:type', '')} {given.get('role', '')}".lower().split())
        is_hidden = "hidden" in given or given.get("aria-hidden") == "true" or _NOT_SHOWN.search(given.get("style", ""))
        is_skipped = types & _SKIPPED_TYPES or _SKIPPED_CLASSES.intersection(given.get("class", "").lower().split())
        if (tag in _SKIPPED or is_skipped or is_hidden) and tag not in _VOID | {"html", "body"}:
            self._skip(tag)
        elif tag == "hr":
            self.blocks.append(Block(SCENE_BREAK))
        elif tag == "br":
            self._parts.append(" ")
        elif tag == "sup":
            self._parts.append(_RAISED)
        elif tag == "a" and "#" in given.get("href", ""):
            self._link = len(self._parts)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._skipped:
            while self._n_skipped[tag]:
                self._n_skipped[last := self._skipped.pop()] -= 1
                if last == tag:
                    break
            return
        if tag == "title":
            self._in_title = False
        if tag == "a" and self._link is not None:
            before = self._parts[self._link - 1] if self._link else ""
            if not self._level and _is_note_mark(before, "".join(self._parts[self._link :])):
                del self._parts[self._link :]
            self._link = None
        if tag in _BLOCKS:
            self._end_block()

    def handle_data(self, data: str) -> None:
        if self._skipped:
            return
        if self._in_title:
            self._title.append(data)
        else:
            self._parts.append(data)

    def _end_block(self) -> None:
        text = _SPACE.sub(" ", "".join(self._parts).replace(_RAISED, "")).strip()
        if text:
            self.blocks.append(Block(text, self._level, self._chapter))
            self._chapter = None
        self._parts, self._level, self._link = [], 0, None


class TableOfContents(HTMLParser):
    """The links of a table of contents of EPUB 3, in order: their addresses and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self._is_inside = False
        self._href: str | None = None
        self._parts: list[str] = []
        self.feed(_without_declarations(text))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "nav":
            types = f"{given.get('epub:type') or ''} {given.get('role') or ''}".split()
            self._is_inside = bool({"toc", "doc-toc"} & set(types))
        elif tag == "a" and self._is_inside:
            self._href, self._parts = given.get("href"), []

    def handle_endtag(self, tag: str) -> None:
        if tag == "nav":
            self._is_inside = False
        elif tag == "a" and self._href:
            self.links.append((self._href, _SPACE.sub(" ", "".join(self._parts)).strip()))
            self._href = None

    def handle_data(self, data: str) -> None:
        self._parts.append(data)


def _without_declarations(text: str) -> str:
    """Return a page without comments, declarations and processing instructions, and CDATA sections as text.

    `HTMLParser` searches the end of each from its start, which takes hours if there are many without an end, and fails
    at some. Without an end, only what opens one is left out.
    """
    parts: list[str] = []
    at = 0
    has_end = dict.fromkeys(_CLOSINGS, True)
    for found in _DECLARATION.finditer(text):
        start, opening = found.start(), found[0]
        if start < at:
            continue
        parts.append(text[at:start])
        at = found.end()
        end = text.find(_CLOSINGS[opening], start + 2) if has_end[opening] else -1  # "<!-->" is a whole comment
        has_end[opening] = end >= 0
        if end >= 0:
            parts.append(escape(text[at:end]) if opening == "<![CDATA[" else "")
            at = end + len(_CLOSINGS[opening])
    return "".join([*parts, text[at:]])


def _is_note_mark(before: str, link: str) -> bool:
    """Return whether a link to a place in a book is the mark of a note, and not a number such as in "see chapter 5"."""
    is_word = before[-1:].isspace() and _RAISED not in link and link.strip().isalnum()
    return not is_word and _NOTE_MARK.fullmatch(link.replace(_RAISED, "")) is not None


def begins_chapter(block: Block) -> bool:
    """Return whether a block is a heading that begins a chapter."""
    return 0 < block.level <= CHAPTER_LEVEL
