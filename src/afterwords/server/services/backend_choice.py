"""Chooses the backend and language of a voice or a synthesis request."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Final

from afterwords.errors import InvalidInputError, UnsupportedLangError
from afterwords.server.ports import Dispatcher
from afterwords.text import LANGS, normalize_lang

DEFAULT_BACKEND: Final = "qwen3-1.7b"
"""The default of a new voice, as on the hosted service."""


@dataclass(frozen=True, slots=True)
class BackendCatalog:
    """The backends of this server, as they are now: remote workers come and go."""

    dispatcher: Dispatcher

    @property
    def backends(self) -> Mapping[str, frozenset[str]]:
        """The backends, best first, with the languages of each."""
        return self.dispatcher.backends

    @property
    def prompt_versions(self) -> Mapping[str, str]:
        """The prompt version of each backend, as far as it is known."""
        return self.dispatcher.prompt_versions

    @property
    def prepares(self) -> Set[str]:
        """The backends for which new voices are prepared."""
        return self.dispatcher.prepares

    def for_voice(self, backend: str | None, lang: str) -> tuple[str, str]:
        """Return the backend and language of a new voice.

        Raises:
            InvalidInputError, UnsupportedLangError: The server does not offer them.
        """
        return self._choose(backend, lang, default=DEFAULT_BACKEND)

    def for_speech(
        self, backend: str | None, lang: str | None, *, voice_backend: str, voice_lang: str
    ) -> tuple[str, str]:
        """Return the backend and language of a synthesis request.

        A requested backend must support the language. Otherwise the backend of the voice is preferred.

        Raises:
            InvalidInputError, UnsupportedLangError: The server does not offer them.
        """
        return self._choose(backend, lang or voice_lang, default=voice_backend)

    def _choose(self, backend: str | None, lang: str, *, default: str) -> tuple[str, str]:
        try:
            lang = normalize_lang(lang)
        except UnsupportedLangError:  # its message repeats the input
            raise UnsupportedLangError.for_lang(None, supported=LANGS) from None
        backends = self.backends
        if backend is None and lang in backends.get(default, ()):
            return default, lang
        if backend is not None and backend not in backends:
            names = ", ".join(backends) or "none"
            raise InvalidInputError(f"There is no such backend; available: {names}.", code="invalid_backend")
        candidates = list(backends) if backend is None else [backend]
        for name in candidates:
            if lang in backends[name]:
                return name, lang
        supported = frozenset[str]().union(*(backends[name] for name in candidates))
        raise UnsupportedLangError.for_lang(None, supported=supported, backend=backend or "of this server")
