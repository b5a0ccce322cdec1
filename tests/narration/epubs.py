"""Write EPUBs, whole and broken."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import av
import numpy as np

CONTAINER = """<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0">
<rootfiles><rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"""
PACKAGE = """<?xml version="1.0"?>
<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:title>The  Book</dc:title><dc:creator>Ann Author</dc:creator><dc:creator>Bo Writer</dc:creator>
<dc:language>eng</dc:language><meta name="cover" content="img"/></metadata>
<manifest>
<item id="img" href="images/c%20over.png" media-type="image/png"/>
<item id="nav" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="two" href="text/two.xhtml" media-type="application/xhtml+xml"/>
<item id="one" href="text/one.xhtml" media-type="application/xhtml+xml"/>
<item id="notes" href="text/notes.xhtml" media-type="application/xhtml+xml"/>
</manifest>
<spine><itemref idref="nav"/><itemref idref="one"/><itemref idref="two"/>
<itemref idref="notes" linear="no"/></spine></package>"""
NAV = """<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops"><body>
<nav epub:type="landmarks"><a href="text/one.xhtml">Begin</a></nav>
<nav epub:type="toc"><ol><li><a href="text/one.xhtml">First &amp; foremost</a></li>
<li><a href="text/two.xhtml#start">Second</a><ol><li><a href="text/two.xhtml#later">Later</a></li></ol></li></ol></nav>
</body></html>"""
ONE = """<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"
xmlns:epub="http://www.idpf.org/2007/ops"><head><title/></head><body><h1>I</h1>
<p>It was caf&eacute;&nbsp;time.<a epub:type="noteref" href="notes.xhtml#1">1</a> A line
over two.<sup><a href="notes.xhtml#2">[2]</a></sup></p><aside epub:type="footnote"><p>A note.</p></aside>
</body></html>"""
TWO = """<html xmlns="http://www.w3.org/1999/xhtml"><body><p>The end of the first.</p><p id="start">Second begins.</p>
<script>var spoken = false;</script><p>More.</p><a id="later"/><h2>Not a chapter</h2><p>And later.</p></body></html>"""
PAGES = {"nav.xhtml": NAV, "text/one.xhtml": ONE, "text/two.xhtml": TWO, "text/notes.xhtml": "<p>Notes.</p>"}


def image(name: str = "png") -> bytes:
    """Return a small picture."""
    file = BytesIO()
    with av.open(file, "w", format="image2pipe") as container:
        stream = container.add_stream("png" if name == "png" else "mjpeg", rate=1)
        stream.width = stream.height = 32
        stream.pix_fmt = "rgb24" if name == "png" else "yuvj420p"
        frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8), format="rgb24")
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return file.getvalue()


def write_epub(path: Path, changes: Mapping[str, str | bytes | None] | None = None) -> Path:
    """Write an EPUB of two pages and three chapters.

    Args:
        path: The file.
        changes: Members to add or replace by their names in the ZIP file, or to leave out (None).
    """
    members: dict[str, str | bytes | None] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": PACKAGE,
        "OEBPS/images/c over.png": image(),
        **{f"OEBPS/{name}": page for name, page in PAGES.items()},
        **(changes or {}),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            if content is not None:
                archive.writestr(name, content)
    return path
