"""What all routes share: parameters, JSON responses, links, and the documentation of errors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, cast
from urllib.parse import quote

from fastapi import Header, Path, Request
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, BaseModel
from starlette.requests import HTTPConnection

from afterwords.audio.encoding import MEDIA_TYPES
from afterwords.errors import InvalidRequestError, NotFoundError
from afterwords.models import SpeechFormat, parse_id
from afterwords.server.app_state import ServerState
from afterwords.server.auth import Identity
from afterwords.server.records import Caller
from afterwords.server.routes.schemas import ErrorBody
from afterwords.server.routing import RequestContext

# -- requests -------------------------------------------------------------------------------------------------


def _id_parser(missing_code: str) -> AfterValidator:
    def parse(value: str) -> str:
        if (parsed := parse_id(value)) is None:
            raise NotFoundError(code=missing_code)
        return parsed

    return AfterValidator(parse)


def _check_idempotency_key(value: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", value):
        raise InvalidRequestError.invalid_field(
            "Idempotency-Key", rule="it must have 1 to 255 visible ASCII characters"
        )
    return value


JobId = Annotated[str, _id_parser("job_not_found"), Path(description="ID of the job.")]
KeyId = Annotated[str, _id_parser("key_not_found"), Path(description="ID of the key.")]
VoiceId = Annotated[str, Path(description="ID or exact name of the voice.")]
IdempotencyKey = Annotated[
    Annotated[str, AfterValidator(_check_idempotency_key)] | None,
    Header(alias="Idempotency-Key", max_length=255, description="Makes retries safe: same key, same response."),
]


def state_of(request: HTTPConnection) -> ServerState:
    """Return the server that handles a request."""
    return cast(ServerState, request.scope["state"]["afterwords"])


def context_of(request: HTTPConnection) -> RequestContext:
    """Return what the route class knows about a request."""
    return cast(RequestContext, request.scope["afterwords.context"])


def identity_of(request: HTTPConnection) -> Identity:
    """Return who sent a request."""
    return cast(Identity, context_of(request).identity)


def caller_of(request: HTTPConnection) -> Caller:
    """Return the user who sent a request to a route that requires one."""
    caller = identity_of(request).caller
    assert caller is not None, "the route requires a user"
    return caller


def base_url(request: Request) -> str:
    """Return the URL for links: the public one, or the server's own with the prefix of the router."""
    settings, scope = state_of(request).settings, request.scope
    if settings.public_url:
        return settings.public_url
    n_segments = context_of(request).route.rpartition("/v1/")[2].count("/") + 2  # the route may include the prefix
    prefix = scope["path"].rsplit("/", n_segments)[0]
    return settings.local_url + quote(prefix.removeprefix(scope.get("app_root_path", scope.get("root_path", ""))))


# -- responses ------------------------------------------------------------------------------------------------


def json_response(body: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response, which caches must not store."""
    headers = {"Cache-Control": "no-store", **(headers or {})}
    return Response(body.model_dump_json(), status, headers, media_type="application/json")


def list_response(
    items: Sequence[BaseModel],
    *,
    request: Request,
    path: str = "",
    limit: int | None = None,
    last_id: str | None = None,
) -> Response:
    """Return a JSON array. If there may be more after `last_id`, a Link header leads to the next page of `path`."""
    response = JSONResponse([item.model_dump(mode="json") for item in items], headers={"Cache-Control": "no-store"})
    if limit is not None and len(items) == limit and last_id is not None:
        query = request.url.include_query_params(after=last_id).query
        response.headers["Link"] = f'<{base_url(request)}{path}?{query}>; rel="next"'
    return response


# -- documentation --------------------------------------------------------------------------------------------


def errors(**codes: str) -> dict[int | str, dict[str, Any]]:
    """Document errors of a route: `_422="empty_text, text_too_long"` names the codes of a status."""
    return {
        int(status.removeprefix("_")): {"model": ErrorBody, "description": f"Codes: {names}."}
        for status, names in codes.items()
    }


COMMON: Final = errors(
    _400="bad_request, invalid_host, invalid_json",
    _401="unauthorized",
    _408="request_timeout",
    _413="request_too_large",
    _429="rate_limited, too_many_concurrent_requests",
    _500="internal_error",
    _503="database_unavailable, storage_unavailable, service_unavailable, not_opened",
    _507="storage_full, storage_quota_exceeded",
)
"""Errors of every route with a credential."""
SUSPENDED: Final = errors(_402="subscription_inactive")
"""Errors of every route that a key opens."""
FORBIDDEN: Final = errors(_403="insufficient_scope")
"""Errors of every route with a scope."""
BINARY: Final = {"type": "string", "format": "binary"}


def audio_content(*formats: SpeechFormat) -> dict[str, Any]:
    """Document a response of audio in these formats, or all."""
    return {MEDIA_TYPES[name]: {"schema": BINARY} for name in formats or SpeechFormat}


def request_body(media_type: str, schema: Mapping[str, Any] = BINARY) -> dict[str, Any]:
    """Document the body of a route that reads it by itself."""
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}
