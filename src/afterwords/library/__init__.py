"""Voices on this disk: the library, its folders and their migrations, bundles, links to servers, prompts."""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` is not needed to load nothing

if TYPE_CHECKING:
    from afterwords.library.library import Library

__all__ = ["Library"]


if not TYPE_CHECKING:  # a type checker that saw this would accept every misspelt name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from afterwords.library.library import Library

        return Library
