"""Lexicons: stored with the voice, exported and imported as PLS."""

from __future__ import annotations

import re

import pytest

from afterwords.errors import InvalidInputError, InvalidOptionError
from afterwords.library.bundle import unpack
from afterwords.library.lexicon import PLS_MAX_BYTES, from_pls, to_pls
from afterwords.local import export_bundle, library
from afterwords.models import LexiconEntry, Voice, read_lexicon

ENTRIES = [
    LexiconEntry(word="W3C", alias="World Wide Web Consortium & co"),
    LexiconEntry(word="Siobhan", ipa="ʃɪˈvɔːn"),
    LexiconEntry(word="nginx", alias="engine x", ipa="ˈɛndʒɪnˈɛks"),
]
PLS = """<?xml version="1.0" encoding="UTF-8"?>
<lexicon version="1.0" xmlns="http://www.w3.org/2005/01/pronunciation-lexicon" alphabet="ipa" xml:lang="en-US">
  <lexeme role="x"><grapheme>judgment</grapheme><grapheme> judgement </grapheme><phoneme>ˈdʒʌdʒ
    mənt</phoneme><phoneme>b</phoneme><example>ignored</example></lexeme>
  <lexeme><grapheme>AT&amp;T</grapheme><phoneme alphabet="x-sampa">eI</phoneme><alias>A T and T</alias></lexeme>
  <lexeme><grapheme>nothing</grapheme></lexeme>
</lexicon>"""


def test_pls_round_trip() -> None:
    assert from_pls(to_pls(ENTRIES, lang="en")) == ENTRIES


PREFIXED = re.sub(r"<(/?)(?=[a-z])", r"<\1pls:", PLS).replace("xmlns=", "xmlns:pls=")


@pytest.mark.parametrize("pls", [PLS, PREFIXED, PLS.replace("xmlns=", "xmlns:unused=")])
def test_pls_of_other_programs_is_read(pls: str) -> None:
    assert from_pls(pls.encode()) == [
        LexiconEntry(word="judgment", ipa="ˈdʒʌdʒ mənt"),
        LexiconEntry(word="judgement", ipa="ˈdʒʌdʒ mənt"),
        LexiconEntry(word="AT&T", alias="A T and T"),
    ]


LAUGHS = '<!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><lexicon>&b;</lexicon>'


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not valid XML"),
        (b"<lexicon>", "not valid XML"),
        (b"<html/>", "root"),
        (LAUGHS.encode(), "document type"),
        (b'<!DOCTYPE l SYSTEM "file:///etc/passwd"><lexicon/>', "document type"),
        (b'<?xml version="1.0" encoding="x-none"?><lexicon/>', "encoding|not valid XML"),
        (b" " * (PLS_MAX_BYTES + 1), "bytes"),
        (PLS.replace("nothing</grapheme>", "a" * 101 + "</grapheme><alias>b</alias>").encode(), "too long"),
    ],
)
def test_invalid_pls_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(InvalidInputError, match=why):
        from_pls(data)


def test_lexicon_travels_in_a_bundle(me: Voice) -> None:
    library().set_lexicon("me", ENTRIES)
    assert list(library().get("me").lexicon) == ENTRIES
    assert list(unpack(export_bundle("me")[1]).voice.lexicon) == ENTRIES
    assert library().set_lexicon("me", []).metadata["lexicon"] == []


def test_long_lexicon_is_refused(me: Voice) -> None:
    with pytest.raises(InvalidOptionError, match="entries"):
        library().set_lexicon("me", [LexiconEntry(word=f"word{n}", alias="a") for n in range(1001)])


@pytest.mark.parametrize("found", [None, 5, {}, [None, {"word": ""}, {"word": "a", "x": 1}]])
def test_invalid_lexicon_of_a_bundle_is_ignored(found: object) -> None:
    assert read_lexicon({"lexicon": found}) == ()
