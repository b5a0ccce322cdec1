"""The application: every route behind the guard, as a router to mount or a program of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from afterwords import __version__
from afterwords.errors import OpenedTwiceError
from afterwords.server.app_state import opened
from afterwords.server.auth import Credential, Needs, needs
from afterwords.server.routes import health, keys, speech, voices, workers
from afterwords.server.routing import GuardedRoute, Lifetime, embedded, not_found_response
from afterwords.server.settings import Settings, load_settings

DESCRIPTION: Final = "Register a voice once and speak with it from anywhere."
SCHEMES: Final = {
    "key": "A key: `aw_…`.",
    "admin": "The admin secret.",
    "worker": "The token of one attempt at one job, or the secret that all workers share.",
}
ASKED_HEADERS: Final = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Range",
    "Prefer",
    "Range",
    "X-Content-SHA256",
    "X-Synthesis-Time-Ms",
)
"""What a page of another origin may send."""
SHOWN_HEADERS: Final = (
    "Accept-Ranges",
    "Content-Disposition",
    "Content-Range",
    "ETag",
    "Link",
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
    "Retry-After",
    "X-Backend",
    "X-Cache",
    "X-Job-Id",
    "X-Request-Id",
    "X-Synthesis-Time-Ms",
    "X-Voice-Id",
)
"""What such a page may read of an answer."""
OPENED_BY: Final = {
    Credential.PUBLIC: (),
    Credential.USER: ("key",),
    Credential.ADMIN: ("admin",),
    Credential.USER_OR_ADMIN: ("key", "admin"),
    Credential.WORKER: ("worker",),
}


def router(settings: Settings | None = None) -> APIRouter:
    """Every route of the API, to include in an application of one's own.

    Its lifespan opens the server and closes it: include it, and the application's lifespan does both. Each call makes
    a router with a server of its own.

    Args:
        settings: None reads environment and config file when the application starts.
    """
    lifetime, guarded = Lifetime(), _guarded_routes()
    # The guarded routes stand behind the others for the documentation; no request comes that far.
    return APIRouter(
        routes=[*(embedded(route, lifetime) for route in guarded), *guarded], lifespan=_opening(lifetime, settings)
    )


def create_app(settings: Settings | None = None) -> Program:
    """The server as an ASGI application.

    Args:
        settings: None reads environment and config file when it starts.
    """
    app = Program(
        title="afterwords",
        version=__version__,
        description=DESCRIPTION,
        openapi_url=None,  # served below, behind the guard
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        license_info={"name": "Apache-2.0"},
    )
    app.router.routes.extend(_guarded_routes())
    app.router.lifespan_context = _opening(app.lifetime, settings)

    @needs(Credential.PUBLIC)
    async def openapi() -> Response:
        """This API as an OpenAPI document."""
        return JSONResponse(app.openapi())

    app.router.routes.append(GuardedRoute("/openapi.json", openapi, methods=["GET"], include_in_schema=False))

    app.router.default = _not_found
    return app


def _guarded_routes() -> list[GuardedRoute]:
    """Return the routes of the API. What is asked most often comes first, and is found first."""
    parts = (speech, health, voices, keys, workers)
    routes = [route for part in parts for route in part.router.routes if isinstance(route, GuardedRoute)]
    for route in routes:
        route.allowed = sorted({m for other in routes if other.path == route.path for m in other.methods_answered})
    return routes


def _opening(lifetime: Lifetime, settings: Settings | None) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:  # noqa: ARG001 - the protocol gives it
        if lifetime.house is not None:
            raise OpenedTwiceError
        chosen = settings or load_settings()
        chosen.check_is_safe()
        async with opened(chosen) as house:
            lifetime.house = house
            try:
                yield
            finally:
                lifetime.house = None

    return lifespan


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    await not_found_response()(scope, receive, send)


def _cors(app: ASGIApp, origins: Sequence[str]) -> CORSMiddleware:
    """Let pages of these origins ask from a browser. Keys travel in a header, so no cookie or login goes along."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
        allow_headers=ASKED_HEADERS,
        expose_headers=SHOWN_HEADERS,
    )


class Program(FastAPI):
    """The application, whose documentation says what each route needs."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.lifetime = Lifetime()
        self._cors: CORSMiddleware | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        house = scope["afterwords"] = self.lifetime.house
        if house is None or scope["type"] != "http" or not (origins := house.gate.settings.cors_origins):
            await super().__call__(scope, receive, send)
            return
        if self._cors is None:  # the settings may have been read only when the server was opened
            self._cors = _cors(super().__call__, origins)
        await self._cors(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        """Go to the routes at once, unless something was added to ours: they answer for every error by themselves."""
        is_ours_alone = not self.user_middleware and all(isinstance(route, GuardedRoute) for route in self.routes)
        return self.router if is_ours_alone else super().build_middleware_stack()

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            components = document["components"]
            components["securitySchemes"] = {
                name: {"type": "http", "scheme": "bearer", "description": words} for name, words in SCHEMES.items()
            }
            for name in ("HTTPValidationError", "ValidationError"):  # the framework's own 422, which nobody gets
                components["schemas"].pop(name, None)
            for route in self.routes:
                if isinstance(route, GuardedRoute) and route.include_in_schema:
                    for method in route.methods or ():
                        _document(document["paths"][route.path_format][method.lower()], route.needs)
        assert self.openapi_schema is not None
        return self.openapi_schema


def _document(operation: dict[str, Any], needed: Needs) -> None:
    scopes = [needed.scope.value] if needed.scope else []
    operation["security"] = [{name: scopes if name == "key" else []} for name in OPENED_BY[needed.credential]]
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
