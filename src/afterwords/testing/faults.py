"""A transport of httpx that injects faults, for tests of programs that use the client."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypedDict, Unpack
from uuid import uuid4

import anyio
import httpx

from afterwords.errors import error_type

REQUESTS_MAX: Final = 1000
_N_SLOW_CHUNKS: Final = 4
_CODES: Final = {
    400: "bad_request",
    401: "unauthorized",
    402: "subscription_inactive",
    403: "insufficient_scope",
    404: "not_found",
    409: "conflict",
    413: "request_too_large",
    422: "invalid_field",
    429: "rate_limited",
    503: "service_unavailable",
}
_LOGIN_PAGE: Final = b"<!doctype html><title>Welcome</title><p>Please log in to use this network.</p>\n"


class Fault(StrEnum):
    """A fault of a network or a server. The server gets the request only if its response is mentioned."""

    ANSWER = "answer"
    """An error response of the API. Options: `status`; `code` and `retry_after_s`."""
    DROP_BEFORE = "drop-before"
    """The connection is reset before the server gets the request."""
    DROP_AFTER = "drop-after"
    """The connection is reset instead of the server's response."""
    HALF_BODY = "half-body"
    """The server's response ends in the middle of its body."""
    SHORT_LENGTH = "short-length"
    """The server's response has a Content-Length of half its body, so that the client reads only this half."""
    WRONG_BYTES = "wrong-bytes"
    """The server's response has one wrong byte in the middle of its body."""
    HTML = "html"
    """200 with the login page of a captive portal."""
    REDIRECT = "redirect"
    """A redirect. Options: `location`; `status`, default 302."""
    SLOW = "slow"
    """The server's response arrives in four chunks. Option: `delay_s`, the time before each."""


class Options(TypedDict, total=False):
    """The options of faults."""

    status: int
    code: str
    retry_after_s: int
    location: str
    delay_s: float


_REQUIRED: Final = {Fault.ANSWER: {"status"}, Fault.REDIRECT: {"location"}, Fault.SLOW: {"delay_s"}}
_OPTIONAL: Final = {Fault.ANSWER: {"code", "retry_after_s"}, Fault.REDIRECT: {"status"}}


@dataclass(slots=True)
class _Injection:
    fault: Fault
    path: str
    method: str | None
    n_left: int
    options: Options


class FaultyTransport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """A network that fails on request: `Client(url, transport=FaultyTransport())`, or `AsyncClient` with its own one.

    It may be shared by threads, and by one client of each kind.
    """

    def __init__(self) -> None:
        self._requests: deque[tuple[httpx.Request, Fault | None]] = deque(maxlen=REQUESTS_MAX)
        self._injections: list[_Injection] = []
        self._lock = threading.Lock()
        self._sync: httpx.HTTPTransport | None = None
        self._async: httpx.AsyncHTTPTransport | None = None

    def inject(
        self, fault: Fault, *, path: str = "", method: str | None = None, times: int = 1, **options: Unpack[Options]
    ) -> None:
        """Let matching requests fail. Faults that match the same request are used in the order of injection.

        Args:
            fault: What happens to the requests.
            path: Beginning of the path; "" matches all.
            method: HTTP method; None matches all.
            times: How many requests fail.
            options: See `Fault`.

        Raises:
            TypeError: An option is missing, or the fault has no such option.
            ValueError: `times` is less than 1.
        """
        required = _REQUIRED.get(fault, set())
        allowed = required | _OPTIONAL.get(fault, set())
        if not required <= options.keys() <= allowed:
            raise TypeError(f"{fault} requires {sorted(required)} and allows {sorted(allowed)}, not {sorted(options)}")
        if times < 1:
            raise ValueError(f"times must be 1 or more, not {times}")
        with self._lock:
            self._injections.append(_Injection(fault, path, method and method.upper(), times, options))

    def clear(self) -> None:
        """Remove the faults that are left, and forget the requests."""
        with self._lock:
            self._injections.clear()
            self._requests.clear()

    @property
    def requests(self) -> list[tuple[httpx.Request, Fault | None]]:
        """The last 1,000 requests, oldest first, each with the fault that was injected."""
        return list(self._requests)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        injection = self._take(request)
        if injection and (response := make_response(injection.fault, injection.options)):
            return response
        self._sync = self._sync or httpx.HTTPTransport()
        response = self._sync.handle_request(request)
        if injection is None:
            return response
        assert isinstance(response.stream, httpx.SyncByteStream)
        try:
            body = b"".join(response.stream)
        finally:
            response.close()
        delay = _Delay(request, injection.options.get("delay_s", 0.0))
        delay.sleep()
        return _spoil(response, body, injection, request, delay)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        injection = self._take(request)
        if injection and (response := make_response(injection.fault, injection.options)):
            return response
        self._async = self._async or httpx.AsyncHTTPTransport()
        response = await self._async.handle_async_request(request)
        if injection is None:
            return response
        assert isinstance(response.stream, httpx.AsyncByteStream)
        try:
            body = b"".join([chunk async for chunk in response.stream])
        finally:
            await response.aclose()
        delay = _Delay(request, injection.options.get("delay_s", 0.0))
        await delay.async_sleep()
        return _spoil(response, body, injection, request, delay)

    def close(self) -> None:
        if self._sync:
            self._sync.close()

    async def aclose(self) -> None:
        if self._async:
            await self._async.aclose()

    def _take(self, request: httpx.Request) -> _Injection | None:
        """Record a request and return the injection for it."""
        path = request.url.path
        with self._lock:
            matching = (
                each
                for each in self._injections
                if each.method in (None, request.method) and path.startswith(each.path)
            )
            if injection := next(matching, None):
                injection.n_left -= 1
                if not injection.n_left:
                    self._injections.remove(injection)
            self._requests.append((request, injection.fault if injection else None))
        if injection and injection.fault is Fault.DROP_BEFORE:
            raise httpx.ReadError("Connection reset by peer", request=request)
        return injection


def make_response(fault: Fault, options: Options) -> httpx.Response | None:
    """Return the response of a fault that needs no server; None for other faults."""
    if fault is Fault.HTML:
        return httpx.Response(200, headers={"Content-Type": "text/html; charset=utf-8"}, content=_LOGIN_PAGE)
    if fault is Fault.REDIRECT:
        headers = {"Location": options["location"], "Content-Length": "0"}
        return httpx.Response(options.get("status", 302), headers=headers, content=b"")
    if fault is not Fault.ANSWER:
        return None
    status, request_id = options["status"], str(uuid4())
    error = {
        "code": options.get("code") or _CODES.get(status, "internal_error"),
        "message": "Injected by a test.",
        "type": error_type(status),
        "param": None,
        "request_id": request_id,
    }
    headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
    if "retry_after_s" in options:
        headers["Retry-After"] = str(options["retry_after_s"])
    return httpx.Response(status, headers=headers, content=json.dumps({"error": error}).encode())


def _spoil(
    response: httpx.Response, body: bytes, injection: _Injection, request: httpx.Request, delay: _Delay
) -> httpx.Response:
    """Return the response of the server with the fault in it.

    Raises:
        ValueError: The body is empty, so that it can't be halved or falsified.
    """
    fault, headers = injection.fault, response.headers.copy()
    if fault is Fault.DROP_AFTER:
        raise httpx.ReadError("Connection reset by peer", request=request)
    half = len(body) // 2
    stream = _Body(request, [body], delay)
    if fault is Fault.SLOW:
        size = -(-len(body) // _N_SLOW_CHUNKS) or 1
        chunks = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
        stream = _Body(request, chunks, delay)
    elif not body:
        raise ValueError(f"{fault}: the response to {request.method} {request.url.path} has no body")
    elif fault is Fault.HALF_BODY:
        stream = _Body(request, [body[:half]], delay, is_cut=True)
    elif fault is Fault.SHORT_LENGTH:
        headers.pop("Transfer-Encoding", None)
        headers["Content-Length"] = str(half)
        stream = _Body(request, [body[:half]], delay)
    elif fault is Fault.WRONG_BYTES:
        stream = _Body(request, [body[:half], bytes([body[half] ^ 0xFF]), body[half + 1 :]], delay)
    return httpx.Response(response.status_code, headers=headers, stream=stream, extensions=response.extensions)


class _Delay:
    """The time before each chunk; the read timeout of the request ends it."""

    def __init__(self, request: httpx.Request, delay_s: float) -> None:
        timeout_s: float | None = request.extensions.get("timeout", {}).get("read")
        self._request = request
        self._is_late = timeout_s is not None and delay_s > timeout_s
        self._delay_s = timeout_s or 0.0 if self._is_late else delay_s

    def sleep(self) -> None:
        if self._delay_s:
            time.sleep(self._delay_s)
        self._check()

    async def async_sleep(self) -> None:
        if self._delay_s:
            await anyio.sleep(self._delay_s)
        self._check()

    def _check(self) -> None:
        if self._is_late:
            raise httpx.ReadTimeout("The read operation timed out", request=self._request)


class _Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    def __init__(self, request: httpx.Request, chunks: list[bytes], delay: _Delay, *, is_cut: bool = False) -> None:
        self._request = request
        self._chunks = chunks
        self._delay = delay
        self._is_cut = is_cut

    def __iter__(self) -> Iterator[bytes]:
        for index, chunk in enumerate(self._chunks):
            if index:
                self._delay.sleep()
            yield chunk
        self._check_end()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for index, chunk in enumerate(self._chunks):
            if index:
                await self._delay.async_sleep()
            yield chunk
        self._check_end()

    def _check_end(self) -> None:
        if self._is_cut:
            raise httpx.RemoteProtocolError("Server disconnected within the body", request=self._request)
