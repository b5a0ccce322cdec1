"""A server as a process: the socket, the signals, the log, and connections that never finish their first line."""

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
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from types import FrameType
from typing import Any, Final, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from afterwords.errors import AfterwordsError, InvalidRequestError, ServerSetupError, ServiceUnavailableError
from afterwords.server.app import create_app
from afterwords.server.app_state import ServerState, open_store
from afterwords.server.dispatch.local import check_backends
from afterwords.server.ports import Dispatcher
from afterwords.server.routing import Lifetime, unrouted_response
from afterwords.server.services.home import HomeVoices
from afterwords.server.services.keys import KeyService, MintedKey
from afterwords.server.settings import Settings

log = logging.getLogger("afterwords.server")

HEADER_TIMEOUT_S: Final = 10.0
HEADER_MAX_BYTES: Final = 64 * 1024
LINGER_S: Final = 10.0
LINGER_MAX_BYTES: Final = 32 * 1024 * 1024
"""How much of a refused body is read and thrown away: all of the largest upload that is taken."""
SEND_BUFFER_BYTES: Final = 256 * 1024
"""What the system holds of an answer that its client does not read; by default it may become 4 MB."""
BACKLOG: Final = 256
"""Connections that are accepted at one stroke, before one of them can be refused."""
DESCRIPTORS_MAX: Final = 65_536
DESCRIPTORS_RESERVED: Final = 512
"""Of the descriptors, those that are no connections: storage, database, pipes, and what was accepted at one stroke."""
TELL_INTERVAL_S: Final = 0.5
SWITCH_INTERVAL_S: Final = 0.0005
"""How long a thread may keep the interpreter: the default of 5 ms is a long wait for a request beside the writer."""


def serve(
    settings: Settings,
    *,
    on_first_key: Callable[[MintedKey], None],
    on_listening: Callable[[Settings, HomeVoices], None],
) -> int | None:
    """Serve until a signal says otherwise, and return the signal.

    Args:
        on_first_key: given the first key, where the database is new and the address is loopback.
        on_listening: given the settings with the port that was taken, and the voices of the home, once requests are
            answered.

    Raises:
        ServerSetupError: it can't start like this.
        BackendUnavailableError, InvalidOptionError: nothing would be spoken.
    """
    settings.check_is_safe()
    n_connections = _raise_descriptor_limit()
    if n_connections is not None:  # where descriptors are few, one key may not take them all
        most = min(settings.max_requests_per_key, max(1, n_connections // 2))
        settings = settings.model_copy(update={"max_requests_per_key": most})
    check_backends(settings)
    os.umask(0o077)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with _bound(settings) as bound:
        settings = settings.model_copy(update={"port": bound.getsockname()[1]})
        if key := asyncio.run(_first_key(settings)):
            on_first_key(key)
        app = create_app(settings)
        config = _Config(
            app,
            write_timeout_s=settings.write_timeout_s,
            n_connections=n_connections,
            backlog=BACKLOG,
            http=_Protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        )
        server = _Server(config, app.lifetime, lambda state: on_listening(settings, state.home))
        server.run([bound])
        log.info("stopped")
        return server.signal


def configure_log(settings: Settings) -> None:
    """One line an event, to stderr, as text or as JSON.

    Uvicorn's lines are shown where something is wrong, and of those of other libraries only the name, because they
    quote what was sent.
    """
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # looked up for each line otherwise
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    line = _JsonLine() if settings.log == "json" else _Line()
    for name, lowest in (("afterwords.server", logging.DEBUG), ("uvicorn", logging.WARNING)):
        handler = logging.StreamHandler()
        handler.setFormatter(line)
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(max(level, lowest))
        logger.propagate = False
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).addFilter(_without_traceback)
    others = logging.StreamHandler()
    others.setFormatter(line)
    others.setLevel(logging.ERROR)
    others.addFilter(_without_message)
    logging.getLogger().addHandler(others)


class _Line(logging.Formatter):
    """Time, level, message; the time is written out once a second, since there may be thousands of lines in one."""

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
    """One object a line: time (UTC), level, logger, message, and the fields of a line that has some."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        facts: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        return json.dumps(facts | record.args if isinstance(record.args, dict) else facts)


def _without_traceback(record: logging.LogRecord) -> bool:
    """A traceback shows what was thrown, and that may hold what a request said."""
    record.exc_info = record.exc_text = record.stack_info = None
    return True


def _without_message(record: logging.LogRecord) -> bool:
    """What another library says may hold what a request said: its name alone is written."""
    record.msg, record.args = "failed in=%s", (record.name,)
    return _without_traceback(record)


async def _first_key(settings: Settings) -> MintedKey | None:
    """Bring the database up to date; if it was new and only this machine can reach it, make a key."""
    store = open_store(settings)
    try:
        is_new = await store.open()
        return (
            await KeyService(store).create(label="first key", is_home=True) if is_new and settings.is_loopback else None
        )
    finally:
        await store.close()


def _raise_descriptor_limit() -> int | None:
    """Let the process open as many files as it may, and return how many connections leave a reserve for its own.

    None where the system knows no such limit.
    """
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):  # macOS allows less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    limit = DESCRIPTORS_MAX if soft == resource.RLIM_INFINITY else soft
    return limit - min(DESCRIPTORS_RESERVED, limit // 2)


def _bound(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        bound.bind((settings.host, settings.port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        why = "it is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))
        raise ServerSetupError(
            f"Nothing can listen on {settings.host} port {settings.port}: {why}.", code="address_in_use"
        ) from None
    bound.setblocking(False)
    return bound


async def _tell_loading(dispatcher: Dispatcher) -> None:
    """Write down how far the models are, until they are there."""
    told = ""
    while not dispatcher.is_ready:
        if dispatcher.state != told:
            told = dispatcher.state
            log.info("%s", told)
        await asyncio.sleep(TELL_INTERVAL_S)


class _Config(uvicorn.Config):
    """Uvicorn's, with what our protocol is told."""

    def __init__(self, app: ASGIApp, *, write_timeout_s: float, n_connections: int | None, **options: Any) -> None:
        super().__init__(cast("Any", app), **options)
        self.write_timeout_s = write_timeout_s
        self.n_connections = n_connections


class _Server(uvicorn.Server):
    """Uvicorn, which leaves with the signal's meaning and not by the signal itself."""

    def __init__(self, config: uvicorn.Config, lifetime: Lifetime, on_listening: Callable[[ServerState], None]) -> None:
        super().__init__(config)
        self._lifetime = lifetime
        self._on_listening = on_listening
        self.signal: int | None = None
        self._telling: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # or they would be raised again at the end, and kill us
        self.signal = sig

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what is loaded stays: looking through it again and again took a tenth of the time
        state = cast("ServerState", self._lifetime.state)
        self._on_listening(state)
        self._telling = asyncio.create_task(_tell_loading(state.dispatcher))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Those who wait for a job get their answer now, or they would hold the door open."""
        state = self._lifetime.state
        if state is not None:
            state.begin_stop()
        if self._telling is not None:
            self._telling.cancel()
        await super().shutdown(sockets)


class _Lingering:
    """A transport that is closed in two steps while the client is still sending.

    To close a socket whose input was not read resets the connection, and the client loses the answer that it has not
    read yet (RFC 9112, 9.6). So the first `close` ends our side alone and lets the rest of the body be read and thrown
    away; the second one, the end of the time, or too much of it closes for good.
    """

    def __init__(self, transport: asyncio.Transport, has_more_to_come: Callable[[], bool]) -> None:
        self._transport = transport
        self._has_more_to_come = has_more_to_come
        self._n_left: int | None = None  # bytes that are still read; None before the first close

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
        except (OSError, RuntimeError, NotImplementedError):  # the client is gone, or it is a kind without halves
            self._transport.close()

    def close_now(self) -> None:
        self._transport.close()

    def discard(self, data: bytes) -> None:
        if self._n_left is not None:
            self._n_left -= len(data)
            if self._n_left < 0:
                self._transport.close()


class _Protocol(HttpToolsProtocol):
    """HTTP/1.1 for clients in a hurry: headers that do not come or end, and answers that nobody reads, close it."""

    _timer: asyncio.TimerHandle | None = None
    _n_header_bytes = 0
    _write_timer: asyncio.TimerHandle | None = None
    _n_unread_bytes = 0
    _is_broken = False  # what came was not HTTP

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", _Lingering(transport, self._has_more_to_come)))
        most = cast("_Config", self.config).n_connections
        if most is not None and len(self.connections) > most:
            self._answer(ServiceUnavailableError("The server has as many connections as it may"))
        else:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._got_headers()
        self._stop_write_timer()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self.transport.close()  # nobody is waited for now

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
        """What is left of a body that was refused may not take longer than headers may."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self._expect_headers()
        if self.transport.is_closing():
            self._watch_reading()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - our own words are in the shape of all errors
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
        """Whether the client may still be sending what nobody reads."""
        is_refused = self.cycle is not None and self.cycle.response_complete and self.cycle.more_body
        return self._is_broken or is_refused

    def _watch_reading(self) -> None:
        """Cut the client off if it reads nothing of what waits for it before the time is over."""
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


EXIT_BY_SIGNAL: Final[dict[int | None, int]] = {signal.SIGINT: 130}
"""What the shell is told; a server that was asked to stop by SIGTERM has done well."""
