"""Settings, requests and errors of httpx, for both clients.

The key is added here and nowhere else, and goes to the client's address only. A redirect is followed for audio only,
which a server may keep elsewhere. A server on this machine is not asked through a proxy.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import httpx

from afterwords import __version__
from afterwords.client.profiles import Access
from afterwords.client.requests import Request, Response
from afterwords.errors import (
    ConnectionLostError,
    InvalidInputError,
    InvalidResponseError,
    ServerTimeoutError,
    UnauthorizedError,
    UnreachableError,
)
from afterwords.network import root_cause, setting_to_check

CONNECT_TIMEOUT_S: Final = 10.0
HEADERS: Final = {
    "User-Agent": f"afterwords/{__version__}",
    "Accept-Encoding": "identity",  # ranges and digests are those of the stored bytes
}


class _SignatureFilter(logging.Filter):
    """Remove signatures from the URLs that httpx logs: with one, anyone can read the audio for some minutes."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_without_signature(value) for value in record.args)
        return True


def _without_signature(value: object) -> object:
    if isinstance(value, httpx.URL) and b"signature=" in value.query.lower():
        return value.copy_with(query=None)
    return value


_SIGNATURE_FILTER: Final = _SignatureFilter()


def client_settings(access: Access) -> dict[str, Any]:
    """Return the arguments of the httpx client."""
    logging.getLogger("httpx").addFilter(_SIGNATURE_FILTER)
    settings: dict[str, Any] = {
        "headers": HEADERS,
        "follow_redirects": False,
        "limits": httpx.Limits(max_connections=100, max_keepalive_connections=20),
        "trust_env": not access.is_loopback,
    }
    if access.is_loopback:  # with SSL_CERT_FILE, which `trust_env` would ignore here
        is_plain = access.base_url.startswith("http:")  # needs no authorities, and loading them takes 20 ms
        settings["verify"] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if is_plain else httpx.create_ssl_context()
    return settings


def build_request(
    http: httpx.Client | httpx.AsyncClient, request: Request, access: Access, timeout_s: float
) -> httpx.Request:
    """Return the httpx request, with the key that it needs.

    Raises:
        UnauthorizedError: There is no key.
        InvalidInputError: An argument of the caller can't be encoded.
    """
    headers = dict(request.headers)
    if request.idempotency_key is not None:
        headers["Idempotency-Key"] = request.idempotency_key
    if not request.is_public:
        secret = (access.admin_secret if request.is_admin else None) or access.api_key
        if secret is None:
            raise UnauthorizedError.not_logged_in(access.base_url, is_admin=request.is_admin)
        headers["Authorization"] = f"Bearer {secret}"
    content: dict[str, Any] = {}
    if request.form is not None:
        content = {"data": dict(request.form), "files": {"ref_audio": ("reference.wav", request.file, "audio/wav")}}
    elif request.body is not None:
        content = {"content": request.body}
    elif request.json is not None:
        content = {"json": request.json}
    read_s = timeout_s + request.wait_s
    try:
        return http.build_request(
            request.method,
            f"{access.base_url}{request.path}",
            params=dict(request.params) or None,
            headers=headers,
            # Waiting for a connection of the pool is not a failure of the server.
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, read=read_s, pool=None),
            **content,
        )
    except (ValueError, httpx.InvalidURL):  # its message would quote the caller's text
        raise InvalidInputError(
            "An argument can't be sent: it contains NaN, infinity or half a surrogate pair.",
            hint="correct the text, the name or the number.",
        ) from None


def audio_location(request: Request, response: Response, access: Access) -> httpx.URL | None:
    """Return the URL of audio that the server keeps elsewhere. None: the response is not such a redirect."""
    if response.status != 307 or request.method != "GET" or not request.is_download:
        return None
    try:
        url = httpx.URL(response.headers.get("location", ""))
    except httpx.InvalidURL:
        return None
    is_safe = url.scheme == "https" or (url.scheme == "http" and access.base_url.startswith("http:"))
    return url if is_safe and url.host else None


def audio_request(http: httpx.Client | httpx.AsyncClient, url: httpx.URL, first: httpx.Request) -> httpx.Request:
    """Return the request for audio at another address: without the key, for the same range."""
    headers = {"Range": part} if (part := first.headers.get("range")) else {}
    return http.build_request("GET", url, headers=headers, extensions={"timeout": first.extensions["timeout"]})


@contextmanager
def translate_errors(access: Access, request: httpx.Request) -> Iterator[None]:
    """Raise a RemoteError in place of an httpx error."""
    url = access.base_url
    if not str(request.url).startswith(url):
        url = f"{request.url.scheme}://{request.url.netloc.decode()}"
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
        raise unreachable(access, url, error) from error
    except httpx.ReadTimeout as error:
        raise ServerTimeoutError.for_url(
            url, why=f"no data came for {request.extensions['timeout']['read']:g} s"
        ) from error
    except httpx.TransportError as error:
        raise ConnectionLostError.for_url(url, why=_reason(error)) from error


def unreachable(access: Access, url: str, error: Exception, *, why: str = "") -> UnreachableError:
    """Return the error for a connection that was not made."""
    check = "" if access.is_loopback else setting_to_check(url, error)
    also = f", and that {check}" if check else ""
    return UnreachableError(
        f"Can't connect to {url}: {why or _reason(error)}.",
        hint=f"check the address and that the server is running{also}; `afterwords whoami` shows the address.",
    )


def _reason(error: Exception) -> str:
    """Return a few words of the system, which never contain what was sent."""
    cause = root_cause(error)
    if isinstance(error, httpx.ConnectTimeout):
        return f"nothing answered within {CONNECT_TIMEOUT_S:g} s"
    if isinstance(error, httpx.ProxyError):
        return f"the proxy answered {str(error)[:80]}"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message.lower()}"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror.lower()
    reasons: dict[type[Exception], str] = {
        httpx.WriteTimeout: "sending timed out",
        httpx.LocalProtocolError: "the request is not valid HTTP",
    }
    return reasons.get(type(error), "it was closed")


def response_headers(response: httpx.Response) -> dict[str, str]:
    """Return the headers by lower-case name."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers.raw}


def check_uncompressed(response: httpx.Response) -> None:
    """Raise InvalidResponseError if the body is compressed, which no request asks for."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidResponseError.for_reason("it is compressed, although the client did not request that")
