"""Routes of health and readiness."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from afterwords import __version__
from afterwords.models import Health
from afterwords.server.auth import Credential, requires
from afterwords.server.routes.responses import context_of, errors, json_response, state_of
from afterwords.server.routing import DocumentedRoute

router = APIRouter(route_class=DocumentedRoute)


@router.get("/v1/health", tags=["service"], responses={200: {"model": Health}, **errors(_400="invalid_host")})
@requires(Credential.PUBLIC)
async def health(request: Request) -> Response:
    """Return that the service responds, and its backends."""
    return json_response(
        Health(status="ok", backends=tuple(state_of(request).dispatcher.backends), version=__version__)
    )


@router.get("/healthz", include_in_schema=False)
@requires(Credential.PUBLIC)
async def healthz(request: Request) -> Response:
    """Return that the process is alive."""
    context_of(request).is_routine = True
    return JSONResponse({"status": "ok"})


@router.get("/readyz", include_in_schema=False)
@requires(Credential.PUBLIC)
async def readyz(request: Request) -> Response:
    """Return whether database, storage and a backend are ready; 503 names what is not.

    A sweep that is off is shown, but does not make the server unready.
    """
    context_of(request).is_routine = True
    is_ready, state = await state_of(request).monitoring.check()
    return JSONResponse({"status": "ready" if is_ready else "not ready", **state}, 200 if is_ready else 503)
