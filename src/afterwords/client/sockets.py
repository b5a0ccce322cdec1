"""The WebSocket of live speech, for both clients: text is sent while it is being written, audio is received meanwhile.

The package `websockets` is imported when the first connection opens. It logs nothing: its lines would contain the key
and the text.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import httpx

from afterwords.client.parsing import invalid_response
from afterwords.client.profiles import Access
from afterwords.client.requests import FIRST_AUDIO_S, Response
from afterwords.client.transport import HEADERS, unreachable
from afterwords.errors import ConnectionLostError, RemoteError, UnauthorizedError

if TYPE_CHECKING:
    import asyncio

PATH: Final = "/v1/audio/speech/stream"
KEEP_ALIVE_S: Final = 10.0
"""How often a message is sent at least: the server closes a session that is silent for 30 s."""
CLOSE_TIMEOUT_S: Final = 1.0
"""How long the server may take to close a connection; the jobs end as soon as it knows."""
SLICE_CHARS: Final = 10_000
"""Text in a message: with escapes, it stays below the server's limit of 256 KiB."""
_SILENT: Final = logging.Logger("afterwords.client.sockets", logging.CRITICAL)  # no handler has it


class RefusedHandshake(Exception):  # noqa: N818 - it never leaves the client
    """The server answered the handshake with HTTP."""

    def __init__(self, response: Any) -> None:
        super().__init__()
        headers = {name.lower(): value for name, value in response.headers.raw_items()}
        self.response = Response(response.status_code, headers, response.body or b"")


class AsyncSpeechSocket:
    """A connection to the server within an event loop."""

    def __init__(self, connection: Any, access: Access) -> None:
        self.request_id: str = connection.response.headers.get("x-request-id", "")
        self._connection = connection
        self._access = access
        self._feeding: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._is_fed = False
        self._sent_at = time.monotonic()

    @classmethod
    async def open(cls, access: Access, *, timeout_s: float) -> AsyncSpeechSocket:
        """Connect to a server.

        Raises:
            RefusedHandshake: The server refused the connection.
            RemoteError: The server can't be reached.
            UnauthorizedError: There is no key.
        """
        from websockets.asyncio.client import ClientConnection, connect
        from websockets.exceptions import InvalidStatus

        class Connection(ClientConnection):
            async def handshake(self, *args: Any, **options: Any) -> None:
                try:
                    await super().handshake(*args, **options)
                except InvalidStatus as error:  # else a redirect would be followed
                    raise RefusedHandshake(error.response) from None

        url, options = _connection_settings(access, timeout_s)
        with _translate_errors(access, timeout_s):
            return cls(await connect(url, create_connection=Connection, **options), access)

    async def send(self, kind: str, **fields: Any) -> None:
        """Send a message; one that can't be sent is lost, and `receive` raises why."""
        from websockets.exceptions import ConnectionClosed

        self._sent_at = time.monotonic()
        try:
            await self._connection.send(json.dumps({"type": kind, **fields}))
        except ConnectionClosed:
            self._is_fed = True

    def feed(self, text: AsyncIterable[str] | Iterable[str]) -> None:
        """Send a text meanwhile. An error of the iterator ends the connection, and `receive` raises it."""
        from asyncio import create_task

        self._feeding = create_task(self._feed(text))

    async def receive(self) -> dict[str, Any] | bytes:
        """Return the next message or audio.

        Raises:
            ConnectionLostError: The connection ended.
            InvalidResponseError: The message is not a JSON object.
        """
        from asyncio import timeout

        from websockets.exceptions import ConnectionClosed

        while True:
            if not self._is_fed and time.monotonic() - self._sent_at >= KEEP_ALIVE_S:
                await self.send("input.text", text="")
            try:
                async with timeout(KEEP_ALIVE_S):
                    return _parse(await self._connection.recv())
            except TimeoutError:
                continue
            except ConnectionClosed as error:
                raise self._failure or _lost(self._access, error) from None

    async def close(self) -> None:
        """Close the connection; what was not sent is cancelled on both sides."""
        from asyncio import shield

        if self._feeding is not None:
            self._feeding.cancel()
        await shield(self._connection.close())

    async def _feed(self, text: AsyncIterable[str] | Iterable[str]) -> None:
        try:
            async for piece in _as_async(text):
                for part in _slices(piece):
                    await self.send("input.text", text=part)
                if self._is_fed:
                    return
            await self.send("input.done")
            self._is_fed = True
        except Exception as error:  # noqa: BLE001 - an edge: `receive` raises it
            self._failure = error
            await self._connection.close()


class SpeechSocket:
    """A connection to the server with threads, and the methods of AsyncSpeechSocket."""

    def __init__(self, connection: Any, access: Access) -> None:
        self.request_id: str = connection.response.headers.get("x-request-id", "")
        self._connection = connection
        self._access = access
        self._failure: Exception | None = None
        self._is_fed = False
        self._sent_at = time.monotonic()

    @classmethod
    def open(cls, access: Access, *, timeout_s: float) -> SpeechSocket:
        from websockets.exceptions import InvalidStatus
        from websockets.sync.client import ClientConnection, connect

        class Connection(ClientConnection):
            def handshake(self, *args: Any, **options: Any) -> None:
                try:
                    super().handshake(*args, **options)
                except InvalidStatus as error:
                    raise RefusedHandshake(error.response) from None

        url, options = _connection_settings(access, timeout_s)
        with _translate_errors(access, timeout_s):
            return cls(connect(url, create_connection=Connection, **options).__enter__(), access)

    def send(self, kind: str, **fields: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        self._sent_at = time.monotonic()
        try:
            self._connection.send(json.dumps({"type": kind, **fields}))
        except ConnectionClosed:
            self._is_fed = True

    def feed(self, text: Iterable[str]) -> None:
        from threading import Thread

        # A daemon: the iterator may block for any time, also after the speech was closed.
        Thread(target=self._feed, args=(text,), daemon=True).start()

    def receive(self) -> dict[str, Any] | bytes:
        from websockets.exceptions import ConnectionClosed

        while True:
            if not self._is_fed and time.monotonic() - self._sent_at >= KEEP_ALIVE_S:
                self.send("input.text", text="")
            try:
                return _parse(self._connection.recv(timeout=KEEP_ALIVE_S))
            except TimeoutError:
                continue
            except ConnectionClosed as error:
                raise self._failure or _lost(self._access, error) from None

    def close(self) -> None:
        self._connection.close()

    def _feed(self, text: Iterable[str]) -> None:
        try:
            for piece in [text] if isinstance(text, str) else text:
                for part in _slices(piece):
                    self.send("input.text", text=part)
                if self._is_fed:
                    return
            self.send("input.done")
            self._is_fed = True
        except Exception as error:  # noqa: BLE001 - an edge: `receive` raises it
            self._failure = error
            self._connection.close()


async def _as_async(text: AsyncIterable[str] | Iterable[str]) -> AsyncIterator[str]:
    from asyncio import sleep

    if isinstance(text, AsyncIterable):
        async for piece in text:
            yield piece
        return
    for piece in [text] if isinstance(text, str) else text:
        yield piece
        await sleep(0)  # audio is received meanwhile


def _slices(piece: str) -> Iterator[str]:
    return (piece[start : start + SLICE_CHARS] for start in range(0, len(piece), SLICE_CHARS))


def _connection_settings(access: Access, timeout_s: float) -> tuple[str, dict[str, Any]]:
    """Return the URL, and the arguments of `connect`."""
    if access.api_key is None:
        raise UnauthorizedError.not_logged_in(access.base_url)
    options: dict[str, Any] = {
        "additional_headers": {"Authorization": f"Bearer {access.api_key}"},
        "user_agent_header": HEADERS["User-Agent"],
        "compression": None,  # audio does not get smaller
        "proxy": None if access.is_loopback else True,
        "open_timeout": timeout_s,
        # A pong arrives after the audio that was not read yet, so it may take as long as a response.
        "ping_timeout": timeout_s + FIRST_AUDIO_S,
        "close_timeout": CLOSE_TIMEOUT_S,
        "logger": _SILENT,
    }
    if access.base_url.startswith("https:"):
        options["ssl"] = httpx.create_ssl_context()
    return f"ws{access.base_url.removeprefix('http')}{PATH}", options


@contextmanager
def _translate_errors(access: Access, timeout_s: float) -> Iterator[None]:
    """Raise a RemoteError in place of an error while connecting: nothing was sent."""
    from websockets.exceptions import InvalidHandshake

    try:
        yield
    except ImportError:
        hint = "pip install python-socks[asyncio], or unset ALL_PROXY to connect without a proxy."
        why = "The network setting of ALL_PROXY can't be used: a SOCKS proxy needs the package python-socks."
        raise RemoteError(why, code="network_setting", hint=hint) from None
    except TimeoutError as error:
        raise unreachable(access, access.base_url, error, why=f"nothing answered within {timeout_s:g} s") from error
    except (OSError, EOFError, InvalidHandshake) as error:
        raise unreachable(access, access.base_url, error) from error


def _lost(access: Access, error: Any) -> ConnectionLostError:
    """Return the error for a connection that was closed, with the reason that the server gave."""
    reason = error.rcvd.reason if error.rcvd is not None else ""
    return ConnectionLostError.for_url(access.base_url, why=reason.rstrip(".") or "it was closed")


def _parse(data: str | bytes) -> dict[str, Any] | bytes:
    if isinstance(data, bytes):
        return data
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise invalid_response(Response(101, {}), "a message is not a JSON object")
    return message
