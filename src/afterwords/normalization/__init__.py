"""Written forms to words, for engines that misread numbers, dates, units, addresses or emoji."""

from __future__ import annotations

from afterwords.text import split_sentences


def normalize(text: str, lang: str) -> str:
    """Return a text with words for its written forms, with a blank line between sentences.

    English is complete; in other languages numbers and percentages are spelled out.

    Args:
        text: Validated text.
        lang: Its two-letter language code.
    """
    if lang == "en":
        from afterwords.normalization.english import spell
    else:
        from functools import partial

        from afterwords.normalization.numbers import spell_numbers

        spell = partial(spell_numbers, lang=lang)
    return "\n\n".join(spell(sentence) for sentence in split_sentences(text))
