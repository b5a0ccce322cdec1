"""What texts of the web contain: addresses, paths of files, Markdown and emoji."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from afterwords.normalization.rules import compile_rules

# -- emoji ---------------------------------------------------------------------------------------------------

_PICTURE: Final = "[\U0001f300-\U0001faff\u2600-\u27bf\u2b1b\u2b1c\u2b50\u2b55\u231a\u231b\u23e9-\u23fa]"
_TONE: Final = "[\U0001f3fb-\U0001f3ff]"
_EMOJI = re.compile(
    rf"(?P<one>[\U0001f1e6-\U0001f1ff]{{2}}|{_PICTURE}[\ufe0e\ufe0f]?{_TONE}?(?:\u200d{_PICTURE}[\ufe0e\ufe0f]?{_TONE}?)*+)"
    r"(?:\s?(?P=one))*+"
)
_KEYCAP = re.compile("(?<=[0-9#*])\ufe0f?\u20e3")
_SMILEY = re.compile(r"(?<!\S)[:;=]-?[)(DPp](?!\S)")
_OLD_WORDS: Final = frozenset({"black", "white", "heavy", "medium", "sign", "symbol"})
"""Words in the names of symbols that were in Unicode before they had colors."""
_NAMES: Final = {
    "❤": "red heart", "☀": "sun", "✅": "check mark button", "🍕": "pizza", "🙏": "folded hands", "😄": "grinning face",
    "💩": "pile of poo", "🤷": "shrug", "☺": "smiling face", "☕": "coffee", "✈": "airplane", "☎": "telephone",
}  # fmt: skip


def name_emoji(text: str) -> str:
    """Return a text with names for emoji, once for a run of the same one; smileys of punctuation are left out."""
    text = _SMILEY.sub(" ", text)
    return text if text.isascii() else _EMOJI.sub(lambda found: f" {_name(found['one'])} ", _KEYCAP.sub(" ", text))


def _name(emoji: str) -> str:
    if "\U0001f1e6" <= emoji[0] <= "\U0001f1ff":
        return "flag " + "".join(chr(ord(letter) - 0x1F1E6 + ord("A")) for letter in emoji)
    said = []
    for part in emoji:
        name = unicodedata.name(part, "").lower().split()
        if part not in "\u200d\ufe0e\ufe0f" and not re.match(_TONE, part):
            is_old = part < "\U00010000" or "sign" in name
            said.append(_NAMES.get(part, " ".join(word for word in name if not (is_old and word in _OLD_WORDS))))
    return " ".join(said)


# -- addresses, paths and Markdown ---------------------------------------------------------------------------

_ADDRESS_SIGNS: Final = {
    ".": " dot ", "/": " slash ", "-": " dash ", "_": " underscore ", "@": " at ", ":": " colon ", "=": " equals ",
    "?": " question mark ", "&": " and ", "%": " percent ", "#": " hash ", "~": " tilde ", "+": " plus ",
    "\\": " backslash ",
}  # fmt: skip
_SPELLED: Final = (
    "txt|md|py|js|ts|tsx|jsx|cpp|cs|rs|rb|php|sh|sql|pdf|jpg|jpeg|png|gif|svg|mp3|mp4|m4a|wav|csv|tsv|xml|html|css|exe"
)
_SAID: Final = "zip|json|yaml|yml|toml|log|java|go|epub|docx|xlsx|ini|cfg|lock|conf|tar|gz|flac|bin"
_EXTENSION = re.compile(rf"(?<=\.)(?:{_SPELLED})(?![\w])")


def _address(found: re.Match[str]) -> str:
    """Spell an address or a path as in dictation."""
    written = found[0].rstrip(".,;:!?\"')]}>*”’")
    end = found[0][len(written) :]
    written = re.sub(r"^(?:(?:https?|ftp)://|mailto:)", "", written)
    written = re.sub(r"^www\.", "w w w dot ", written).rstrip("/")
    written = _EXTENSION.sub(lambda extension: extension[0].upper(), written)
    return "".join(_ADDRESS_SIGNS.get(character, character) for character in written) + end


_DOMAINS: Final = "com|org|net|edu|gov|info|io|dev|app|ai|uk|eu|de|fr|ca|au|us|co|tv|me|ly"
_PART: Final = r"\.?[\w+-]++(?:\.[\w+-]++)*+"
RULES = compile_rules(
    (r"!?\[(?P<said>[^\[\]]*+)\]\([^()\s]*+\)", r"\g<said>"),  # a link or an image of Markdown
    (r"<(?=(?:https?|ftp)://)", ""),
    (r"(?<![A-Za-z])(?:(?:https?|ftp)://|www\.|mailto:)[^\s<>]++", _address),
    (r"(?<![\w.+-])[\w.+-]++@[\w-]++(?:\.[\w-]++)++", _address),
    (rf"(?<![\w.@-])[A-Za-z][\w-]*+(?:\.[\w-]++)*\.(?:{_DOMAINS})(?![\w@-])(?:/[^\s<>]*+)?", _address),
    (rf"(?<![\w/.~])(?:(?:~|\.\.?)/{_PART}(?:/{_PART})*+/?|/{_PART}(?:/{_PART})++/?)", _address),
    (rf"(?<![\w/.~@-])(?:[\w-]++[/.])+(?:{_SPELLED})(?!\w)", _address),
    (r"(?<![\w\\])[A-Za-z]:\\[\w\\.-]++", _address),
    (r"(?<![\w@])@(?=[A-Za-z])", " at "),
    (rf"(?<=[a-z]{{2}})\.(?=[a-z]{{2}})|(?<=[A-Za-z0-9_])\.(?=(?:{_SPELLED}|{_SAID})\b)", " dot "),
    (r"(?<=[a-z])\.(?=[A-Z][a-z])", ". "),
    (r"(?<![A-Za-z'’])(?P<factor>[a-z])\*(?=\d)", r"\g<factor> times "),
    (r"(?<!\d )\*(?! ?\d)|(?<![\d ])\*|[*](?![ \d])|[`_|·]|~~", " "),
    (r"^ ?#+ ", ""),
    (r">=", "≥"),
    (r"<=", "≤"),
    (r"!=", "≠"),
    (r"={2,}+", "="),
    (r"&{2,}+", "&"),
    (r" {2,}", " "),
)
