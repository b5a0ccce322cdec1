"""Hosts, credentials and limits of the Authenticator, without a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, cast

import pytest

from afterwords.errors import (
    InsufficientScopeError,
    InvalidRequestError,
    LimitError,
    SubscriptionError,
    UnauthorizedError,
)
from afterwords.server import Settings
from afterwords.server.auth import (
    CLIENTS_MAX,
    MINUTE_S,
    Authenticator,
    AuthFailures,
    Credential,
    Identity,
    Requirements,
)
from afterwords.server.clock import SystemClock
from afterwords.server.records import Caller, Scope
from afterwords.server.services.keys import KeyService
from afterwords.server.services.signing import worker_token
from afterwords.server.settings import Plan
from afterwords.server.store import SqlStore
from tests.contracts.store_world import START, ManualClock, World
from tests.error_codes import has_code

ADMIN: Final = "an-admin-secret-for-tests-0123456789"
CALLBACK: Final = "a-callback-secret-that-workers-share"
SIGNING: Final = b"s" * 32
JOB: Final = "00000000-0000-4000-8000-000000000001"
CALLER: Final = Caller("account", "key", "spending", frozenset({Scope.VOICES_READ}), None)


class OneKey:
    """A KeyService with one valid key."""

    def __init__(self, **facts: Any) -> None:
        self._caller = replace(CALLER, **facts)

    async def find_caller(self, secret: str, *, is_cached: bool = True) -> Caller | None:  # noqa: ARG002
        return self._caller if secret == "aw_good" else None


def make_authenticator(keys: OneKey | None = None, **settings: Any) -> Authenticator:
    return Authenticator(Settings(**settings), cast(KeyService, keys or OneKey()), SIGNING)


def authenticate(
    authenticator: Authenticator, requirements: Requirements, *authorization: bytes, job_id: str = "", **client: Any
) -> Identity:
    return asyncio.run(authenticator.authenticate(requirements, list(authorization), job_id, **client))


@pytest.mark.parametrize(
    ("settings", "accepted", "refused"),
    [
        ({}, ["127.0.0.1", "localhost:7860", "[::1]", "LocalHost"], ["evil.example", "10.0.0.1", "::1", "", "\xff"]),
        ({"host": "::1"}, ["[::1]:7860"], ["[::2]", "[::1", "[::1]x", "[::1]:x", "::1]"]),
        ({"public_url": "https://Voice.example:8443/x"}, ["voice.example"], ["voice.example.evil", "example"]),
        ({"allowed_hosts": "a.example, B.example"}, ["a.example", "b.example:1"], ["c.example"]),
        ({"allowed_hosts": "*"}, ["evil.example", ""], []),
        ({"host": "0.0.0.0"}, ["10.0.0.1", "[2001:db8::1]:80", "localhost"], ["evil.example", "10.0.0.1.evil"]),
    ],
)  # fmt: skip
def test_host_must_name_the_server(settings: dict[str, Any], accepted: Sequence[str], refused: Sequence[str]) -> None:
    authenticator = make_authenticator(**settings)
    for host in accepted:
        authenticator.check_host([host.encode("latin-1")])
    for host in refused:
        with pytest.raises(InvalidRequestError, check=has_code("invalid_host")):
            authenticator.check_host([host.encode("latin-1")])


def test_public_route_ignores_credentials() -> None:
    assert authenticate(make_authenticator(), Requirements(Credential.PUBLIC), b"Bearer x", b"Basic y") == Identity()


@pytest.mark.parametrize(
    ("credential", "secret", "opens"),
    [
        (Credential.USER, "aw_good", True),
        (Credential.USER, ADMIN, False),
        (Credential.USER_OR_ADMIN, "aw_good", True),
        (Credential.USER_OR_ADMIN, ADMIN, True),
        (Credential.ADMIN, ADMIN, True),
        (Credential.ADMIN, "aw_good", False),
        (Credential.ADMIN, ADMIN[:-1], False),
        (Credential.ADMIN, CALLBACK, False),
        (Credential.WORKER, CALLBACK, True),
        (Credential.WORKER, ADMIN, False),
        (Credential.WORKER, "aw_good", False),
        (Credential.WORKER, worker_token(SIGNING, JOB, 3), True),
        (Credential.WORKER, worker_token(SIGNING, JOB.replace("1", "2"), 3), False),
        (Credential.WORKER, worker_token(b"t" * 32, JOB, 3), False),
    ],
)
def test_credential_opens_only_its_routes(credential: Credential, secret: str, opens: bool) -> None:
    authenticator = make_authenticator(admin_secret=ADMIN, callback_secret=CALLBACK)
    given = f"Bearer {secret}".encode()
    if opens:
        authenticate(authenticator, Requirements(credential), given, job_id=JOB)
        return
    with pytest.raises(UnauthorizedError):
        authenticate(authenticator, Requirements(credential), given, job_id=JOB)


def test_identity_of_admin_user_and_worker() -> None:
    authenticator = make_authenticator(admin_secret=ADMIN)
    assert authenticate(authenticator, Requirements(Credential.USER_OR_ADMIN), f"Bearer {ADMIN}".encode()) == Identity(
        is_admin=True
    )
    assert (
        authenticate(authenticator, Requirements(Credential.USER_OR_ADMIN), b"Bearer aw_good").account_id == "account"
    )
    token = worker_token(SIGNING, JOB, 3)
    assert (
        authenticate(authenticator, Requirements(Credential.WORKER), f"Bearer {token}".encode(), job_id=JOB).attempt
        == 3
    )


@pytest.mark.parametrize(
    ("settings", "peer", "is_proxied", "opens"),
    [
        ({}, "127.0.0.1", False, True),
        ({}, "::1", False, True),
        ({}, "::ffff:127.0.0.2", False, True),
        ({}, "127.0.0.1", True, False),
        ({}, "10.0.0.1", False, False),
        ({}, "", False, False),
        ({"host": "0.0.0.0"}, "127.0.0.1", False, True),
        ({"public_url": "https://voice.example"}, "127.0.0.1", False, False),
        ({"allowed_hosts": "voice.example"}, "127.0.0.1", False, False),
    ],
)
def test_local_route_is_open_to_this_machine_only(
    settings: dict[str, Any], peer: str, is_proxied: bool, opens: bool
) -> None:
    authenticator = make_authenticator(admin_secret=ADMIN, **settings)
    for needed in (Requirements(Credential.LOCAL_OR_ADMIN), Requirements(Credential.METRICS)):
        if opens:
            assert authenticate(authenticator, needed, peer=peer, is_proxied=is_proxied) == Identity()
        else:
            with pytest.raises(UnauthorizedError):
                authenticate(authenticator, needed, peer=peer, is_proxied=is_proxied)
        for wrong in (b"Bearer aw_good", b"Bearer wrong"):
            with pytest.raises(UnauthorizedError):
                authenticate(authenticator, needed, wrong, peer=peer)
        assert authenticate(authenticator, needed, f"Bearer {ADMIN}".encode(), peer=peer).is_admin


def test_metrics_token_opens_metrics_alone() -> None:
    authenticator = make_authenticator(admin_secret=ADMIN, metrics_token="scrape")
    metrics, token = Requirements(Credential.METRICS), b"Bearer scrape"
    assert authenticate(authenticator, metrics, token, peer="192.0.2.1") == Identity()
    assert authenticate(authenticator, metrics, f"Bearer {ADMIN}".encode(), peer="192.0.2.1").is_admin
    with pytest.raises(UnauthorizedError):  # a proxy on this machine may have sent no header
        authenticate(authenticator, metrics, peer="127.0.0.1")
    for credential in (
        Credential.USER,
        Credential.ADMIN,
        Credential.LOCAL_OR_ADMIN,
        Credential.WORKER,
        Credential.ATTEMPT,
    ):
        with pytest.raises(UnauthorizedError):
            authenticate(authenticator, Requirements(credential), token, peer="127.0.0.1")


def test_unset_secrets_match_nothing() -> None:
    for credential in (Credential.ADMIN, Credential.WORKER):
        for secret in ("None", "null", "0", "''"):
            with pytest.raises(UnauthorizedError):
                authenticate(
                    make_authenticator(admin_secret="", callback_secret=None),
                    Requirements(credential),
                    f"Bearer {secret}".encode(),
                )


@pytest.mark.anyio
async def test_key_revoked_elsewhere_can_not_manage_keys(tmp_path: Path) -> None:
    here, elsewhere = (SqlStore("sqlite:///keys.db", clock=SystemClock(), folder=tmp_path) for _ in range(2))
    await here.open()
    await elsewhere.open()
    keys = KeyService(here)
    minted = await keys.create()
    authenticator, key = Authenticator(Settings(), keys, SIGNING), [f"Bearer {minted.secret}".encode()]
    for credential in (Credential.USER, Credential.USER_OR_ADMIN):
        assert (await authenticator.authenticate(Requirements(credential), key)).key_id == minted.key.key_id

    await KeyService(elsewhere).revoke(minted.key.key_id, account_id=None)

    with pytest.raises(UnauthorizedError):
        await authenticator.authenticate(Requirements(Credential.USER_OR_ADMIN), key)
    with pytest.raises(UnauthorizedError):  # and what was cached is dropped
        await authenticator.authenticate(Requirements(Credential.USER), key)
    await here.close()
    await elsewhere.close()


def test_suspended_account_returns_402() -> None:
    suspended = OneKey(plan="hobby", is_suspended=True)
    shop: dict[str, Any] = {"public_url": "https://voice.example", "stripe_secret_key": "sk", "stripe_price_id": "p"}
    for settings, advice in ((shop, "https://voice.example/v1/account"), ({}, "ask the operator")):
        authenticator = make_authenticator(suspended, auth_failure_limit=1, **settings)
        for credential in (Credential.USER, Credential.USER_OR_ADMIN, Credential.USER):
            with pytest.raises(SubscriptionError, match=advice):
                authenticate(authenticator, Requirements(credential), b"Bearer aw_good")


@pytest.mark.anyio
async def test_running_request_of_a_suspended_account_ends(tmp_path: Path) -> None:
    store = SqlStore("sqlite:///keys.db", clock=SystemClock(), folder=tmp_path)
    await store.open()
    keys = KeyService(store)
    minted = await keys.create()
    authenticator = Authenticator(Settings(), keys, SIGNING)
    identity = await authenticator.authenticate(Requirements(Credential.USER), [f"Bearer {minted.secret}".encode()])
    assert identity.caller is not None
    began = asyncio.Event()

    async def run() -> BaseException | None:
        request = authenticator.requests.enter(identity)
        assert request is not None
        began.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return request.take_revocation()

    running = asyncio.create_task(run())
    await began.wait()
    watching = asyncio.create_task(authenticator.requests.watch())
    await World(store, ManualClock()).set_account(identity.caller, suspended_at=START)
    async with asyncio.timeout(60):
        assert isinstance(await running, SubscriptionError)
    watching.cancel()
    await store.close()


def test_missing_scope_is_named() -> None:
    assert (
        authenticate(make_authenticator(), Requirements(Credential.USER, Scope.VOICES_READ), b"Bearer aw_good").caller
        == CALLER
    )
    with pytest.raises(InsufficientScopeError, match="synthesize"):
        authenticate(make_authenticator(), Requirements(Credential.USER, Scope.SYNTHESIZE), b"Bearer aw_good")


def test_rate_limit_is_shared_by_processes() -> None:
    authenticator = make_authenticator(rate_limit=6, processes=2, admin_secret=ADMIN, auth_failure_limit=0)
    for _ in range(20):
        authenticate(authenticator, Requirements(Credential.USER_OR_ADMIN), f"Bearer {ADMIN}".encode())
        with pytest.raises(UnauthorizedError):
            authenticate(authenticator, Requirements(Credential.USER), b"Bearer aw_bad")
    authenticate_often(authenticator, 3)
    with pytest.raises(LimitError, check=has_code("rate_limited")) as caught:
        authenticate_often(authenticator, 4)  # a new minute may begin within
    assert caught.value.limit == 3
    assert 1 <= (caught.value.retry_after_s or 0) <= 61


def test_rate_of_a_plan_is_shared_by_keys_and_processes() -> None:
    plans = {"slow": Plan(rate_limit=6)}
    ann = OneKey(plan="slow")
    authenticator = make_authenticator(ann, plans=plans, processes=2)
    authenticate_often(authenticator, 2)
    ann._caller = replace(CALLER, plan="slow", key_id="another", spending_id="another")
    with pytest.raises(LimitError, match="account, with the plan slow, has used its 3", check=has_code("rate_limited")):
        authenticate_often(authenticator, 5)  # a new minute may begin within
    ann._caller = replace(CALLER, plan="hobby")
    authenticate_often(authenticator, 20)


def authenticate_often(authenticator: Authenticator, times: int) -> None:
    for _ in range(times):
        authenticate(authenticator, Requirements(Credential.USER), b"Bearer aw_good")


def test_rate_limit_0_is_unlimited() -> None:
    authenticator = make_authenticator(rate_limit=0)
    authenticate_often(authenticator, 50)


# -- wrong keys and secrets --------------------------------------------------------------------------------------

WRONG_KEY: Final = (Requirements(Credential.USER_OR_ADMIN), b"Bearer wrong")


def fail_often(authenticator: Authenticator, times: int, **client: Any) -> None:
    for _ in range(times):
        with pytest.raises(UnauthorizedError):
            authenticate(authenticator, *WRONG_KEY, **client)


@pytest.mark.parametrize("needed", [Credential.USER, Credential.ADMIN, Credential.USER_OR_ADMIN, Credential.WORKER])
def test_auth_failures_are_limited_by_address(needed: Credential) -> None:
    authenticator = make_authenticator(admin_secret=ADMIN, callback_secret=CALLBACK, auth_failure_limit=6, processes=2)
    fail_often(authenticator, 3, peer="198.51.100.1")
    with pytest.raises(LimitError, check=has_code("too_many_auth_failures")) as caught:
        authenticate(authenticator, Requirements(needed), b"Bearer wrong", peer="198.51.100.1")
    assert caught.value.limit == 3
    assert 1 <= (caught.value.retry_after_s or 0) <= 60
    fail_often(authenticator, 1, peer="198.51.100.2")


def test_valid_credentials_pass_from_a_limited_address() -> None:
    authenticator = make_authenticator(admin_secret=ADMIN, callback_secret=CALLBACK, auth_failure_limit=1)
    fail_often(authenticator, 1)
    for needed, good in [
        (Credential.USER, b"Bearer aw_good"),
        (Credential.ADMIN, f"Bearer {ADMIN}".encode()),
        (Credential.WORKER, f"Bearer {CALLBACK}".encode()),
    ]:
        with pytest.raises(LimitError, check=has_code("too_many_auth_failures")):
            authenticate(authenticator, *WRONG_KEY)
        authenticate(authenticator, Requirements(needed), good)


def test_short_admin_secret_is_limited_too() -> None:
    authenticator = make_authenticator(admin_secret="short", auth_failure_limit=2)
    authenticate(authenticator, Requirements(Credential.ADMIN), b"Bearer short")
    fail_often(authenticator, 2)
    with pytest.raises(LimitError, check=has_code("too_many_auth_failures")):
        authenticate(authenticator, Requirements(Credential.ADMIN), b"Bearer short")
    authenticate(authenticator, Requirements(Credential.ADMIN), b"Bearer short", peer="198.51.100.1")


def test_missing_credential_is_not_counted() -> None:
    authenticator = make_authenticator(auth_failure_limit=1)
    for _ in range(5):
        with pytest.raises(UnauthorizedError):
            authenticate(authenticator, Requirements(Credential.USER))


@pytest.mark.parametrize(
    ("settings", "peer", "forwarded", "client"),
    [
        ({}, "127.0.0.1", ["198.51.100.7"], "127.0.0.1"),
        ({"public_url": "https://voice.example"}, "127.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ({"public_url": "https://voice.example"}, "127.0.0.1", ["1.1.1.1, 198.51.100.7"], "198.51.100.7"),
        ({"public_url": "https://voice.example"}, "127.0.0.1", ["1.1.1.1", "198.51.100.7:80"], "198.51.100.7"),
        ({"public_url": "https://voice.example"}, "127.0.0.1", ["[2001:db8::7]:80"], "2001:db8::/64"),
        ({"public_url": "https://voice.example"}, "::ffff:127.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ({"public_url": "https://voice.example"}, "127.0.0.1", ["nonsense"], "127.0.0.1"),
        ({"public_url": "https://voice.example"}, "127.0.0.1", [], "127.0.0.1"),
        ({"public_url": "https://voice.example"}, "198.51.100.9", ["198.51.100.7"], "198.51.100.9"),
        ({"trusted_proxies": "10.0.0.0/8"}, "10.1.2.3", ["1.1.1.1, 198.51.100.7, 10.9.9.9"], "198.51.100.7"),
        ({"trusted_proxies": "10.0.0.0/8"}, "127.0.0.1", ["198.51.100.7"], "127.0.0.1"),
        ({}, "", ["198.51.100.7"], ""),
    ],
)
def test_client_address_comes_from_trusted_proxies(
    settings: dict[str, Any], peer: str, forwarded: list[str], client: str
) -> None:
    headers = [header.encode() for header in forwarded]
    assert make_authenticator(**settings).client_address(peer, headers) == client


def test_auth_failures_expire_and_are_bounded() -> None:
    now = 0.0
    failures = AuthFailures(1, clock=lambda: now)
    failures.count("a")
    with pytest.raises(LimitError, check=has_code("too_many_auth_failures")):
        failures.check("a")
    now = MINUTE_S
    failures.check("a")
    for number in range(CLIENTS_MAX + 5):
        failures.count(str(number))
    assert len(failures._clients) == CLIENTS_MAX
    with pytest.raises(LimitError, check=has_code("too_many_auth_failures")):
        failures.count(str(CLIENTS_MAX))
