"""Who may come in: what a route needs, and whether what a request brings is that.

Credentials are compared as digests, in constant time; a key is looked up by its digest.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Any, Final, TypeVar, cast
from urllib.parse import urlsplit

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from pydantic import SecretStr

from afterwords.errors import (
    AdminRequiredError,
    AfterwordsError,
    InsufficientScopeError,
    InvalidHostError,
    RateLimitedError,
    TooManyAuthFailuresError,
    UnauthorizedError,
)
from afterwords.server import records
from afterwords.server.fairness import ConcurrencyLimit
from afterwords.server.services.keys import KeyService, digest
from afterwords.server.services.signing import read_worker_token
from afterwords.server.settings import LOCAL_NAMES, SECRET_MIN_CHARS, Settings

CHECK_KEYS_S: Final = 0.4
"""How often the keys of requests under way are looked at."""
JSON_MAX_BYTES: Final = 128 * 1024
_BEARER: Final = re.compile(r"[Bb]earer +([\x21-\x7e]{1,512})")
_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^][:@/]*))(?::[0-9]{0,5})?")

MINUTE_S: Final = 60.0
CLIENTS_MAX: Final = 10_000
"""Clients whose failures are remembered: about 1 MB."""

E = TypeVar("E", bound=Callable[..., Any])


class Credential(StrEnum):
    """Who may use a route."""

    PUBLIC = "public"
    USER = "user"
    ADMIN = "admin"
    USER_OR_ADMIN = "user or admin"
    WORKER = "worker token"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a route asks of a request.

    Attributes:
        scope: that a user's key must have.
        max_body_bytes: of the body; None where the route counts by itself.
        is_upload: whether too large a body is an upload that is too large (422), as the hosted contract has it.
    """

    credential: Credential
    scope: records.Scope | None = None
    max_body_bytes: int | None = JSON_MAX_BYTES
    is_upload: bool = False


def needs(
    credential: Credential,
    scope: records.Scope | None = None,
    *,
    max_body_bytes: int | None = JSON_MAX_BYTES,
    is_upload: bool = False,
) -> Callable[[E], E]:
    """Say what a route needs; every endpoint carries it."""

    def declare(endpoint: E) -> E:
        endpoint.needs = Needs(credential, scope, max_body_bytes, is_upload)  # type: ignore[attr-defined]
        return endpoint

    return declare


class Gate:
    """Who comes in: the settings, keys and limits that the guard asks."""

    def __init__(self, settings: Settings, keys: KeyService, worker_secret: bytes) -> None:
        self.settings = settings
        self._keys = keys
        self._worker_secret = worker_secret
        self._admin = _digest_of(settings.admin_secret)
        self._callback = _digest_of(settings.callback_secret)
        self._hosts = _hosts(settings)
        self.requests = OpenRequests(keys, settings.max_requests_per_key)
        self._rate = max(1, settings.rate_limit // settings.processes) if settings.rate_limit else 0
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._item = RateLimitItemPerMinute(max(1, self._rate))
        most = settings.auth_failure_limit
        self._failures = Failures(max(1, most // settings.processes)) if most else None
        self._is_guessable = len((settings.admin_secret or SecretStr("")).get_secret_value()) < SECRET_MIN_CHARS
        proxies = settings.trusted_proxies
        if proxies is None:
            proxies = ("127.0.0.0/8", "::1") if settings.public_names else ()
        self._proxies = [ipaddress.ip_network(network, strict=False) for network in proxies]

    def check_host(self, header: bytes) -> None:
        """Refuse a request that was sent to another name: a page elsewhere may have pointed its own name here.

        Raises:
            InvalidHostError: the Host header names none of this server's.
        """
        given = _HOST.fullmatch(header.decode("latin-1").lower())
        name = (given[1] or given[2]) if given else ""
        if "*" in self._hosts or name in self._hosts:
            return
        if not self.settings.is_loopback and _is_address(name):
            return
        raise InvalidHostError

    async def admit(
        self,
        needed: Needs,
        authorization: list[bytes],
        job_id: str | None,
        *,
        peer: str = "",
        forwarded: list[bytes] | None = None,
    ) -> Admitted:
        """Find out who asks.

        A key that is good is let in from any address. What is wrong is counted by the client's address, and so is a
        right admin secret that is short enough to be guessed.

        Args:
            peer: the address that the connection comes from.
            forwarded: the X-Forwarded-For headers; they count where the peer is a trusted proxy.

        Raises:
            UnauthorizedError: what came opens nothing here.
            TooManyAuthFailuresError: likewise, and too much of that came from this client within a minute.
            AdminRequiredError: the key is good, and only the admin secret opens this.
            InsufficientScopeError: the key is good, and this is not among what it may do.
            RateLimitedError: the key has asked too often.
        """
        if needed.credential is Credential.PUBLIC:
            return Admitted()
        secret = _bearer(authorization)
        try:
            if needed.credential is Credential.WORKER:
                return self._worker(secret, job_id or "")
            if needed.credential is not Credential.USER and self._is_admin(secret):
                if self._is_guessable and self._failures:
                    self._failures.check(self._client(peer, forwarded or []))
                return Admitted(is_admin=True)
            caller = await self._keys.find_caller(secret)
            if caller is None:
                raise UnauthorizedError
        except UnauthorizedError:
            if self._failures:
                self._failures.count(self._client(peer, forwarded or []))
            raise
        if needed.credential is Credential.ADMIN:
            raise AdminRequiredError
        if needed.scope and caller.scopes and needed.scope not in caller.scopes:
            raise InsufficientScopeError(needed.scope)
        self._count(caller.spending_id)
        return Admitted(caller=caller, key_sha256=digest(secret))

    def _client(self, peer: str, forwarded: list[bytes]) -> str:
        """The address of the client: the last one that a trusted proxy has seen, else the peer."""
        hops = b",".join(forwarded).decode("latin-1").split(",") if forwarded else []
        address = _address(peer)
        while address and hops and any(address in network for network in self._proxies):
            address = _address(hops.pop()) or address
        if isinstance(address, IPv6Address):  # one client has a whole network of these
            return str(IPv6Network((address, 64), strict=False))
        return str(address or "")

    def _is_admin(self, secret: str) -> bool:
        return self._admin is not None and hmac.compare_digest(self._admin, sha256(secret.encode()).digest())

    def _worker(self, token: str, job_id: str) -> Admitted:
        attempt = read_worker_token(self._worker_secret, job_id, token)
        if attempt is not None:
            return Admitted(attempt=attempt)
        if self._callback is not None and hmac.compare_digest(self._callback, sha256(token.encode()).digest()):
            return Admitted()
        raise UnauthorizedError

    def _count(self, spending_id: str) -> None:
        if self._rate and not self._limiter.hit(self._item, spending_id):
            reset_at = self._limiter.get_window_stats(self._item, spending_id).reset_time
            raise RateLimitedError(limit=self._rate, retry_after_s=max(1, round(reset_at - time.time() + 0.5)))


class OpenRequests:
    """The requests of keys that are under way: only so many of one key, and none of a key that is not valid any more.

    Args:
        maximum: requests at once of one key, and of those that took its place.
    """

    def __init__(self, keys: KeyService, maximum: int) -> None:
        self._keys = keys
        self._limit = ConcurrencyLimit(maximum, doing="requests under way")
        self._open: dict[bytes, set[RequestTask]] = {}

    def enter(self, admitted: Admitted) -> RequestTask | None:
        """Count the request of this task, which is ended with its key, until `leave`; None for others than keys.

        Raises:
            TooManyConcurrentRequestsError: the key has as many under way as it may.
        """
        caller, key_sha256 = admitted.caller, admitted.key_sha256
        if caller is None or key_sha256 is None:
            return None
        self._limit.enter(caller.spending_id)
        request = RequestTask(caller.spending_id, key_sha256)
        self._open.setdefault(key_sha256, set()).add(request)
        return request

    def leave(self, request: RequestTask) -> None:
        """Count it no more."""
        self._limit.leave(request.spending_id)
        requests = self._open[request.key_sha256]
        requests.discard(request)
        if not requests:
            del self._open[request.key_sha256]

    async def watch(self) -> None:
        """End the requests of keys that were revoked or have expired, also by another process; runs until cancelled."""
        while True:
            await asyncio.sleep(CHECK_KEYS_S)
            for key_sha256, requests in [*self._open.items()]:
                with contextlib.suppress(AfterwordsError):  # the database is away: the next look will tell
                    if not await self._keys.is_valid(key_sha256):
                        for request in [*requests]:
                            request.revoke()


class RequestTask:
    """The task of one request, which can be ended because its key is not valid any more."""

    __slots__ = ("_began", "_is_revoked", "_task", "key_sha256", "spending_id")

    def __init__(self, spending_id: str, key_sha256: bytes) -> None:
        self.spending_id = spending_id
        self.key_sha256 = key_sha256
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._began = time.monotonic()
        self._is_revoked = False

    def revoke(self) -> None:
        """End it, unless it is so young that it may be the one that revokes its own key."""
        if not self._is_revoked and time.monotonic() - self._began >= CHECK_KEYS_S:
            self._is_revoked = True
            self._task.cancel()

    def take_revocation(self) -> bool:
        """Whether it was ended; the task may go on then, to answer."""
        if self._is_revoked:
            self._task.uncancel()
        return self._is_revoked


class Failures:
    """Wrong keys and secrets of the last minute, counted by client; beyond CLIENTS_MAX the oldest are forgotten."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._counts: dict[str, tuple[float, int]] = {}  # by client, when its minute began and what came since

    def count(self, client: str) -> None:
        """Count one.

        Raises:
            TooManyAuthFailuresError: there were too many.
        """
        began, n_failures = self._minute(client)
        if client not in self._counts and len(self._counts) >= CLIENTS_MAX:
            del self._counts[next(iter(self._counts))]
        self._counts[client] = began, n_failures + 1
        self._refuse_beyond(self._most, began, n_failures + 1)

    def check(self, client: str) -> None:
        """Raise TooManyAuthFailuresError where the next one would be too many."""
        began, n_failures = self._minute(client)
        self._refuse_beyond(self._most - 1, began, n_failures)

    def _minute(self, client: str) -> tuple[float, int]:
        now = self._clock()
        began, n_failures = self._counts.get(client, (now, 0))
        if now < began + MINUTE_S:
            return began, n_failures
        del self._counts[client]  # it comes again as the youngest
        return now, 0

    def _refuse_beyond(self, most: int, began: float, n_failures: int) -> None:
        if n_failures > most:
            wait_s = max(1, math.ceil(began + MINUTE_S - self._clock()))
            raise TooManyAuthFailuresError(limit=self._most, retry_after_s=wait_s)


@dataclass(frozen=True, slots=True)
class Admitted:
    """Who asks: a caller, the admin, or a worker with its attempt."""

    caller: records.Caller | None = None
    is_admin: bool = False
    attempt: int | None = None
    key_sha256: bytes | None = None

    @property
    def account_id(self) -> str | None:
        """Whose rows may be seen; None stands for everyone's, and only the admin has it."""
        return self.caller.account_id if self.caller else None

    @property
    def key_id(self) -> str | None:
        """The key that the request came with; None for the admin and workers."""
        return self.caller.key_id if self.caller else None


def _bearer(authorization: list[bytes]) -> str:
    if len(authorization) != 1:
        raise UnauthorizedError
    given = _BEARER.fullmatch(authorization[0].decode("latin-1").strip())
    if given is None:
        raise UnauthorizedError
    return given[1]


def _digest_of(secret: SecretStr | None) -> bytes | None:
    value = secret.get_secret_value() if secret else ""
    return sha256(value.encode()).digest() if value else None


def _hosts(settings: Settings) -> frozenset[str]:
    public = urlsplit(settings.public_url or "").hostname
    names = {*settings.allowed_hosts, settings.host, *([public] if public else []), *LOCAL_NAMES}
    return frozenset(name.lower() for name in names)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """The address in a hop of X-Forwarded-For, which may have a port: 1.2.3.4:5, [::1]:5."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
