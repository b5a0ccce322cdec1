"""Written forms to words: the table of forms, and numbers of other languages."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest

from afterwords.normalization import normalize

FORMS = [line.split("\t") for line in Path(__file__).with_name("forms.tsv").read_text("utf-8").splitlines()]
"""Kind, written form, and accepted readings. Every third row was held out while the rules were written."""
MIN_SHARE = 0.98


def sounds(text: str) -> str:
    """Return the letters of the words; "U.S." and "US" are the same."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(re.findall("[a-z]", plain.lower()))


def test_nearly_all_written_forms_are_read() -> None:
    assert len(FORMS) > 300
    for rows in (FORMS, FORMS[2::3]):
        misread = [(kind, form) for kind, form, said in rows if sounds(normalize(form, "en")) not in readings(said)]
        assert len(misread) <= round((1 - MIN_SHARE) * len(rows)), misread


def readings(said: str) -> set[str]:
    return {sounds(each) for each in said.split("|")}


@pytest.mark.parametrize(
    ("lang", "written", "said"),
    [
        ("de", "Etwa 1.200,5 € bei 3 %.", "Etwa eintausendzweihundert Komma fünf € bei drei Prozent."),
        ("de", "Um 12:30 am 12.03.2024, A4, 007", "Um 12:30 am 12.03.2024, A4, null null sieben"),
        ("fr", "71 ans, −2,5 et 1 000 000", "soixante et onze ans, moins deux virgule cinq et un million"),
        ("es", "21 y 1.000", "veintiuno y mil"),
        ("it", "Ho 1000 case.", "Ho mille case."),
        ("pt", "2.000 pessoas, 50%", "dois mil pessoas, cinquenta por cento"),
        ("ja", "5匹 12%", "5匹 12%"),
    ],
)  # fmt: skip
def test_numbers_of_other_languages(lang: str, written: str, said: str) -> None:
    assert normalize(written, lang) == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("Fine 👍🏽👍🏽!", "Fine thumbs up!"),
        ("A 🖤 and a ⛔", "A black heart and a no entry"),
        ("Press 1️⃣ :-)", "Press one"),
        ("[a](b) and ![c](d.png), [e] (f)", "a and c, e (f)"),
        ("/etc/hosts and ./a/b.py", "slash etc slash hosts and dot slash a slash b dot PY"),
        ("and/or $5/day", "and or five dollars per day"),
    ],
)  # fmt: skip
def test_emoji_markdown_and_paths(written: str, said: str) -> None:
    assert normalize(written, "en") == said
