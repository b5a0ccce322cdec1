"""HTTP as bytes on a socket, for requests that no client library sends."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from tests.e2e.served import Served

DEADLINE_S = 60.0


@dataclass(frozen=True)
class Answer:
    """A response. `status` 0 means that the connection was closed without one."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """Return the error, and check its shape."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"code", "message", "type", "param", "request_id"}
        return error

    @property
    def code(self) -> str:
        return str(self.error["code"])


def connected(served: Served, *, deadline_s: float = DEADLINE_S) -> socket.socket:
    """Open a connection to the server, with a deadline for each step."""
    parts = urlsplit(served.url)
    assert parts.hostname
    assert parts.port
    return socket.create_connection((parts.hostname, parts.port), timeout=deadline_s)


def head(method: str, target: str, headers: Iterable[tuple[str, str | bytes]] = ()) -> bytes:
    """Return the head of a request, with a valid Host unless one is given."""
    pairs = list(headers)
    if not any(name.lower() == "host" for name, _ in pairs):
        pairs.insert(0, ("Host", "127.0.0.1"))
    lines = [f"{method} {target} HTTP/1.1".encode("latin-1")]
    lines += [name.encode() + b": " + (value if isinstance(value, bytes) else value.encode()) for name, value in pairs]
    return b"\r\n".join([*lines, b"", b""])


def ask(
    served: Served,
    method: str,
    target: str,
    headers: Iterable[tuple[str, str | bytes]] = (),
    body: bytes = b"",
    *,
    deadline_s: float = DEADLINE_S,
) -> Answer:
    """Send a request and read one response, which may arrive before everything is sent."""
    with connected(served, deadline_s=deadline_s) as wire:
        with suppress(ConnectionError):
            wire.sendall(head(method, target, headers))
            wire.sendall(body)
        return read(wire, method)


def read(wire: socket.socket, method: str = "GET") -> Answer:
    """Read the next response of a connection."""
    answer = HTTPResponse(wire, method=method)
    try:
        answer.begin()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    except ConnectionError:
        return Answer(0, {}, b"")
    finally:
        answer.close()
