"""The page at /docs, over HTTP and in a real browser."""

from __future__ import annotations

import html
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import pytest
from fastapi import Cookie, FastAPI

from afterwords.server import create_app, load_settings, router
from afterwords.server.settings import Settings
from tests.e2e.served import wait_until
from tests.server.test_embedding import RunningApp, common

BROWSER: Final = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE, DESKTOP = (360, 800), (1440, 900)
FAULTS: Final = {"Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Network.loadingFailed"}


class Browser:
    """Headless Chromium, which takes commands of the DevTools Protocol from a pipe.

    Attributes:
        events: What happened, in the order of its arrival.
    """

    def __init__(self, profile: Path) -> None:
        assert BROWSER is not None
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "-", BROWSER, *flags, "about:blank"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._read = os.fdopen(self._answers, "rb")
        self._rest = b""
        self._session: str | None = None
        self._number = 0
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command, and return its result."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (message := self._receive()).get("id") != self._number:
            self.events.append(message)
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    def open(self, url: str, size: tuple[int, int], *, is_dark: bool = False) -> None:
        """Open a page in a window of a size in pixels, and wait until it is loaded."""
        self.events.clear()
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        while all(event.get("method") != "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def close(self) -> None:
        """Close the browser, and wait for its exit."""
        self._session = None
        self.call("Browser.close")
        self._process.wait(30)
        os.close(self._commands)
        self._read.close()

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = self._read.read1(1 << 20)
            assert piece, "the browser has exited"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        parsed: dict[str, Any] = json.loads(message)
        return parsed


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


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if BROWSER is None:
        pytest.skip("Chromium is not installed")
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


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
    url = f"{running.url}/docs"
    for size, is_dark in itertools.product((PHONE, DESKTOP), (False, True)):
        browser.open(url, size, is_dark=is_dark)
        assert [event for event in browser.events if event["method"] in FAULTS] == []
        requests = [event["params"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
        assert [request["request"]["url"] for request in requests] == [url]
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off"
        background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(20, 23, 27)" if is_dark else "rgb(255, 255, 255)")
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).position") == "sticky"
    browser.evaluate("document.querySelector('nav li a').click()")
    heading = "document.querySelector(':target h3')?.textContent"
    assert wait_until(lambda: browser.evaluate(heading), what="the jump") == "POST /v1/synthesize"
