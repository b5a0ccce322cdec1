# Generated from client/_async/session.py by `make client`. Do not edit.
"""The connection to a server: requests with retries, resumed downloads, lists page by page, open streams."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, TypeVar, cast

import httpx

from afterwords.client.parsing import (
    has_next_page,
    invalid_response,
    parse_array,
    parse_error,
    parse_object,
    truncated_response,
)
from afterwords.client.profiles import Access
from afterwords.client.requests import (
    NOTHING,
    RETRIES,
    Request,
    Response,
    append,
    backoff_s,
    drop_none,
    resume,
    should_retry,
    was_not_processed,
)
from afterwords.client.sockets import PATH, RefusedHandshake, SpeechSocket
from afterwords.client.transport import (
    HEADERS,
    audio_location,
    audio_request,
    build_request,
    check_uncompressed,
    client_settings,
    response_headers,
    translate_errors,
)
from afterwords.errors import (
    AfterwordsError,
    InvalidResponseError,
    RemoteError,
    UnreachableError,
    UnsupportedByServerError,
)
from afterwords.network import explain_network_errors

T = TypeVar("T")

_NAMED_BY_SERVER: Final = ("content-type", "etag", "x-request-id")
"""Headers of a redirect to audio that win over those of the storage."""


class Session:
    """A server, the key for it, and the connections to it."""

    def __init__(self, access: Access, *, timeout_s: float, transport: httpx.BaseTransport | None = None) -> None:
        self.access = access
        self._timeout_s = timeout_s
        self._is_afterwords_server: bool | None = None
        self._transport = transport
        self._storage: httpx.Client | None = None  # for audio that a server keeps elsewhere
        with explain_network_errors():
            self._http = httpx.Client(transport=transport, **client_settings(access))

    def close(self) -> None:
        self._http.close()
        if self._storage is not None:
            self._storage.close()

    def request(self, request: Request) -> Response:
        """Send a request until it succeeds, as often as that is safe.

        Raises:
            ServiceError, LibraryError and others: The server refused, or kept failing: the class of the error code.
            UnreachableError, ConnectionLostError: There was no response, or an incomplete one.
            InvalidResponseError: The response is not one of the API.
            UnsupportedByServerError: The hosted service does not have this feature.
        """
        try:
            return self._send_with_retries(request)
        except AfterwordsError as error:
            if request.feature and error.http_status in (404, 405, 501) and not self.is_afterwords_server():
                raise UnsupportedByServerError(f"This server does not support {request.feature}.") from error
            raise

    def download(self, request: Request) -> Response:
        """Fetch a whole body: resume it if the connection is lost, start over if the bytes are damaged.

        Raises:
            InvalidResponseError: The body was damaged in every attempt.
            ConnectionLostError: The connection was lost in every attempt.
        """
        have = NOTHING
        for attempt in range(RETRIES + 1):
            try:
                have = append(have, self.request(resume(request, have)))
            except AfterwordsError as error:
                if error.http_status != 416 or not have.body:
                    raise
                have = NOTHING  # the body was complete, and only its end was not seen
            failure: RemoteError = truncated_response(have)
            if have.is_whole:
                if not have.is_damaged:
                    return have
                why = "its bytes do not match its digest or length; something on the way alters or cuts it"
                failure, have = invalid_response(have, why), NOTHING
            if attempt == RETRIES:
                raise failure
            self.sleep(backoff_s(attempt, failure))
        raise AssertionError("the last attempt returns or raises")

    def pages(
        self,
        path: str,
        parse: Callable[[Mapping[str, Any], Response], T],
        *,
        id_field: str,
        feature: str | None = None,
        **params: str | int | None,
    ) -> Iterator[T]:
        """Yield every item of a list; a page is fetched when it is needed."""
        after: str | None = None
        while True:
            query = drop_none(**params, after=after)
            response = self.request(Request("GET", path, params=query, feature=feature))
            items = [parse(item, response) for item in parse_array(response)]
            yield from items
            last = getattr(items[-1], id_field) if items else None
            if last is None or last == after or not has_next_page(response):
                return
            after = last

    def stream(self, response: httpx.Response) -> Iterator[bytes]:
        """Yield the rest of an open body as it arrives."""
        pieces = _body(response)
        try:
            while True:
                with translate_errors(self.access, response.request):
                    piece = next(pieces, None)
                if piece is None:
                    return
                yield piece
        finally:
            release(response)

    def open_socket(self) -> SpeechSocket:
        """Open the WebSocket of live speech; a failure is retried, because nothing was sent.

        Raises:
            ServiceError, RemoteError and others: As for `request`.
        """
        for attempt in range(RETRIES + 1):
            response = None
            try:
                return SpeechSocket.open(self.access, timeout_s=self._timeout_s)
            except RefusedHandshake as refused:
                response = refused.response
                error = parse_error(response, Request("GET", PATH))
            except UnreachableError as failed:
                error = failed
            if attempt == RETRIES or not should_retry(response, error):
                raise error
            self.sleep(backoff_s(attempt, error))
        raise AssertionError("the last attempt returns or raises")

    def is_afterwords_server(self) -> bool:
        """Return whether this is an afterwords server; the hosted service does not state a version."""
        if self._is_afterwords_server is None:
            health = parse_object(self._send_with_retries(Request("GET", "/v1/health", is_public=True)))
            self._is_afterwords_server = bool(health.get("version"))
        return self._is_afterwords_server

    def check_supports(self, feature: str) -> None:
        """Raise UnsupportedByServerError for a feature that the hosted service would silently ignore."""
        if not self.is_afterwords_server():
            raise UnsupportedByServerError(f"This server does not support {feature}.")

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def _send_with_retries(self, request: Request) -> Response:
        may_be_done = False
        for attempt in range(RETRIES + 1):
            response = None
            try:
                response = self._send(request)
                if response.status < 300 and (
                    response.is_whole or (request.is_download and response.status in (200, 206))
                ):
                    return response
                error = parse_error(response, request) if response.is_whole else truncated_response(response)
            except AfterwordsError as failed:
                error = failed
            if response is not None and response.status == 404 and request.is_done_if_gone and may_be_done:
                return Response(204, {})
            if attempt == RETRIES or not should_retry(response, error):
                raise error
            if not was_not_processed(response, error):
                may_be_done = True
                is_safe = request.is_repeatable
                if not is_safe and request.idempotency_key is not None:
                    with suppress(AfterwordsError):  # the error of the request itself says more
                        is_safe = self.is_afterwords_server()
                if not is_safe:
                    raise error
            self.sleep(backoff_s(attempt, error))
        raise AssertionError("the last attempt returns or raises")

    def _send(self, request: Request) -> Response:
        """Send a request once, and follow a redirect to audio, whose digest is the one that the server named."""
        outgoing = build_request(self._http, request, self.access, self._timeout_s)
        response = self._exchange(self._http, outgoing, request)
        if (url := audio_location(request, response, self.access)) is None:
            return response
        if self._storage is None:
            with explain_network_errors():
                self._storage = httpx.Client(headers=HEADERS, transport=self._transport)
        audio = self._exchange(self._storage, audio_request(self._storage, url, outgoing), request)
        named = {name: response.headers[name] for name in _NAMED_BY_SERVER if name in response.headers}
        return replace(audio, headers={**audio.headers, **named})

    def _exchange(self, http: httpx.Client, outgoing: httpx.Request, request: Request) -> Response:
        """Send an httpx request, and read the body unless it is a stream.

        httpx would release the connection at the last byte, and a call that is cancelled at that moment would leak
        it: so the raw stream is read here.
        """
        pieces: list[bytes] = []
        n_bytes = 0
        is_whole = True
        with translate_errors(self.access, outgoing):
            incoming = http.send(outgoing, stream=True)
            status, headers = incoming.status_code, response_headers(incoming)
            if request.is_stream and status == 200 and (opened := Response(status, headers, stream=incoming)).is_audio:
                return opened
            try:
                for piece in _body(incoming):
                    n_bytes += len(piece)
                    if n_bytes > request.max_bytes:
                        raise InvalidResponseError.for_reason(f"it has more than {request.max_bytes:,} bytes")
                    pieces.append(piece)
            except httpx.TransportError:
                is_whole = False
            finally:
                release(incoming)
        return Response(status, headers, b"".join(pieces), is_whole=is_whole)


def _body(response: httpx.Response) -> Iterator[bytes]:
    check_uncompressed(response)
    yield from cast("httpx.SyncByteStream", response.stream)


def release(response: httpx.Response) -> None:
    """Close a response and give its connection back to the pool, even if the caller is cancelled meanwhile."""
    response.close()
