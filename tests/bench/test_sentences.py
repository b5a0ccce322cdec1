"""The sentences that are said where nobody gives one."""

from __future__ import annotations

import pytest

from afterwords.bench.sentences import SENTENCES
from afterwords.text import LANGS, check_text, sentences


def test_every_language_that_some_backend_speaks_has_one() -> None:
    assert set(SENTENCES) == set(LANGS)


@pytest.mark.parametrize("lang", LANGS)
def test_it_is_one_sentence_that_can_be_spoken(lang: str) -> None:
    assert sentences(check_text(SENTENCES[lang])) == [SENTENCES[lang]]
