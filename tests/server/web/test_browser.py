"""The pages in Chromium, with a server process and a Stripe server: buying, signing in, and what a person sees."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, ViewportSize

from afterwords.audio.wav import read_wav
from afterwords.server.routes.reference import BASE_STYLE
from afterwords.server.web.pages import FOLDER
from tests.e2e.served import DEADLINE_S, RECORDING, Served, register, wait_until
from tests.stripe_api import StripeServer, running_stripe

WINDOWS: Final[list[ViewportSize]] = [
    {"width": 320, "height": 640},
    {"width": 360, "height": 740},
    {"width": 1280, "height": 900},
]
CHECKS: Final = """() => [
    [document.documentElement.scrollWidth <= innerWidth, "nothing is cut off"],
    [document.documentElement.lang === "en", "the language is stated"],
    [document.querySelectorAll("h1").length === 1, "there is one heading of the page"],
    ...[...document.querySelectorAll("input:not([type=hidden], [hidden]), select")].map(
        each => [each.labels.length > 0, `${each.name} has a label`]),
    ...[...document.querySelectorAll("button, summary, select, label:has(> input), footer a, input")]
        .filter(each => each.checkVisibility() && !each.matches("label > input"))
        .map(each => [each.getBoundingClientRect().height >= 44, `${each.outerHTML} is large enough for a finger`]),
].filter(([holds]) => !holds)"""


@dataclass
class Shop:
    """A server that sells a plan, the Stripe server behind it, and what a browser reports while it uses both."""

    served: Served
    stripe: StripeServer
    faults: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The URL of the server: for a browser, another site than that of the Stripe server."""
        return f"http://localhost:{self.served.port}"

    def open_page(self, context: BrowserContext) -> Page:
        """Open a page whose console and requests are watched."""

        def on_message(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning") and not message.location["url"].startswith(self.stripe.url):
                self.faults.append(f"{message.text} {message.location}")

        def on_request(request: Request) -> None:
            if not request.url.startswith((f"{self.url}/", f"{self.stripe.url}/")):
                self.faults.append(request.url)

        page = context.new_page()
        page.set_default_timeout(1000 * DEADLINE_S)
        page.on("console", on_message)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", on_request)
        return page

    def begin(self, page: Page, email: str) -> dict[str, Any]:
        """Sign up, and return the session of Stripe, which is not paid yet."""
        page.goto(f"{self.url}/v1/signup")
        page.get_by_label("Email").fill(email)
        page.get_by_role("button", name="Continue to payment").click()
        page.wait_for_url(f"{self.stripe.url}/**")
        [session] = [one for one in self.stripe.objects.values() if one.get("url") == page.url]
        return session

    def sign_in(self, page: Page, key: str) -> None:
        page.goto(f"{self.url}/v1/account")
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("heading", name="Usage").wait_for()

    def buy(self, page: Page, email: str) -> str:
        """Sign up, pay, and return the key that the page shows."""
        self.begin(page, email)
        page.get_by_role("button", name="Pay").click()
        return key_on(page)


def key_on(page: Page) -> str:
    key = page.locator("#key").inner_text()
    assert re.fullmatch(r"aw_[\w-]{43}", key)
    return key


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with running_stripe() as stripe:
        stripe.create_price("price_hobby", 900)
        settings = {
            "AFTERWORDS_PUBLIC_URL": f"http://localhost:{port}",
            "AFTERWORDS_STRIPE_SECRET_KEY": stripe.key,
            "AFTERWORDS_STRIPE_WEBHOOK_SECRET": stripe.webhooks.secrets[0],
            "AFTERWORDS_STRIPE_PRICE_ID": "price_hobby",
            "AFTERWORDS_STRIPE_API_URL": stripe.url,
        }
        served = Served(tmp_path_factory.mktemp("shop") / "home", settings, port=port).start().ready()
        stripe.webhooks.url = f"{served.url}/v1/webhooks/stripe"
        try:
            yield Shop(served, stripe)
        finally:
            served.stop()


def test_plan_is_bought_used_and_managed(shop: Shop, browser: Browser) -> None:
    with browser.new_context(permissions=["clipboard-read", "clipboard-write"]) as context:
        page = shop.open_page(context)
        key = shop.buy(page, "ann@example.com")
        page.get_by_role("button", name="Copy").click()
        page.get_by_text("Copied.").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == key
        with shop.served.client(key) as ann:
            ask = {"voice_id": register(ann, wav=RECORDING), "text": "Hello from anywhere."}
            speech = ann.post("/v1/synthesize", json=ask, headers={"Prefer": "wait=60"})
            assert len(read_wav(speech.content)[0]) > 0
        page.reload()
        page.get_by_role("heading", name="This key was shown already").wait_for()

        page.goto(f"{shop.url}/v1/signup")
        page.get_by_label("Email").fill(" Ann@Example.com")
        page.get_by_role("button", name="Continue to payment").click()
        page.wait_for_url(f"{shop.url}/v1/checkout/already-subscribed")
        assert "example.com" not in page.content()

        shop.sign_in(page, key)
        assert page.get_by_text("20 of 100,000 characters").is_visible()
        page.get_by_role("button", name="Manage billing").click()
        page.get_by_role("link", name="Return").click()  # the cookie is not sent from another site
        page.get_by_role("button", name="Sign out").click()
        page.get_by_label("API key").wait_for()
        page.goto(f"{shop.url}/v1/account")
        assert page.get_by_label("API key").is_visible()
    assert shop.faults == []


def test_waiting_page_shows_the_key_once_it_is_paid(shop: Shop, browser: Browser) -> None:
    with browser.new_context() as with_scripts, browser.new_context(java_script_enabled=False) as without:
        sessions = []
        for context, email in ((with_scripts, "bob@example.com"), (without, "eve@example.com")):
            page = shop.open_page(context)
            sessions.append((page, shop.begin(page, email)))
            page.goto(sessions[-1][1]["success_url"])
            assert page.get_by_text("Waiting for Stripe").is_visible()
        for page, session in sessions:
            shop.stripe.pay(session["id"])
            page.locator("#key").wait_for()
            assert key_on(page)
    assert shop.faults == []


def test_former_customer_confirms_the_address(shop: Shop, browser: Browser) -> None:
    with browser.new_context() as first, browser.new_context() as second, browser.new_context() as mail:
        page = shop.open_page(first)
        key = shop.buy(page, "kim@example.com")
        [customer] = shop.stripe.find("customer", email="kim@example.com")
        [subscription] = shop.stripe.find("subscription", customer=customer["id"])
        shop.stripe.cancel(subscription["id"])
        shop.stripe.webhooks.wait()
        shop.sign_in(page, key)
        assert page.get_by_text("The account is suspended").is_visible()
        check(page, "suspended")

        page = shop.open_page(second)
        shop.begin(page, "kim@example.com")
        page.get_by_role("button", name="Pay").click()
        page.get_by_role("heading", name="Confirm your address").wait_for()
        check(page, "send-confirmation")
        page.get_by_role("button", name="Mail the link").click()
        page.get_by_role("heading", name="Check your mail").wait_for()

        link = re.findall(rf"{shop.url}/v1/checkout/confirm\S+", shop.served.log.read_text("utf-8"))[-1]
        page = shop.open_page(mail)
        for _ in range(2):  # opening the link uses nothing up
            page.goto(link)
        check(page, "confirm")
        page.get_by_role("button", name="Show the key").click()
        assert key_on(page) != key
        page.goto(link)
        page.get_by_role("heading", name="This key was shown already").wait_for()
    assert shop.faults == []


def test_suspended_account_subscribes_again(shop: Shop, browser: Browser) -> None:
    with browser.new_context() as context:
        page = shop.open_page(context)
        key = shop.buy(page, "lee@example.com")
        [customer] = shop.stripe.find("customer", email="lee@example.com")
        [subscription] = shop.stripe.find("subscription", customer=customer["id"])
        shop.stripe.cancel(subscription["id"])
        shop.stripe.webhooks.wait()
        with shop.served.client(key) as lee:
            wait_until(lambda: lee.get("/v1/voices").status_code == 402, what="the suspension")
            shop.sign_in(page, key)
            page.get_by_role("button", name="Continue to payment").click()
            page.get_by_role("button", name="Pay").click()
            assert key_on(page) != key
            wait_until(lambda: lee.get("/v1/voices").status_code == 200, what="access")
    assert shop.faults == []


def test_every_page_fits_and_has_labels(shop: Shop, browser: Browser) -> None:
    with browser.new_context() as context:
        page = shop.open_page(context)
        key = shop.buy(page, "fay&'1@example.com")
        check(page, "key")
        waiting = shop.begin(page, "joe@example.com")["success_url"]
        token = waiting.partition("?")[2]
        for name, path in {
            "signup": "signup",
            "waiting": f"checkout/success?{token}",
            "expired": "checkout/success?token=wrong",
            "already-subscribed": "checkout/already-subscribed",
            "sign-in": "account",
        }.items():
            page.goto(f"{shop.url}/v1/{path}")
            check(page, name)
        shop.sign_in(page, key)
        check(page, "account")
        for summary in page.locator("summary").all():
            summary.click()
        check(page, "account-open")
    assert shop.faults == []


def check(page: Page, name: str) -> None:
    """Check a page in windows of several sizes."""
    for window in WINDOWS:
        page.set_viewport_size(window)
        assert page.evaluate(CHECKS) == [], (name, window)


def test_colors_have_enough_contrast() -> None:
    style = BASE_STYLE + (FOLDER / "style.css").read_text("utf-8")
    pairs = {name: (light, dark) for name, light, dark in re.findall(r"--(\w+): light-dark\((#\w+), (#\w+)\)", style)}

    def luminance(color: str) -> float:
        digits = color[1:] if len(color) == 7 else "".join(digit * 2 for digit in color[1:])
        channels = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for front, backs, least in [
        ("text", ("page", "panel"), 4.5),
        ("soft", ("page", "panel"), 4.5),
        ("link", ("page", "panel"), 4.5),
        ("delete", ("page", "panel"), 4.5),
        ("field", ("page", "panel"), 3),
    ]:
        for back in backs:
            for scheme in (0, 1):
                darker, lighter = sorted(luminance(pairs[name][scheme]) for name in (front, back))
                assert (lighter + 0.05) / (darker + 0.05) >= least, (front, back, scheme)
