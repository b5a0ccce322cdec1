"""Where jobs are spoken: engines in supervised processes of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from afterwords.server.dispatch.local import InProcessDispatcher

__all__ = ["InProcessDispatcher"]


if not TYPE_CHECKING:  # a type checker that saw this would accept every misspelt name

    def __getattr__(name: str) -> object:
        """Load the dispatcher when it is asked for: its processes import this package, and don't need it."""
        if name not in __all__:
            raise AttributeError(name)
        from afterwords.server.dispatch.local import InProcessDispatcher

        return InProcessDispatcher
