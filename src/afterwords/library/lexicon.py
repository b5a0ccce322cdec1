"""Lexicons as PLS files, the Pronunciation Lexicon Specification 1.0 of the W3C.

Source: https://www.w3.org/TR/pronunciation-lexicon/
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NoReturn
from xml.parsers import expat

from afterwords.errors import InvalidInputError
from afterwords.models import LexiconEntry

PLS_MAX_BYTES: Final = 1 << 20
_NAMESPACE: Final = "http://www.w3.org/2005/01/pronunciation-lexicon"


def to_pls(lexicon: Iterable[LexiconEntry], *, lang: str) -> bytes:
    """Return a lexicon as a PLS file."""
    from xml.etree import ElementTree as ET  # only writes

    root = ET.Element("lexicon", {"version": "1.0", "xmlns": _NAMESPACE, "alphabet": "ipa", "xml:lang": lang})
    for entry in lexicon:
        lexeme = ET.SubElement(root, "lexeme")
        ET.SubElement(lexeme, "grapheme").text = entry.word
        if entry.ipa:
            ET.SubElement(lexeme, "phoneme").text = entry.ipa
        if entry.alias:
            ET.SubElement(lexeme, "alias").text = entry.alias
    ET.indent(root)
    written: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def from_pls(data: bytes) -> list[LexiconEntry]:
    """Return the entries of an untrusted PLS file: one per grapheme, with the first alias and the first IPA.

    Raises:
        InvalidInputError: It is not PLS, declares a document type, or has an entry that is too long.
    """
    if len(data) > PLS_MAX_BYTES:
        _refuse(f"it has more than {PLS_MAX_BYTES:,} bytes")
    reader = _PlsReader()
    try:
        reader.parser.Parse(data, True)
    except expat.ExpatError as error:
        _refuse(f"it is not valid XML ({expat.errors.messages[error.code]}, line {error.lineno})")
    except (LookupError, ValueError) as error:  # an unknown encoding, or an entry that is too long
        _refuse("its encoding is unknown" if isinstance(error, LookupError) else "an entry is empty or too long")
    return list(reader.entries.values())


def _refuse(why: str) -> NoReturn:
    raise InvalidInputError(f"The lexicon can't be imported: {why}.", hint="use a PLS 1.0 file; docs/text.md has one.")


class _PlsReader:
    """Reads the elements of a PLS file."""

    def __init__(self) -> None:
        self.entries: dict[str, LexiconEntry] = {}
        self.parser = expat.ParserCreate(namespace_separator=" ")  # names are then "namespace name"
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        self._alphabet = ""
        self._is_ipa = False
        self._text: list[str] = []
        self._lexeme: dict[str, list[str]] = {}

    def _doctype(self, *_: object) -> None:
        _refuse("it declares a document type, which could define entities")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        name = name.rpartition(" ")[2]
        if not self._alphabet:
            if name != "lexicon":
                _refuse("its root is not <lexicon>")
            self._alphabet = attributes.get("alphabet", "none")
        if name == "lexeme":
            self._lexeme = {"grapheme": [], "alias": [], "phoneme": []}
        self._is_ipa = attributes.get("alphabet", self._alphabet) == "ipa"
        self._text = []

    def _characters(self, text: str) -> None:
        self._text.append(text)

    def _end(self, name: str) -> None:
        name = name.rpartition(" ")[2]
        text = " ".join("".join(self._text).split())
        if name in self._lexeme and (name != "phoneme" or self._is_ipa):
            self._lexeme[name].append(text)
        self._text = []
        if name != "lexeme":
            return
        alias, ipa = (next(iter(self._lexeme[kind]), None) for kind in ("alias", "phoneme"))
        for word in self._lexeme["grapheme"] if alias or ipa else ():
            self.entries[word] = LexiconEntry(word=word, alias=alias, ipa=ipa)
