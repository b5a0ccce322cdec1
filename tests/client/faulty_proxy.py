"""An HTTP proxy in front of a server that injects the faults of `afterwords.testing` into real connections.

A dropped connection is reset (RST), as by a killed process. One that ends within a body is closed orderly (FIN), so
that what was sent before arrives.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPConnection, HTTPException, HTTPResponse, responses
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final, Self, Unpack
from urllib.parse import urlsplit

from afterwords.testing.faults import Fault, Options, make_response

CHUNK_BYTES: Final = 64 << 10
LINE_MAX_BYTES: Final = 64 << 10
TIMEOUT_S: Final = 120.0
"""How long the proxy waits for a silent client or server; `Prefer: wait` keeps one waiting for 60 s."""
STOP_S: Final = 10.0
_RESET: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
"""SO_LINGER for 0 s: closing sends RST."""
_FRAMING: Final = {"content-length", "transfer-encoding"}


class UpstreamLostError(Exception):
    """The server closed the connection, or could not be reached."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A request to the proxy."""

    method: str
    path: str
    query: str
    headers: Message
    body_bytes: int
    fault: Fault | None


@dataclass(slots=True)
class _Injection:
    fault: Fault
    path: str
    method: str | None
    n_left: int
    options: Options


class FaultyServer:
    """A proxy on a free loopback port; use it as a context manager."""

    def __init__(self, upstream_url: str) -> None:
        self._proxy = _Proxy(upstream_url)
        self.url = f"http://127.0.0.1:{self._proxy.server_port}"

    def __enter__(self) -> Self:
        self._proxy.serving.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.stop()
        if self._proxy.failures:
            raise ExceptionGroup("the proxy failed", self._proxy.failures)

    def inject(
        self, fault: Fault, *, path: str = "", method: str | None = None, times: int = 1, **options: Unpack[Options]
    ) -> None:
        """Let matching requests fail; see `FaultyTransport.inject`."""
        with self._proxy.lock:
            self._proxy.injections.append(_Injection(fault, path, method, times, options))

    @property
    def seen(self) -> list[Seen]:
        """The requests, oldest first."""
        return list(self._proxy.seen)


class _Proxy(ThreadingHTTPServer):
    """A thread for each connection, all of which end with the proxy."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, upstream_url: str) -> None:
        self.upstream = urlsplit(upstream_url).netloc
        self.lock = threading.Lock()
        self.injections: list[_Injection] = []
        self.seen: list[Seen] = []
        self.failures: list[Exception] = []
        self.stopping = threading.Event()
        self.serving = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._connected: set[socket.socket] = set()
        self._handler_threads: set[threading.Thread] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def stop(self) -> None:
        """Stop listening, close all connections, and wait for the threads."""
        self.shutdown()
        self.serving.join(STOP_S)
        self.server_close()
        self.stopping.set()
        for connected in list(self._connected):
            with suppress(OSError):  # closed meanwhile
                connected.shutdown(socket.SHUT_RDWR)
        for thread in self._handler_threads:
            thread.join(STOP_S)

    @contextmanager
    def closing_on_stop(self, connected: socket.socket) -> Iterator[None]:
        self._connected.add(connected)
        try:
            if self.stopping.is_set():
                raise UpstreamLostError("the proxy was stopped")
            yield
        finally:
            self._connected.discard(connected)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # without a DNS request for the name of this machine
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connected.add(request)
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self._handler_threads = {thread, *(other for other in self._handler_threads if other.is_alive())}
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        self._connected.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        error = sys.exception()
        if isinstance(error, Exception) and not isinstance(error, ConnectionError | TimeoutError):  # the client left
            self.failures.append(error)


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = TIMEOUT_S
    server: _Proxy
    _is_dropped = False

    def _handle(self) -> None:
        body = self._read_body()
        injection = self._take(body)
        try:
            if injection is None:
                with self._ask(body) as response:
                    self._send_head(response)
                    is_chunked = bool(response.chunked) and self.command != "HEAD"
                    for chunk in _read_chunks(response):
                        self._send_chunk(chunk, is_chunked=is_chunked)
                    if is_chunked:
                        self.wfile.write(b"0\r\n\r\n")
                    self.close_connection = self.close_connection or response.will_close
            elif injection.fault is Fault.DROP_BEFORE:
                self._drop()
            elif own := make_response(injection.fault, injection.options):
                self._send_whole(own.status_code, own.headers.items(), [own.content])
            else:
                with self._ask(body) as response:
                    self._spoil(response, injection)
        except UpstreamLostError:  # the client sees the same
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _handle  # noqa: N815

    def _take(self, body: bytes) -> _Injection | None:
        path, _, query = self.path.partition("?")
        with self.server.lock:
            matching = (
                each
                for each in self.server.injections
                if each.method in (None, self.command) and path.startswith(each.path)
            )
            if injection := next(matching, None):
                injection.n_left -= 1
                if not injection.n_left:
                    self.server.injections.remove(injection)
            fault = injection.fault if injection else None
            self.server.seen.append(Seen(self.command, path, query, self.headers, len(body), fault))
        return injection

    def _spoil(self, response: HTTPResponse, injection: _Injection) -> None:
        body = b"".join(_read_chunks(response))
        fault, half = injection.fault, len(body) // 2
        headers = response.getheaders()
        if fault is Fault.DROP_AFTER:
            self._drop()
        elif fault is Fault.SLOW:
            delay_s = injection.options["delay_s"]
            self.server.stopping.wait(delay_s)
            self._send_whole(response.status, headers, self._delay(body, delay_s), response)
        elif not body:
            raise ValueError(f"{fault}: the response to {self.command} {self.path.partition('?')[0]} has no body")
        elif fault is Fault.HALF_BODY:
            self.close_connection = True
            self._send_head(response)
            self._send_chunk(body[:half], is_chunked=bool(response.chunked))
        elif fault is Fault.SHORT_LENGTH:
            kept = [(name, value) for name, value in headers if name.lower() not in _FRAMING]
            self._send_whole(response.status, [*kept, ("Content-Length", str(half)), ("Connection", "close")], [body])
            self.close_connection = True  # or the rest would be read as the next response
        else:
            wrong = body[:half] + bytes([body[half] ^ 0xFF]) + body[half + 1 :]
            self._send_whole(response.status, headers, [wrong], response)

    def _delay(self, body: bytes, delay_s: float) -> Iterator[bytes]:
        size = -(-len(body) // 4) or 1
        for start in range(0, len(body), size):
            if start:
                self.server.stopping.wait(delay_s)
            yield body[start : start + size]

    # -- the server

    @contextmanager
    def _ask(self, body: bytes) -> Iterator[HTTPResponse]:
        """Forward the request; yield the response.

        Raises:
            UpstreamLostError: There was none.
        """
        with closing(HTTPConnection(self.server.upstream, timeout=TIMEOUT_S)) as upstream:
            with _upstream_errors():
                upstream.connect()
            with self.server.closing_on_stop(upstream.sock):
                with _upstream_errors():
                    upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                    upstream.putheader("Host", self.server.upstream)
                    for name, value in self.headers.items():
                        if name.lower() != "host":
                            upstream.putheader(name, value)
                    with suppress(ConnectionError):  # it may respond, and close, before it has read the whole body
                        upstream.endheaders(body or None, encode_chunked="chunked" in self._transfer_encoding)
                    response = upstream.getresponse()
                with closing(response):
                    yield response

    # -- the client

    @property
    def _transfer_encoding(self) -> str:
        return str(self.headers.get("Transfer-Encoding", "")).lower()

    def _read_body(self) -> bytes:
        if "chunked" not in self._transfer_encoding:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            if len(body) < length:
                raise ConnectionResetError("the client left within its request")
            return body
        body = b""
        while size := int(self.rfile.readline(LINE_MAX_BYTES).partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline(LINE_MAX_BYTES)
        self.rfile.readline(LINE_MAX_BYTES)
        return body

    def _send_head(self, response: HTTPResponse) -> None:
        self._write_head(response.status, response.getheaders(), response.reason)

    def _write_head(self, status: int, headers: Iterable[tuple[str, str]], reason: str = "") -> None:
        lines = [f"HTTP/1.1 {status} {reason or responses.get(status, '')}"]
        lines += [f"{name}: {value}" for name, value in headers]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def _send_chunk(self, chunk: bytes, *, is_chunked: bool) -> None:
        if chunk and self.command != "HEAD":
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if is_chunked else chunk)

    def _send_whole(
        self,
        status: int,
        headers: Iterable[tuple[str, str]],
        chunks: Iterable[bytes],
        response: HTTPResponse | None = None,
    ) -> None:
        self._write_head(status, headers, response.reason if response else "")
        is_chunked = response is not None and bool(response.chunked) and self.command != "HEAD"
        for chunk in chunks:
            self._send_chunk(chunk, is_chunked=is_chunked)
        if is_chunked:
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = self.close_connection or (response is not None and response.will_close)

    def _drop(self) -> None:
        self._is_dropped = self.close_connection = True

    def finish(self) -> None:
        super().finish()
        if self._is_dropped:
            with suppress(OSError):  # some systems allow no option on a connection that the client has closed
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.connection.close()  # now, or the framework would shut it down orderly first

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _read_chunks(response: HTTPResponse) -> Iterator[bytes]:
    chunk = b"."
    while chunk:
        with _upstream_errors():
            chunk = response.read1(CHUNK_BYTES)
        yield chunk
    if response.length:
        raise UpstreamLostError("the server closed the connection within a body")


@contextmanager
def _upstream_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, HTTPException) as error:
        raise UpstreamLostError("the server closed the connection, or could not be reached") from error
