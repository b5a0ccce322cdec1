"""Read an EPUB: a ZIP file with XHTML pages, their order, a table of contents and a cover.

Nothing is extracted: names in the book only choose members of the ZIP file. `xml.etree` loads no external entities, and
its parser limits the growth of internal ones.

Source: https://www.w3.org/TR/epub-33/, and IDPF's Open Packaging Format 2.0.1 for EPUB 2.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import BinaryIO, Final, NoReturn
from urllib.parse import unquote, urldefrag
from xml.etree import ElementTree as ET

from afterwords.errors import InvalidInputError
from afterwords.narration.book import MAX_COVER_BYTES, MAX_TEXT_BYTES, Book, decode_text, read_cover
from afterwords.narration.html import Block, Page, TableOfContents

MAX_MEMBER_BYTES: Final = 32 * 2**20
_PROTECTED: Final = ("META-INF/rights.xml", "META-INF/license.lcpl", "META-INF/sinf.xml")
"""Files of Adobe's, Readium's and Apple's copy protection."""
_SKIPPED_PAGES: Final = frozenset({"copyright-page", "cover", "index", "loi", "lot", "notes", "toc"})
"""Types in the guide of EPUB 2."""
_FONT_OBFUSCATION: Final = frozenset({"http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC"})


def read_epub(path: Path, file: BinaryIO) -> Book:
    """Read an open EPUB.

    Raises:
        InvalidInputError: The file is damaged or copy-protected.
        TextError: A page is not in its encoding, or the book has nothing to speak.
    """
    return _Epub(path, file).book()


class _Epub:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._n_bytes = 0
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
            self._damaged("it is not a complete ZIP file", error)
        self._names = set(self._zip.namelist())
        self._check_protection()
        root = self._xml("META-INF/container.xml").find(".//{*}rootfile")
        package_path = unquote(root.get("full-path", "")) if root is not None else ""
        self._package = self._xml(package_path)
        self._folder = dirname(package_path)
        self._n_missing = 0  # pages
        self._items = {item.get("id", ""): item for item in self._package.findall("{*}manifest/{*}item")}

    def book(self) -> Book:
        """Return the book."""
        metadata = self._package.find("{*}metadata")
        stated = (
            {
                name: [" ".join((found.text or "").split()) for found in metadata.findall(f"{{*}}{name}")]
                for name in ("title", "creator", "language")
            }
            if metadata is not None
            else {}
        )
        contents = self._contents()
        cover = self._cover()
        book = Book.from_blocks(
            self._path,
            self._blocks(contents),
            title=next(filter(None, stated.get("title", [])), None),
            by_headings=not contents,
            author=", ".join(filter(None, stated.get("creator", []))) or None,
            lang=next(filter(None, stated.get("language", [])), None),
            cover=read_cover(cover) if cover else None,
        )
        if not self._n_missing:
            return book
        pages = "a page" if self._n_missing == 1 else f"{self._n_missing} pages"
        return replace(book, notices=(f"The book refers to {pages} that it does not have; the rest is read.",))

    def _blocks(self, contents: dict[str, dict[str, str]]) -> Iterator[Block]:
        guide = self._package.findall("{*}guide/{*}reference")
        skipped = {  # of a part of a page, the page is read
            self._resolve(self._folder, reference.get("href", ""))
            for reference in guide
            if reference.get("type") in _SKIPPED_PAGES and "#" not in reference.get("href", "")
        }
        spine = self._package.find("{*}spine")
        for entry in spine if spine is not None else ():
            item = self._items.get(entry.get("idref", ""))
            if item is None:
                self._n_missing += 1
                continue
            if entry.get("linear") == "no" or "nav" in item.get("properties", "").split():
                continue
            name = self._resolve(self._folder, item.get("href", ""))
            if item.get("media-type", "").startswith("image/") or name in skipped:
                continue
            page = Page(decode_text(self._read(name), source=f"{self._path}: {name}"), contents.get(name))
            yield from page.blocks

    def _contents(self) -> dict[str, dict[str, str]]:
        """Return the titles of chapters by page, and by the ID of the element where they begin ("": the page)."""
        links: list[tuple[str, str]] = []
        folder = self._folder
        for item in self._items.values():
            if "nav" in item.get("properties", "").split():
                name = self._resolve(self._folder, item.get("href", ""))
                folder, links = dirname(name), TableOfContents(decode_text(self._read(name), source=name)).links
        if not links and (ncx := self._ncx()) is not None:
            folder = dirname(ncx)
            for point in self._xml(ncx).findall(".//{*}navPoint"):
                label, target = point.find("{*}navLabel/{*}text"), point.find("{*}content")
                if label is not None and target is not None:
                    links.append((target.get("src", ""), " ".join((label.text or "").split())))
        found: dict[str, dict[str, str]] = {}
        for href, title in links:
            page, fragment = urldefrag(href)
            found.setdefault(self._resolve(folder, page), {}).setdefault(unquote(fragment), title)
        return found

    def _ncx(self) -> str | None:
        for item in self._items.values():
            if item.get("media-type") == "application/x-dtbncx+xml":
                return self._resolve(self._folder, item.get("href", ""))
        return None

    def _cover(self) -> bytes | None:
        named = self._package.find("{*}metadata/{*}meta[@name='cover']")
        item = self._items.get(named.get("content", "")) if named is not None else None
        for other in self._items.values():
            if "cover-image" in other.get("properties", "").split():
                item = other
        name = self._resolve(self._folder, item.get("href", "")) if item is not None else None
        if name not in self._names or self._zip.getinfo(name).file_size > MAX_COVER_BYTES:
            return None
        return self._read(name)

    def _check_protection(self) -> None:
        methods: list[str] = []
        if "META-INF/encryption.xml" in self._names:
            found = self._xml("META-INF/encryption.xml").findall(".//{*}EncryptedData/{*}EncryptionMethod")
            methods = [method.get("Algorithm", "") for method in found]
        is_encrypted = any(info.flag_bits & 1 for info in self._zip.infolist())
        if is_encrypted or self._names.intersection(_PROTECTED) or set(methods) - _FONT_OBFUSCATION:
            raise InvalidInputError(
                f"{self._path} is copy-protected (DRM), so its text can't be read.",
                code="protected_book",
                hint="use a copy without DRM; some publishers and authors sell or send one.",
            )

    def _resolve(self, folder: str, href: str) -> str:
        """Return the member that a relative address names; one outside of the book has no member."""
        return normpath(join(folder, unquote(urldefrag(href)[0])))

    def _read(self, name: str) -> bytes:
        try:
            with self._zip.open(name) as member:
                data = member.read(MAX_MEMBER_BYTES + 1)
        except KeyError as error:
            self._damaged(f"it has no file {name!a}", error)
        except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, zlib.error) as error:
            self._damaged(f"its file {name!a} can't be decompressed", error)
        self._n_bytes += len(data)
        if len(data) > MAX_MEMBER_BYTES or self._n_bytes > MAX_TEXT_BYTES + MAX_COVER_BYTES:
            self._damaged(f"it has more text than the limit of {MAX_TEXT_BYTES:,} bytes", None)
        return data

    def _xml(self, name: str) -> ET.Element:
        try:
            return ET.fromstring(self._read(name))
        except (ET.ParseError, LookupError, ValueError) as error:  # the last two: an unknown encoding
            self._damaged(f"its file {name!a} is not valid XML", error)

    def _damaged(self, why: str, error: Exception | None) -> NoReturn:
        raise InvalidInputError(
            f"{self._path} is not a valid EPUB: {why}.",
            code="invalid_book",
            hint="download it again, or repair it, for example with Calibre: ebook-convert book.epub repaired.epub",
        ) from error
