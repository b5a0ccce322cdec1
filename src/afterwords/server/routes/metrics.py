"""Routes for operators: metrics and status."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from afterwords.server.auth import Credential, requires
from afterwords.server.routes.responses import context_of, state_of
from afterwords.server.routing import DocumentedRoute

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

router = APIRouter(route_class=DocumentedRoute)


@router.get("/metrics", include_in_schema=False)
@requires(Credential.METRICS)
async def metrics(request: Request) -> Response:
    """Return metrics for Prometheus."""
    context_of(request).is_routine = True
    content = await state_of(request).monitoring.render_metrics()
    return Response(content, media_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})


@router.get("/status", include_in_schema=False)
@requires(Credential.LOCAL_OR_ADMIN)
async def status(request: Request) -> Response:
    """Return what `afterwords status` shows."""
    return JSONResponse(await state_of(request).monitoring.read_status(), headers={"Cache-Control": "no-store"})
