"""Where jobs run: worker processes of this machine, with the engines in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from afterwords.server.dispatch.local import LocalDispatcher

__all__ = ["LocalDispatcher"]


if not TYPE_CHECKING:  # so that a type checker still finds misspelt names

    def __getattr__(name: str) -> object:
        """Import the dispatcher on first use: worker processes import this package without it."""
        if name not in __all__:
            raise AttributeError(name)
        from afterwords.server.dispatch.local import LocalDispatcher

        return LocalDispatcher
