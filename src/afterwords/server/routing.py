"""The route class of the API: check the request before its body is read, answer errors in one shape, log one line.

`create_app` and `router` make every route an `ApiRoute`. FastAPI solves dependencies and reads parameters and bodies as
in any application; errors of the API and the log line, which holds no text and no key, come from here.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from codecs import BOM_UTF8
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Final, TypeVar, cast
from urllib.parse import parse_qsl
from uuid import uuid4

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from afterwords.errors import (
    AfterwordsError,
    InvalidRequestError,
    QuotaExceededError,
    RecordingError,
    ServiceError,
    TextError,
    error_type,
)
from afterwords.models import parse_id
from afterwords.server.app_state import ServerState
from afterwords.server.auth import OPEN, Credential, Identity, RequestTask, Requirements
from afterwords.server.metrics import known_method
from afterwords.server.records import ACTOR, Actor
from afterwords.server.records import Scope as KeyScope
from afterwords.server.tracing import RequestSpan

log = logging.getLogger("afterwords.server")

M = TypeVar("M", bound=BaseModel)

MULTIPART_OVERHEAD_BYTES: Final = 64 * 1024
"""How much a multipart form may add to the file that it carries: text fields, headers, boundaries."""
BODY_RATE_MIN: Final = 8 * 1024
"""Bytes per second. A body that takes longer than the timeout must arrive at this rate at least."""
PROXY_HEADERS: Final = frozenset(
    {b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip", b"via"}
)
FORM: Final = "application/x-www-form-urlencoded"
FIELDS_MAX: Final = 16
_LONE_SURROGATE: Final = ("surrogate", "end of hex escape")
"""How pydantic's JSON parser reports an escape that stands for half a character."""


@dataclass(slots=True)
class Lifetime:
    """The server of one router or application: set while its lifespan runs."""

    state: ServerState | None = None
    methods: dict[str, set[str]] = field(default_factory=dict)  # by path, for the Allow header


class DocumentedRoute(APIRoute):
    """A route whose response models, which only the OpenAPI document needs, are made with that document.

    FastAPI makes them with the route, which takes four fifths of the time to create an application.
    """

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        responses: dict[int | str, dict[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(path, endpoint, **options)
        self.responses = responses or {}
        del self.response_fields  # which was empty

    @cached_property
    def response_fields(self) -> dict[int | str, Any]:  # type: ignore[override]
        """The fields of the response models, by status."""
        return APIRoute(self.path, self.endpoint, methods=self.methods, responses=self.responses).response_fields


class ApiRoute(DocumentedRoute):
    """A route of the API.

    Before FastAPI reads the body, the route checks the Host header, the credential, the rate limit and the announced
    size. A GET route also answers HEAD.
    """

    lifetime: ClassVar[Lifetime]

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self.requirements: Requirements = endpoint.requirements  # type: ignore[attr-defined]
        super().__init__(path, endpoint, **options)
        self._parameters = [
            (place, source, parameter)
            for place, source in (("path", "path_params"), ("query", "query_params"), ("header", "headers"))
            for parameter in getattr(self.dependant, f"{place}_params")
        ]
        methods = self.lifetime.methods.setdefault(path, set())
        methods.update(self.methods or ())
        if "GET" in methods:
            methods.add("HEAD")

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match HEAD like GET."""
        return super().matches({**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler with our checks before it and our errors for what it refuses."""
        handle = super().get_route_handler()

        async def check_and_handle(request: Request) -> Response:
            await request.scope["afterwords.context"].authenticate(self.requirements)
            try:
                return await handle(_JsonRequest(request.scope, request.receive))
            except RequestValidationError as error:
                raise _validation_error(error.errors()[0], request) from None
            except HTTPException as error:  # FastAPI wraps every error of reading a body
                if isinstance(error.__cause__, AfterwordsError | ClientDisconnect):
                    raise error.__cause__ from None
                raise

        return check_and_handle

    async def _call_endpoint(self, request: Request) -> Response:
        """Do what FastAPI's handler does for a route without dependencies, in a third of the time."""
        name = self.dependant.request_param_name
        arguments: dict[str, Any] = {name: request} if name else {}
        has_query = bool(request.scope["query_string"])  # parsing an empty one takes 4 % of a poll
        for place, source, parameter in self._parameters:
            value = getattr(request, source).get(parameter.alias) if has_query or place != "query" else None
            if value is None:
                arguments[parameter.name] = parameter.get_default()
                continue
            arguments[parameter.name], errors = parameter.validate(value, arguments, loc=(place, parameter.alias))
            if errors:
                raise _validation_error(errors[0], request)
        if self.body_field is not None:
            chunks: list[bytes] = []
            more_body = True
            while more_body:  # usually one message: faster than `Request.body`
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                chunks.append(message.get("body", b""))
                more_body = message.get("more_body", False)
            content = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            body = (_parse_json(content) if _is_json(request) else content) if content else None
            if body is None and not self.body_field.field_info.is_required():
                arguments[self.body_field.name] = self.body_field.get_default()
            else:
                arguments[self.body_field.name], errors = self.body_field.validate(body, arguments, loc=("body",))
                if errors:
                    raise _validation_error(errors[0], request)
        return cast("Response", await self.endpoint(**arguments))

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, and answer any error of the API.

        Exceptions of the dependencies of an application that includes the router pass through to that application.
        """
        context = scope["afterwords.context"] = RequestContext(
            scope, receive, send, self.path_format, self.requirements.answer_error
        )
        try:
            if (state := self.lifetime.state) is None:
                raise ServiceError(code="not_opened")
            context.state = scope.setdefault("state", {})["afterwords"] = state
            if state.tracer is not None:
                traceparents = context.headers.get(b"traceparent", ())
                context.span = RequestSpan(state.tracer, known_method(scope["method"]), context.route, traceparents)
            if context.is_head:
                scope = {**scope, "method": "GET"}
            if scope["method"] not in (self.methods or ()):
                context.check_host()
                allowed = ", ".join(sorted(self.lifetime.methods[self.path]))
                raise InvalidRequestError(
                    f"This path supports only {allowed}.",
                    code="method_not_allowed",
                    hint=f"use {allowed}.",
                    headers={"Allow": allowed},
                )
            if scope.get("afterwords.is_direct") and not self.dependant.dependencies:
                await context.authenticate(self.requirements)
                response = await self._call_endpoint(Request(scope, context.receive))
                await response(scope, context.receive, context.send)
            else:
                await super().handle(scope, context.receive, context.send)
        except ClientDisconnect:
            context.status = context.status or 499
        except asyncio.CancelledError:
            refusal = context.task.take_revocation() if context.task is not None else None
            if refusal is None:
                raise
            await context.answer(refusal)
        except AfterwordsError as error:
            if error.code == "not_opened":
                log.error("%s %s", error.message, error.hint)
            if error.code == "internal_error" and error.__cause__ is not None:
                log.error("failed request_id=%s %s", context.request_id, origin_of(error.__cause__))
            await context.answer(error)
        except Exception as error:
            log.error("failed request_id=%s %s", context.request_id, origin_of(error))
            context.status = context.status or 500
            raise
        finally:
            context.end()


class _JsonRequest(Request):
    """A request whose JSON body is parsed by pydantic: faster than the standard library, and bounded in depth."""

    async def json(self) -> Any:
        return _parse_json(await self.body())


def _parse_json(content: bytes) -> Any:
    try:
        return from_json(content.removeprefix(BOM_UTF8))
    except ValueError as error:
        if any(sign in str(error) for sign in _LONE_SURROGATE):
            raise TextError(code="invalid_unicode") from None
        raise InvalidRequestError(code="invalid_json") from None


def parse_body(kind: type[M], content: bytes, request: Request) -> M:
    """Return the body of a route that also takes forms.

    Raises:
        AfterwordsError: It is neither JSON nor a form, or a field is invalid.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        return parse_fields(kind, _parse_json(content) if _is_json(request) else None, request)
    try:
        fields = parse_qsl(content.decode(errors="replace"), max_num_fields=FIELDS_MAX)
    except ValueError:
        raise InvalidRequestError.invalid_form(f"it has more than {FIELDS_MAX} fields") from None
    return parse_fields(kind, dict(fields), request)


def parse_fields(kind: type[M], fields: Any, request: Request) -> M:
    """Return the fields of a body or form as a model.

    Raises:
        AfterwordsError: A field is invalid.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _validation_error({**first, "loc": ("body", *first["loc"])}, request) from None


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind.startswith("application/") and kind.endswith(("/json", "+json"))


def _validation_error(first: Mapping[str, Any], request: Request) -> AfterwordsError:
    """Return our error for the first thing that pydantic refuses, without the value that was sent."""
    place, *names = first["loc"]
    param = ".".join(str(name) for name in names)
    if place == "body" and not names:  # absent, not JSON, or not an object
        why = "it can't be parsed" if _is_json(request) else "the Content-Type is not JSON"
        return InvalidRequestError(f"The body is not a JSON object: {why}.", code="invalid_json")
    if first["type"] == "missing":
        return InvalidRequestError.missing_field(param)
    if first["type"] == "string_unicode":
        return TextError(code="invalid_unicode")
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    return InvalidRequestError.invalid_field(param, rule=message[:1].lower() + message[1:])


@dataclass(slots=True)
class RequestContext:
    """One request and its response.

    Attributes:
        job_id: The job that the request submitted.
        is_routine: Whether a success is logged at debug level only: a probe, or a poll of a pending job.
    """

    scope: Scope
    _receive: Receive
    _send: Send
    route: str
    _answer_error: Callable[[Request, AfterwordsError], Awaitable[Response]] | None = None
    state: ServerState | None = None
    identity: Identity | None = None
    task: RequestTask | None = None
    status: int = 0
    is_routine: bool = False
    job_id: str | None = None
    span: RequestSpan | None = None
    request_id: str = field(default_factory=lambda: str(uuid4()))
    headers: dict[bytes, list[bytes]] = field(init=False)
    _started: float = field(default_factory=time.perf_counter)
    _max_bytes: int | None = None
    _is_upload: bool = False
    _is_live: bool = False
    _timeout_s: float = 15
    _n_bytes: int = 0
    _body_began: float = 0
    _has_body: bool = True

    def __post_init__(self) -> None:
        self.headers = {}
        for name, value in self.scope["headers"]:
            self.headers.setdefault(name, []).append(value)

    @property
    def is_head(self) -> bool:
        """Whether the client asked for headers only; the endpoint of GET handles the request."""
        return bool(self.scope["method"] == "HEAD")

    def check_host(self) -> None:
        """Raise InvalidRequestError unless the Host header names this server."""
        assert self.state is not None
        self.state.authenticator.check_host(self.headers.get(b"host", []))

    async def authenticate(self, requirements: Requirements) -> None:
        """Check host, credential, rate and announced size, and count the request until it ends.

        Raises:
            AfterwordsError: The request is refused; nothing of its body was read.
        """
        assert self.state is not None
        authenticator = self.state.authenticator
        self.check_host()
        authorization = self.headers.get(b"authorization", [])
        takes_xi_key = requirements.credential in (Credential.XI_USER, Credential.XI_SOCKET)
        if takes_xi_key and (keys := self.headers.get(b"xi-api-key")):
            authorization = [b"Bearer " + key for key in keys]
        self.identity = await authenticator.authenticate(
            requirements,
            authorization,
            self.scope["path_params"].get("job_id", "").lower(),
            peer=(self.scope.get("client") or ("",))[0],
            forwarded=self.headers.get(b"x-forwarded-for", ()),
            cookies=self.headers.get(b"cookie", ()),
            # Without settings, nginx sets no header, and speaks HTTP/1.0.
            is_proxied=not PROXY_HEADERS.isdisjoint(self.headers) or self.scope.get("http_version") == "1.0",
        )
        if requirements.scope is not KeyScope.SYNTHESIZE:  # with this scope nothing is audited
            others = "server" if requirements.credential in OPEN else "worker"
            ACTOR.set(Actor(self.identity.key_id or ("admin" if self.identity.is_admin else others), self.request_id))
        self._max_bytes, self._is_upload = requirements.max_body_bytes, requirements.is_upload
        settings = self.state.settings
        self._timeout_s = settings.stall_s if requirements.is_live else settings.body_timeout_s
        self._is_live = requirements.is_live
        lengths = self.headers.get(b"content-length", [])
        if any(not length.isdigit() for length in lengths) or len(set(lengths)) > 1:
            raise InvalidRequestError("The Content-Length header is not a number.", hint="send the length of the body.")
        if lengths:
            self._check_size(int(lengths[0][:20]))
        self.task = authenticator.requests.enter(self.identity)

    def _timed_out(self) -> InvalidRequestError:
        why = f"The body did not arrive: no data came for {self._timeout_s:g} s."
        return InvalidRequestError(why, code="request_timeout")

    async def sign_in(self, secret: str) -> str:
        """Return the cookie of a session for a key; raises like `Authenticator.sign_in`."""
        assert self.state is not None
        peer = (self.scope.get("client") or ("",))[0]
        forwarded = self.headers.get(b"x-forwarded-for", ())
        return await self.state.authenticator.sign_in(secret, peer=peer, forwarded=forwarded)

    async def receive(self) -> Message:
        """Receive a message, counted and timed while it belongs to the body."""
        if not self._has_body:
            return await self._receive()
        self._body_began = self._body_began or time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                message = await self._receive()
        except TimeoutError:
            self._has_body = False
            raise self._timed_out() from None
        if message["type"] == "http.request":
            self._n_bytes += len(message.get("body", b""))
            self._has_body = message.get("more_body", False)
            self._check_size(self._n_bytes)
            elapsed_s = time.monotonic() - self._body_began
            is_slow = elapsed_s > self._timeout_s and self._n_bytes < elapsed_s * BODY_RATE_MIN
            if self._has_body and is_slow and not self._is_live:
                raise self._timed_out()
        return message

    async def send(self, message: Message) -> None:
        """Send a message, with the request ID in the headers; HEAD gets no body."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", []), (b"x-request-id", self.request_id.encode())]
        elif self.is_head:
            message = {**message, "body": b""}
        await self._send(message)

    async def answer(self, error: AfterwordsError) -> None:
        """Answer with an error, or break the connection off where a response has begun."""
        if self.status:
            raise ConnectionAbortedError("the response broke off") from None
        if self._answer_error is not None and self.state is not None:
            response = await self._answer_error(Request(self.scope), error)
        else:
            response = error_response(error, self.request_id)
        length = self.headers.get(b"content-length", [b"0"])[0]
        is_large = not length.isdigit() or int(length[:20]) > MULTIPART_OVERHEAD_BYTES
        is_unread = self._has_body and (is_large or b"transfer-encoding" in self.headers)
        if is_unread or error.code in ("request_timeout", "too_many_concurrent_requests"):
            response.headers["Connection"] = "close"  # otherwise the rest of a large body would be read for nothing
        await response(self.scope, self._receive, self.send)

    def end(self) -> None:
        """Count the request, which is over, and log one line; both name the route, not the path."""
        elapsed_s = time.perf_counter() - self._started
        if self.state is not None:
            if self.task is not None:
                self.state.authenticator.requests.leave(self.task)
            self.state.metrics.count_request(self.route, self.scope["method"], self.status, elapsed_s)
        is_routine = self.is_routine and self.status == 200
        job_id = self.job_id or parse_id(self.scope["path_params"].get("job_id", ""))
        if self.span is not None:
            self.span.end(self.status, is_recorded=not is_routine, request_id=self.request_id, job_id=job_id)
        level = logging.DEBUG if is_routine else logging.INFO
        if not log.isEnabledFor(level):
            return
        identity = self.identity or Identity()
        facts: dict[str, str | float] = {
            "method": self.scope["method"] if self.scope["method"].isalpha() else "?",
            "route": self.route,
            "status": self.status,
            "ms": round(1000 * elapsed_s, 1),
            "account": "admin" if identity.is_admin else identity.account_id or "-",
            "key": identity.key_id or "-",
            "request_id": self.request_id,
        }
        line = "%(method)s %(route)s %(status)d %(ms).1fms account=%(account)s key=%(key)s request_id=%(request_id)s"
        if job_id:
            facts["job_id"] = job_id
            line += " job_id=%(job_id)s"
        log.log(level, line, facts)

    def _check_size(self, n_bytes: int) -> None:
        if self._max_bytes is None or n_bytes <= self._max_bytes:
            return
        if self._is_upload:
            maximum = self._max_bytes - MULTIPART_OVERHEAD_BYTES
            raise RecordingError.too_large("The upload", size_bytes=n_bytes, maximum_bytes=maximum)
        raise InvalidRequestError.too_large(maximum_bytes=self._max_bytes)


# -- errors ---------------------------------------------------------------------------------------------------


def error_response(error: AfterwordsError, request_id: str) -> Response:
    """Return the response for an error, in the one shape of the API."""
    status = error.http_status
    body = {
        "code": error.code,
        "message": error.message,
        "type": error_type(status),
        "param": error.param,
        "request_id": request_id,
    }
    return JSONResponse({"error": body}, status, headers=error_headers(error))


def error_headers(error: AfterwordsError) -> dict[str, str]:
    """Return the headers of the response for an error."""
    headers = {"Cache-Control": "no-store"}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.limit is not None:
        headers |= {
            "RateLimit-Limit": str(error.limit),
            "RateLimit-Remaining": "0",
            "RateLimit-Reset": str(error.retry_after_s),
        }
    if isinstance(error, QuotaExceededError):  # openai's clients would try twice more
        headers["X-Should-Retry"] = "false"
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return {**headers, **error.headers}


def unrouted_response(error: AfterwordsError) -> Response:
    """Return the response for a request that reaches no route: an unknown path, or not even HTTP."""
    request_id = str(uuid4())
    response = error_response(error, request_id)
    response.headers["X-Request-Id"] = request_id
    return response


def origin_of(error: BaseException) -> str:
    """Return type and place of an unforeseen error, without its message, which may hold text of a request."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in reversed(frames))
    return f"kind={type(error).__name__} at={places}"
