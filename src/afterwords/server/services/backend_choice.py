"""Which backend speaks: what was asked for, what the voice has, what this server offers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from afterwords.errors import InvalidBackendError, UnsupportedLangError
from afterwords.text import LANGS, normalise_lang

FAVOURITE: Final = "qwen3-1.7b"
"""What a new voice gets where nothing is named, as on the hosted service."""


@dataclass(frozen=True, slots=True)
class Offer:
    """The backends of this server, best first, with the languages of each."""

    backends: Mapping[str, frozenset[str]]

    def for_voice(self, backend: str | None, lang: str) -> tuple[str, str]:
        """The backend and language of a new voice.

        Raises:
            InvalidBackendError, UnsupportedLangError: it can't be.
        """
        lang = checked_lang(lang)
        if backend is None and lang in self.backends.get(FAVOURITE, ()):
            return FAVOURITE, lang
        return self._chosen(backend, lang), lang

    def for_speech(
        self, backend: str | None, lang: str | None, *, voice_backend: str, voice_lang: str
    ) -> tuple[str, str]:
        """The backend and language of a piece of speech.

        A backend that was named must speak the language; otherwise the voice's own comes first, then any that does.

        Raises:
            InvalidBackendError, UnsupportedLangError: it can't be.
        """
        lang = checked_lang(lang or voice_lang)
        if backend is None and lang in self.backends.get(voice_backend, ()):
            return voice_backend, lang
        return self._chosen(backend, lang), lang

    def _chosen(self, backend: str | None, lang: str) -> str:
        if backend is not None and backend not in self.backends:
            raise InvalidBackendError(None, offered=self.backends)
        wanted = list(self.backends) if backend is None else [backend]
        speaking = [name for name in wanted if lang in self.backends[name]]
        if not speaking:
            spoken = frozenset[str]().union(*(self.backends[name] for name in wanted))
            raise UnsupportedLangError(None, supported=spoken, backend=backend or "of this server")
        return speaking[0]


def checked_lang(lang: str) -> str:
    """The two-letter code of a language tag; the message of a refusal does not echo it."""
    try:
        return normalise_lang(lang)
    except UnsupportedLangError:
        raise UnsupportedLangError(None, supported=LANGS) from None
