"""The application: every route behind the guard, as a router to mount or a program of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response

from afterwords import __version__
from afterwords.server.guard import not_found_response
from afterwords.server.routes import health, keys, speech, voices, workers
from afterwords.server.settings import Settings, load_settings
from afterwords.server.wiring import House, opened

DESCRIPTION: Final = "Register a voice once and speak with it from anywhere."


def router(settings: Settings | None = None) -> APIRouter:
    """Every route of the API, to include in an application of one's own.

    Its lifespan opens the server and closes it: include it, and the application's lifespan does both.

    Args:
        settings: None reads environment and config file when the application starts.
    """

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, House]]:  # noqa: ARG001 - the protocol gives it
        async with opened(settings or load_settings()) as house:
            yield {"afterwords": house}

    whole = APIRouter(lifespan=lifespan)
    for part in (speech, health, voices, keys, workers):  # what is asked most often is found first
        whole.routes.extend(part.router.routes)  # as they are: routers within routers are looked through one by one
    return whole


def create_app(settings: Settings | None = None) -> FastAPI:
    """The server as an ASGI application.

    Args:
        settings: None reads environment and config file when it starts.
    """
    app = FastAPI(
        title="afterwords",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        license_info={"name": "Apache-2.0"},
    )
    whole = router(settings)
    app.router.routes.extend(whole.routes)
    app.router.lifespan_context = whole.lifespan_context

    @app.exception_handler(404)
    async def not_found(request: Request, error: Exception) -> Response:  # noqa: ARG001 - the protocol gives them
        return not_found_response()

    return app
