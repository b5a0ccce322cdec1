"""What both clients do with httpx: one request out, one answer in, each failure by its name.

Here the key is put on, and only here: requests go to the address of the client and nowhere else, redirects are never
followed, and a server on this machine is never asked through a proxy.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, cast

import httpx

from afterwords import __version__
from afterwords.client.profiles import Access
from afterwords.client.requests import Answer, Ask, is_audio
from afterwords.errors import (
    ConnectionLostError,
    InvalidInputError,
    NotLoggedInError,
    ServerSilentError,
    StrangeAnswerError,
    UnreachableError,
)
from afterwords.network import root_cause, setting_to_check

CONNECT_TIMEOUT_S: Final = 10.0
CONNECTIONS_MAX: Final = 100
_HEADERS: Final = {
    "User-Agent": f"afterwords/{__version__}",
    "Accept-Encoding": "identity",  # lengths, parts and digests are those of what is stored
}
_ALWAYS: Final[Mapping[str, Any]] = {
    "headers": _HEADERS,
    "follow_redirects": False,
    "limits": httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=20),
}


def settings_for(access: Access) -> dict[str, Any]:
    """How the httpx client is made."""
    settings = {**_ALWAYS, "trust_env": not access.is_loopback}
    if access.is_loopback and access.base_url.startswith("http:"):
        # reading all the authorities there are takes 20 ms, and nobody is asked here; this one trusts none
        settings["verify"] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return settings


def request_for(http: httpx.Client | httpx.AsyncClient, ask: Ask, access: Access, timeout_s: float) -> httpx.Request:
    """The request, with the key that it needs.

    Raises:
        NotLoggedInError: there is none.
        InvalidInputError: what was given has no form that can be sent.
    """
    headers = dict(ask.headers)
    if ask.idempotency_key is not None:
        headers["Idempotency-Key"] = ask.idempotency_key
    if not ask.is_public:
        headers["Authorization"] = f"Bearer {_secret(ask, access)}"
    parts: dict[str, Any] = {}
    if ask.form is not None:
        parts = {"data": dict(ask.form), "files": {"ref_audio": ("reference.wav", ask.file, "audio/wav")}}
    elif ask.body is not None:
        parts = {"content": ask.body}
    elif ask.json is not None:
        parts = {"json": ask.json}
    try:
        return http.build_request(
            ask.method,
            f"{access.base_url}{ask.path}",
            params=dict(ask.params) or None,
            headers=headers,
            # waiting for a connection of the pool is no failure of the server
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, read=timeout_s + ask.wait_s, pool=None),
            **parts,
        )
    except (ValueError, httpx.InvalidURL):  # its message would quote what was given
        raise InvalidInputError(
            "What was given can't be sent: it holds a number that is none, or half a character.", hint="give another."
        ) from None


def _secret(ask: Ask, access: Access) -> str:
    if ask.is_admin and access.admin_secret is not None:
        return access.admin_secret
    if access.api_key is None:
        raise NotLoggedInError(access.base_url, what="admin secret" if ask.is_admin else "key")
    return access.api_key


@contextmanager
def named(access: Access, request: httpx.Request) -> Iterator[None]:
    """Give each failure of the connection its name."""
    url = access.base_url
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
        check = "" if access.is_loopback else setting_to_check(url, error)
        raise UnreachableError(url, why=_why(error), check=check) from error
    except httpx.ReadTimeout as error:
        raise ServerSilentError(url, waited_s=request.extensions["timeout"]["read"]) from error
    except httpx.TransportError as error:
        raise ConnectionLostError(url, why=_why(error)) from error


def _why(error: httpx.TransportError) -> str:
    """In a few words of the system's, which never hold what was sent."""
    cause = root_cause(error)
    if isinstance(error, httpx.ConnectTimeout):
        return f"nothing answered within {CONNECT_TIMEOUT_S:g} s"
    if isinstance(error, httpx.ProxyError):
        return f"the proxy answered {str(error)[:80]}"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message.lower()}"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    return {
        httpx.RemoteProtocolError: "it was closed",
        httpx.WriteTimeout: "it takes nothing any more",
        httpx.LocalProtocolError: "the request is not valid HTTP",
    }.get(type(error), "it was closed")


def answer_of(response: httpx.Response, body: bytes, *, is_whole: bool) -> Answer:
    """What came, for who asked."""
    return Answer(response.status_code, _headers_of(response), body, is_whole=is_whole)


def is_left_open(ask: Ask, response: httpx.Response) -> bool:
    """Whether the body is for who asked to read: audio. Nobody would close another."""
    return ask.is_stream and response.status_code == 200 and is_audio(opened_of(response))


def opened_of(response: httpx.Response) -> Answer:
    """A good answer whose body is still to come."""
    return Answer(response.status_code, _headers_of(response), b"", stream=response)


def _headers_of(response: httpx.Response) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers.raw}


# httpx would close an answer as soon as its last byte is read, and a call that is cancelled just then would keep the
# connection for good: so bodies are read, and connections given back, by these.


def iter_bytes(response: httpx.Response) -> Iterator[bytes]:
    """The body as it comes.

    Raises:
        StrangeAnswerError: it is compressed, which nobody asked for.
    """
    _check_is_plain(response)
    yield from cast("httpx.SyncByteStream", response.stream)


async def aiter_bytes(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it comes; see `iter_bytes`."""
    _check_is_plain(response)
    async for piece in cast("httpx.AsyncByteStream", response.stream):
        yield piece


def _check_is_plain(response: httpx.Response) -> None:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise StrangeAnswerError("it is compressed, which was not asked for")


def close(response: httpx.Response) -> None:
    """Give its connection back."""
    response.close()


async def aclose(response: httpx.Response) -> None:
    """Give its connection back, to the end even if who waits for that is cancelled."""
    import asyncio

    await asyncio.shield(response.aclose())


class Body:
    """The pieces of a body, up to a length that makes sense."""

    def __init__(self, ask: Ask) -> None:
        self._max_bytes = ask.max_bytes
        self._pieces: list[bytes] = []
        self._n_bytes = 0

    def add(self, piece: bytes) -> None:
        """Take a piece.

        Raises:
            StrangeAnswerError: it is too much.
        """
        self._n_bytes += len(piece)
        if self._n_bytes > self._max_bytes:
            raise StrangeAnswerError(f"it has more than {self._max_bytes:,} bytes")
        self._pieces.append(piece)

    def all(self) -> bytes:
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
