"""An HTTP server for tests: calls a function from `HttpRequest` to `HttpResponse`, and parses JSON and forms.

Uses only the standard library, so that it does not share bugs with the framework of our server.
"""

from __future__ import annotations

import json
import re
import socket
import socketserver
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email import message_from_string
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, cast


@dataclass(frozen=True)
class HttpRequest:
    """A request. `target` is the path with its query; header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(frozen=True)
class HttpResponse:
    """A response; without a content type it has no body."""

    status: int
    body: bytes = b""
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class HttpError(Exception):
    """The error response to a request."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param


class HttpServer:
    """A server on a port of 127.0.0.1; 0: a free one. Closing it ends all threads and sockets."""

    def __init__(self, respond: Callable[[HttpRequest], HttpResponse], port: int = 0) -> None:
        self._server = _Server(respond, port)
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), name="hosted")
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Close all connections, and wait until every thread has ended."""
        self._server.shutdown()
        self._thread.join()
        self._server.close_connections()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close waits for them
    request_queue_size = 128

    def __init__(self, respond: Callable[[HttpRequest], HttpResponse], port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.respond = respond
        self._open: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        self._open.discard(cast("socket.socket", request))
        super().shutdown_request(request)

    def close_connections(self) -> None:
        for connection in tuple(self._open):
            with suppress(OSError):  # the other side closed it
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: socketserver._AfInetAddress
    ) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients may disconnect
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = HttpRequest(self.command, self.path, headers, self._read_body())
        response = cast("_Server", self.server).respond(request)
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        if response.content_type is not None:
            self.send_header("Content-Type", response.content_type)
            self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _handle  # noqa: N815 - names of the base class

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(pieces)

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing to stderr."""


@dataclass(frozen=True)
class Form:
    """The parts of a multipart form."""

    fields: Mapping[str, str]
    files: Mapping[str, bytes] = field(repr=False)


def parse_form(request: HttpRequest) -> Form:
    """Parse a multipart/form-data body (RFC 7578), or raise HttpError."""
    header = Message()
    header["Content-Type"] = request.headers.get("content-type", "")
    boundary = header.get_boundary()
    pieces = (b"\r\n" + request.body).split(b"\r\n--" + (boundary or "").encode())
    if header.get_content_type() != "multipart/form-data" or not boundary or not pieces[-1].startswith(b"--"):
        raise HttpError(400, "invalid_multipart", "The body must be a multipart form.")
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for piece in pieces[1:-1]:
        head, _, content = piece.partition(b"\r\n\r\n")
        headers = message_from_string(head.decode(errors="replace").lstrip())
        name = str(headers.get_param("name", header="Content-Disposition"))
        if headers.get_filename() is None:
            fields[name] = content.decode(errors="replace")
        else:
            files[name] = content
    return Form(fields, files)


def apply_range(request: HttpRequest, whole: HttpResponse) -> HttpResponse:
    """Return the part that a Range header requests (RFC 9110, 14.2); the whole for several or conditional ranges."""
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if not wanted or wanted[0] == "bytes=-" or "if-range" in request.headers:
        return whole
    size = len(whole.body)
    first = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
    last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
    if first > last:
        return HttpResponse(416, b"", None, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
    span = {"Content-Range": f"bytes {first}-{last}/{size}"}
    return HttpResponse(206, whole.body[first : last + 1], whole.content_type, {**whole.headers, **span})


def parse_json(request: HttpRequest) -> dict[str, Any]:
    """Parse a JSON object, or raise HttpError."""
    try:
        fields = json.loads(request.body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise HttpError(400, "invalid_json", "The body is not a JSON object.")
    return fields


def json_response(status: int, body: object, headers: Mapping[str, str] | None = None) -> HttpResponse:
    return HttpResponse(status, json.dumps(body).encode(), "application/json", headers or {})
