"""The server: the /v1 API, run by `afterwords serve` or embedded in another application.

    from afterwords.server import create_app, load_settings

    app = create_app(load_settings(port=8000))

Needs the extra `server`. `create_app` returns an ASGI application, `router` a router for one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afterwords.server.app import create_app, router
    from afterwords.server.settings import Settings, load_settings

__all__ = ["Settings", "create_app", "load_settings", "router"]


if not TYPE_CHECKING:  # with this, a type checker would accept every misspelled name

    def __getattr__(name: str) -> Any:
        """Load FastAPI only when it is used, because workers import this package too."""
        if name in ("create_app", "router"):
            from afterwords.server import app

            return getattr(app, name)
        if name in ("Settings", "load_settings"):
            from afterwords.server import settings

            return getattr(settings, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
