"""Authorization: every route with every credential, every tenant with every ID, the life of keys, and limits."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import sqlite3
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx
import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from afterwords.audio.wav import canonical_wav
from afterwords.server import create_app
from afterwords.server.auth import Credential, Requirements
from afterwords.server.records import Scope
from afterwords.server.routing import ApiRoute
from afterwords.server.services.signing import worker_token
from tests.audio.test_wav import RATE, tone
from tests.cli.program import run
from tests.e2e.served import ADMIN_SECRET, Served, register, serving, submit_text, wait_for_job, wait_until

CALLBACK_SECRET: Final = "a-callback-secret-that-workers-share"
UNKNOWN_ID: Final = "00000000-0000-4000-8000-000000000000"
WAV: Final = canonical_wav(tone(5), RATE)
ROUTES: Final = [route for route in create_app().routes if isinstance(route, APIRoute)]
SOCKETS: Final = [route for route in create_app().routes if isinstance(route, APIWebSocketRoute)]
CALLS: Final = [(method, route.path_format) for route in ROUTES for method in sorted(route.methods or ())]
WORKERS: Final = (Credential.WORKER, Credential.ATTEMPT, Credential.WORKER_TOKEN)
PUBLIC: Final = {"/v1/health", "/healthz", "/readyz", "/openapi.json", "/docs"}
PAGES: Final = {  # tests/server/billing and tests/server/web test who sees what on them
    "/v1/account",
    "/v1/account/sign-in",
    "/v1/checkout",
    "/v1/checkout/already-subscribed",
    "/v1/checkout/confirm",
    "/v1/checkout/send-confirmation",
    "/v1/checkout/success",
    "/v1/signup",
}
SIGNED: Final = {"/v1/webhooks/stripe"}  # tests/server/billing tests its signatures


def requirements_of(method: str, path: str) -> Requirements:
    route = next(route for route in ROUTES if route.path_format == path and method in (route.methods or ()))
    assert isinstance(route, ApiRoute)
    assert isinstance(route.requirements, Requirements)
    return route.requirements


LOCAL: Final = {"/metrics", "/status"}
OPEN_HERE: Final = (Credential.PUBLIC, Credential.LOCAL_OR_ADMIN, Credential.METRICS, Credential.STRIPE_SIGNATURE)
GUARDED: Final = [call for call in CALLS if requirements_of(*call).credential not in OPEN_HERE]
USERS: Final = (Credential.USER, Credential.XI_USER, Credential.USER_OR_ADMIN, Credential.LIST)
OF_USERS: Final = [call for call in GUARDED if requirements_of(*call).credential in USERS]
WITH_ID: Final = [call for call in OF_USERS if "{" in call[1] and "{model}" not in call[1]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = {"AFTERWORDS_CALLBACK_SECRET": CALLBACK_SECRET, "AFTERWORDS_RATE_LIMIT": "0"}
    with serving(tmp_path_factory.mktemp("security") / "home", settings) as running:
        yield running


def call(client: httpx.Client, method: str, path: str, **ids: str) -> httpx.Response:
    """Call a route with a body that is valid up to the row that an ID names."""
    ids = {"alias": "unknown", **ids}  # an alias can't be an ID
    url = re.sub(r"{(\w+)}", lambda found: ids.get(found[1], UNKNOWN_ID), path)
    body: dict[str, Any] = {}
    if method == "PATCH":
        body = {"json": {"name": "changed"}}
    elif method == "PUT" and path == "/v1/aliases/{alias}":
        body = {"json": {"voice": ids.get("voice_id", UNKNOWN_ID)}}
    elif path == "/v1/audio/speech":
        body = {"json": {"voice": ids.get("voice_id", UNKNOWN_ID), "input": "hi"}}
    elif method == "POST" and path == "/v1/audio/voice_consents/{consent_id}":
        body = {"json": {"name": "changed"}}
    elif path.startswith("/elevenlabs/v1/text-to-speech/"):
        body = {"json": {"text": "hi"}}
    elif path == "/elevenlabs/v1/voices/{voice_id}/settings/edit":
        body = {"json": {"speed": 1}}
    elif path == "/elevenlabs/v1/voices/{voice_id}/edit":
        body = {"files": {"name": (None, "changed")}}
    elif path in ("/v1/synthesize", "/v1/estimate"):
        body = {"json": {"voice_id": ids.get("voice_id", UNKNOWN_ID), "text": "hi"}}
    return client.request(method, url, **body)


def without_request_id(answer: httpx.Response) -> tuple[int, dict[str, str], str]:
    """Return a response without the ID, time and nonce of the request."""
    headers = {
        name: re.sub(r"'nonce-[\w-]+'", "'nonce'", value)
        for name, value in answer.headers.items()
        if name not in ("x-request-id", "request-id", "date")
    }
    return answer.status_code, headers, answer.text.replace(answer.headers["x-request-id"], "")


# -- routes ---------------------------------------------------------------------------------------------------


def test_every_route_declares_its_requirements() -> None:
    assert len(ROUTES) + len(SOCKETS) == len(create_app().routes)
    assert all(isinstance(route, ApiRoute) for route in ROUTES)
    needed = {socket.endpoint.requirements for socket in SOCKETS}  # type: ignore[attr-defined]
    assert {(each.credential, each.scope) for each in needed} == {
        (Credential.USER, Scope.SYNTHESIZE),
        (Credential.XI_SOCKET, Scope.SYNTHESIZE),
    }
    assert {path for method, path in CALLS if (method, path) not in GUARDED} == PUBLIC | PAGES | SIGNED | LOCAL


def open_with(url: str, secret: str) -> None:
    """Open a WebSocket, and read the refusal up to the end of the connection."""
    with connect(url, additional_headers={"Authorization": f"Bearer {secret}"}, proxy=None) as socket:
        assert json.loads(socket.recv(60))["error"] == "unauthorized"
        socket.recv(60)


@pytest.mark.parametrize("path", [socket.path for socket in SOCKETS])
def test_socket_accepts_only_keys(served: Served, path: str) -> None:
    url = served.url.replace("http", "ws", 1) + path
    for secret in ("", "aw_" + "a" * 43, ADMIN_SECRET, CALLBACK_SECRET):
        with pytest.raises((InvalidStatus, ConnectionClosed)) as refused:
            open_with(url, secret)
        if path.endswith("/stream-input"):  # which reports it in a message
            assert isinstance(refused.value, ConnectionClosed)
            assert refused.value.rcvd is not None
            assert refused.value.rcvd.code == 1008
        else:
            assert isinstance(refused.value, InvalidStatus)
            assert refused.value.response.status_code == 401


@pytest.mark.parametrize("path", [socket.path for socket in SOCKETS])
def test_socket_refuses_foreign_pages_before_it_opens(served: Served, path: str) -> None:
    url = served.url.replace("http", "ws", 1) + path
    for header in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        with pytest.raises(InvalidStatus) as refused, connect(url, additional_headers=header, proxy=None):
            pass
        assert refused.value.response.status_code == 400


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_route_accepts_only_its_credential(served: Served, method: str, path: str) -> None:
    needed = requirements_of(method, path).credential
    with served.client() as client:
        key_id = client.get("/v1/keys").json()[0]["key_id"]
    wrong = ["aw_", "aw_" + "a" * 43, served.key[:-1], served.key + "a", served.key.upper(), key_id, "None", "null"]
    if needed in WORKERS:
        wrong.append(served.key)
    if needed not in (Credential.ADMIN, Credential.USER_OR_ADMIN):
        wrong.append(ADMIN_SECRET)
    if needed is not Credential.WORKER:
        wrong.append(CALLBACK_SECRET)
    if needed not in (Credential.WORKER, Credential.ATTEMPT):
        wrong.append(worker_token(secret_of(served), UNKNOWN_ID, 1))
    if needed is not Credential.WORKER_TOKEN:
        wrong.append(worker_token_of(served))
    if needed in WORKERS:  # of an attempt that was claimed with a token that does not exist
        wrong.append(worker_token(secret_of(served), UNKNOWN_ID, 1, claimed_with=UNKNOWN_ID))
    with httpx.Client(base_url=served.url) as client:
        answers = [call(client, method, path)]
        for secret in wrong:
            client.headers["Authorization"] = f"Bearer {secret}"
            answers.append(call(client, method, path))
    assert {without_request_id(answer)[0] for answer in answers} == {401}
    assert len({without_request_id(answer)[2] for answer in answers}) == 1


@pytest.mark.parametrize(("method", "path"), [call for call in OF_USERS if requirements_of(*call).scope])
def test_scope_opens_only_its_routes(served: Served, method: str, path: str) -> None:
    scope = requirements_of(method, path).scope
    others = [other.value for other in Scope if other is not scope]
    with served.client(served.new_key(scopes=others)) as client:
        answer = call(client, method, path)
    code = answer.json()["detail"]["status"] if path.startswith("/elevenlabs/") else answer.json()["error"]["code"]
    assert (answer.status_code, code) == (403, "insufficient_scope")
    with served.client(served.new_key(scopes=[scope])) as client:
        assert call(client, method, path).status_code not in (401, 403)


def test_admin_routes_return_401_without_admin_secret(tmp_path: Path) -> None:
    with serving(tmp_path / "home", {"AFTERWORDS_ADMIN_SECRET": "", "AFTERWORDS_WORKERS": "0"}) as served:
        for secret in ("", " ", "None", "null", served.key, ADMIN_SECRET, CALLBACK_SECRET):
            answer = httpx.post(f"{served.url}/v1/keys", headers={"Authorization": f"Bearer {secret}".strip()})
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == ("admin_required" if secret == served.key else "unauthorized")
        wav = httpx.put(f"{served.url}/v1/jobs/{UNKNOWN_ID}/audio", headers={"Authorization": "Bearer None"})
        assert wav.status_code == 401


@cache
def worker_token_of(served: Served) -> str:
    """Return a new token of remote workers."""
    return run("workers", "token", "create", env={"AFTERWORDS_HOME": str(served.home)}).out.strip()


def secret_of(served: Served) -> bytes:
    """Return the secret that signs worker tokens."""
    with contextlib.closing(sqlite3.connect(served.home / "server" / "afterwords.db")) as rows:
        return bytes(rows.execute("SELECT secret FROM server").fetchone()[0])


@pytest.mark.parametrize("path", [path for method, path in CALLS if method == "GET"])
def test_head_returns_headers_of_get_without_body(served: Served, first: Tenant, path: str) -> None:
    with httpx.Client(base_url=served.url) as anonymous:
        for client in (first.client, anonymous):
            by_get, by_head = (without_request_id(call(client, each, path, **first.ids)) for each in ("GET", "HEAD"))
            if path == "/metrics":  # its figures change with each request
                del by_get[1]["content-length"], by_head[1]["content-length"]
            assert by_head == (*by_get[:2], "")


# -- tenants --------------------------------------------------------------------------------------------------


class Tenant:
    """An account with one of each resource."""

    def __init__(self, served: Served) -> None:
        self.client = served.client(served.new_key())
        self.voice_id = register(self.client, wav=WAV)
        self.job_id = submit_text(self.client, self.voice_id, "Mine.")
        wait_for_job(self.client, self.job_id)
        self.alias = f"alias of {self.voice_id}"
        assert self.client.put(f"/v1/aliases/{self.alias}", json={"voice": self.voice_id}).is_success
        self.key_id = self.client.get("/v1/keys").json()[0]["key_id"]
        form, files = {"name": "me", "language": "en"}, {"recording": ("me.wav", WAV)}
        self.consent_id = self.client.post("/v1/audio/voice_consents", data=form, files=files).json()["id"]

    def __enter__(self) -> Tenant:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    @property
    def ids(self) -> dict[str, str]:
        names = ("voice_id", "job_id", "key_id", "alias", "consent_id")
        return {name: getattr(self, name) for name in names}


@pytest.fixture(scope="module")
def first(served: Served) -> Iterator[Tenant]:
    with Tenant(served) as tenant:
        yield tenant


@pytest.fixture(scope="module")
def second(served: Served) -> Iterator[Tenant]:
    with Tenant(served) as tenant:
        yield tenant


@pytest.fixture(scope="module")
def gone(served: Served) -> Iterator[Tenant]:
    """Return the IDs of a deleted voice and a revoked key."""
    with Tenant(served) as tenant:
        tenant.client.delete(f"/v1/voices/{tenant.voice_id}")
        tenant.client.delete(f"/v1/audio/voice_consents/{tenant.consent_id}")
        tenant.client.delete(f"/v1/keys/{tenant.key_id}")
        yield tenant


IDS: Final = [*WITH_ID, *(("POST", f"/v1/{name}") for name in ("synthesize", "estimate", "audio/speech"))]


@pytest.mark.parametrize(("method", "path"), IDS)
def test_foreign_and_deleted_ids_look_like_unknown_ids(
    first: Tenant, second: Tenant, gone: Tenant, method: str, path: str
) -> None:
    missing = call(second.client, method, path, voice_id=str(uuid4()), job_id=str(uuid4()), key_id=str(uuid4()))
    assert missing.status_code == 404
    for tenant in (first, gone):
        assert without_request_id(call(second.client, method, path, **tenant.ids)) == without_request_id(missing)


@pytest.mark.parametrize(("method", "path"), IDS)
def test_own_ids_are_found(served: Served, method: str, path: str) -> None:
    with Tenant(served) as own:
        answer = call(own.client, method, path, **own.ids)
    if (method, path) == ("DELETE", "/v1/jobs/{job_id}"):
        assert answer.json()["error"]["code"] == "job_final"
    elif path == "/v1/jobs/{job_id}/timestamps":  # it was submitted without them
        assert answer.json()["error"]["code"] == "timestamps_unavailable"
    elif path == "/v1/jobs/{job_id}/verification":
        assert answer.json()["error"]["code"] == "verification_unavailable"
    else:
        assert answer.is_success, answer.text


@pytest.mark.parametrize(("method", "path"), IDS)
def test_revoked_key_returns_401_on_every_route(gone: Tenant, first: Tenant, method: str, path: str) -> None:
    answers = {without_request_id(call(gone.client, method, path, **tenant.ids))[0] for tenant in (gone, first)}
    assert answers == {401}


def test_lists_show_only_own_rows(first: Tenant, second: Tenant) -> None:
    for method, path in IDS:
        call(second.client, method, path, **first.ids)
    shown = first.client.get(f"/v1/voices/{first.voice_id}").json()
    assert shown["name"] == "me"
    assert first.client.get(f"/v1/jobs/{first.job_id}").json()["status"] == "ready"
    assert [each["voice_id"] for each in second.client.get("/v1/voices").json()] == [second.voice_id]
    assert {each["job_id"] for each in second.client.get("/v1/jobs").json()} == {second.job_id}
    assert {each["key_id"] for each in second.client.get("/v1/keys").json()} == {second.key_id}
    after = second.client.get("/v1/voices", params={"after": first.voice_id, "limit": 5}).json()
    assert first.voice_id not in {each["voice_id"] for each in after}


def test_idempotency_keys_are_per_account(first: Tenant, second: Tenant) -> None:
    repeat = {"Idempotency-Key": "the-same-for-both"}
    ids = {
        tenant.client.post(
            "/v1/synthesize", json={"voice_id": tenant.voice_id, "text": "Same key."}, headers=repeat
        ).json()["job_id"]
        for tenant in (first, second)
    }
    assert len(ids) == 2


def test_worker_token_opens_one_attempt_of_one_job(served: Served, first: Tenant, second: Tenant) -> None:
    secret = secret_of(served)
    for job_id, attempt, status in ((second.job_id, 1, 401), (first.job_id, 2, 409), (first.job_id, 1, 200)):
        with served.client(worker_token(secret, job_id, attempt)) as worker:
            url = f"/v1/jobs/{first.job_id}"
            assert worker.post(f"{url}/complete", json={"job_id": first.job_id, "error": "x"}).status_code == status
    assert first.client.get(f"/v1/jobs/{first.job_id}").json()["status"] == "ready"


# -- keys -----------------------------------------------------------------------------------------------------


def test_key_has_256_random_bits_and_is_not_stored(served: Served) -> None:
    keys = [served.key, *(served.new_key(label=f"key {n}") for n in range(4))]
    assert len(set(keys)) == 5
    assert all(key.startswith("aw_") and len(key) == 3 + 43 for key in keys)
    for key in keys:
        with served.client(key) as client:
            voice_id = register(client, wav=WAV)
            wait_for_job(client, submit_text(client, voice_id, "A key speaks."))
            client.get(f"/v1/voices/{key}")
            client.get("/v1/voices", params={"after": key, key: "x"})
            client.post("/v1/synthesize", json={"voice_id": key, "text": "x"})
    kept = [served.log, *(path for path in served.home.rglob("*") if path.is_file())]
    assert any(path.suffix == ".db" for path in kept)
    for path, key in itertools.product(kept, keys):
        assert key[3:].encode() not in path.read_bytes(), path


def test_key_revoked_by_another_process_returns_401(served: Served) -> None:
    with served.client(served.new_key()) as client:
        key_id = client.get("/v1/keys").json()[0]["key_id"]
        done = run("keys", "revoke", key_id, env={"AFTERWORDS_HOME": str(served.home)})
        assert done.code == 0, done.err
        wait_until(lambda: client.get("/v1/voices").status_code == 401, what="the revocation")


def test_rotated_key_keeps_scopes_and_account(served: Served) -> None:
    with served.client(served.new_key(scopes=["voices:read"])) as client:
        key_id = client.get("/v1/keys").json()[0]["key_id"]
        key = client.post(f"/v1/keys/{key_id}/rotate").json()["api_key"]
        assert client.get("/v1/keys").status_code == 401
    with served.client(key) as client:
        assert client.post("/v1/synthesize", json={"voice_id": UNKNOWN_ID, "text": "x"}).status_code == 403
        assert client.post(f"/v1/keys/{key_id}/rotate").status_code == 403  # a scoped key may rotate only itself


def test_key_in_overlap_works_but_cannot_rotate(served: Served) -> None:
    with served.client(served.new_key()) as client:
        key_id = client.get("/v1/keys").json()[0]["key_id"]
        new = client.post(f"/v1/keys/{key_id}/rotate", json={"overlap_s": 600}).json()
        assert client.get("/v1/voices").status_code == 200
        for method, path in [
            ("POST", f"/v1/keys/{key_id}/rotate"),
            ("POST", f"/v1/keys/{new['key_id']}/rotate"),
            ("DELETE", f"/v1/keys/{new['key_id']}"),
        ]:
            answer = client.request(method, path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "key_replaced")
    with served.client(new["api_key"]) as client:
        assert client.delete(f"/v1/keys/{key_id}").status_code == 204


# -- starting, limits, addresses -------------------------------------------------------------------------------


@pytest.mark.parametrize(("host", "secret"), [("0.0.0.0", ""), ("::", "a-secret-that-is-31-bytes-short")])
def test_public_server_requires_strong_secret(tmp_path: Path, host: str, secret: str) -> None:
    env = {"AFTERWORDS_HOME": str(tmp_path / "home"), "AFTERWORDS_ADMIN_SECRET": secret, "AFTERWORDS_BACKENDS": "tone"}
    done = run("serve", "--host", host, "--port", "0", env=env)
    error = done.expect_error(2, "insecure_server")
    assert "32 characters" in error
    assert not (tmp_path / "home" / "server").exists()


def test_public_server_prints_no_first_key(tmp_path: Path) -> None:
    served = Served(tmp_path / "home", {"AFTERWORDS_HOST": "0.0.0.0", "AFTERWORDS_WORKERS": "0"})
    try:
        served.start()
        assert served.key == ""
        assert httpx.get(f"{served.url}/v1/health").status_code == 200
        with served.admin as admin:
            assert admin.get("/v1/keys").json() == []
    finally:
        served.kill()


def test_rate_limit_returns_429_with_retry_after(tmp_path: Path) -> None:
    with serving(tmp_path / "home", {"AFTERWORDS_RATE_LIMIT": "5", "AFTERWORDS_WORKERS": "0"}) as served:
        with served.client() as client:
            answers = [client.get("/v1/voices") for _ in range(12)]  # a new minute may begin
            limited = [answer for answer in answers if answer.status_code == 429]
        with served.client(served.new_key()) as other:
            assert other.get("/v1/voices").status_code == 200
    assert len(limited) >= 2
    for answer in limited:
        assert answer.json()["error"]["code"] == "rate_limited"
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(answer.headers["retry-after"]) <= 61
        limits = [answer.headers[f"ratelimit-{name}"] for name in ("limit", "remaining", "reset")]
        assert limits == ["5", "0", answer.headers["retry-after"]]


def test_storage_quota_is_enforced(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "home", {"AFTERWORDS_STORAGE_PER_ACCOUNT_MB": "1"}) as served,
        served.client() as client,
        served.client(served.new_key()) as other,
    ):
        voice_id = register(client, wav=WAV)
        job = wait_for_job(client, submit_text(client, voice_id, "Far too long a text to be kept. " * 60))
        assert (job["status"], job["error"]) == ("failed", "storage_quota_exceeded")
        blobs = served.home / "server" / "blobs"
        wait_until(
            lambda: [path.name for path in blobs.rglob("*.wav")] == ["ref.wav"], what="the end of what was written"
        )
        form = {"files": {"ref_audio": ("me.wav", WAV, "audio/wav")}, "data": {"name": "me"}}
        wait_until(lambda: client.post("/v1/voices", **form).status_code == 507, what="the quota")  # type: ignore[arg-type]
        refused = client.post("/v1/voices", **form)  # type: ignore[arg-type]
        assert refused.json()["error"]["code"] == "storage_quota_exceeded"
        register(other, wav=WAV)
        client.delete(f"/v1/voices/{voice_id}")
        register(client, wav=WAV)


def test_auth_failures_are_limited_and_valid_keys_pass(tmp_path: Path) -> None:
    proxied = {"AFTERWORDS_PUBLIC_URL": "https://voice.example", "AFTERWORDS_AUTH_FAILURE_LIMIT": "10"}
    with serving(tmp_path / "home", {**proxied, "AFTERWORDS_WORKERS": "0"}) as served:
        key = served.new_key()
        thief = {"X-Forwarded-For": "198.51.100.7"}
        with served.client("guess", **thief) as client:
            answers = [client.get("/v1/keys") for _ in range(40)]
        slowed = [answer for answer in answers if answer.status_code == 429]
        assert len(slowed) >= 20  # a new minute may begin
        assert slowed[0].json()["error"]["code"] == "too_many_auth_failures"
        assert 1 <= int(slowed[0].headers["retry-after"]) <= 60
        with served.client(key, **thief) as client:
            assert client.get("/v1/voices").status_code == 200
        with served.client("guess", **{"X-Forwarded-For": "198.51.100.8"}) as client:
            assert client.get("/v1/keys").status_code == 401


def test_weak_secret_with_public_name_does_not_start(tmp_path: Path) -> None:
    env = {
        "AFTERWORDS_HOME": str(tmp_path / "home"),
        "AFTERWORDS_ADMIN_SECRET": "weak",
        "AFTERWORDS_PUBLIC_URL": "https://voice.example",
    }
    error = run("serve", "--port", "0", env=env).expect_error(2, "insecure_server")
    assert "voice.example can be reached" in error


@pytest.mark.parametrize(
    "url",
    [
        "http://93.184.216.34/", "ftp://93.184.216.34/", "//93.184.216.34/", "file:///etc/passwd", "gopher://x/",
        "https://127.0.0.1/", "https://127.1/", "https://0x7f.1/", "https://0177.0.0.1/", "https://2130706433/",
        "https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/", "https://[::]/", "https://0/",
        "https://169.254.169.254/latest/meta-data/", "https://100.64.0.1/", "https://100.127.255.254/",
        "https://10.0.0.1/", "https://172.16.0.1/", "https://192.168.0.1/", "https://0.0.0.0/", "https://224.0.0.1/",
        "https://[fe80::1]/", "https://[fc00::1]/", "https://[fd00::1]/", "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::]/", "https://localhost/", "https://user:secret@93.184.216.34/",
        "https://93.184.216.34:0/", "https://93.184.216.34/\r\nX-Evil: 1", "https://\u2488\u2488\u2488/", "https://",
    ],
)  # fmt: skip
def test_webhook_url_must_be_public_https(second: Tenant, url: str) -> None:
    ask = {"voice_id": second.voice_id, "text": "hi", "webhook_url": url}
    answer = second.client.post("/v1/synthesize", json=ask)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_webhook_url")
    assert answer.json()["error"]["param"] == "webhook_url"
    assert url not in answer.text
