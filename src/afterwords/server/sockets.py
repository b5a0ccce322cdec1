"""WebSocket routes of the API: the checks of `ApiRoute` at the handshake, its log line and metrics at the end.

A refused handshake is answered with HTTP, in the shape of every error. On an open connection, an error is reported in
a message, and the connection is closed.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from afterwords.errors import AfterwordsError, InvalidRequestError, ServiceError
from afterwords.server.auth import Credential, Requirements
from afterwords.server.routing import Lifetime, RequestContext, error_response, origin_of

log = logging.getLogger("afterwords.server")

FRAME_MAX_BYTES: Final = 32 * 1024
"""Audio in a frame; in base64, it stays below 64 KiB, which every client takes."""
MESSAGE_MAX_BYTES: Final = 256 * 1024
"""Longest message of a client: 128 KiB of text with escapes."""
POLICY_VIOLATION: Final = 1008
INTERNAL_ERROR: Final = 1011

KEY_S: Final = 10.0
"""Time for the first message, if the key is in it."""


class Socket(WebSocket):
    """A WebSocket; every method raises ClientDisconnect once the client is gone.

    Attributes:
        error_details: Fields that the message about an error has in addition.
    """

    error_details: Mapping[str, Any] = {}
    _unread: dict[str, Any] | None = None

    @property
    def context(self) -> RequestContext:
        context: RequestContext = self.scope["afterwords.context"]
        return context

    def log_failure(self, error: BaseException) -> None:
        """Log an unexpected exception by its type and place: its message may contain text or secrets."""
        log.error("failed request_id=%s %s", self.context.request_id, origin_of(error))

    async def accept(self, *_: Any, **__: Any) -> None:
        """Accept the connection, unless it is open already."""
        if self.application_state is WebSocketState.CONNECTING:
            self.context.status = 101
            await super().accept(headers=[(b"x-request-id", self.context.request_id.encode())])

    async def accept_key(self) -> None:
        """Accept the connection, and take the key from the first message; the endpoint receives the message, too."""
        await self.accept()
        self._unread = await self.receive_message(timeout_s=KEY_S)
        message = self._unread or {}
        key = message.get("xi_api_key") or message.get("authorization")
        if isinstance(key, str):
            self.context.headers[b"xi-api-key"] = [key.removeprefix("Bearer ").encode(errors="replace")]

    async def receive_message(self, *, timeout_s: float) -> dict[str, Any] | None:
        """Return the next message, a JSON object; None if none came in time.

        Raises:
            InvalidRequestError: It is not a JSON object.
        """
        if (unread := self._unread) is not None:
            self._unread = None
            return unread
        try:
            async with asyncio.timeout(timeout_s):
                message = await self.receive()
        except TimeoutError:
            return None
        if message["type"] == "websocket.disconnect":
            raise ClientDisconnect
        try:
            parsed = json.loads(message.get("text") or message.get("bytes") or "")
        except (ValueError, RecursionError):
            parsed = None
        if not isinstance(parsed, dict):
            raise InvalidRequestError("The message is not a JSON object.", code="invalid_json")
        return parsed

    async def send_message(self, message: Mapping[str, Any]) -> None:
        """Send a JSON object."""
        await self._transmit({"type": "websocket.send", "text": json.dumps(message, separators=(",", ":"))})

    async def send_audio(self, data: bytes) -> None:
        """Send bytes, in several frames if they are many."""
        for start in range(0, len(data), FRAME_MAX_BYTES):
            await self._transmit({"type": "websocket.send", "bytes": data[start : start + FRAME_MAX_BYTES]})

    async def end(self, code: int = 1000, reason: str = "") -> None:
        """Close the connection."""
        await self._transmit(
            {"type": "websocket.close", "code": code, "reason": reason.encode()[:120].decode("utf-8", "ignore")}
        )

    async def _transmit(self, message: dict[str, Any]) -> None:
        try:
            await self.send(message)
        except (WebSocketDisconnect, RuntimeError) as error:  # RuntimeError: it is closed already
            raise ClientDisconnect from error


@dataclass(frozen=True, slots=True)
class SocketRoute:
    """A WebSocket route.

    Attributes:
        describe_error: Makes the message that reports an error.
        is_accepted_first: Whether the connection is accepted before the key is checked, for clients that understand
            errors only as messages.
    """

    endpoint: Callable[[Socket], Awaitable[None]]
    describe_error: Callable[[AfterwordsError], Mapping[str, Any]]
    is_accepted_first: bool = False

    @property
    def requirements(self) -> Requirements:
        return cast("Requirements", self.endpoint.requirements)  # type: ignore[attr-defined]


def make_endpoint(path: str, route: SocketRoute, lifetime: Lifetime) -> Callable[[WebSocket], Awaitable[None]]:
    """Return the endpoint of a WebSocket route, with the checks of every request."""
    requirements = route.requirements

    async def check_and_handle(websocket: WebSocket) -> None:
        scope = {**websocket.scope, "method": "GET"}
        socket = Socket(scope, websocket.receive, websocket.send)
        context = scope["afterwords.context"] = RequestContext(scope, websocket.receive, websocket.send, path)
        try:
            if (state := lifetime.state) is None:
                raise ServiceError(code="not_opened")
            context.state = scope.setdefault("state", {})["afterwords"] = state
            context.check_host()
            _check_origin(context)
            if route.is_accepted_first:
                await socket.accept()
            has_key = b"authorization" in context.headers or any(context.headers.get(b"xi-api-key", ()))
            if requirements.credential is Credential.XI_SOCKET and not has_key:
                await socket.accept_key()
            await context.authenticate(requirements)
            await route.endpoint(socket)
        except ClientDisconnect:
            context.status = context.status or 499
        except asyncio.CancelledError:
            refusal = context.task.take_revocation() if context.task is not None else None
            if refusal is None:
                raise
            await _refuse(socket, route, refusal)
        except AfterwordsError as error:
            if error.code == "internal_error" and error.__cause__ is not None:
                socket.log_failure(error.__cause__)
            await _refuse(socket, route, error)
        except Exception as error:  # noqa: BLE001 - an edge: the server would log the message, too
            socket.log_failure(error)
            await _refuse(socket, route, ServiceError())
        finally:
            context.end()

    check_and_handle.requirements = requirements  # type: ignore[attr-defined]
    return check_and_handle


def _check_origin(context: RequestContext) -> None:
    """Refuse pages of other origins than the HTTP routes do: browsers do not check this for WebSockets."""
    assert context.state is not None
    origin = context.headers.get(b"origin", [b""])[0].decode("latin-1").lower()
    allowed = context.state.settings.cors_origins
    try:
        is_own = urlsplit(origin).netloc == context.headers[b"host"][0].decode("latin-1").lower()
    except ValueError:  # "http://["
        is_own = False
    if origin and not is_own and origin not in allowed and "*" not in allowed:
        raise InvalidRequestError(
            "Pages of this origin may not call the server.", hint="add the origin to AFTERWORDS_CORS_ORIGINS."
        )


async def _refuse(socket: Socket, route: SocketRoute, error: AfterwordsError) -> None:
    """Answer a handshake with an error; report it on an open connection, and close that."""
    context = socket.context
    if context.status:
        if socket.application_state is WebSocketState.CONNECTED:
            with suppress(ClientDisconnect):
                await socket.send_message({**route.describe_error(error), **socket.error_details})
                await socket.end(close_code(error), error.message)
        return
    response = error_response(error, context.request_id)
    if (answer := route.requirements.answer_error) is not None and context.state is not None:
        response = await answer(cast("Request", socket), error)
    response.headers["X-Request-Id"] = context.request_id
    context.status = response.status_code
    await socket.send_denial_response(response)


def close_code(error: AfterwordsError) -> int:
    """Return the code with which an error closes a connection."""
    return INTERNAL_ERROR if error.http_status >= 500 else POLICY_VIOLATION


async def run_until_first(*works: Coroutine[Any, Any, None]) -> None:
    """Run works until the first has ended or failed; then cancel the others, and wait for their cleanup."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # retrieve it, or asyncio logs it as never retrieved
