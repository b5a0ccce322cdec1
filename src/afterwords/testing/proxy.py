"""A small reverse proxy over HTTP/1.1, with nothing but the standard library: it passes requests on, and answers back.

Apart from what goes wrong on purpose (`faults`), which replaces the one method that says how a request is answered.
Bodies of requests are held in memory; answers pass piece by piece as they come. Only the Host is not passed on as it
was: the server behind is asked by its own name.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final
from urllib.parse import urlsplit

BODY_MAX_BYTES: Final = 64 << 20
"""The longest body that is held in memory: three times what the API takes."""
PIECE_BYTES: Final = 64 << 10
LINE_MAX_BYTES: Final = 64 << 10
PATIENCE_S: Final = 120.0
"""How long a silent client or server is waited for; `Prefer: wait` keeps one waiting for 60 s."""
POLL_S: Final = 0.05
STOP_S: Final = 10.0
_RESET: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
"""SO_LINGER for 0 s: closing sends RST."""


class UpstreamLostError(Exception):
    """The server behind broke off, or was not there."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered to one request.

    Attributes:
        pieces: of the body, each sent on as it is had.
        is_chunked: each piece is a chunk, and a last one ends the body.
        is_cut: the connection is closed after the last piece, where the body should go on.
        is_last: the connection is closed after it.
    """

    status: int
    headers: list[tuple[str, str]]
    pieces: Iterable[bytes]
    reason: str = ""
    is_chunked: bool = False
    is_cut: bool = False
    is_last: bool = False


class Proxy(ThreadingHTTPServer):
    """The listening side: a thread for each connection, all of which end when it does.

    Attributes:
        upstream: host and port of the server behind.
        prefix: what the paths of its address begin with.
        stopping: set once it stops.
        failures: what went wrong in the proxy itself.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream_url: str, exchange: type[Exchange]) -> None:
        parts = urlsplit(upstream_url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"the server behind needs an http:// address, not {upstream_url!r}")
        self.upstream, self.prefix = parts.netloc, parts.path.rstrip("/")
        self.stopping = threading.Event()
        self.failures: list[Exception] = []
        self._connected: set[socket.socket] = set()
        self._conversations: set[threading.Thread] = set()
        self._serving = threading.Thread(target=self.serve_forever, args=(POLL_S,), daemon=True)
        super().__init__(("127.0.0.1", 0), exchange)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def start(self) -> None:
        """Begin to pass requests on."""
        self._serving.start()

    def stop(self) -> None:
        """Stop listening, cut what is connected, and wait for the threads."""
        if self._serving.is_alive():
            self.shutdown()
            self._serving.join(STOP_S)
        self.server_close()
        self.stopping.set()
        for connected in list(self._connected):
            with suppress(OSError):  # the other side closed it
                connected.shutdown(socket.SHUT_RDWR)
        for thread in self._conversations:
            thread.join(STOP_S)

    @contextmanager
    def holding(self, connected: socket.socket) -> Iterator[None]:
        """Cut a connection when this stops.

        Raises:
            UpstreamLostError: it has stopped.
        """
        self._connected.add(connected)
        try:
            if self.stopping.is_set():
                raise UpstreamLostError("the proxy was stopped")
            yield
        finally:
            self._connected.discard(connected)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # without asking for the name of this machine, which may take seconds
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connected.add(request)
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self._conversations = {thread, *(other for other in self._conversations if other.is_alive())}
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        self._connected.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the protocol gives them
        error = sys.exception()
        if isinstance(error, Exception) and not isinstance(error, ConnectionError | TimeoutError):  # clients that left
            self.failures.append(error)


class Exchange(BaseHTTPRequestHandler):
    """One connection of a client, whose requests are answered one after another."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = PATIENCE_S
    server: Proxy
    _is_dropped = False

    def respond(self, body: bytes) -> None:
        """Answer the request at hand: here, as the server behind does."""
        with self.asked(body) as answer:
            self.send(answer)

    @contextmanager
    def asked(self, body: bytes) -> Iterator[Answer]:
        """Ask the server behind; the answer is to be used before this ends.

        Raises:
            UpstreamLostError: it gave none; or, from the pieces, it broke off.
        """
        with closing(HTTPConnection(self.server.upstream, timeout=PATIENCE_S)) as upstream:
            with _of_upstream():
                upstream.connect()
            with self.server.holding(upstream.sock):
                with _of_upstream():
                    response = self._ask(upstream, body)
                with closing(response):
                    yield Answer(
                        response.status,
                        response.getheaders(),
                        _pieces(response),
                        reason=response.reason,
                        is_chunked=bool(response.chunked) and self.command != "HEAD",
                        is_last=response.will_close,
                    )

    def send(self, answer: Answer) -> None:
        """Send an answer to the client."""
        self.close_connection = self.close_connection or answer.is_last or answer.is_cut
        head = [f"HTTP/1.1 {answer.status} {answer.reason or responses.get(answer.status, '')}"]
        head += [f"{name}: {value}" for name, value in answer.headers]
        self.wfile.write("\r\n".join([*head, "", ""]).encode("latin-1"))
        for piece in answer.pieces:
            if piece and self.command != "HEAD":
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if answer.is_chunked else piece)
        if answer.is_chunked and not answer.is_cut:
            self.wfile.write(b"0\r\n\r\n")

    def drop(self) -> None:
        """Reset the connection."""
        self._is_dropped = self.close_connection = True

    def _exchange(self) -> None:
        try:
            self.respond(self._read_body())
        except UpstreamLostError:  # the client shall see just that
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _exchange  # noqa: N815 - so they are looked up

    def finish(self) -> None:
        super().finish()
        if self._is_dropped:
            with suppress(OSError):  # where the client has closed it, some systems have nothing to set any more
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.connection.close()  # now, or the framework would say goodbye first

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _read_body(self) -> bytes:
        if self._is_chunked:
            return whole(self._read_chunks())
        length = int(self.headers.get("Content-Length", 0))
        _check_length(length)
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionResetError("the client left within its request")
        return body

    def _read_chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(LINE_MAX_BYTES).partition(b";")[0], 16):
            _check_length(size)
            yield self.rfile.read(size)
            self.rfile.readline(LINE_MAX_BYTES)
        while self.rfile.readline(LINE_MAX_BYTES).strip():
            pass  # trailers

    def _ask(self, upstream: HTTPConnection, body: bytes) -> HTTPResponse:
        upstream.putrequest(self.command, self.server.prefix + self.path, skip_host=True, skip_accept_encoding=True)
        upstream.putheader("Host", self.server.upstream)
        for name, value in self.headers.items():
            if name.lower() != "host":
                upstream.putheader(name, value)
        with suppress(ConnectionError):  # it may have answered, and closed, before it read all
            upstream.endheaders(body or None, encode_chunked=self._is_chunked)
        return upstream.getresponse()

    @property
    def _is_chunked(self) -> bool:
        return "chunked" in self.headers.get("Transfer-Encoding", "").lower()


def whole(pieces: Iterable[bytes]) -> bytes:
    """Join a body; one that is too long is refused."""
    body = bytearray()
    for piece in pieces:
        body += piece
        _check_length(len(body))
    return bytes(body)


def _check_length(n_bytes: int) -> None:
    if n_bytes > BODY_MAX_BYTES:
        raise ValueError(f"a body has more than {BODY_MAX_BYTES:,} bytes, the most that this proxy holds")


def _pieces(response: HTTPResponse) -> Iterator[bytes]:
    piece = b"."
    while piece:
        with _of_upstream():
            piece = response.read1(PIECE_BYTES)
        yield piece
    if response.length:
        raise UpstreamLostError("the server behind broke off")


@contextmanager
def _of_upstream() -> Iterator[None]:
    try:
        yield
    except (OSError, HTTPException) as error:
        raise UpstreamLostError("the server behind broke off, or is not there") from error
