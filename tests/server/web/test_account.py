"""The account page over HTTP: sessions, forms of other sites, keys, and text that looks like HTML."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from fastapi import FastAPI

from afterwords.server import create_app, load_settings, router
from afterwords.server.services.signing import read_session_token, session_token
from tests.e2e.served import register
from tests.server.test_embedding import UNKNOWN_ID, WAV, RunningApp, common

HOSTILE: Final = "<script>alert(1)</script> & \"'>{{ 7 * 7 }}"


class Person:
    """A browser without scripts, and an account with one key."""

    def __init__(self, running: RunningApp, **key: Any) -> None:
        with running.client() as admin:
            self.created = admin.post("/v1/keys", json={"label": "first", **key}).json()
        self.running = running
        self.key: str = self.created["api_key"]
        limits = httpx.Limits(max_keepalive_connections=0)  # no connection stays open
        self.browser = httpx.Client(
            base_url=running.url,
            headers={"Accept": "text/html"},
            limits=limits,
            timeout=60,
            trust_env=False,
            verify=False,
        )

    def page(self, path: str = "/v1/account") -> str:
        return self.browser.get(path).text

    def send(self, path: str, *, token: str | None = None, **fields: str) -> httpx.Response:
        """Send a form of the account page, with its hidden fields."""
        shown = self.page()
        hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', shown))
        return self.browser.post(path, data={**hidden, **({"token": token} if token is not None else {}), **fields})

    def sign_in(self, key: str | None = None, **headers: str) -> httpx.Response:
        return self.browser.post("/v1/account/sign-in", data={"key": key or self.key}, headers=headers)

    def list_keys(self) -> list[dict[str, Any]]:
        with self.running.client(self.key) as user:
            listed: list[dict[str, Any]] = user.get("/v1/keys").json()
        return [key for key in listed if not (key["revoked_at"] or key["expires_at"])]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    settings = load_settings(home=tmp_path_factory.mktemp("pages") / "home", **common(), auth_failure_limit=0)
    with RunningApp(create_app(settings)) as running:
        yield running


@pytest.fixture
def ann(running: RunningApp) -> Person:
    """Return a person who is signed in."""
    ann = Person(running)
    assert ann.sign_in().status_code == 303
    return ann


def shown_key(response: httpx.Response) -> str:
    [key] = re.findall(r'<code id="key" class="key">(aw_[\w-]{43})</code>', response.text)
    return str(key)


# -- sessions -------------------------------------------------------------------------------------------------


def test_signing_in_sets_a_cookie_for_the_account_page_only(running: RunningApp) -> None:
    response = Person(running).sign_in()
    cookie = response.headers["set-cookie"]
    assert (response.status_code, response.headers["location"]) == (303, "../account")
    assert re.fullmatch(r"aw_session=[\w.-]+; HttpOnly; Max-Age=43200; SameSite=strict", cookie)
    [kept] = response.cookies.jar
    assert kept.path == "/v1/account"


def test_signed_in_browser_sees_usage_and_keys(ann: Person) -> None:
    with ann.running.client(ann.key) as user:
        user.post("/v1/synthesize", json={"voice_id": register(user, wav=WAV), "text": "Twenty-one characters"})
    page = ann.page()
    assert "<h1>Account</h1>" in page
    assert "first" in page
    assert "<strong>21</strong>" in page
    assert re.search(r"<title>\d+ \w+ \d+: 21 characters</title>", page)
    assert f"<code>{ann.key[:8]}…</code>" in page
    assert ann.key not in page
    assert page.count("<rect ") in range(28, 32)


def test_wrong_or_limited_key_does_not_sign_in(running: RunningApp) -> None:
    ann = Person(running)
    limited = Person(running, scopes=["synthesize"]), Person(running, character_limit=5)
    for key, status in [("aw_wrong", 401), ("", 401), (limited[0].key, 403), (limited[1].key, 403)]:
        response = ann.sign_in(key or " ")
        assert (response.status_code, "set-cookie" in response.headers) == (status, False)
        assert 'role="alert"' in response.text
        assert "<h1>Sign in</h1>" in response.text
    assert "<h1>Sign in</h1>" in ann.page()


def test_sign_in_failures_are_limited(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "home", **common(), auth_failure_limit=3)
    with RunningApp(create_app(settings)) as running:
        ann = Person(running)
        assert [ann.sign_in("aw_wrong").status_code for _ in range(4)] == [401, 401, 401, 429]
        assert ann.sign_in().status_code == 303


def test_signing_out_forgets_the_cookie(ann: Person) -> None:
    assert ann.send("/v1/account/sign-out").status_code == 303
    assert not ann.browser.cookies
    assert "<h1>Sign in</h1>" in ann.page()
    assert ann.browser.post("/v1/account/create-key").status_code == 401


def test_session_ends_with_its_key(ann: Person) -> None:
    with ann.running.client() as admin:
        admin.delete(f"/v1/keys/{ann.created['key_id']}")
    assert "<h1>Sign in</h1>" in ann.page()
    response = ann.send("/v1/account/create-key")
    assert (response.status_code, "You are not signed in." in response.text) == (401, True)


def test_session_token_expires_and_can_not_be_changed() -> None:
    secret, now = b"s" * 32, time.time()
    token = session_token(secret, UNKNOWN_ID, int(now) + 10)
    assert read_session_token(secret, token, now=now) == UNKNOWN_ID
    assert read_session_token(secret, token, now=now + 11) is None
    assert read_session_token(b"t" * 32, token, now=now) is None
    key_id, expires, mac = token.split(".")
    for forged in (f"{key_id}.{int(expires) + 1}.{mac}", f"{key_id[:-1]}1.{expires}.{mac}", f"{key_id}.{expires}.", ""):
        assert read_session_token(secret, forged, now=now) is None


def test_cookie_is_secure_behind_an_https_proxy(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "home", **common(), public_url="https://voices.example/speech")
    with RunningApp(create_app(settings)) as running:
        assert "; Secure" in Person(running).sign_in().headers["set-cookie"]


# -- forms of other sites -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, 303),
        ({"Sec-Fetch-Site": "cross-site"}, 400),
        ({"Sec-Fetch-Site": "same-site"}, 400),
        ({"Origin": "https://evil.example"}, 400),
        ({}, 303),
    ],
)
def test_only_our_own_page_signs_in(running: RunningApp, headers: dict[str, str], status: int) -> None:
    response = Person(running).sign_in(**headers)
    assert (response.status_code, "set-cookie" in response.headers) == (status, status == 303)


def test_form_needs_the_token_of_its_session(running: RunningApp, ann: Person) -> None:
    bob = Person(running)
    bob.sign_in()
    bobs = re.findall(r'name="token" value="(\w+)"', bob.page())[0]
    for action in ("sign-out", "create-key", "replace-key", "revoke-key"):
        for token in ("", "0" * 64, bobs, "ä"):
            response = ann.send(f"/v1/account/{action}", token=token, key_id=ann.created["key_id"])
            assert response.status_code == 400, action
    assert [key["label"] for key in ann.list_keys()] == ["first"]
    assert "<h1>Account</h1>" in ann.page()


def test_return_from_another_site_opens_the_page_again(ann: Person) -> None:
    """A browser withholds the cookie from a link of another site, and sends it to the page that this one opens."""
    response = ann.browser.get("/v1/account", headers={"Sec-Fetch-Site": "cross-site"})
    assert "<h1>Account</h1>" in response.text
    ann.browser.cookies.clear()
    response = ann.browser.get("/v1/account", headers={"Sec-Fetch-Site": "cross-site"})
    assert '<meta http-equiv="refresh" content="0; url=account">' in response.text


# -- keys -----------------------------------------------------------------------------------------------------


def test_new_key_is_shown_once_and_works(ann: Person) -> None:
    fields = {"label": HOSTILE, "synthesize": "on", "voices:read": "on"}
    response = ann.send("/v1/account/create-key", **fields)
    key = shown_key(response)
    assert response.headers["cache-control"] == "no-store"
    assert key not in ann.page()
    with ann.running.client(key) as user:
        assert user.get("/v1/voices").status_code == 200
        assert user.delete(f"/v1/voices/{UNKNOWN_ID}").status_code == 403
    repeated = ann.browser.send(response.request)
    assert (repeated.status_code, len(ann.list_keys())) == (409, 2)


def test_hostile_label_is_shown_as_text(ann: Person) -> None:
    ann.send("/v1/account/create-key", label=HOSTILE, synthesize="on")
    page = ann.page()
    assert html.escape(HOSTILE).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in page
    assert "<script" not in page


@pytest.mark.parametrize(("label", "status"), [("x" * 200, 200), ("x" * 201, 422), ("a\0b", 422)])
def test_label_has_the_limits_of_the_api(ann: Person, label: str, status: int) -> None:
    response = ann.send("/v1/account/create-key", label=label, synthesize="on")
    assert response.status_code == status
    assert label not in response.text


def test_key_without_scopes_can_not_be_created(ann: Person) -> None:
    assert ann.send("/v1/account/create-key", label="all").status_code == 422
    assert len(ann.list_keys()) == 1


def test_session_goes_on_with_the_replaced_key(ann: Person) -> None:
    response = ann.send("/v1/account/replace-key", key_id=ann.created["key_id"], overlap_s="0")
    old, ann.key = ann.key, shown_key(response)
    assert "<h1>Account</h1>" in ann.page()
    assert [key["label"] for key in ann.list_keys()] == ["first"]
    with ann.running.client(old) as user:
        assert user.get("/v1/voices").status_code == 401
    assert ann.browser.send(response.request).status_code == 401


def test_replaced_key_stays_valid_for_its_overlap(ann: Person) -> None:
    response = ann.send("/v1/account/replace-key", key_id=ann.created["key_id"], overlap_s="3600")
    with ann.running.client(ann.key) as user:
        assert user.get("/v1/voices").status_code == 200
    ann.key = shown_key(response)
    assert "Replaced; it ends on" in ann.page()


def test_revoked_key_is_gone(ann: Person) -> None:
    other = shown_key(ann.send("/v1/account/create-key", label="other", synthesize="on"))
    [_, listed] = ann.list_keys()
    assert ann.send("/v1/account/revoke-key", key_id=listed["key_id"]).headers["location"] == "../account"
    with ann.running.client(other) as user:
        assert user.get("/v1/voices").status_code == 401
    assert "other" not in ann.page()
    ann.send("/v1/account/revoke-key", key_id=ann.created["key_id"])
    assert "<h1>Sign in</h1>" in ann.page()


def test_other_account_sees_and_changes_nothing(running: RunningApp, ann: Person) -> None:
    bob = Person(running, label="of bob")
    assert "of bob" not in ann.page()
    for action in ("replace-key", "revoke-key"):
        response = ann.send(f"/v1/account/{action}", key_id=bob.created["key_id"])
        assert (response.status_code, "There is no such key" in response.text) == (404, True)
    assert [key["label"] for key in bob.list_keys()] == ["of bob"]


# -- headers and paths ----------------------------------------------------------------------------------------


def test_every_page_keeps_other_sites_out(ann: Person) -> None:
    responses = [
        ann.browser.get("/v1/account"),
        ann.send("/v1/account/create-key", token="wrong"),
        ann.browser.get("/v1/account/create-key"),
        ann.browser.post("/v1/account/sign-out", content=bytes(20_000)),
        ann.send("/v1/account/create-key", label="new", synthesize="on"),
    ]
    assert [response.status_code for response in responses] == [200, 400, 405, 413, 200]
    nonces = set()
    for response in responses:
        policy = response.headers["content-security-policy"]
        assert {"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"} <= set(policy.split("; "))
        assert "unsafe" not in policy
        nonces.update(re.findall(r"'nonce-([\w-]+)'", policy))
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert "style=" not in response.text
    assert len(nonces) == len(responses)
    assert set(re.findall(r"<script nonce=\"([\w-]+)\">", responses[-1].text)) <= nonces


def test_unknown_host_sees_no_page(running: RunningApp) -> None:
    response = httpx.get(f"{running.url}/v1/account", headers={"Host": "evil.example"})
    assert (response.status_code, "The Host header does not name this server." in response.text) == (400, True)
    assert "<form" not in response.text


def test_head_has_headers_only(ann: Person) -> None:
    response = ann.browser.head("/v1/account")
    assert (response.status_code, response.content) == (200, b"")


def test_pages_work_below_a_prefix(tmp_path: Path) -> None:
    app = FastAPI()
    app.include_router(router(load_settings(home=tmp_path / "home", **common())), prefix="/voice")
    with RunningApp(app, "/voice", root_path="/behind") as running:
        ann = Person(running)
        response = ann.sign_in()
        assert response.next_request is not None
        assert response.next_request.url.path == "/voice/v1/account"
        [kept] = response.cookies.jar
        assert kept.path == "/voice/v1/account"
        assert "<h1>Account</h1>" in ann.page()
        response = ann.send("/v1/account/create-key", label="second", synthesize="on")
        assert shown_key(response)
        for link in re.findall(r'href="([^"#:]+)"', response.text):
            assert ann.browser.get(response.url.join(link)).status_code == 200
        [action] = re.findall(r'action="([^"]+/create-key)"', ann.page())
        assert response.url == httpx.URL(f"{running.url}/v1/account").join(action)
