"""A server that fails on purpose: a proxy in front of a real one, which spoils the answers it is told to.

It knows nothing of the client: what is seen through it is what any HTTP client would see of a bad network or server.
A dropped connection is reset (RST), as by a process that was killed. One that ends within a body is closed in order
(FIN), so that what was sent before arrives.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from email.message import Message
from enum import StrEnum
from typing import Final, Self, TypedDict, Unpack
from uuid import uuid4

from afterwords.testing.proxy import Answer, Exchange, Proxy, whole

SEEN_MAX: Final = 1000
SLOW_PIECES: Final = 4


class Fault(StrEnum):
    """What can go wrong with a request. The server behind is asked only where its answer is spoken of."""

    ANSWER = "answer"
    """An error in the API's shape. Options: `status`, and if wanted `code` and `retry_after_s`."""
    DROP_BEFORE = "drop-before"
    """The request is read and the connection reset: nothing was done."""
    DROP_AFTER = "drop-after"
    """The server's answer is thrown away and the connection reset: the thing was done."""
    HALF_BODY = "half-body"
    """The server's answer breaks off in the middle: short of its Content-Length, or without its last chunk."""
    SHORT_LENGTH = "short-length"
    """The server's answer, with a Content-Length of half of it. Closes, so that the rest is not taken for an answer."""
    WRONG_BYTES = "wrong-bytes"
    """The server's answer, the byte in the middle wrong, the headers untouched."""
    HTML = "html"
    """200 with the page of a network that wants a login first."""
    REDIRECT = "redirect"
    """Elsewhere. Options: `location`, and if wanted `status`: 302, if not given."""
    SLOW = "slow"
    """The server's answer in four pieces. Option: `delay_s` goes by before each of them."""


class Options(TypedDict, total=False):
    """What a fault is told beside its name."""

    status: int
    code: str
    retry_after_s: int
    location: str
    delay_s: float


_NEEDED: Final = {Fault.ANSWER: {"status"}, Fault.REDIRECT: {"location"}, Fault.SLOW: {"delay_s"}}
_ALLOWED: Final = {Fault.ANSWER: {"code", "retry_after_s"}, Fault.REDIRECT: {"status"}}
_CODES: Final = {
    400: "bad_request",
    401: "unauthorized",
    403: "insufficient_scope",
    404: "not_found",
    409: "conflict",
    413: "request_too_large",
    422: "invalid_field",
    429: "rate_limited",
    503: "service_unavailable",
}
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_LOGIN_PAGE: Final = b"<!doctype html><title>Welcome</title><p>Please log in to use this network.</p>\n"


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as it came.

    Attributes:
        path: without the query.
        headers: by name, in any case; `"Authorization" in seen.headers` tells whether a key was sent.
        body_bytes: the length of its body.
        fault: what was done to it; None: it passed.
    """

    method: str
    path: str
    query: str
    headers: Message
    body_bytes: int
    fault: Fault | None


class FaultyServer:
    """A proxy on a free loopback port; use it as a context manager, or call `start` and `stop`.

    Attributes:
        url: where it listens.
    """

    def __init__(self, upstream_url: str) -> None:
        """Make a proxy in front of a server.

        Args:
            upstream_url: `http://` address of the server.
        """
        self._proxy = _FaultyProxy(upstream_url)
        self._plan = self._proxy.plan
        self.url = self._proxy.url

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Begin to pass requests on."""
        self._proxy.start()
        return self

    def stop(self) -> None:
        """Cut all connections and stop.

        Raises:
            ExceptionGroup: of what could not be done, such as to halve an answer that has no body.
        """
        self._proxy.stop()
        if self._proxy.failures:
            raise ExceptionGroup("the proxy could not do what it was told", self._proxy.failures)

    def inject(
        self, fault: Fault, *, path: str = "", method: str | None = None, times: int = 1, **options: Unpack[Options]
    ) -> None:
        """Let requests fail that match; what was injected first is used up first.

        Args:
            fault: what goes wrong.
            path: how the request's path begins; "" matches any.
            method: of the request; None matches any.
            times: how many requests fail.
            options: see `Fault`.

        Raises:
            TypeError: the fault lacks an option, or takes none of that name.
            ValueError: no request would fail.
        """
        needed = _NEEDED.get(fault, set())
        allowed = needed | _ALLOWED.get(fault, set())
        if not needed <= options.keys() <= allowed:
            raise TypeError(f"{fault} needs {sorted(needed)} and takes {sorted(allowed)}; given: {sorted(options)}")
        if times < 1:
            raise ValueError(f"times must be 1 or more, not {times}")
        self._plan.add(_Injection(fault, path, method and method.upper(), times, options))

    def clear(self) -> None:
        """Let everything pass from now on, and forget what was seen."""
        self._plan.clear()

    @property
    def seen(self) -> list[Seen]:
        """The last 1,000 requests, oldest first."""
        return list(self._plan.seen)


@dataclass(slots=True)
class _Injection:
    """A fault that waits for its requests."""

    fault: Fault
    path: str
    method: str | None
    n_left: int
    options: Options

    def matches(self, method: str, path: str) -> bool:
        return self.method in (None, method) and path.startswith(self.path)


class _Plan:
    """What shall go wrong and what was seen; shared by all connections."""

    def __init__(self) -> None:
        self.seen: deque[Seen] = deque(maxlen=SEEN_MAX)
        self._injections: list[_Injection] = []
        self._lock = threading.Lock()

    def add(self, injection: _Injection) -> None:
        with self._lock:
            self._injections.append(injection)

    def clear(self) -> None:
        with self._lock:
            self._injections.clear()
            self.seen.clear()

    def take(self, method: str, target: str, headers: Message, body: bytes) -> _Injection | None:
        """Write a request down, and tell what shall befall it."""
        path, _, query = target.partition("?")
        with self._lock:
            injection = next((one for one in self._injections if one.matches(method, path)), None)
            if injection:
                injection.n_left -= 1
                self._injections = [one for one in self._injections if one.n_left > 0]
            self.seen.append(Seen(method, path, query, headers, len(body), injection.fault if injection else None))
        return injection


class _FaultyProxy(Proxy):
    """A proxy with a plan of what goes wrong."""

    def __init__(self, upstream_url: str) -> None:
        self.plan = _Plan()
        super().__init__(upstream_url, _FaultyExchange)


class _FaultyExchange(Exchange):
    """Answers as the plan wants it."""

    server: _FaultyProxy

    def respond(self, body: bytes) -> None:
        injection = self.server.plan.take(self.command, self.path, self.headers, body)
        if injection is None:
            super().respond(body)
            return
        fault, options = injection.fault, injection.options
        if fault is Fault.DROP_BEFORE:
            self.drop()
        elif fault in _OWN:
            self.send(_OWN[fault](options))
        else:
            with self.asked(body) as answer:
                self._spoil(answer, fault, options)

    def _spoil(self, answer: Answer, fault: Fault, options: Options) -> None:
        body = whole(answer.pieces)
        if fault is Fault.DROP_AFTER:
            self.drop()
        elif fault is Fault.SLOW:
            self.server.stopping.wait(options["delay_s"])
            self.send(replace(answer, pieces=self._slowly(body, options["delay_s"])))
        elif body:
            self.send(_SPOILERS[fault](answer, body))
        else:
            raise ValueError(f"{fault}: the answer to {self.command} {self.path.partition('?')[0]} has no body")

    def _slowly(self, body: bytes, delay_s: float) -> Iterator[bytes]:
        size = -(-len(body) // SLOW_PIECES) or 1
        for start in range(0, len(body), size):
            if start:
                self.server.stopping.wait(delay_s)
            yield body[start : start + size]


# -- answers that the server behind did not give


def _error(options: Options) -> Answer:
    status, request_id = options["status"], str(uuid4())
    error = {
        "code": options.get("code") or _CODES.get(status, "internal_error"),
        "message": "A test wanted this to fail.",
        "type": _TYPES.get(status) or ("invalid_request_error" if status < 500 else "server_error"),
        "param": None,
        "request_id": request_id,
    }
    headers = {"Content-Type": "application/json", "X-Request-Id": request_id}
    if "retry_after_s" in options:
        headers["Retry-After"] = str(options["retry_after_s"])
    return _own(status, headers, json.dumps({"error": error}).encode())


def _login_page(options: Options) -> Answer:  # noqa: ARG001 - like its siblings
    return _own(200, {"Content-Type": "text/html; charset=utf-8"}, _LOGIN_PAGE)


def _elsewhere(options: Options) -> Answer:
    return _own(options.get("status", 302), {"Location": options["location"]}, b"")


def _own(status: int, headers: dict[str, str], body: bytes) -> Answer:
    return Answer(status, [*headers.items(), ("Content-Length", str(len(body)))], [body])


_OWN: Final[dict[Fault, Callable[[Options], Answer]]] = {
    Fault.ANSWER: _error,
    Fault.HTML: _login_page,
    Fault.REDIRECT: _elsewhere,
}

# -- answers of the server behind, spoilt


def _halved(answer: Answer, body: bytes) -> Answer:
    return replace(answer, pieces=[body[: len(body) // 2]], is_cut=True)


def _understated(answer: Answer, body: bytes) -> Answer:
    kept = [(name, value) for name, value in answer.headers if name.lower() not in _FRAMING]
    headers = [*kept, ("Content-Length", str(len(body) // 2)), ("Connection", "close")]
    return replace(answer, headers=headers, pieces=[body], is_chunked=False, is_last=True)


def _falsified(answer: Answer, body: bytes) -> Answer:
    middle = len(body) // 2
    return replace(answer, pieces=[body[:middle] + bytes([body[middle] ^ 0xFF]) + body[middle + 1 :]])


_FRAMING: Final = {"content-length", "transfer-encoding"}
_SPOILERS: Final[dict[Fault, Callable[[Answer, bytes], Answer]]] = {
    Fault.HALF_BODY: _halved,
    Fault.SHORT_LENGTH: _understated,
    Fault.WRONG_BYTES: _falsified,
}
