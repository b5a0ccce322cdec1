"""What every request passes before anything of it is parsed: host, key, rate, size, and how fast the body comes.

`GuardedRoute` handles requests at the ASGI level, before the body is read. In another application an `EmbeddedRoute`
comes first, where FastAPI runs the dependencies of that application. A route says what it needs with `@needs`; one that
says nothing can't be served. Errors of any kind leave here in one shape, and one line is logged for each request, which
holds no text and no key.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast
from uuid import uuid4

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from afterwords.errors import (
    AfterwordsError,
    BadRequestError,
    FileTooLargeError,
    LimitError,
    MethodNotAllowedError,
    NotOpenedError,
    RangeNotSatisfiableError,
    RequestTimeoutError,
    RequestTooLargeError,
    RouteNotFoundError,
    ServiceError,
    ServiceUnavailableError,
    TooManyConcurrentRequestsError,
    UnauthorizedError,
)
from afterwords.models import as_id
from afterwords.server.auth import Admitted, Gate, Needs, RequestTask
from afterwords.server.params import Reader

log = logging.getLogger("afterwords.server")

SLACK_BYTES: Final = 64 * 1024
"""What multipart may add to the file it carries."""
_ID_PARAMS: Final = frozenset({"job_id", "key_id"})
RATE_FLOOR: Final = 8 * 1024  # bytes a second: a body that comes slower than this, beyond the timeout, is refused


class House(Protocol):
    """What the guard asks of the house that a router belongs to."""

    @property
    def gate(self) -> Gate: ...


@dataclass(slots=True)
class Lifetime:
    """Holds the server of one router while its lifespan runs; each request gets it as `scope["afterwords"]`."""

    house: House | None = None


class _Declared(Protocol):
    """An endpoint that says what it needs; without that, it can't be served."""

    @property
    def needs(self) -> Needs: ...


class GuardedRoute(APIRoute):
    """A route that lets in what it should, and answers every error in one shape.

    Attributes:
        methods_answered: its methods; with GET it answers HEAD.
        allowed: the methods of its address, each of which may be a route of its own.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self._read = Reader(endpoint, set(self.param_convertors))
        self.needs = cast("_Declared", endpoint).needs
        self.methods_answered = frozenset(self.methods or ()) | ({"HEAD"} if "GET" in (self.methods or ()) else set())
        self.allowed = sorted(self.methods_answered)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match a request; HEAD is answered wherever GET is, by the same endpoint."""
        return super().matches({**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Guard one request, and answer for whatever goes wrong with it."""
        exchange = scope["afterwords.exchange"] = Exchange(scope, receive, send, route=self.path_format)
        try:
            house = cast("House | None", scope.get("afterwords"))
            if house is None:
                raise NotOpenedError
            gate = house.gate
            headers = _headers(scope)
            hosts = headers.get(b"host", [])
            gate.check_host(hosts[0] if len(hosts) == 1 else b"")
            if scope["method"] not in self.methods_answered:
                raise MethodNotAllowedError(allowed=self.allowed)
            for name in _ID_PARAMS & scope["path_params"].keys():
                scope["path_params"][name] = as_id(scope["path_params"][name]) or scope["path_params"][name]
            exchange.admitted = await gate.admit(
                self.needs,
                headers.get(b"authorization", []),
                scope["path_params"].get("job_id"),
                peer=(scope.get("client") or ("",))[0],
                forwarded=headers.get(b"x-forwarded-for"),
            )
            exchange.limit_body(self.needs, headers, gate.settings.body_timeout_s)
            exchange.task = gate.requests.enter(exchange.admitted)
            request = Request(scope, exchange.receive)
            response: Response = await self.endpoint(**await self._read(request))
            await response(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = exchange.status or 499
        except asyncio.CancelledError:
            if exchange.task is None or not exchange.task.take_revocation():
                raise
            await exchange.answer(UnauthorizedError())
        except AfterwordsError as error:
            if isinstance(error, NotOpenedError):
                log.error("%s %s", error.message, error.hint)
            await exchange.answer(error)
        except Exception as error:  # noqa: BLE001 - an edge: nothing may leave but an error in our shape
            log.error("failed request_id=%s %s", exchange.request_id, _where(error))
            await exchange.answer(ServiceError())
        finally:
            if exchange.task is not None:
                gate.requests.leave(exchange.task)
            exchange.log()


class EmbeddedRoute(APIRoute):
    """A route within another application, made by `embedded`.

    FastAPI runs what that application declares (dependencies, overrides, exception handlers), and then the guarded
    route answers. A method that the address does not have is refused by the guarded route at once.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in (self.methods or ()):
            scope["afterwords.body"] = receive = _Rewindable(receive)
            await super().handle(scope, receive, send)
        else:
            await cast("_Embedded", self.endpoint).answer(scope, receive, send)


def embedded(route: GuardedRoute, lifetime: Lifetime) -> EmbeddedRoute:
    """Return the route through which another application reaches a guarded one."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        scope["afterwords"] = lifetime.house
        await route.handle(scope, receive, send)

    async def endpoint(request: Request) -> Response:  # noqa: ARG001 - FastAPI needs one for dependencies to see
        return _GuardedResponse(answer)

    endpoint.answer = answer  # type: ignore[attr-defined]
    return EmbeddedRoute(route.path, endpoint, methods=list(route.methods_answered), include_in_schema=False)


class _Embedded(Protocol):
    """An endpoint of an `EmbeddedRoute`."""

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class _GuardedResponse(Response):
    """Stands for the answer of a guarded route, which begins when the dependencies are solved."""

    def __init__(self, answer: ASGIApp) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body: _Rewindable = scope["afterwords.body"]
        await self._answer(scope, body if body.rewind() else receive, send)
        if self.background is not None:  # tasks that a dependency left
            await self.background()


class _Rewindable:
    """A request body that a dependency may read before the endpoint reads it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read: deque[Message] = deque()
        self._is_rewound = False

    async def __call__(self) -> Message:
        if self._is_rewound:
            return self._read.popleft() if self._read else await self._receive()
        message = await self._receive()
        if message["type"] == "http.request":
            self._read.append(message)
        return message

    def rewind(self) -> bool:
        """Begin with what was read already; False if nothing was."""
        self._is_rewound = True
        return bool(self._read)


@dataclass(slots=True)
class Exchange:
    """One request and its answer, as they pass.

    Attributes:
        is_routine: a success is of no interest: a probe, or one look of many at a job that is not ready.
    """

    scope: Scope
    _receive: Receive
    _send: Send
    route: str
    request_id: str = field(default_factory=lambda: str(uuid4()))
    admitted: Admitted | None = None
    task: RequestTask | None = None
    status: int = 0
    is_routine: bool = False
    _started: float = field(default_factory=time.perf_counter)
    _max_bytes: int | None = None
    _is_upload: bool = False
    _timeout_s: float = 15
    _n_bytes: int = 0
    _body_began: float = 0
    _has_body: bool = True

    def limit_body(self, needed: Needs, headers: Mapping[bytes, list[bytes]], timeout_s: float) -> None:
        """Refuse a body that says it is too large, and watch over one that does not.

        Raises:
            RequestTooLargeError, FileTooLargeError: by Content-Length.
            BadRequestError: there are several lengths, or one that is none.
        """
        self._max_bytes, self._is_upload, self._timeout_s = needed.max_body_bytes, needed.is_upload, timeout_s
        lengths = headers.get(b"content-length", [])
        if any(not length.isdigit() for length in lengths) or len(set(lengths)) > 1:
            raise BadRequestError("The Content-Length is not one number.", hint="send the length of the body.")
        if lengths:
            self._check_size(int(lengths[0][:20]))

    async def receive(self) -> Message:
        """As the server's own, counted and timed."""
        if not self._has_body:
            return await self._receive()
        self._body_began = self._body_began or time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                message = await self._receive()
        except TimeoutError:
            self._has_body = False
            raise RequestTimeoutError(waited_s=self._timeout_s) from None
        if message["type"] == "http.request":
            self._n_bytes += len(message.get("body", b""))
            self._has_body = message.get("more_body", False)
            self._check_size(self._n_bytes)
            self._check_pace()
        return message

    async def send(self, message: Message) -> None:
        """As the server's own, with the request id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", []), (b"x-request-id", self.request_id.encode())]
        elif self.scope["method"] == "HEAD":
            message = {**message, "body": b""}
        await self._send(message)

    async def answer(self, error: AfterwordsError) -> None:
        """Answer with an error; where an answer was begun already, break the connection off."""
        if self.status:
            raise ConnectionAbortedError("the answer broke off") from None
        response = error_response(error, self.request_id)
        if self._is_unread or isinstance(error, RequestTimeoutError | TooManyConcurrentRequestsError):
            response.headers["Connection"] = "close"  # or the rest of a large body would be read, for nothing
        await response(self.scope, self._receive, self.send)

    def log(self) -> None:
        """Write one line; it names the route, not what was asked of it."""
        level = logging.DEBUG if self.is_routine and self.status == 200 else logging.INFO
        if not log.isEnabledFor(level):
            return
        admitted = self.admitted or Admitted()
        facts = {
            "method": self.scope["method"] if self.scope["method"].isalpha() else "?",
            "route": self.route,
            "status": self.status,
            "ms": round(1000 * (time.perf_counter() - self._started), 1),
            "account": "admin" if admitted.is_admin else admitted.account_id or "-",
            "key": admitted.key_id or "-",
            "request_id": self.request_id,
        }
        line = "%(method)s %(route)s %(status)d %(ms).1fms account=%(account)s key=%(key)s request_id=%(request_id)s"
        log.log(level, line, facts)

    @property
    def _is_unread(self) -> bool:
        """Whether much of the body may still be on its way."""
        headers = _headers(self.scope)
        length = headers.get(b"content-length", [b"0"])[0]
        is_large = b"transfer-encoding" in headers or not length.isdigit() or int(length[:20]) > SLACK_BYTES
        return self._has_body and is_large

    def _check_size(self, n_bytes: int) -> None:
        if self._max_bytes is None or n_bytes <= self._max_bytes:
            return
        if self._is_upload:
            maximum = self._max_bytes - SLACK_BYTES
            raise FileTooLargeError("The upload", size_bytes=n_bytes, maximum_bytes=maximum)
        raise RequestTooLargeError(maximum_bytes=self._max_bytes)

    def _check_pace(self) -> None:
        """A body may be slow, but not drip: that would hold a connection for ever."""
        elapsed_s = time.monotonic() - self._body_began
        if self._has_body and elapsed_s > self._timeout_s and self._n_bytes < elapsed_s * RATE_FLOOR:
            raise RequestTimeoutError(waited_s=self._timeout_s)


# -- errors ---------------------------------------------------------------------------------------------------

_TYPES: Final = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_response(error: AfterwordsError, request_id: str) -> Response:
    """The answer that an error is, in the one shape of the API."""
    status = error.http_status
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error")
    body = {
        "code": error.code,
        "message": error.message,
        "type": kind,
        "param": getattr(error, "param", None),
        "request_id": request_id,
    }
    return JSONResponse({"error": body}, status, headers=_headers_of(error))


def _headers_of(error: AfterwordsError) -> dict[str, str]:
    headers = {"Cache-Control": "no-store"}
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    if isinstance(error, LimitError):
        headers |= {
            "RateLimit-Limit": str(error.limit),
            "RateLimit-Remaining": "0",
            "RateLimit-Reset": str(error.retry_after_s),
        }
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, MethodNotAllowedError):
        headers["Allow"] = error.allowed
    if isinstance(error, RangeNotSatisfiableError):
        headers["Content-Range"] = f"bytes */{error.size_bytes}"
    return headers


def not_found_response() -> Response:
    """The answer at an address where nothing is."""
    return _response_to_none(RouteNotFoundError())


def busy_response() -> Response:
    """The answer to a connection beyond those that the server may have."""
    return _response_to_none(ServiceUnavailableError("The server has as many connections as it may"))


def not_http_response() -> Response:
    """The answer to what is no request."""
    return _response_to_none(BadRequestError("The request is not valid HTTP/1.1.", hint="use an HTTP client."))


def _response_to_none(error: AfterwordsError) -> Response:
    request_id = str(uuid4())
    response = error_response(error, request_id)
    response.headers["X-Request-Id"] = request_id
    return response


def _where(error: BaseException) -> str:
    """Where an unforeseen error arose; its message may hold what nobody should read, so that is left out."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in reversed(frames))
    return f"kind={type(error).__name__} at={places}"


# -- headers --------------------------------------------------------------------------------------------------


def _headers(scope: Scope) -> dict[bytes, list[bytes]]:
    found: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name, []).append(value)
    return found
