"""Who takes part: the backends that can run here and speak the language, and which were left out and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from afterwords.backends import registry
from afterwords.backends.registry import Backend


@dataclass(frozen=True, slots=True)
class Choice:
    """Backends to measure, best first; and of the others, why they are not."""

    backends: list[Backend]
    left_out: dict[str, str] = field(default_factory=dict)


def choose(names: Sequence[str] = (), *, lang: str, skips_slow: bool = False) -> Choice:
    """Choose the backends that are measured.

    Args:
        names: these alone; none: all that can run here and speak the language.
        lang: two letters.
        skips_slow: leave out those that take longer to speak than to listen.

    Raises:
        InvalidInputError, BackendUnavailableError, UnsupportedLangError: one that was named can't take part.
    """
    wanted = [registry.choose(name, lang=lang) for name in dict.fromkeys(names)] or registry.backends()
    left_out = {backend.name: why for backend in wanted if (why := _obstacle(backend, lang, skips_slow))}
    return Choice([backend for backend in wanted if backend.name not in left_out], left_out)


def _obstacle(backend: Backend, lang: str, skips_slow: bool) -> str:
    """Why a backend is not measured; empty where it is."""
    if not backend.is_available:
        return "can't run here (`afterwords backends` says why)"
    if lang not in backend.languages:
        return f"does not speak {lang}"
    return "is slow here" if skips_slow and backend.is_slow else ""
