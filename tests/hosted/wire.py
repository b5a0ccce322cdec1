"""HTTP for the hosted service's twin: requests in, answers out, multipart forms read; nothing of what they mean.

Made of the standard library alone, so that no mistake of our server's framework can be made here as well. The service
gives a `Doorway` one function from `Asked` to `Answer`.
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
class Asked:
    """One request. `target` is the path with its query; names of headers are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass(frozen=True)
class Answer:
    """One answer; without a content type it has no body."""

    status: int
    body: bytes = b""
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class RefusedError(Exception):
    """Why a request gets no better answer."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param


class Doorway:
    """A server on a free port of loopback; when it closes, it leaves no thread and no socket behind."""

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        self._server = _Server(answer)
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), name="hosted")
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Hang up on whoever is still connected, and wait until every thread has ended."""
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close waits for them
    request_queue_size = 128

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), _Exchange)
        self.answer = answer
        self._open: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        self._open.discard(cast("socket.socket", request))
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in tuple(self._open):
            with suppress(OSError):  # it was closed at this moment
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: socketserver._AfInetAddress
    ) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that hangs up is no fault
            super().handle_error(request, client_address)


class _Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _exchange(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = Asked(self.command, self.path, headers, self._body())
        answer = cast("_Server", self.server).answer(asked)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.content_type is not None:
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _exchange  # noqa: N815 - the base's names

    def _body(self) -> bytes:
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
        """Say nothing on stderr: `HostedService.requests` is the log."""


@dataclass(frozen=True)
class Form:
    """What a multipart form brought."""

    fields: Mapping[str, str]
    files: Mapping[str, bytes] = field(repr=False)


def read_form(asked: Asked) -> Form:
    """Read a multipart/form-data body (RFC 7578).

    Raises:
        RefusedError: it is none, or breaks off.
    """
    header = Message()
    header["Content-Type"] = asked.headers.get("content-type", "")
    boundary = header.get_boundary()
    pieces = (b"\r\n" + asked.body).split(b"\r\n--" + (boundary or "").encode())
    if header.get_content_type() != "multipart/form-data" or not boundary or not pieces[-1].startswith(b"--"):
        raise RefusedError(400, "invalid_multipart", "The body must be a multipart form.")
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for piece in pieces[1:-1]:
        head, _, content = piece.partition(b"\r\n\r\n")
        about = message_from_string(head.decode(errors="replace").lstrip())
        name = str(about.get_param("name", header="Content-Disposition"))
        if about.get_filename() is None:
            fields[name] = content.decode(errors="replace")
        else:
            files[name] = content
    return Form(fields, files)


def in_parts(asked: Asked, whole: Answer) -> Answer:
    """The part that a Range asks for (RFC 9110, 14.2); several at once, or one on a condition, give the whole."""
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", asked.headers.get("range", ""))
    if not wanted or wanted[0] == "bytes=-" or "if-range" in asked.headers:
        return whole
    size = len(whole.body)
    first = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
    last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
    if first > last:
        return Answer(416, b"", None, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
    span = {"Content-Range": f"bytes {first}-{last}/{size}"}
    return Answer(206, whole.body[first : last + 1], whole.content_type, {**whole.headers, **span})


def read_json(asked: Asked) -> dict[str, Any]:
    """Read a body that must be a JSON object.

    Raises:
        RefusedError: it is none.
    """
    try:
        fields = json.loads(asked.body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise RefusedError(400, "invalid_json", "The body is not a JSON object.")
    return fields


def json_answer(status: int, body: object, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer whose body is JSON."""
    return Answer(status, json.dumps(body).encode(), "application/json", headers or {})
