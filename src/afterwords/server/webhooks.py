"""Webhooks: validate URLs, and deliver one call, signed according to Standard Webhooks.

The only place where the server connects to a host that a user names (SSRF). The name is resolved once; all of its
addresses must be public, and the connection goes to one of them, without redirects and proxies.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Any, Final

import httpx
from pydantic import Field
from standardwebhooks import Webhook

from afterwords import __version__
from afterwords.errors import InvalidRequestError
from afterwords.models import JobStatus, Model, UtcTime
from afterwords.server.ports import Clock
from afterwords.server.records import WebhookCall

log = logging.getLogger("afterwords.server")

URL_MAX_CHARS: Final = 2_000
TIMEOUT_S: Final = 5.0
"""Limit of one call, from resolving the name to the status line."""

_CONNECT_S: Final = 2.0  # leaves time for the next address if the first is dead

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_AUTHORITY = re.compile(r"https://([^/?]*)", re.IGNORECASE)
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})+")
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")  # what WHATWG's URL standard reads as an IPv4 address
_PRIVATE_NAMES: Final = ("localhost", "local", "localdomain", "internal", "intranet", "lan", "home.arpa")

# IANA, "IPv4 Special-Purpose Address Registry" and "IPv6 …"; the last but one is the metadata service of Azure
_V4_SPECIAL: Final = tuple(
    IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "168.63.129.16/32", "240.0.0.0/4"),
    )
)
_V6_GLOBAL: Final = IPv6Network("2000::/3")
_V6_SPECIAL: Final = tuple(IPv6Network(n) for n in ("2001::/23", "2001:db8::/32", "3fff::/20"))
_V6_MAPPED, _NAT64, _6TO4 = IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"), IPv6Network("2002::/16")


# -- which URLs ----------------------------------------------------------------------------------------------


def check_url(url: str) -> str:
    """Return the URL if it is valid; its name is not resolved.

    Raises:
        InvalidRequestError: The URL is not https, its host is not public, or it has credentials or a fragment.
    """
    _parse(url)
    return url


def is_public(address: str) -> bool:
    """Return whether an IP address is global unicast; an embedded IPv4 address (mapped, NAT64, 6to4) decides."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in _V4_SPECIAL)
    if ip.scope_id is not None:
        return False
    if ip in _V6_MAPPED or ip in _NAT64:
        return is_public(str(IPv4Address(int(ip) & 0xFFFFFFFF)))
    if ip in _6TO4:
        return is_public(str(IPv4Address(int(ip) >> 80 & 0xFFFFFFFF)))
    return ip in _V6_GLOBAL and not any(ip in network for network in _V6_SPECIAL)


def _parse(url: str) -> httpx.URL:
    if len(url) > URL_MAX_CHARS:
        raise InvalidRequestError.invalid_webhook_url(why=f"it has more than {URL_MAX_CHARS:,} characters")
    if any(c.isspace() or not c.isprintable() or c == "\\" for c in url):
        raise InvalidRequestError.invalid_webhook_url(why="it contains a space, a control character or a backslash")
    authority = _AUTHORITY.match(url)
    if authority is None:
        raise InvalidRequestError.invalid_webhook_url(why="it does not begin with https://")
    if "@" in authority[1]:
        raise InvalidRequestError.invalid_webhook_url(why="it contains credentials")
    if "#" in url:
        raise InvalidRequestError.invalid_webhook_url(why="it has a fragment")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise InvalidRequestError.invalid_webhook_url(why="it is not a URL") from None
    if parsed.port is not None and not 1 <= parsed.port <= 65_535:
        raise InvalidRequestError.invalid_webhook_url(why="its port is not 1 to 65535")
    host = _host(parsed)
    if not host:
        raise InvalidRequestError.invalid_webhook_url(why="it names no host")
    if ":" in host or _NUMBER.fullmatch(host):
        if not is_public(host):  # ip_address rejects 127.1, 0x7f.1 and 2130706433
            raise InvalidRequestError.invalid_webhook_url(why="its address is not a public one")
    elif len(host) > 253 or not _NAME.fullmatch(host) or f".{host}".endswith(tuple(f".{n}" for n in _PRIVATE_NAMES)):
        raise InvalidRequestError.invalid_webhook_url(why="its host is not the name of a public one")
    return parsed


def _host(url: httpx.URL) -> str:
    """Return the host in ASCII, without the root dot; an IPv6 address without brackets."""
    return url.raw_host.decode("ascii").lower().removesuffix(".")


# -- one call ------------------------------------------------------------------------------------------------


async def resolve(host: str, port: int) -> Sequence[str]:
    """Resolve a name with this machine's resolver.

    Runs in a daemon thread of its own: a name whose servers don't answer takes half a minute, which must block neither
    the thread pool nor the exit of the process.

    Raises:
        OSError, UnicodeError: The name does not exist or is invalid.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[str]] = loop.create_future()

    def finish(addresses: list[str], error: Exception | None) -> None:
        if found.cancelled():
            return
        if error is not None:
            found.set_exception(error)
        else:
            found.set_result(addresses)

    def look() -> None:
        addresses, failure = [], None
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = [str(entry[4][0]) for entry in entries]
        except (OSError, UnicodeError) as error:
            failure = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, addresses, failure)

    threading.Thread(target=look, name="webhook-resolver", daemon=True).start()
    return await found


class WebhookData(Model):
    """The job of a webhook."""

    job_id: str = Field(description="ID of the job, a UUID.")
    voice_id: str = Field(description="ID of the voice.")
    status: JobStatus = Field(description="Final status of the job.")
    error: str | None = Field(description="Error code, if the job failed.")


class WebhookMessage(Model):
    """The body of a webhook. Source: Standard Webhooks 1.0.0."""

    type: str = Field(description="job.ready, job.failed or job.cancelled.")
    timestamp: UtcTime = Field(description="When the job became final, UTC.")
    data: WebhookData = Field(description="The job.")


async def deliver(
    call: WebhookCall,
    *,
    clock: Clock,
    resolve: Resolve = resolve,
    may_reach: Callable[[str], bool] = is_public,
    tls: ssl.SSLContext | None = None,
    timeout_s: float = TIMEOUT_S,
) -> bool:
    """Call a webhook once, and return whether it succeeded; errors of the network are logged and never raised.

    Args:
        resolve: Returns the addresses of a host; called once.
        may_reach: Whether an address is allowed; if one is not, the call fails.
        tls: TLS context; None trusts the public authorities.
        timeout_s: Limit of the whole call.
    """
    try:
        async with asyncio.timeout(timeout_s):
            status = await _call(call, clock, resolve, may_reach, tls or _public_tls())
    except (httpx.HTTPError, httpx.InvalidURL, InvalidRequestError, OSError, ValueError) as error:
        log.info(
            "the webhook of job %s failed: %s", call.job.job_id, type(error).__name__
        )  # the message may contain the URL
        return False
    if not 200 <= status < 300:
        log.info("the webhook of job %s was answered with %d", call.job.job_id, status)
        return False
    return True


async def _call(
    call: WebhookCall, clock: Clock, resolve: Resolve, may_reach: Callable[[str], bool], tls: ssl.SSLContext
) -> int:
    url = _parse(call.url)
    host = _host(url)
    is_address = ":" in host or _NUMBER.fullmatch(host)
    addresses = [host] if is_address else list(dict.fromkeys(await resolve(host, url.port or 443)))
    if not addresses or not all(map(may_reach, addresses)):
        raise InvalidRequestError.invalid_webhook_url(why="its host is not public")
    job, now = call.job, clock.now()  # only the time differs between attempts
    data = WebhookData(job_id=job.job_id, voice_id=job.voice_id, status=job.status, error=job.error)
    message = WebhookMessage(type=f"job.{job.status}", timestamp=job.completed_at or now, data=data)
    message_id, body = f"msg_{job.job_id}", message.model_dump_json()
    headers = {
        "content-type": "application/json",
        "user-agent": f"afterwords/{__version__}",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(call.signing_key).sign(message_id, now, body),
        "host": (f"[{host}]" if ":" in host else host) + (f":{url.port}" if url.port else ""),
    }
    options: dict[str, Any] = {"headers": headers, "extensions": {"sni_hostname": host}}
    timeout = httpx.Timeout(TIMEOUT_S, connect=_CONNECT_S)
    failure: httpx.HTTPError | None = None
    for address in addresses:
        try:
            async with (  # the address must present a certificate of the host
                httpx.AsyncClient(verify=tls, trust_env=False, follow_redirects=False, timeout=timeout) as client,
                client.stream("POST", url.copy_with(host=address), content=body, **options) as response,
            ):
                return response.status_code
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:  # nothing was sent: try the next address
            failure = error
    raise failure or httpx.ConnectError("no address answered")


@cache
def _public_tls() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)
