"""Authentication: what a route requires, and whether the credential of a request satisfies it.

Secrets are compared as digests, in constant time; a key is looked up by its digest.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import math
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import Any, Final, ParamSpec, TypeVar, cast
from urllib.parse import urlsplit

from cachetools import TTLCache
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from pydantic import SecretStr
from starlette.requests import ClientDisconnect, Request, cookie_parser
from starlette.responses import Response

from afterwords.errors import (
    AfterwordsError,
    InsufficientScopeError,
    InvalidRequestError,
    LimitError,
    ServiceError,
    SubscriptionError,
    UnauthorizedError,
)
from afterwords.server import records
from afterwords.server.concurrency import ConcurrencyLimit
from afterwords.server.services.keys import KeyService, digest
from afterwords.server.services.signing import read_session_token, read_worker_token, session_token
from afterwords.server.settings import LOCAL_NAMES, SECRET_MIN_CHARS, Settings

CHECK_KEYS_S: Final = 0.4
"""How often the keys of running requests are checked."""
JSON_MAX_BYTES: Final = 128 * 1024
_BEARER: Final = re.compile(r"[Bb]earer +([\x21-\x7e]{1,512})")
_HOST: Final = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^][:@/]*))(?::[0-9]{0,5})?")

MINUTE_S: Final = 60.0
SESSION_COOKIE: Final = "aw_session"
SESSION_S: Final = 12 * 3600
CLIENTS_MAX: Final = 10_000
"""Clients whose failures are counted: about 1 MB."""

P = ParamSpec("P")
T = TypeVar("T")


class Credential(StrEnum):
    """Credential that opens a route."""

    PUBLIC = "public"
    USER = "user"
    XI_USER = "user, whose key may be in the header xi-api-key"
    XI_SOCKET = "user, whose key may be in the header xi-api-key, or in the first message of the WebSocket"
    LIST = "user; nothing where AFTERWORDS_LIST_VOICES_OF is set"
    SESSION = "cookie of a browser that signed in with a user's key"
    ADMIN = "admin"
    USER_OR_ADMIN = "user or admin"
    LOCAL_OR_ADMIN = "this machine or admin"
    METRICS = "metrics token or admin; without a token this machine"
    WORKER = "token of an attempt, or the callback secret"
    ATTEMPT = "token of an attempt"
    WORKER_TOKEN = "token of remote workers"
    STRIPE_SIGNATURE = "Stripe signature"  # of the body, which the route checks


OPEN: Final = frozenset({Credential.PUBLIC, Credential.STRIPE_SIGNATURE})
"""Credentials that are not checked before the route."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a route requires of a request.

    Attributes:
        scope: Scope that a user's key must have.
        max_body_bytes: Limit of the body; None if the route counts by itself.
        is_upload: Whether a body over the limit is a file that is too large (422) and not a request (413).
        is_live: Whether the body is sent while it is generated, at any rate.
        answer_error: Makes the response of an error; None: JSON.
    """

    credential: Credential
    scope: records.Scope | None = None
    max_body_bytes: int | None = JSON_MAX_BYTES
    is_upload: bool = False
    is_live: bool = False
    answer_error: Callable[[Request, AfterwordsError], Awaitable[Response]] | None = None


def requires(
    credential: Credential,
    scope: records.Scope | None = None,
    *,
    max_body_bytes: int | None = JSON_MAX_BYTES,
    is_upload: bool = False,
    is_live: bool = False,
    answer_error: Callable[[Request, AfterwordsError], Awaitable[Response]] | None = None,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Declare what an endpoint requires; every endpoint of an `ApiRoute` does.

    An unforeseen exception of the endpoint becomes a ServiceError, so that its message reaches no client and no log.
    """

    def declare(endpoint: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        @wraps(endpoint)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return await endpoint(*args, **kwargs)
            except (AfterwordsError, ClientDisconnect):
                raise
            except Exception as error:
                raise ServiceError from error

        call.requirements = Requirements(  # type: ignore[attr-defined]
            credential, scope, max_body_bytes, is_upload, is_live, answer_error
        )
        return call

    return declare


@dataclass(frozen=True, slots=True)
class Identity:
    """Who sent a request: a key, the admin, or a worker.

    Attributes:
        attempt: The attempt that a worker runs.
        worker_token_id: The token of remote workers, also of one that the attempt was claimed with.
    """

    caller: records.Caller | None = None
    is_admin: bool = False
    attempt: int | None = None
    worker_token_id: str | None = None
    key_sha256: bytes | None = None

    @property
    def account_id(self) -> str | None:
        """The account whose rows are visible; None for the admin, who sees all."""
        return self.caller.account_id if self.caller else None

    @property
    def key_id(self) -> str | None:
        """The key of the request; None for the admin and workers."""
        return self.caller.key_id if self.caller else None


class Authenticator:
    """Checks hosts and credentials, and limits rates."""

    def __init__(self, settings: Settings, keys: KeyService, secret: bytes) -> None:
        self.settings = settings
        self.requests = OpenRequests(keys, settings)
        self._keys = keys
        self.secret = secret
        self._admin = _digest_of(settings.admin_secret)
        self._callback = _digest_of(settings.callback_secret)
        self._metrics = _digest_of(settings.metrics_token)
        public = urlsplit(settings.public_url or "").hostname
        names = {*settings.allowed_hosts, settings.host, *([public] if public else []), *LOCAL_NAMES}
        self._hosts = frozenset(name.lower() for name in names)
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._rate = _share_of(settings.rate_limit, settings) if settings.rate_limit else None
        self._plan_rates = {
            name: _share_of(plan.rate_limit, settings)
            for name, plan in settings.all_plans.items()
            if plan.rate_limit is not None
        }
        maximum = settings.auth_failure_limit
        self._failures = AuthFailures(max(1, maximum // settings.processes)) if maximum else None
        self._is_guessable = len((settings.admin_secret or SecretStr("")).get_secret_value()) < SECRET_MIN_CHARS
        proxies = settings.trusted_proxies
        if proxies is None:
            proxies = ("127.0.0.0/8", "::1") if settings.public_names else ()
        self._proxies = [ipaddress.ip_network(network, strict=False) for network in proxies]

    def check_host(self, hosts: Sequence[bytes]) -> None:
        """Reject foreign Host headers (DNS rebinding).

        Raises:
            InvalidRequestError: There is not exactly one Host header, or it does not name this server.
        """
        header = _HOST.fullmatch(hosts[0].decode("latin-1").lower()) if len(hosts) == 1 else None
        name = (header[1] or header[2]) if header else ""
        if "*" in self._hosts or name in self._hosts:
            return
        if self.settings.is_loopback or _parse_address(name, with_port=False) is None:
            raise InvalidRequestError(code="invalid_host")

    async def authenticate(
        self,
        requirements: Requirements,
        authorization: Sequence[bytes],
        job_id: str = "",
        *,
        peer: str = "",
        forwarded: Sequence[bytes] = (),
        is_proxied: bool = False,
        cookies: Sequence[bytes] = (),
    ) -> Identity:
        """Return who sent a request.

        A valid key passes from any address. Failures are counted by client address; beyond the limit, an admin secret
        that is short enough to be guessed is refused as well.

        Args:
            job_id: The job of the path, which a worker token must name.
            peer: The address of the connection.
            forwarded: The X-Forwarded-For headers, which count if the peer is a trusted proxy.
            is_proxied: Whether headers show that a proxy forwarded the request.

        Raises:
            UnauthorizedError: The credential is missing, malformed or not valid for this route.
            LimitError: As above, and the client had too many failures within a minute.
            UnauthorizedError: The key is valid, but the route requires the admin secret.
            SubscriptionError: The key is valid, but its account is suspended.
            InsufficientScopeError: The key is valid, but lacks the scope.
            LimitError: The key or its account had too many requests within a minute.
        """
        credential = requirements.credential
        if credential in OPEN:
            return Identity()
        if credential is Credential.SESSION:
            if (caller := await self.find_session(cookies)) is None:
                raise UnauthorizedError("You are not signed in.", hint="sign in with your API key.")
            self.check_rate(caller)
            return Identity(caller=caller)
        is_open_here = credential is Credential.LOCAL_OR_ADMIN or (
            credential is Credential.METRICS and self._metrics is None
        )
        if credential is Credential.LIST and not authorization and self.settings.list_voices_of:
            return Identity()
        if is_open_here and not authorization and not is_proxied and self._is_local(peer):
            return Identity()
        bearer = _BEARER.fullmatch(authorization[0].decode("latin-1").strip()) if len(authorization) == 1 else None
        if bearer is None:
            raise UnauthorizedError
        secret = bearer[1]
        try:
            if credential in (Credential.WORKER, Credential.ATTEMPT, Credential.WORKER_TOKEN):
                return await self._authenticate_worker(credential, job_id, secret)
            if credential is Credential.METRICS and _is_equal(self._metrics, secret):
                return Identity()
            is_of_users = credential in (Credential.USER, Credential.XI_USER, Credential.XI_SOCKET, Credential.LIST)
            if not is_of_users and _is_equal(self._admin, secret):
                if self._is_guessable and self._failures:
                    self._failures.check(self.client_address(peer, forwarded))
                return Identity(is_admin=True)
            caller = await self._keys.find_caller(secret, is_cached=is_of_users)
            if caller is None:
                raise UnauthorizedError
        except UnauthorizedError:
            if self._failures:
                self._failures.count(self.client_address(peer, forwarded))
            raise
        if credential in (Credential.ADMIN, Credential.LOCAL_OR_ADMIN, Credential.METRICS):
            raise UnauthorizedError(code="admin_required")
        if caller.is_suspended:
            raise _suspended(self.settings)
        if requirements.scope and caller.scopes and requirements.scope not in caller.scopes:
            scope = requirements.scope
            raise InsufficientScopeError(f"The key lacks the scope {scope}.", hint=f"use a key with the scope {scope}.")
        self.check_rate(caller)
        return Identity(caller=caller, key_sha256=digest(secret))

    async def sign_in(self, secret: str, *, peer: str, forwarded: Sequence[bytes]) -> str:
        """Return the cookie of a session for a key without scopes and limit.

        Raises:
            UnauthorizedError: The key is not valid.
            LimitError: As above, and the client had too many failures within a minute.
            InsufficientScopeError: The key has scopes or a limit.
        """
        caller = await self._keys.find_caller(secret, is_cached=False)
        if caller is None:
            if self._failures:
                self._failures.count(self.client_address(peer, forwarded))
            raise UnauthorizedError("This API key is unknown, expired or revoked.", hint="check the key.")
        if caller.scopes or caller.character_limit is not None:
            raise InsufficientScopeError(
                "This API key has scopes or a limit.", hint="sign in with a key of the account that has neither."
            )
        return self.create_session(caller.key_id)

    def create_session(self, key_id: str) -> str:
        """Return the cookie of a session: it ends when the key is no longer valid."""
        return session_token(self.secret, key_id, int(time.time()) + SESSION_S)

    async def find_session(self, cookies: Sequence[bytes]) -> records.Caller | None:
        """Return the key with which the browser of these Cookie headers signed in, if it is still valid."""
        token = cookie_parser(b"; ".join(cookies).decode("latin-1")).get(SESSION_COOKIE, "")
        key_id = read_session_token(self.secret, token, now=time.time())
        return await self._keys.find_by_id(key_id) if key_id else None

    async def _authenticate_worker(self, credential: Credential, job_id: str, secret: str) -> Identity:
        if credential is Credential.WORKER_TOKEN:
            if (token_id := await self._keys.find_worker_token(secret)) is None:
                raise UnauthorizedError
            return Identity(worker_token_id=token_id)
        if found := read_worker_token(self.secret, job_id, secret):
            attempt, claimed_with = found
            if claimed_with is None or await self._keys.is_worker_token_valid(claimed_with):
                return Identity(attempt=attempt, worker_token_id=claimed_with)
        elif credential is Credential.WORKER and _is_equal(self._callback, secret):
            return Identity()
        raise UnauthorizedError

    def _is_local(self, peer: str) -> bool:
        """Return whether a connection comes from this machine, and not from a proxy on it as far as is known."""
        address = _parse_address(peer)
        return address is not None and address.is_loopback and not self.settings.public_names

    def check_rate(self, caller: records.Caller) -> None:
        """Count a request of a key and of its account; raise LimitError if one of them is over its rate."""
        rates = [(self._rate, caller.spending_id, "key")]
        if caller.plan is not None:
            rates.append(
                (self._plan_rates.get(caller.plan), caller.account_id, f"account, with the plan {caller.plan},")
            )
        for rate, spender, name in rates:
            if rate is None or self._limiter.hit(rate, spender):
                continue
            reset_at = self._limiter.get_window_stats(rate, spender).reset_time
            wait_s = max(1, round(reset_at - time.time() + 0.5))
            raise LimitError(
                f"The {name} has used its {rate.amount:,} requests for this minute.",
                code="rate_limited",
                hint=f"wait {wait_s} s.",
                limit=rate.amount,
                retry_after_s=wait_s,
            )

    def client_address(self, peer: str, forwarded: Sequence[bytes]) -> str:
        """Return the address of the client: the last one before the trusted proxies, or the network of an IPv6."""
        hops = b",".join(forwarded).decode("latin-1").split(",") if forwarded else []
        address = _parse_address(peer)
        while address and hops and any(address in network for network in self._proxies):
            address = _parse_address(hops.pop()) or address
        if isinstance(address, IPv6Address):  # one client has a whole network of these
            return str(IPv6Network((address, 64), strict=False))
        return str(address or "")


class OpenRequests:
    """The running requests of keys and workers, cancelled once the key or token is revoked, expires or is suspended."""

    def __init__(self, keys: KeyService, settings: Settings) -> None:
        self._keys = keys
        self._settings = settings
        self._limit = ConcurrencyLimit(settings.max_requests_per_key, doing="requests under way")
        self._open: dict[bytes | str, set[RequestTask]] = {}

    def enter(self, identity: Identity) -> RequestTask | None:
        """Count the current task as a request, until `leave`; return None if it has neither key nor worker token.

        Raises:
            LimitError: The key has reached its limit.
        """
        secret_id = identity.key_sha256 or identity.worker_token_id
        if secret_id is None:
            return None
        if identity.caller:
            self._limit.enter(identity.caller.spending_id)
        request = RequestTask(identity.caller.spending_id if identity.caller else None, secret_id)
        self._open.setdefault(secret_id, set()).add(request)
        return request

    def leave(self, request: RequestTask) -> None:
        """Stop counting a request."""
        if request.spending_id is not None:
            self._limit.leave(request.spending_id)
        requests = self._open[request.secret_id]
        requests.discard(request)
        if not requests:
            del self._open[request.secret_id]

    async def watch(self) -> None:
        """Cancel the requests of keys that are no longer valid, also if another process revoked them; never returns."""
        while True:
            await asyncio.sleep(CHECK_KEYS_S)
            for secret_id, requests in [*self._open.items()]:
                with contextlib.suppress(AfterwordsError):  # the database is unavailable: check again next time
                    if (refusal := await self._find_refusal(secret_id)) is not None:
                        for request in [*requests]:
                            request.revoke(refusal)

    async def _find_refusal(self, secret_id: bytes | str) -> AfterwordsError | None:
        if isinstance(secret_id, str):
            return None if await self._keys.is_worker_token_valid(secret_id) else UnauthorizedError()
        caller = await self._keys.find_by_digest(secret_id)
        if caller is None:
            return UnauthorizedError()
        return _suspended(self._settings) if caller.is_suspended else None


class RequestTask:
    """The task of one request, which is cancelled when its key or token is no longer valid.

    Attributes:
        secret_id: Digest of the key, or id of the token of remote workers.
    """

    __slots__ = ("_refusal", "_started", "_task", "secret_id", "spending_id")

    def __init__(self, spending_id: str | None, secret_id: bytes | str) -> None:
        self.spending_id = spending_id
        self.secret_id = secret_id
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._started = time.monotonic()
        self._refusal: AfterwordsError | None = None

    def revoke(self, refusal: AfterwordsError) -> None:
        """Cancel the task, unless it is so young that it may be the request that revokes its own key."""
        if self._refusal is None and time.monotonic() - self._started >= CHECK_KEYS_S:
            self._refusal = refusal
            self._task.cancel()

    def take_revocation(self) -> AfterwordsError | None:
        """Return why the task was revoked, if it was, and let it go on in order to answer."""
        if self._refusal is not None:
            self._task.uncancel()
        return self._refusal


@dataclass(slots=True)
class _Failures:
    started: float
    count: int = 0


class AuthFailures:
    """Failed authentications of a client, for a minute from the first; beyond CLIENTS_MAX the oldest are dropped."""

    def __init__(self, maximum: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._maximum = maximum
        self._clock = clock
        self._clients: TTLCache[str, _Failures] = TTLCache(CLIENTS_MAX, ttl=MINUTE_S, timer=clock)

    def count(self, client: str) -> None:
        """Count a failure.

        Raises:
            LimitError: The client is over the limit.
        """
        failures = self._clients.setdefault(client, _Failures(self._clock()))
        failures.count += 1
        self._limit(failures, failures.count)

    def check(self, client: str) -> None:
        """Raise LimitError if the client is at the limit."""
        if failures := self._clients.get(client):
            self._limit(failures, failures.count + 1)

    def _limit(self, failures: _Failures, count: int) -> None:
        if count > self._maximum:
            wait_s = max(1, math.ceil(failures.started + MINUTE_S - self._clock()))
            raise LimitError(
                f"More than {self._maximum:,} wrong keys or secrets came from this address within a minute.",
                code="too_many_auth_failures",
                hint=f"check the key, and wait {wait_s} s.",
                limit=self._maximum,
                retry_after_s=wait_s,
            )


def _share_of(rate: int, settings: Settings) -> RateLimitItemPerMinute:
    """Return the rate that each server process allows."""
    return RateLimitItemPerMinute(max(1, rate // settings.processes))


def _suspended(settings: Settings) -> SubscriptionError:
    how = f"renew it at {settings.account_url}" if settings.account_url else "ask the operator of the server"
    return SubscriptionError(f"The subscription of this account is not active: {how}.")


def _digest_of(secret: SecretStr | None) -> bytes | None:
    value = secret.get_secret_value() if secret else ""
    return sha256(value.encode()).digest() if value else None


def _is_equal(expected: bytes | None, secret: str) -> bool:
    """Compare a secret with a digest in constant time."""
    return expected is not None and hmac.compare_digest(expected, sha256(secret.encode()).digest())


def _parse_address(text: str, *, with_port: bool = True) -> IPv4Address | IPv6Address | None:
    """Return the IP address in a text, which may have a port: 1.2.3.4:5, [::1]:5."""
    text = text.strip() if with_port else text
    if with_port and text.startswith("["):
        text = text[1:].partition("]")[0]
    elif with_port and text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
