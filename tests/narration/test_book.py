"""Test reading books: chapters, what is left out, and files that are damaged or hostile."""

from __future__ import annotations

import zipfile
from itertools import pairwise
from pathlib import Path
from time import process_time

import pytest

from afterwords.errors import FileError, InvalidInputError, TextError
from afterwords.narration import book as books
from afterwords.narration import epub
from afterwords.narration.book import Book, known_lang, read_book, read_cover
from afterwords.narration.html import Page
from afterwords.narration.script import CHAPTER_PAUSE_S, PARAGRAPH_PAUSE_S, SCENE_PAUSE_S, write_script
from tests.error_codes import has_code
from tests.narration.epubs import CONTAINER, NAV, PACKAGE, image, write_epub

NCX = """<?xml version="1.0"?><!DOCTYPE ncx PUBLIC "-//NISO//DTD ncx 2005-1//EN"
"http://www.daisy.org/z3986/2005/ncx-2005-1.dtd"><ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap>
<navPoint><navLabel><text>Old way</text></navLabel><content src="text/one.xhtml"/></navPoint></navMap></ncx>"""
ENTITIES = "".join(f'<!ENTITY {b} "{f"&{a};" * 40}">' for a, b in pairwise("abcdefgh"))
BOMB = f'<!DOCTYPE a [<!ENTITY a "{"a" * 60}">{ENTITIES}]><package>&h;</package>'
ENCRYPTION = """<encryption xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><EncryptedData
xmlns="http://www.w3.org/2001/04/xmlenc#"><EncryptionMethod Algorithm="%s"/><CipherData><CipherReference
URI="OEBPS/fonts/a.otf"/></CipherData></EncryptedData></encryption>"""


def texts(book: Book) -> dict[str, list[str]]:
    return {chapter.title: [paragraph.text for paragraph in chapter.paragraphs] for chapter in book.chapters}


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# -- EPUB -----------------------------------------------------------------------------------------------------


def test_epub_has_the_chapters_of_its_contents(tmp_path: Path) -> None:
    book = read_book(write_epub(tmp_path / "b.epub"))

    assert texts(book) == {
        "First & foremost": ["I", "It was café time. A line over two.", "The end of the first."],
        "Second": ["Second begins.", "More."],
        "Later": ["Not a chapter", "And later."],
    }
    assert (book.title, book.author, book.lang) == ("The Book", "Ann Author, Bo Writer", "eng")
    assert book.cover == image()
    assert book.chapters[0].paragraphs[0].is_heading


def test_epub_2_has_chapters_of_its_ncx(tmp_path: Path) -> None:
    item = '<item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/></manifest>'
    package = PACKAGE.replace("</manifest>", item).replace(' properties="nav"', "")
    book = read_book(write_epub(tmp_path / "b.epub", {"OEBPS/book.opf": package, "OEBPS/toc.ncx": NCX}))
    assert book.chapters[-1].title == "Old way"
    assert book.chapters[-1].paragraphs[1].text.startswith("It was café")


def test_epub_2_skips_pages_that_its_guide_names(tmp_path: Path) -> None:
    guide = '<guide><reference type="toc" href="text/one.xhtml"/><reference type="cover" href="text/two.xhtml#start"/>'
    package = PACKAGE.replace("</package>", f"{guide}</guide></package>")
    book = read_book(write_epub(tmp_path / "b.epub", {"OEBPS/book.opf": package}))
    assert list(texts(book)) == ["The Book", "Second", "Later"]


def test_chapter_whose_place_is_missing_begins_its_page(tmp_path: Path) -> None:
    nav = NAV.replace("two.xhtml#start", "two.xhtml#gone")
    book = read_book(write_epub(tmp_path / "b.epub", {"OEBPS/nav.xhtml": nav}))
    assert texts(book)["Second"] == ["The end of the first.", "Second begins.", "More."]


def test_epub_without_contents_has_chapters_of_its_headings(tmp_path: Path) -> None:
    book = read_book(write_epub(tmp_path / "b.epub", {"OEBPS/nav.xhtml": NAV.replace('"toc"', '"loi"')}))
    assert [chapter.title for chapter in book.chapters] == ["I", "Not a chapter"]


def test_obfuscated_fonts_are_not_drm(tmp_path: Path) -> None:
    fonts = ENCRYPTION % "http://www.idpf.org/2008/embedding"
    assert read_book(write_epub(tmp_path / "b.epub", {"META-INF/encryption.xml": fonts})).chapters


@pytest.mark.parametrize(
    "changes",
    [
        {"META-INF/encryption.xml": ENCRYPTION % "http://www.w3.org/2001/04/xmlenc#aes128-cbc"},
        {"META-INF/rights.xml": "<rights/>"},
        {"META-INF/license.lcpl": "{}"},
    ],
    ids=["encrypted", "adobe", "readium"],
)
def test_copy_protection_is_named(changes: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="DRM", check=has_code("protected_book")):
        read_book(write_epub(tmp_path / "b.epub", changes))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"META-INF/container.xml": None}, "no file 'META-INF/container.xml'"),
        ({"META-INF/container.xml": "<container/>"}, "no file"),
        ({"META-INF/container.xml": "<container"}, "not valid XML"),
        ({"META-INF/container.xml": CONTAINER.replace("OEBPS", "../../etc")}, "no file"),
        ({"OEBPS/book.opf": BOMB}, "not valid XML"),
        ({"OEBPS/book.opf": '<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><a>&e;</a>'}, "not valid XML"),
        ({"OEBPS/text/two.xhtml": None}, "no file 'OEBPS/text/two.xhtml'"),
    ],
    ids=["container", "rootfile", "xml", "path", "entities", "external entity", "page"],
)
def test_damaged_epub_says_what_is_wrong(changes: dict[str, str | None], why: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=why, check=has_code("invalid_book")):
        read_book(write_epub(tmp_path / "b.epub", changes))


@pytest.mark.parametrize("cut", ["end", "start", "middle", "all"])
def test_broken_zip_is_refused(cut: str, tmp_path: Path) -> None:
    data = write_epub(tmp_path / "whole.epub").read_bytes()
    page = data.index(b"OEBPS/text/one.xhtml") + 60
    cuts = {"end": data[:-100], "start": data[500:], "middle": data[:page] + b"\0" * 50 + data[page + 50 :], "all": b""}
    with pytest.raises(InvalidInputError, check=has_code("invalid_book")):
        read_book(write(tmp_path / "b.epub", cuts[cut]))


def test_zip_bomb_is_not_decompressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epub, "MAX_MEMBER_BYTES", 2**20)
    path = write_epub(tmp_path / "b.epub", {"OEBPS/text/two.xhtml": b"a" * (2**20 + 1)})
    with pytest.raises(InvalidInputError, match="more text than the limit", check=has_code("invalid_book")):
        read_book(path)


def test_text_limit_holds_for_all_pages_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "MAX_CHARS", 50)
    with pytest.raises(TextError, match="the limit is 50", check=has_code("text_too_long")):
        read_book(write_epub(tmp_path / "b.epub"))


def test_encrypted_zip_member_is_drm(tmp_path: Path) -> None:
    path = write_epub(tmp_path / "b.epub")
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("OEBPS/text/one.xhtml").header_offset
    data = bytearray(path.read_bytes())
    data[at + 6] |= 1
    data[data.rindex(b"OEBPS/text/one.xhtml") - 46 + 8] |= 1  # the flags in the central directory
    with pytest.raises(InvalidInputError, check=has_code("protected_book")):
        read_book(write(path, bytes(data)))


START, END = (f"*** {place} OF THE PROJECT GUTENBERG EBOOK" for place in ("START", "END"))


# -- other formats --------------------------------------------------------------------------------------------


def test_markdown_headings_begin_chapters(tmp_path: Path) -> None:
    text = (
        '---\ntitle: "A Title"\nAuthor: [Ann]\nlang: fr\n---\n\nBefore.\n\n# One\n\nHello *there*[^1], `code`.\n'
        "\n## Two {#two .x}\n\n- a\n- b\n\n### Deeper\n\n| x | y |\n|---|---|\n| 1 | 2 |\n\n"
        "[^1]: A note\n    over two lines.\n"
    )
    book = read_book(write(tmp_path / "b.md", text))

    assert (book.title, book.author, book.lang) == ("A Title", "Ann", "fr")
    assert texts(book) == {
        "A Title": ["Before."],
        "One": ["One", "Hello there, code."],
        "Two": ["Two", "a", "b", "Deeper", "x", "y", "1", "2"],
    }


def test_text_chapters_begin_with_lines_that_say_so(tmp_path: Path) -> None:
    text = (
        "My story\n\nCHAPTER I\nThe Start\n\nOnce upon\na time.\n\nChapter 2: More\n\nChapter 2 was long.\n\n"
        "Epilogue\n\nEnd.\n"
    )
    book = read_book(write(tmp_path / "tale.txt", text))
    assert texts(book) == {
        "tale": ["My story"],
        "CHAPTER I The Start": ["CHAPTER I The Start", "Once upon\na time."],
        "Chapter 2: More": ["Chapter 2: More", "Chapter 2 was long."],
        "Epilogue": ["Epilogue", "End."],
    }


def test_text_of_project_gutenberg_is_read_without_its_license(tmp_path: Path) -> None:
    text = (
        "The Project Gutenberg eBook of A Tale\r\n\r\nTitle: A Tale\r\n\r\nAuthor: Ann\r\n\r\n"
        "*** START OF THE PROJECT GUTENBERG EBOOK A\r\nTALE ***\r\n\r\nContents\r\n\r\n CHAPTER I. One\r\n CHAPTER II."
        "\r\n\r\nCHAPTER I. One\r\n\r\nA _hard_ de-\r\n  cision of a well-\r\nknown man[1] is a decision, his_own_name."
        "\r\n\r\n[1] A note.\r\n\r\n[Illustration: A map]\r\n\r\n* * *\r\n\r\nLater.\r\n\r\nII.\r\n\r\nTwo.\r\n\r\n"
        "*** END OF THE PROJECT GUTENBERG EBOOK A TALE ***\r\n\r\nSection 1. General terms.\r\n"
    )
    book = read_book(write(tmp_path / "b.txt", text))
    assert (book.title, book.author) == ("A Tale", "Ann")
    hard = "A hard decision of a well-known man is a decision, his_own_name."
    assert texts(book) == {"CHAPTER I. One": ["CHAPTER I. One", hard, "Later."], "II.": ["II.", "Two."]}


@pytest.mark.parametrize(
    ("name", "text", "spoken"),
    [
        ("b.md", "---\n# One\n\nHe said: go.\n\n---\n\nB.\n", ["One", "He said: go.", "B."]),
        ("b.md", "---\nA.\n\n---\n\nB.\n", ["A.", "B."]),
        (
            "b.txt",
            f"Title: one\n\n{START} X ***\n\nis a mark, and\n\n{END} X ***\n\nanother.\n",
            [
                "Title: one",
                f"{START} X ***",
                "is a mark, and",
                f"{END} X ***",
                "another.",
            ],
        ),
        (
            "b.txt",
            f"The Project Gutenberg eBook of A\n\nTitle: A\n\n{START} A ***\n\nA quotes\n\n{START} B ***\n\nof B.\n",
            ["A quotes", f"{START} B ***", "of B."],
        ),
        ("b.txt", "[1] The world.\n\n[2] Facts.[3]\n\n[3] Note.\n", ["[1] The world.", "[2] Facts."]),
        ("b.txt", "[Illustration: a [big]\ncat] Once.\n\n[Illustration]\n\n[Footnote 1: x]\n", ["Once."]),
        ("b.txt", "PART ONE\nCHAPTER I\n\nA.\n\nChapter 1\nChapter 2\n\nI\nII\n", ["PART ONE CHAPTER I", "A."]),
        ("b.txt", "Chapter 1\nLicense\n\nYou may.\n\n*** He ***\n", ["Chapter 1 License", "You may.", "*** He ***"]),
    ],
)
def test_text_of_the_author_is_not_left_out(name: str, text: str, spoken: list[str], tmp_path: Path) -> None:
    chapters = texts(read_book(write(tmp_path / name, text))).values()
    assert [paragraph for chapter in chapters for paragraph in chapter] == spoken


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("b.txt", "A.\n\n* * *\n\nB.\n\nC."),
        ("b.md", "A.\n\n***\n\nB.\n\nC.\n"),
        ("b.html", "<hr>A.<p>~<p>B.<hr><h2>C</h2>"),
    ],
)
def test_scene_break_is_a_longer_pause(name: str, text: str, tmp_path: Path) -> None:
    sentences, notices = write_script(read_book(write(tmp_path / name, text)), {})
    pauses = [0.0, SCENE_PAUSE_S, CHAPTER_PAUSE_S if "h2" in text else PARAGRAPH_PAUSE_S]
    assert ([sentence.pause_s for sentence in sentences], notices) == (pauses, [])


@pytest.mark.parametrize(
    "line", ["Kapitel 3", "Chapitre IV", "Capítulo 1. Inicio", "第十二章 開始", "제 3 장", "Глава 7"]
)
def test_chapters_are_found_in_other_languages(line: str, tmp_path: Path) -> None:
    book = read_book(write(tmp_path / "b.txt", f"A.\n\n{line}\n\nB.\n"))
    assert [chapter.title for chapter in book.chapters] == ["b", line]


@pytest.mark.parametrize(
    "data",
    [
        "Café".encode("utf-8-sig"),
        "Café".encode("utf-16"),
        "Café\r\n".encode(),
        '<meta charset="windows-1252"><p>Café</p>'.encode("cp1252"),
        '<?xml version="1.0" encoding="iso-8859-1"?><p>Café</p>'.encode("latin-1"),
    ],
)
def test_encodings_are_found(data: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / ("b.html" if data.startswith(b"<") else "b.txt"), data)
    assert [paragraph.text for paragraph in read_book(path).chapters[0].paragraphs] == ["Café"]


def test_latin_1_has_the_quotation_marks_of_windows(tmp_path: Path) -> None:
    path = write(tmp_path / "b.html", b"<meta charset='ISO-8859-1'><p>\x93It\x92s caf\xe9 time.\x94</p>")
    assert [paragraph.text for paragraph in read_book(path).chapters[0].paragraphs] == ["“It’s café time.”"]


@pytest.mark.parametrize("encoding", ["undefined", "punycode", "hex", "nonsense"])
def test_encoding_that_is_not_of_text_is_refused(encoding: str, tmp_path: Path) -> None:
    with pytest.raises(TextError, match=f"the encoding {encoding}", check=has_code("invalid_unicode")):
        read_book(write(tmp_path / "b.html", f"<meta charset='{encoding}'><p>Hello-.</p>"))


def test_wrong_encoding_names_the_fix(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="not text in the encoding utf-8", check=has_code("invalid_unicode")) as caught:
        read_book(write(tmp_path / "b.txt", "Café".encode("cp1252")))
    assert "iconv" in caught.value.hint


@pytest.mark.parametrize("text", ["", "\n\n", "***", "<p> </p>"])
def test_empty_book_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(TextError, check=has_code("empty_text")):
        read_book(write(tmp_path / "b.html", text))


def test_other_files_name_a_converter(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, check=has_code("invalid_book")) as caught:
        read_book(tmp_path / "b.mobi")
    assert "ebook-convert" in caught.value.hint
    with pytest.raises(FileError):
        read_book(tmp_path / "missing.epub")
    with pytest.raises(FileError):
        read_book(tmp_path.with_suffix(".txt") / "b.txt")


@pytest.mark.parametrize(
    ("html", "spoken"),
    [
        ("<p>E = mc<sup>2</sup></p>", ["E = mc2"]),
        ("<p>So<a href='#n1'>*</a>.</p>", ["So."]),
        ("<h1><a href='#toc'>1</a></h1>", ["1"]),
        ("<p>See <a href='#x'>below</a>", ["See below"]),
        ("<p>a<br/>b<p>c<div>d<p>e</div>f", ["a b", "c", "d", "e", "f"]),
        ("<ruby>漢<rt>kan</rt></ruby>", ["漢"]),
        ("<p hidden>x</p><p>y</p><nav><ul><li>z</ul></nav>", ["y"]),
        ("<script>if (a < b) {}</script><style>p{}</style>t", ["t"]),
        ("a &lt;b&gt; &amp;#9731; &#9731;", ["a <b> &#9731; ☃"]),
        ("<p>unclosed <b>bold</p></div><p>c", ["unclosed bold", "c"]),
        ("<p>on&shy;ly o\u200bne<p>&shy;", ["only one"]),
        ("<p style='color:red; Display : None'>x</p><p style='display:block'>y", ["y"]),
        ("<h2><span class='x pagenum'>[12]</span>Two</h2><div class='footnotes'><p>1. x</div>y", ["Two", "y"]),
        ("<section class='pg-boilerplate pgheader' id='pg-header'><h2>The eBook</h2></section>y", ["y"]),
        (
            "<p>See\n<a href='#c5'>5</a>, in <a href='#y'>1984</a>, grade <a href='#a'>a</a>.",
            ["See 5, in 1984, grade a."],
        ),
        ("<p>One<a href='#1'>1</a> two <a href='#2'><sup>2</sup></a>", ["One two"]),
        (
            "<p>Three <sup><a href='#3'>3</a></sup> is <a href='#4'>[4]</a>x<sup>2</sup>.<p><a href='#r'>1</a> A",
            ["Three is x2.", "A"],
        ),
        ("<p><span class='dropcap'>O</span>nce", ["Once"]),
        ("<!DOCTYPE html><?x y?>a<!-- <p>b --><!-->c<![CDATA[ & <d>]]><![if x]>e<![endif]>", ["ac & <d>e"]),
        ("<p>a <!-- b<p>c", ["a b", "c"]),
    ],
)
def test_page_speaks_what_is_read_aloud(html: str, spoken: list[str]) -> None:
    book = Book.from_blocks(Path("b.html"), Page(html).blocks)
    assert [paragraph.text for chapter in book.chapters for paragraph in chapter.paragraphs] == spoken


def test_stated_language_becomes_two_letters() -> None:
    assert [known_lang(lang) for lang in ("ger", "en-GB", "und", None, "nl")] == ["de", "en", None, None, "nl"]


def test_cover_with_too_many_pixels_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("png", "jpg"):
        assert read_cover(image(kind))
    monkeypatch.setattr(books, "MAX_COVER_PIXELS", 32 * 32 - 1)
    for kind in ("png", "jpg"):
        assert read_cover(image(kind)) is None


def test_long_chapter_title_is_shortened_in_the_marks(tmp_path: Path) -> None:
    (chapter,) = read_book(write(tmp_path / "b.md", "# " + "so long " * 9_000)).chapters
    assert len(chapter.title) == books.MAX_TITLE_CHARS
    assert len(chapter.paragraphs[0].text) == 71_999


def test_markdown_of_many_open_brackets_is_read_in_linear_time(tmp_path: Path) -> None:
    text = f"---\ntitle: 'A{' ' * 200_000}B'\nauthor:{' ' * 200_000}\n---\n" + "[^" * 5_000 + " end. [^1]"
    book = read_book(write(tmp_path / "b.md", text))
    assert book.title.startswith("A ")
    assert book.chapters[0].paragraphs[0].text.endswith(" end.")


def test_page_that_an_epub_lacks_is_reported(tmp_path: Path) -> None:
    package = PACKAGE.replace('<itemref idref="one"/>', '<itemref idref="one"/><itemref idref="gone"/>')
    book = read_book(write_epub(tmp_path / "b.epub", {"OEBPS/book.opf": package}))
    assert book.notices == ("The book refers to a page that it does not have; the rest is read.",)
    assert texts(book) == texts(read_book(write_epub(tmp_path / "whole.epub")))


@pytest.mark.parametrize(
    "html",
    [
        "<nav>" + "<i>" * 100_000 + "</b>" * 100_000,
        "<title>" + "a<i>" * 100_000,
        *(opening * 200_000 for opening in ("<!--", "<?", "<![CDATA[", "<![")),
    ],
    ids=lambda html: html[:10],
)
def test_hostile_html_is_read_in_linear_time(html: str) -> None:
    started = process_time()
    Page(html)
    assert process_time() - started < 20  # it took minutes
