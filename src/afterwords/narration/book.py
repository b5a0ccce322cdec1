"""Read a book: EPUB (in `epub`), Markdown, HTML or plain text."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Self

from afterwords.disk import open_plain
from afterwords.errors import FileError, InvalidInputError, TextError
from afterwords.narration.html import CHAPTER_LEVEL, Block, Page, begins_chapter
from afterwords.text import check_text

MAX_CHARS: Final = 10_000_000
"""Longest book, about a week of speech. The Bible has 4.5 million characters."""
MAX_TEXT_BYTES: Final = 4 * MAX_CHARS
MAX_TITLE_CHARS: Final = 250
"""Of a chapter. From 64 KiB on, chapter marks of M4B and MP3 break."""
MAX_COVER_BYTES: Final = 20 * 2**20
MAX_COVER_PIXELS: Final = 50_000_000
"""To decode one takes up to 8 bytes of memory per pixel; a file of 2 MB can have more than 200 million."""
ENDINGS: Final = (".epub", ".md", ".markdown", ".html", ".htm", ".xhtml", ".txt")

_INVISIBLE: Final = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))
"""Soft hyphens, and marks where a line may or may not end; engines would split words there."""
_NUMBER: Final = (
    r"(?:\d{1,4}|[ivxlc]{1,9}|(?:the\s)?(?:first|second|third|last)|(?:twen|thir|for|fif|six|seven|eigh|nine)ty(?:-\w{3,5})?"
    r"|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen)"
)
_CHAPTER_LINE: Final = re.compile(
    rf"(?:chapter|part|book|kapitel|teil|chapitre|partie|cap[íi]tulo|parte|capitolo|глава|часть)\s+{_NUMBER}"
    r"(?:[.:]|\s*[.:—–-]\s*[^\n]{1,80}|\s+(?-i:[^\W\d_a-zà-þа-я])[^\n]{0,80})?"
    r"|(?:prologue|epilogue|preface|foreword|introduction|afterword|prolog|epilog|vorwort|nachwort|prólogo|epílogo)[.:]?"
    r"|第\s*[\d〇零一二三四五六七八九十百千]{1,8}\s*[章回部卷节節][^\n]{0,40}|제\s*\d{1,4}\s*[장부][^\n]{0,40}"
    r"|(?-i:(?=[XVI]|[CL][CLXVI])C{0,3}(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3}))\.?",
    re.IGNORECASE,
)
_PARAGRAPH_END: Final = re.compile(r"\n[ \t]*\n\s*")
_YAML_FIELD: Final = r"\w[\w \t-]*+:"
_FRONT_MATTER: Final = re.compile(
    rf"\A---[ \t]*\n(?P<fields>{_YAML_FIELD}.*\n(?:(?:{_YAML_FIELD}|[ \t#-]).*\n|\n)*?)(?:---|\.\.\.)[ \t]*(?:\n|\Z)"
)
"""Fields of YAML only: other text between two lines of `---` is text."""
_FIELD: Final = re.compile(r"^(title|author|lang)\s*:[ \t]*(\S.*)$", re.MULTILINE | re.IGNORECASE)
_HEADING_ATTRIBUTES: Final = re.compile(r"^(#{1,6} [^\n{]*)\{[#.][^\n{}]*\}[ \t]*$", re.MULTILINE)
_FOOTNOTE: Final = re.compile(r"^\[\^[^\]\s]{1,99}\]:.*(?:\n[ \t]+.*)*|\[\^[^\]\s]{1,99}\]", re.MULTILINE)
_GUTENBERG: Final = re.compile(r"^\*{3} ?(START|END) OF TH(?:E|IS) PROJECT GUTENBERG E[^*]{1,300}\*{3}", re.MULTILINE)
_TEXT_CONTENTS: Final = re.compile(r"(?:table of )?contents[.:]?", re.IGNORECASE)
_TEXT_NOTE: Final = re.compile(r"\[(\d{1,3})\]\s")
_TEXT_NOTE_MARK: Final = re.compile(r"(?<=\S) ?\[(\d{1,3})\]")
_TEXT_REMARK: Final = re.compile(r"\[(?:footnote|illustration)\b(?:[^][]|\[[^][]*\])*+(?:\]|\Z)", re.IGNORECASE)
_TEXT_EMPHASIS: Final = re.compile(r"(?<![^\W_])_(?=[^\s_])([^_]{1,1000})(?<=\S)_(?![^\W_])")
_SPLIT_WORD: Final = re.compile(r"(?<!\w)(\w+)-\n[ \t]*(\w+)")
_DECLARED: Final = re.compile(rb"""(?:\bencoding|\bcharset)\s*=\s*["']?\s*([A-Za-z0-9._-]{2,40})""")
_LANGS: Final = {
    **{"eng": "en", "zho": "zh", "chi": "zh", "jpn": "ja", "kor": "ko", "spa": "es", "fra": "fr", "fre": "fr"},
    **{"deu": "de", "ger": "de", "ita": "it", "por": "pt", "rus": "ru"},
}
"""Source: ISO 639-2, which some publishers use."""


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph or a heading."""

    text: str = field(repr=False)
    is_heading: bool = False
    follows_break: bool = False
    """Whether a line such as "* * *" stands before it."""


@dataclass(frozen=True, slots=True)
class Chapter:
    """A chapter; its title stands in the marks of the audio file, and is spoken only if a paragraph has it."""

    title: str
    paragraphs: tuple[Paragraph, ...]


@dataclass(frozen=True, slots=True)
class Book:
    """A book.

    Attributes:
        title: Its title, or the name of the file.
        chapters: Its chapters, at least one, each with something to speak.
        author: Its authors.
        lang: Its language, as the file states it.
        cover: Its cover, a JPEG or PNG file.
        notices: Sentences about what was left out.
    """

    title: str
    chapters: tuple[Chapter, ...]
    author: str | None = None
    lang: str | None = None
    cover: bytes | None = field(default=None, repr=False)
    notices: tuple[str, ...] = ()

    @property
    def n_chars(self) -> int:
        """Characters of the whole text."""
        return sum(len(paragraph.text) for chapter in self.chapters for paragraph in chapter.paragraphs)

    @classmethod
    def from_blocks(
        cls, path: Path, blocks: Iterable[Block], *, title: str | None = None, by_headings: bool = True, **facts: object
    ) -> Self:
        """Make a book of blocks.

        Args:
            path: Its file.
            blocks: Its text.
            title: Its title, if the file states one.
            by_headings: Whether headings begin chapters, or only blocks with the title of one.
            facts: Further attributes.

        Raises:
            TextError: There is nothing to speak, or a control character.
        """
        title = title or path.stem
        chapters: list[tuple[str, list[Paragraph]]] = [(title, [])]
        follows_break = False
        for block in blocks:
            text = block.text.translate(_INVISIBLE)
            if not any(character.isalnum() for character in text):
                follows_break = True
                continue
            if begins_chapter(block) if by_headings else block.chapter is not None:
                chapters.append(((block.chapter or text).translate(_INVISIBLE)[:MAX_TITLE_CHARS], []))
            text = check_text(text, max_chars=MAX_CHARS)
            follows_break = follows_break and bool(chapters[-1][1]) and not block.level
            chapters[-1][1].append(Paragraph(text, bool(block.level), follows_break))
            follows_break = False
        spoken = tuple(Chapter(name, tuple(paragraphs)) for name, paragraphs in chapters if paragraphs)
        if not spoken:
            raise TextError(f"{path} contains nothing that can be spoken.", code="empty_text", hint="use another file.")
        book = cls(title, spoken, **facts)  # type: ignore[arg-type]
        if book.n_chars > MAX_CHARS:
            raise TextError(
                f"{path} has {book.n_chars:,} characters; the limit is {MAX_CHARS:,}.", code="text_too_long"
            )
        return book


def read_book(path: Path) -> Book:
    """Read a book.

    Args:
        path: A file that ends with one of ENDINGS.

    Raises:
        FileError: The file is missing or can't be read.
        InvalidInputError: The file is not a book, is damaged, or is copy-protected.
        TextError: The file is not in the encoding that it states or in UTF-8, is too long, or has no text.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise InvalidInputError(
            f"{path} is not a book that can be read; supported: {', '.join(ENDINGS)}.",
            code="invalid_book",
            hint="convert it, for example with Calibre: ebook-convert book.mobi book.epub",
        )
    try:
        with open_plain(path) as file:
            if ending == ".epub":
                from afterwords.narration.epub import read_epub

                return read_epub(path, file)
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise FileError.unreadable(path, why=(error.strerror or str(error)).lower()) from error
    if len(data) > MAX_TEXT_BYTES:
        raise TextError(f"{path} has more than {MAX_TEXT_BYTES:,} bytes.", code="text_too_long")
    text = decode_text(data, source=str(path))
    stated: dict[str, str] = {}
    if ending == ".txt":
        text, stated = _without_license(text)
        return Book.from_blocks(path, _text_blocks(text), title=stated.get("title"), author=stated.get("author"))
    if ending in {".md", ".markdown"}:
        text, stated = _render(text)
    page = Page(text)
    titles = [block.text for block in page.blocks if block.level == 1]
    title = stated.get("title") or page.title or (titles[0] if len(titles) == 1 else None)
    return Book.from_blocks(
        path, page.blocks, title=title, author=stated.get("author") or page.author, lang=stated.get("lang") or page.lang
    )


def decode_text(data: bytes, *, source: str) -> str:
    """Decode text by its byte order mark, or the encoding that it states in its first lines, or as UTF-8.

    As in browsers, Latin-1 and ASCII are windows-1252, which has quotation marks where they have control characters.

    Raises:
        TextError: The bytes are not text in that encoding.
    """
    stated = _DECLARED.search(data[:1024]) if data.lstrip().startswith(b"<") else None
    encoding = stated[1].decode() if stated else "utf-8"
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            encoding = name
    try:
        if codecs.lookup(encoding).name in {"iso8859-1", "ascii"}:
            return data.decode("windows-1252")
        return data.decode(encoding)
    except (UnicodeError, LookupError) as error:
        raise TextError(
            f"{source} is not text in the encoding {encoding}.",
            code="invalid_unicode",
            hint="save it as UTF-8, for example: iconv -f windows-1252 -t utf-8 old.txt > new.txt",
        ) from error


def _render(text: str) -> tuple[str, dict[str, str]]:
    """Return Markdown as HTML, and the fields of its front matter."""
    from markdown_it import MarkdownIt

    stated: dict[str, str] = {}
    text = text.replace("\r\n", "\n")
    if front := _FRONT_MATTER.match(text):
        stated = _read_fields(front["fields"])
        text = text[front.end() :]
    text = _HEADING_ATTRIBUTES.sub(r"\1", _FOOTNOTE.sub("", text))
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text), stated


def _read_fields(text: str) -> dict[str, str]:
    return {name.lower(): value.strip().strip("\"'[]") for name, value in _FIELD.findall(text)}


def _without_license(text: str) -> tuple[str, dict[str, str]]:
    """Return a text without what Project Gutenberg puts before and after it, and the fields of that.

    Other books, which may quote its marks, are returned whole.
    """
    text = text.replace("\r\n", "\n")
    marks = list(_GUTENBERG.finditer(text))
    start = next((mark for mark in marks if mark[1] == "START"), None)
    head = text[: start.start()].strip() if start else ""
    stated = _read_fields(head)
    if start is None or (head and not ("Project Gutenberg" in head.partition("\n")[0] and "title" in stated)):
        return text, {}
    end = next((mark.start() for mark in reversed(marks) if mark[1] == "END"), None)
    return text[start.end() : end], stated


def _text_blocks(text: str) -> Iterable[Block]:
    text = check_text(text, max_chars=MAX_CHARS)
    words = set(re.findall(r"\w+", text.lower()))

    def join_word(split: re.Match[str]) -> str:
        whole = split[1] + split[2]
        return whole if whole.lower() in words else f"{split[1]}-{split[2]}"

    notes = set(_TEXT_NOTE_MARK.findall(text))
    text = _TEXT_EMPHASIS.sub(r"\1", _TEXT_NOTE_MARK.sub("", _SPLIT_WORD.sub(join_word, text)))
    for part in _PARAGRAPH_END.split(text):
        paragraph = part.strip()
        if (remark := _TEXT_REMARK.match(paragraph)) is not None:
            paragraph = paragraph[remark.end() :].strip()
        note = _TEXT_NOTE.match(paragraph)
        if _is_contents(paragraph) or (note and note[1] in notes):  # without its mark in the text, it is a number
            continue
        head, _, rest = paragraph.partition("\n")
        if _CHAPTER_LINE.fullmatch(head.strip()):
            title = " ".join([head.strip(), *([rest] if len(rest) <= 80 and "\n" not in rest else [])]).strip()
            yield Block(title, CHAPTER_LEVEL)
            paragraph = "" if rest in title else rest
        if paragraph:
            yield Block(paragraph)


def _is_contents(paragraph: str) -> bool:
    """Return whether a paragraph is a table of contents; the lines "Part 1" and "Chapter 1" are a heading."""
    lines = [line.strip() for line in paragraph.split("\n")]
    if not all(map(_CHAPTER_LINE.fullmatch, lines)):
        return _TEXT_CONTENTS.fullmatch(paragraph) is not None
    kinds = {line.rpartition(" ")[0].partition(" ")[0].lower() for line in lines}
    return len(kinds) < len(lines)


def known_lang(stated: str | None) -> str | None:
    """Return the language that a book states, in two letters if they are known; None if it states none."""
    code = re.split("[-_]", (stated or "").strip().lower(), maxsplit=1)[0]
    return None if code in {"", "und", "mul", "zxx"} else _LANGS.get(code, code)


def read_cover(data: bytes) -> bytes | None:
    """Return the bytes of an image if it is a JPEG or PNG file that players show, or None."""
    import av

    if len(data) > MAX_COVER_BYTES or not data.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        return None
    try:
        # FFmpeg skips the decoding of a larger picture, and then finds no width.
        limit: list[Any] = [{"max_pixels": str(MAX_COVER_PIXELS)}]  # the stubs of PyAV name another type
        with av.open(BytesIO(data), "r", stream_options=limit) as image:
            if not image.streams.video[0].width:
                return None
            next(image.decode(video=0))
    except (av.FFmpegError, IndexError, StopIteration):
        return None
    return data
