"""Make the server: a router to include in an application, or an application of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from afterwords import __version__
from afterwords.errors import NotFoundError, ServerSetupError
from afterwords.server.app_state import open_server
from afterwords.server.auth import Credential, Requirements, requires
from afterwords.server.concurrency import in_thread
from afterwords.server.faces import (
    elevenlabs,
    elevenlabs_socket,
    elevenlabs_timestamps,
    openai,
    openai_batch,
    openai_consents,
    openai_socket,
)
from afterwords.server.routes import aliases, billing, health, keys, metrics, speech, voices, workers
from afterwords.server.routes.reference import page_response, render_page
from afterwords.server.routes.responses import COMMON, FORBIDDEN, SUSPENDED
from afterwords.server.routing import ApiRoute, Lifetime, unrouted_response
from afterwords.server.settings import Settings, load_settings
from afterwords.server.sockets import make_endpoint
from afterwords.server.web import account, checkout

DESCRIPTION: Final = "Register a voice once and speak with it from anywhere."
SCHEMES: Final = {
    "key": "An API key: `aw_…`.",
    "admin": "The admin secret, `AFTERWORDS_ADMIN_SECRET`.",
    "worker": "The token of the attempt, or the secret that all workers share, `AFTERWORDS_CALLBACK_SECRET`.",
}
HEADER_SCHEMES: Final = {
    "stripe": ("Stripe-Signature", "Stripe's signature of the body, with `AFTERWORDS_STRIPE_WEBHOOK_SECRET`."),
    "xi_key": ("xi-api-key", "An API key: `aw_…`."),
}
REQUEST_HEADERS: Final = (
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-Range",
    "Prefer",
    "Range",
    "X-Content-SHA256",
    "X-Synthesis-Time-Ms",
    "xi-api-key",
)
"""Request headers that a page of another origin may send."""
RESPONSE_HEADERS: Final = (
    "Accept-Ranges",
    "Content-Disposition",
    "Content-Range",
    "ETag",
    "Link",
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
    "Request-Id",
    "Retry-After",
    "X-Backend",
    "X-Cache",
    "X-Characters-Remaining",
    "X-Characters-Used",
    "X-Job-Id",
    "X-Left-Out",
    "X-Notices",
    "X-Request-Id",
    "X-Should-Retry",
    "X-Synthesis-Time-Ms",
    "X-Voice-Id",
)
"""Response headers that such a page may read."""
SECURITY: Final = {
    Credential.PUBLIC: (),
    Credential.USER: ("key",),
    Credential.XI_USER: ("xi_key", "key"),
    Credential.LIST: ("key",),
    Credential.SESSION: (),
    Credential.ADMIN: ("admin",),
    Credential.USER_OR_ADMIN: ("key", "admin"),
    Credential.LOCAL_OR_ADMIN: ("admin",),
    Credential.METRICS: ("admin",),
    Credential.WORKER: ("worker",),
    Credential.ATTEMPT: ("worker",),
    Credential.WORKER_TOKEN: ("worker",),
    Credential.STRIPE_SIGNATURE: ("stripe",),
}


def router(settings: Settings | None = None) -> APIRouter:
    """Return a router with every route of the API, to include in an application.

    Its lifespan, which becomes part of the application's, starts and stops the server. Each call makes a router with a
    server of its own.

    Args:
        settings: None reads environment and config file when the application starts.
    """
    lifetime = Lifetime()
    api = APIRouter(lifespan=_lifespan(lifetime, settings))
    route_class = _add_routes(api, lifetime)
    _add_page(api, route_class, lambda: render_page(create_app(settings).openapi()))
    return api


def create_app(settings: Settings | None = None) -> AfterwordsApp:
    """Return the server as an ASGI application.

    Args:
        settings: None reads environment and config file when it starts.
    """
    lifetime = Lifetime()
    app = AfterwordsApp(
        lifetime,
        title="afterwords",
        version=__version__,
        description=DESCRIPTION,
        openapi_url=None,  # added below, as an ApiRoute
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        license_info={"name": "Apache-2.0"},
        lifespan=_lifespan(lifetime, settings),
    )
    route_class = _add_routes(app.router, lifetime)

    @requires(Credential.PUBLIC)
    async def openapi() -> Response:
        """Return this API as an OpenAPI document."""
        return JSONResponse(app.openapi())

    async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
        if lifetime.state is not None:
            lifetime.state.metrics.count_request("", scope.get("method", ""), 404, 0)
        await unrouted_response(NotFoundError())(scope, receive, send)

    app.router.add_api_route("/openapi.json", openapi, include_in_schema=False, route_class_override=route_class)
    _add_page(app.router, route_class, lambda: render_page(app.openapi(), document_url="openapi.json"))
    app.router.default = not_found
    return app


def _add_routes(to: APIRouter, lifetime: Lifetime) -> type[ApiRoute]:
    """Add the routes of the API, the most frequent first, and return their class, which belongs to one server."""

    class ServerRoute(ApiRoute):
        pass

    ServerRoute.lifetime = lifetime
    for part in (
        speech,
        health,
        openai,
        openai_batch,
        openai_consents,
        elevenlabs,
        elevenlabs_timestamps,
        voices,
        aliases,
        keys,
        billing,
        checkout,
        workers,
        metrics,
        account,
    ):
        for route in part.router.routes:
            assert isinstance(route, APIRoute)
            required: Requirements = route.endpoint.requirements  # type: ignore[attr-defined]
            responses = {
                **(COMMON if required.credential is not Credential.PUBLIC else {}),
                **(SUSPENDED if "key" in SECURITY[required.credential] else {}),
                **(FORBIDDEN if required.scope else {}),
                **route.responses,
            }
            to.add_api_route(
                route.path,
                route.endpoint,
                methods=route.methods,
                status_code=route.status_code,
                tags=route.tags,
                responses=elevenlabs.with_error_shape(responses)
                if part in (elevenlabs, elevenlabs_timestamps)
                else responses,
                openapi_extra=route.openapi_extra,
                include_in_schema=route.include_in_schema,
                route_class_override=ServerRoute,
            )
    for path, socket in (openai_socket.SOCKETS | elevenlabs_socket.SOCKETS).items():
        to.add_api_websocket_route(path, make_endpoint(path, socket, lifetime))
    return ServerRoute


def _add_page(to: APIRouter, route_class: type[ApiRoute], render: Callable[[], bytes]) -> None:
    """Add the reference of the API, which is rendered at its first request."""
    render = cache(render)

    @requires(Credential.PUBLIC)
    async def docs(request: Request) -> Response:
        """Return the reference of this API as a page."""
        return page_response(request, await in_thread(render))

    to.add_api_route("/docs", docs, include_in_schema=False, route_class_override=route_class)


def _lifespan(lifetime: Lifetime, settings: Settings | None) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:  # noqa: ARG001 - Starlette passes it
        if lifetime.state is not None:
            raise ServerSetupError(code="opened_twice")
        loaded = settings or load_settings()
        loaded.check_is_safe()
        async with open_server(loaded) as state:
            lifetime.state = state
            try:
                yield
            finally:
                lifetime.state = None

    return lifespan


class AfterwordsApp(FastAPI):
    """The application of `create_app`. Its OpenAPI document states what each route requires."""

    def __init__(self, lifetime: Lifetime, **options: Any) -> None:
        super().__init__(**options)
        self.lifetime = lifetime
        self._cors: CORSMiddleware | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle CORS if the settings name origins; keys travel in a header, so browsers send no credentials."""
        state = self.lifetime.state
        if state is None or scope["type"] != "http" or not (origins := state.settings.cors_origins):
            await super().__call__(scope, receive, send)
            return
        if self._cors is None:  # the settings may be read as late as at start
            self._cors = CORSMiddleware(
                super().__call__,
                allow_origins=origins,
                allow_methods=("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
                allow_headers=REQUEST_HEADERS,
                expose_headers=RESPONSE_HEADERS,
            )
        await self._cors(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        """Skip FastAPI's middleware and dependency solving as long as nothing was added to the application.

        Its routes answer every error by themselves. This halves the time that a request takes outside the services.
        """
        is_extended = (
            self.user_middleware
            or self.exception_handlers.keys() - FastAPI().exception_handlers.keys()
            or not all(isinstance(route, ApiRoute | APIWebSocketRoute) for route in self.routes)
        )
        if is_extended:
            return super().build_middleware_stack()

        async def direct(scope: Scope, receive: Receive, send: Send) -> None:
            scope["afterwords.is_direct"] = True
            await self.router(scope, receive, send)

        return direct

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        if self.openapi_schema is None:
            document = super().openapi()
            components = document["components"]
            components["securitySchemes"] = {
                name: {"type": "http", "scheme": "bearer", "description": text} for name, text in SCHEMES.items()
            } | {
                name: {"type": "apiKey", "in": "header", "name": header, "description": text}
                for name, (header, text) in HEADER_SCHEMES.items()
            }
            for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own 422, which we never send
                components["schemas"].pop(name, None)
            for route in self.routes:
                if not isinstance(route, ApiRoute) or not route.include_in_schema:
                    continue
                required = route.requirements
                scopes = [required.scope.value] if required.scope else []
                for method in route.methods or ():
                    operation = document["paths"][route.path_format][method.lower()]
                    operation["security"] = [
                        {name: scopes if name in ("key", "xi_key") else []} for name in SECURITY[required.credential]
                    ]
                    if "HTTPValidationError" in str(operation["responses"].get("422")):
                        del operation["responses"]["422"]
        assert self.openapi_schema is not None
        return self.openapi_schema
