"""The page at /docs, over HTTP and in a real browser."""

from __future__ import annotations

import html
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

import httpx
import pytest
from fastapi import Cookie, FastAPI
from playwright.sync_api import Browser, ViewportSize

from afterwords.server import create_app, load_settings, router
from afterwords.server.settings import Settings
from tests.server.test_embedding import RunningApp, common

PHONE: Final[ViewportSize] = {"width": 360, "height": 800}
DESKTOP: Final[ViewportSize] = {"width": 1440, "height": 900}
SCHEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")


def fetch(url: str, method: str = "GET", *, if_none_match: str = "") -> httpx.Response:
    return httpx.request(method, url, headers={"If-None-Match": if_none_match}, timeout=60, verify=False)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home", **common())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApp]:
    settings = load_settings(home=tmp_path_factory.mktemp("reference") / "home", **common())
    with RunningApp(create_app(settings), root_path="/behind") as running:
        yield running


@pytest.fixture(scope="module")
def page(running: RunningApp) -> str:
    return fetch(f"{running.url}/docs").text


def test_page_describes_every_operation_and_schema(page: str) -> None:
    document = create_app().openapi()
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert {operation["operationId"] for operation in operations} <= set(ids)
    assert {f"schema-{name}" for name in document["components"]["schemas"]} <= set(ids)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)
    for schema in document["components"]["schemas"].values():
        assert all(f"<dt>{name}</dt>" in page for name in schema.get("properties", ()))


def test_examples_are_requests_of_the_api(page: str) -> None:
    examples = [html.unescape(example) for example in re.findall(r"<pre>(.*?)</pre>", page, re.S)]
    [speak] = [example for example in examples if "/v1/synthesize" in example]
    assert speak == (
        'curl "$URL/v1/synthesize" \\\n    -H "Authorization: Bearer $KEY" \\\n'
        '    -H \'Content-Type: application/json\' \\\n    -d \'{"voice_id": "…", "text": "…"}\''
    )
    [register] = [example for example in examples if "-F ref_audio=@FILE" in example]
    assert shlex.split(register)[:2] == ["curl", "$URL/v1/voices"]


def test_page_is_revalidated_and_answers_head(running: RunningApp) -> None:
    url = f"{running.url}/docs"
    whole, head = fetch(url), fetch(url, "HEAD")
    known = fetch(url, if_none_match=f'"other", W/{whole.headers["etag"]}')
    assert whole.headers["content-type"] == "text/html; charset=utf-8"
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", whole.headers["etag"])
    assert (known.status_code, known.content) == (304, b"")


def test_router_has_a_page_below_its_prefix(settings: Settings) -> None:
    app = FastAPI()
    app.include_router(router(settings), prefix="/voice")
    with RunningApp(app, "/voice", root_path="/behind") as running:
        page = fetch(f"{running.url}/docs")
        assert fetch(running.url.replace("/voice", "/docs")).text != page.text
    assert page.status_code == 200
    assert "/v1/synthesize" in page.text
    assert "openapi.json" not in page.text


def test_routes_of_the_application_are_escaped(settings: Settings) -> None:
    app = create_app(settings)

    @app.get("/theirs", description="Of <script>alert(1)</script> & `<b>`.")
    async def theirs(session: Annotated[str, Cookie()] = "<none>") -> dict[str, str]:
        return {}

    with RunningApp(app) as running:
        page = fetch(f"{running.url}/docs").text
    assert "<p>Of &lt;script&gt;alert(1)&lt;/script&gt; &amp; <code>&lt;b&gt;</code>.</p>" in page
    assert "cookie, default <code>&lt;none&gt;</code>" in page
    assert "<script" not in page


def test_page_works_in_a_browser(running: RunningApp, browser: Browser) -> None:
    url, events = f"{running.url}/docs", list[str]()
    for size, scheme in itertools.product((PHONE, DESKTOP), SCHEMES):
        with browser.new_context(viewport=size, color_scheme=scheme) as context:
            page = context.new_page()
            page.on("console", lambda message: events.append(message.text))
            page.on("request", lambda request: events.append(request.url))
            page.goto(url)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off"
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert background == ("rgb(20, 23, 27)" if scheme == "dark" else "rgb(255, 255, 255)")
            if size == DESKTOP:
                assert page.evaluate("getComputedStyle(document.querySelector('nav')).position") == "sticky"
            page.locator("nav li a").first.click()
            assert page.locator(":target h3").inner_text() == "POST /v1/synthesize"
    assert events == [url] * 4
