"""The default sentences of `afterwords bench`."""

from __future__ import annotations

from afterwords.bench.sentences import SENTENCES
from afterwords.text import LANGS, check_text, split_sentences


def test_each_language_has_one_sentence() -> None:
    assert set(SENTENCES) == set(LANGS)
    assert [lang for lang, text in SENTENCES.items() if split_sentences(check_text(text)) != [text]] == []
