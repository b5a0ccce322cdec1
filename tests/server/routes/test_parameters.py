"""Parameters and bodies: read and refused alike by `create_app`, by an extended application and by the router."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import httpx
import pytest
from fastapi import FastAPI
from fastapi.middleware.gzip import GZipMiddleware
from hypothesis import given, settings
from hypothesis import strategies as st

from afterwords.server import create_app, load_settings, router
from tests.e2e.served import ADMIN_SECRET, register
from tests.server.test_embedding import UNKNOWN_ID, WAV, RunningApp

JSON: Final = {"Content-Type": "application/json"}
CANARY: Final = "canary7f3a"


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx.Client]]:
    """Return a client of each kind of application; the canary is the name of its voice."""
    extended = create_app(load(tmp_path_factory, "extended"))
    extended.add_middleware(GZipMiddleware)
    including = FastAPI()
    including.include_router(router(load(tmp_path_factory, "router")))
    apps = {"create_app": create_app(load(tmp_path_factory, "app")), "extended": extended, "router": including}
    with ExitStack() as stack:
        clients = {}
        for name, app in apps.items():
            running = stack.enter_context(RunningApp(app))
            with running.client() as admin:
                key = admin.post("/v1/keys").json()["api_key"]
            clients[name] = stack.enter_context(running.client(key))
            register(clients[name], name="v", wav=WAV)
        yield clients


def load(tmp_path_factory: pytest.TempPathFactory, name: str) -> Any:
    home = tmp_path_factory.mktemp(name) / "home"
    return load_settings(home=home, backends="tone", workers=0, admin_secret=ADMIN_SECRET, rate_limit=0)


def send(client: httpx.Client, method: str, url: str, **options: Any) -> tuple[int, Any, Any]:
    """Return status, error code and param of a response, which must not show the canary."""
    response = client.request(method, url, **options)
    assert CANARY not in response.text
    error = response.json().get("error", {}) if response.status_code >= 400 else {}
    return response.status_code, error.get("code"), error.get("param")


PARAMETERS: Final = [
    ("/v1/jobs", {}, (200, None, None)),
    ("/v1/jobs?status=ready&limit=3&prefer=no", {"limit": "many"}, (200, None, None)),
    (f"/v1/jobs?status={CANARY}", {}, (422, "invalid_field", "status")),
    (f"/v1/jobs?limit={CANARY}", {}, (422, "invalid_field", "limit")),
    ("/v1/jobs?limit=1001", {}, (422, "invalid_field", "limit")),
    ("/v1/jobs?limit=", {}, (422, "invalid_field", "limit")),
    ("/v1/jobs?limit=1e1", {}, (422, "invalid_field", "limit")),
    ("/v1/jobs/7", {}, (404, "job_not_found", None)),
    (f"/v1/jobs/{UNKNOWN_ID}?wait=61", {}, (422, "invalid_field", "wait")),
    (f"/v1/jobs/{UNKNOWN_ID}", {}, (404, "job_not_found", None)),
]
SPEECH: Final = b'{"voice_id": "v", "text": "hi"}'
BODIES: Final = [
    (b'{"voice_id": "v", "text": "a", "speed": 2, "response_format": "mp3", "of_tomorrow": [1]}', (202, None, None)),
    (b"\xef\xbb\xbf" + SPEECH, (202, None, None)),
    (b"", (400, "invalid_json", None)),
    (b" ", (400, "invalid_json", None)),
    (b"[]", (400, "invalid_json", None)),
    (b"null", (400, "invalid_json", None)),
    (b'{"text": "canary7f3a', (400, "invalid_json", None)),
    (b'{"text": "\xff"}', (400, "invalid_json", None)),
    (rb'{"text": "\u12"}', (400, "invalid_json", None)),
    (b"[" * 50_000, (400, "invalid_json", None)),
    (b'{"text": "canary7f3a"}', (400, "missing_field", "voice_id")),
    (rb'{"voice_id": "v", "text": "canary7f3a\ud800"}', (422, "invalid_unicode", None)),
    (rb'{"voice_id": "v", "text": "canary7f3a\udc00 \ud800x"}', (422, "invalid_unicode", None)),
    (b'{"voice_id": "v", "text": ["canary7f3a"]}', (422, "invalid_field", "text")),
    (b'{"voice_id": "v", "text": NaN}', (422, "invalid_field", "text")),
    (b'{"voice_id": "v", "text": "a", "speed": 1e400}', (422, "invalid_field", "speed")),
    (b'{"voice_id": "v", "text": "a", "speed": "canary7f3a"}', (422, "invalid_field", "speed")),
    (b'{"voice_id": "v", "text": "a", "seed": true}', (422, "invalid_field", "seed")),
    (b'{"voice_id": "v", "text": "a", "response_format": "canary7f3a"}', (422, "invalid_field", "response_format")),
]


def test_parameters_are_read_alike(users: dict[str, httpx.Client]) -> None:
    failures = []
    for name, client in users.items():
        for url, headers, expected in PARAMETERS:
            if (got := send(client, "GET", url, headers=headers)) != expected:
                failures.append((name, url, got, expected))
    assert not failures


def test_bodies_are_read_alike(users: dict[str, httpx.Client]) -> None:
    failures = []
    for name, client in users.items():
        for body, expected in BODIES:
            if (got := send(client, "POST", "/v1/synthesize", content=body, headers=JSON)) != expected:
                failures.append((name, body[:80], got, expected))
    assert not failures


def test_any_json_content_type_is_accepted(users: dict[str, httpx.Client]) -> None:
    failures = []
    for name, client in users.items():
        for kind in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/problem+json"):
            status = client.post("/v1/synthesize", content=SPEECH, headers={"Content-Type": kind}).status_code
            if status != 202:
                failures.append((name, kind, str(status)))
        for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "text/json"}):
            response = client.post("/v1/synthesize", content=SPEECH, headers=headers)
            if response.status_code != 400 or "Content-Type" not in response.json()["error"]["message"]:
                failures.append((name, str(headers), response.text))
    assert not failures


def test_optional_body_may_be_absent_but_not_malformed(users: dict[str, httpx.Client]) -> None:
    failures = []
    for name, client in users.items():
        for content, headers, status in [
            (b"", {}, 201),
            (b"", JSON, 201),
            (b"null", JSON, 201),
            (b"{}", JSON, 201),
            (b" ", JSON, 400),
            (b"{}", {}, 400),
        ]:
            admin = {"Authorization": f"Bearer {ADMIN_SECRET}"}
            response = client.post("/v1/keys", content=content, headers={**admin, **headers})
            if response.status_code != status:
                failures.append((name, content, headers, response.text))
    assert not failures


def test_idempotency_key_has_visible_ascii(users: dict[str, httpx.Client]) -> None:
    failures = []
    for name, client in users.items():
        for key in (CANARY * 26, f"{CANARY} two"):
            got = send(client, "POST", "/v1/synthesize", content=SPEECH, headers={**JSON, "Idempotency-Key": key})
            if got != (422, "invalid_field", "Idempotency-Key"):
                failures.append((name, key, got))
    assert not failures


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_random_bodies_are_answered_alike(users: dict[str, httpx.Client], body: bytes) -> None:
    statuses = {client.post("/v1/synthesize", content=body, headers=JSON).status_code for client in users.values()}
    assert statuses <= {202, 400, 404, 422}
    assert len(statuses) == 1
