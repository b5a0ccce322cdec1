"""Run the server as a process: socket, signals, log, and limits of slow connections."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http import HTTPStatus
from types import FrameType
from typing import Any, Final, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from afterwords.errors import (
    AfterwordsError,
    InvalidRequestError,
    ServerSetupError,
    ServiceUnavailableError,
    StorageUnavailableError,
)
from afterwords.server.app import create_app
from afterwords.server.app_state import ServerState, find_dispatchers, open_storage, open_store
from afterwords.server.ports import Dispatcher
from afterwords.server.records import ACTOR, Actor
from afterwords.server.routing import Lifetime, unrouted_response
from afterwords.server.services.home import HomeVoices
from afterwords.server.services.keys import KeyService, MintedKey
from afterwords.server.settings import Settings
from afterwords.server.sockets import MESSAGE_MAX_BYTES
from afterwords.server.tracing import check_installed

log = logging.getLogger("afterwords.server")

HEADER_TIMEOUT_S: Final = 10.0
HEADER_MAX_BYTES: Final = 64 * 1024
LINGER_S: Final = 10.0
LINGER_MAX_BYTES: Final = 32 * 1024 * 1024
"""How much of a refused body is read and discarded: more than the largest accepted upload."""
SEND_BUFFER_BYTES: Final = 256 * 1024
"""How much of an unread response the kernel buffers; the default may grow to 4 MB."""
BACKLOG: Final = 256
"""Connections that the kernel accepts at once, before any can be refused."""
DESCRIPTORS_MAX: Final = 65_536
DESCRIPTORS_RESERVED: Final = 512
"""Descriptors kept for storage, database, pipes, and the connections of the backlog."""
LOADING_LOG_INTERVAL_S: Final = 0.5
SWITCH_INTERVAL_S: Final = 0.0005
"""How long a thread may hold the GIL; with the default of 5 ms, requests wait long for the writer thread."""


def serve(
    settings: Settings,
    *,
    on_first_key: Callable[[MintedKey], None],
    on_listening: Callable[[Settings, HomeVoices], None],
) -> int | None:
    """Serve until a signal arrives, and return the signal.

    Args:
        on_first_key: Called with the first key, if the database is new and the address is loopback.
        on_listening: Called with the settings, with the actual port, and the voices of the library, once the server
            answers requests.

    Raises:
        ServerSetupError: The server can't start with these settings.
        StorageUnavailableError: The bucket does not answer.
        BackendUnavailableError, InvalidOptionError: No backend can run.
    """
    settings.check_is_safe()
    settings.check_certificate()
    if settings.tracing:
        check_installed()
    n_connections = _raise_descriptor_limit()
    if n_connections is not None:  # with few descriptors, one key must not take them all
        maximum = min(settings.max_requests_per_key, max(1, n_connections // 2))
        settings = settings.model_copy(update={"max_requests_per_key": maximum})
    with contextlib.ExitStack() as stack:
        stack.enter_context(log_to_stderr(settings))
        for create, theirs in find_dispatchers(settings):
            if check := getattr(create, "check", None):
                check(theirs)
        asyncio.run(_check_bucket(settings))
        os.umask(0o077)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        listener = stack.enter_context(_bind(settings))
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        if key := asyncio.run(_first_key(settings)):
            on_first_key(key)
        app = create_app(settings)
        config = _Config(
            app,
            write_timeout_s=settings.write_timeout_s,
            n_connections=n_connections,
            backlog=BACKLOG,
            http=_Protocol,
            ws=_SocketProtocol,
            ws_max_size=MESSAGE_MAX_BYTES,
            ws_ping_timeout=settings.write_timeout_s,
            ws_per_message_deflate=False,  # audio does not get smaller
            ssl_certfile=settings.certfile,
            ssl_keyfile=settings.keyfile,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        )
        server = _Server(config, app.lifetime, lambda state: on_listening(settings, state.home))
        server.run([listener])
        log.info("stopped")
        return server.signal


@contextlib.contextmanager
def log_to_stderr(settings: Settings) -> Iterator[None]:
    """Log one line per event to stderr, as text or JSON, until the block ends.

    Of uvicorn, only warnings and errors are logged; of other libraries, only the logger's name at an error, because
    their messages may quote a request.
    """
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = (
        False  # not needed, and looked up for each line
    )
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    line = _JsonLine() if settings.log == "json" else _Line()
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).addFilter(_remove_traceback)
    handler, others = logging.StreamHandler(), logging.StreamHandler()
    handler.setFormatter(line)
    others.setFormatter(line)
    others.setLevel(logging.ERROR)
    others.addFilter(lambda record: not record.name.startswith("opentelemetry."))  # `tracing` logs its failures
    others.addFilter(_remove_message)
    logging.getLogger().addHandler(others)
    ours = [(logging.getLogger("afterwords.server"), logging.DEBUG), (logging.getLogger("uvicorn"), logging.WARNING)]
    for logger, lowest in ours:
        logger.addHandler(handler)
        logger.setLevel(max(level, lowest))
        logger.propagate = False
    try:
        yield
    finally:
        logging.getLogger().removeHandler(others)
        for logger, _ in ours:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
            logger.propagate = True


class _Line(logging.Formatter):
    """Format a line as text; the time is formatted once per second, because a second may have thousands of lines."""

    def __init__(self) -> None:
        super().__init__()
        self._second = 0
        self._stamp = ""

    def format(self, record: logging.LogRecord) -> str:
        second = int(record.created)
        if second != self._second:
            self._second, self._stamp = second, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._stamp},{int(record.msecs):03d} {record.levelname} {record.getMessage()}"


class _JsonLine(logging.Formatter):
    """Format a line as a JSON object: time (UTC), level, logger, message, and the fields of a request or job."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        facts: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if isinstance(record.args, dict):
            facts |= record.args
        elif isinstance(record.args, tuple) and record.msg.startswith("job %s"):
            facts["job_id"] = record.args[0]
        return json.dumps(facts)


def _remove_traceback(record: logging.LogRecord) -> bool:
    """Remove the traceback, which may show text of a request."""
    record.exc_info = record.exc_text = record.stack_info = None
    return True


def _remove_message(record: logging.LogRecord) -> bool:
    """Replace the message of another library, which may quote a request, by the name of its logger."""
    record.msg, record.args = "failed in=%s", (record.name,)
    return _remove_traceback(record)


async def _check_bucket(settings: Settings) -> None:
    """Raise an error if the audio is in a bucket that does not answer, or that refuses our credentials."""
    if (settings.storage_url or "").startswith("s3:"):
        try:
            await open_storage(settings).check()
        except StorageUnavailableError as error:
            raise StorageUnavailableError(
                "The audio storage does not answer.", hint="start it, or correct AFTERWORDS_STORAGE_URL."
            ) from error


async def _first_key(settings: Settings) -> MintedKey | None:
    """Migrate the database; if it is new and the server listens on loopback, create a key."""
    store = open_store(settings)
    ACTOR.set(Actor("server"))
    try:
        is_new = await store.open()
        return (
            await KeyService(store).create(label="first key", is_home=True) if is_new and settings.is_loopback else None
        )
    finally:
        await store.close()


def _raise_descriptor_limit() -> int | None:
    """Raise the limit of open files, and return how many connections it allows; None if the system has no limit."""
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    maximum = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < maximum:
        with contextlib.suppress(OSError, ValueError):  # macOS allows less than it reports
            resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, hard))
            soft = maximum
    limit = DESCRIPTORS_MAX if soft == resource.RLIM_INFINITY else soft
    return limit - min(DESCRIPTORS_RESERVED, limit // 2)


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        why = "it is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
        raise ServerSetupError(
            f"Can't listen on {settings.host} port {settings.port}: {why}.", code="address_in_use"
        ) from None
    listener.setblocking(False)
    return listener


async def _log_loading(dispatcher: Dispatcher) -> None:
    """Log the progress of loading models until they are ready."""
    logged = ""
    while not dispatcher.is_ready:
        if dispatcher.state != logged:
            logged = dispatcher.state
            log.info("%s", logged)
        await asyncio.sleep(LOADING_LOG_INTERVAL_S)


class _Config(uvicorn.Config):
    """Uvicorn's configuration, with settings of our protocol."""

    def __init__(self, app: ASGIApp, *, write_timeout_s: float, n_connections: int | None, **options: Any) -> None:
        super().__init__(cast("Any", app), **options)
        self.write_timeout_s = write_timeout_s
        self.n_connections = n_connections


class _Server(uvicorn.Server):
    """A uvicorn server that records the signal that stops it, instead of raising it again."""

    def __init__(self, config: uvicorn.Config, lifetime: Lifetime, on_listening: Callable[[ServerState], None]) -> None:
        super().__init__(config)
        self._lifetime = lifetime
        self._on_listening = on_listening
        self.signal: int | None = None
        self._loading_log: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # uvicorn would raise them again at the end
        self.signal = sig

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # loaded modules stay: scanning them took a tenth of the time
        state = cast("ServerState", self._lifetime.state)
        self._on_listening(state)
        self._loading_log = asyncio.create_task(_log_loading(state.dispatcher))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wake long polls first, or graceful shutdown waits for them."""
        state = self._lifetime.state
        if state is not None:
            state.begin_stop()
        if self._loading_log is not None:
            self._loading_log.cancel()
        await super().shutdown(sockets)


class _Lingering:
    """A transport with a lingering close, for a client that is still sending.

    Closing a socket with unread input resets the connection, and the client loses the response that it has not read
    yet (RFC 9112, 9.6). So the first `close` only ends our side and discards the rest of the body; a second `close`,
    LINGER_S or LINGER_MAX_BYTES close the connection.
    """

    def __init__(self, transport: asyncio.Transport, has_more_to_come: Callable[[], bool]) -> None:
        self._transport = transport
        self._has_more_to_come = has_more_to_come
        self._n_left: int | None = None  # bytes that may still arrive; None before the first close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._n_left is not None or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing() or not self._has_more_to_come():
            self._transport.close()
            return
        self._n_left = LINGER_MAX_BYTES
        asyncio.get_running_loop().call_later(LINGER_S, self._transport.close)
        try:
            self._transport.write_eof()
            self._transport.resume_reading()
        except (OSError, RuntimeError, NotImplementedError):  # the client is gone, or the transport can't half-close
            self._transport.close()

    def close_now(self) -> None:
        self._transport.close()

    def discard(self, data: bytes) -> None:
        if self._n_left is not None:
            self._n_left -= len(data)
            if self._n_left < 0:
                self._transport.close()


class _Protocol(HttpToolsProtocol):
    """HTTP/1.1 with limits: late or large headers and unread responses close the connection."""

    _timer: asyncio.TimerHandle | None = None
    _n_header_bytes = 0
    _write_timer: asyncio.TimerHandle | None = None
    _n_unread_bytes = 0
    _is_broken = False  # the client did not send HTTP

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", _Lingering(transport, self._has_more_to_come)))
        n_allowed = cast("_Config", self.config).n_connections
        if n_allowed is not None and len(self.connections) > n_allowed:
            self._answer(ServiceUnavailableError("The server has reached its connection limit; nothing was changed."))
        else:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._got_headers()
        self._stop_write_timer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self.transport.close()  # do not linger on shutdown

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()
        if self.transport.is_closing():
            self._watch_reading()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_reading()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            cast("_Lingering", self.transport).discard(data)
            return
        super().data_received(data)
        if self._timer is not None:
            self._n_header_bytes += len(data)
            if self._n_header_bytes > HEADER_MAX_BYTES:
                self.transport.close()

    def on_message_begin(self) -> None:
        self._expect_headers()
        self._n_header_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._got_headers()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Give the rest of a refused body as much time as headers."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self._expect_headers()
        if self.transport.is_closing():
            self._watch_reading()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - our response has the shape of all errors
        self._is_broken = True
        self._answer(InvalidRequestError("The request is not valid HTTP/1.1.", hint="use an HTTP client."))

    def _answer(self, error: AfterwordsError) -> None:
        """Answer a connection that sent no request, or whose requests are not read, and close it."""
        response = unrouted_response(error)
        headers = [*response.raw_headers, (b"connection", b"close")]
        status = HTTPStatus(response.status_code)
        begin = f"HTTP/1.1 {status.value} {status.phrase}".encode()
        lines = [begin, *(b": ".join(header) for header in headers), b"", bytes(response.body)]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()

    def _has_more_to_come(self) -> bool:
        """Return whether the client may still send data that is not read."""
        is_refused = self.cycle is not None and self.cycle.response_complete and self.cycle.more_body
        return self._is_broken or is_refused

    def _watch_reading(self) -> None:
        """Close the connection if the client reads nothing of the buffered response in time."""
        self._stop_write_timer()
        self._n_unread_bytes = self.transport.get_write_buffer_size()
        timeout_s = cast("_Config", self.config).write_timeout_s
        self._write_timer = self.loop.call_later(timeout_s, self._check_reading)

    def _check_reading(self) -> None:
        if self.transport.get_write_buffer_size() < self._n_unread_bytes:
            self._watch_reading()
        else:
            self.transport.abort()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _expect_headers(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEADER_TIMEOUT_S, cast("_Lingering", self.transport).close_now)
            self._n_header_bytes = 0

    def _got_headers(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _SocketProtocol(WebSocketsSansIOProtocol):
    """WebSockets. They count as connections, and a client that answers no ping in `write_timeout_s` is disconnected."""

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True  # otherwise uvicorn logs a refusal as an error of the application


EXIT_BY_SIGNAL: Final[dict[int | None, int]] = {signal.SIGINT: 130}
"""Exit codes; stopping by SIGTERM is a success."""
