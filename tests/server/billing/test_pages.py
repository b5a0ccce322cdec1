"""The pages of a checkout over HTTP: who sees the key, what other sites can't do, and text that looks like HTML."""

from __future__ import annotations

import html
import logging
import re
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from afterwords.server import create_app, load_settings
from tests.server.billing.conftest import URL, Browser, Shop, confirmation_in, together

pytestmark = pytest.mark.anyio

PAGE: Final = {"Accept": "text/html,application/xhtml+xml"}
KEY: Final = re.compile(r'<code id="key" class="key">(aw_[\w-]{43})</code>')
HOSTILE: Final = "<b>&\"'{{ 7 * 7 }}"


async def open_success(browser: Browser, token: str, **headers: str) -> httpx.Response:
    return await browser.get(f"/v1/checkout/success?token={token}", headers={**PAGE, **headers})


async def send(browser: Browser, path: str, **fields: str) -> httpx.Response:
    headers = {**PAGE, "Sec-Fetch-Site": "same-origin", "Origin": "null"}
    return await browser.post(path, data=fields, headers=headers)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the server has logged; clients of the tests log, too."""
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("afterwords")]
    assert messages
    return messages


async def sign_in(browser: Browser, key: str) -> str:
    """Sign in, and return the token of the forms of the account page."""
    assert (await send(browser, "/v1/account/sign-in", key=key)).status_code == 303
    page = await browser.get("/v1/account")
    return str(re.findall(r'name="token" value="(\w+)"', page.text)[0])


async def test_pages_open_at_the_name_of_the_links(shop: Shop) -> None:
    async with shop.browser() as browser:
        for path in ("/v1/signup", "/v1/account?x=1"):
            other = await browser.get(f"http://localhost:7860{path}", headers=PAGE)
            assert (other.status_code, other.headers["location"]) == (307, f"{URL}{path}")
            assert (await browser.get(path, headers=PAGE)).status_code == 200
        assert (await browser.get("http://localhost:7861/v1/signup", headers=PAGE)).status_code == 200
        huge = await browser.get("/v1/signup", headers={**PAGE, "Host": "localhost:99999"})
        assert huge.status_code == 200


async def test_key_is_shown_once_to_the_browser_that_paid(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with shop.browser() as browser, shop.browser() as other:
        token = await shop.buy(browser, "once@example.com")
        assert "Open this page where you began" in (await open_success(other, token)).text
        early = [
            await browser.head(f"/v1/checkout/success?token={token}", headers=PAGE),
            await open_success(browser, token, **{"Sec-Purpose": "prefetch;prerender"}),
            await browser.get(f"/v1/checkout/success?token={token}"),
        ]
        assert [KEY.search(response.text) for response in early] == [None, None, None]
        assert early[2].json() == {"ready": True, "state": "ready"}
        tabs = await together(*(open_success(browser, token) for _ in range(12)))
        [key] = [found[1] for tab in tabs if (found := KEY.search(tab.text))]
        assert await shop.status(key) == 200
        assert sum("This key was shown already" in tab.text for tab in tabs) == 11
        assert {tab.headers["cache-control"] for tab in tabs} == {"no-store"}
    assert not [record for record in logged(caplog) if token in record or key in record]


async def test_mailed_link_shows_the_key_after_a_button(shop: Shop) -> None:
    await shop.buy_key("former@example.com")
    [customer] = shop.stripe.find("customer", email="former@example.com")
    shop.stripe.cancel(shop.stripe.find("subscription", customer=customer["id"])[0]["id"])
    await shop.deliver()
    async with shop.browser() as browser, shop.browser() as phone:
        token = await shop.buy(browser, "former@example.com")
        page = await open_success(browser, token)
        assert KEY.search(page.text) is None
        assert "Confirm your address" in page.text
        assert "<button>Mail the link</button>" in page.text
        shop.billing._mailer = None
        assert "<button" not in (await open_success(browser, token)).text
        shop.billing._mailer = shop.outbox
        sent = await send(browser, "/v1/checkout/send-confirmation", checkout=token)
        assert "Check your mail" in sent.text
        link = confirmation_in(shop.outbox.mails[-1])
        for _ in range(2):  # a mail scanner opens it, too
            assert "Show the key" in (await phone.get(f"/v1/checkout/confirm?token={link}", headers=PAGE)).text
        refused = await phone.post(
            "/v1/checkout/confirm", data={"checkout": link}, headers={**PAGE, "Sec-Fetch-Site": "cross-site"}
        )
        assert (refused.status_code, KEY.search(refused.text)) == (400, None)
        shown = [await send(phone, "/v1/checkout/confirm", checkout=link) for _ in range(2)]
        assert [bool(KEY.search(response.text)) for response in shown] == [True, False]


async def test_form_of_another_site_begins_no_checkout(shop: Shop) -> None:
    async with shop.browser() as browser:
        for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
            answer = await browser.post("/v1/checkout", data={"email": "evil@example.com"}, headers={**PAGE, **headers})
            assert (answer.status_code, browser.cookie) == (400, None)
    assert shop.stripe.count("customer", email="evil@example.com") == 0


async def test_invalid_address_shows_the_form_again(shop: Shop) -> None:
    async with shop.browser() as browser:
        answer = await send(browser, "/v1/checkout", email=HOSTILE, plan="hobby")
    assert answer.status_code == 422
    assert "it must be an email address" in answer.text
    assert f'value="{html.escape(HOSTILE).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")}"' in answer.text
    assert HOSTILE not in answer.text


async def test_account_page_opens_the_portal_of_its_customer(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    key = await shop.buy_key("portal@example.com")
    [customer] = shop.stripe.find("customer", email="portal@example.com")
    caplog.set_level(logging.DEBUG)
    async with shop.browser() as browser:
        assert (await browser.post("/v1/account/portal", headers=PAGE)).status_code == 401
        token = await sign_in(browser, key)
        assert (await send(browser, "/v1/account/portal")).status_code == 400
        opened = await send(browser, "/v1/account/portal", token=token)
    assert opened.status_code == 303
    portal = opened.headers["location"]
    [session] = [one for one in shop.stripe.objects.values() if one.get("url") == portal]
    assert session["customer"] == customer["id"]
    assert not [record for record in logged(caplog) if portal in record]


async def test_suspended_account_signs_in_to_pay(shop: Shop) -> None:
    key = await shop.buy_key("unpaid@example.com")
    [customer] = shop.stripe.find("customer", email="unpaid@example.com")
    shop.stripe.change_status(shop.stripe.find("subscription", customer=customer["id"])[0]["id"], "unpaid")
    await shop.deliver()
    assert await shop.status(key) == 402
    async with shop.browser() as browser:
        token = await sign_in(browser, key)
        assert "The account is suspended" in (await browser.get("/v1/account")).text
        assert (await send(browser, "/v1/account/portal", token=token)).status_code == 303


async def serve(tmp_path: Path, *paths: str, **settings: Any) -> list[httpx.Response]:
    app = create_app(load_settings(home=tmp_path / "home", backends="tone", workers=0, **settings))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=URL, headers=PAGE) as browser,
    ):
        return [await browser.get(path) for path in paths]


async def test_server_without_stripe_sells_nothing(tmp_path: Path) -> None:
    signup, success, account = await serve(tmp_path, "/v1/signup", "/v1/checkout/success?token=x", "/v1/account")
    assert (signup.status_code, "Nothing is for sale here" in signup.text) == (404, True)
    assert (success.status_code, "This server sells no plans." in success.text) == (404, True)
    assert "signup" not in account.text


async def test_plans_with_a_price_can_be_chosen(tmp_path: Path) -> None:
    plans = {
        "team": {"characters": 1_000_000, "price_id": "price_2", "price": HOSTILE},
        "all": {"price_id": "price_3", "price": "99 EUR a month"},
    }
    settings: dict[str, Any] = {"plans": plans, "stripe_secret_key": "sk_test_x", "stripe_webhook_secret": "whsec_x"}
    [page] = await serve(tmp_path, "/v1/signup", **settings, stripe_price_id="price_1")
    assert re.findall(r'type="radio" name="plan" value="(\w+)"', page.text) == ["hobby", "team", "all"]
    assert page.text.count(" checked>") == 1
    assert "1,000,000 characters" in page.text
    assert "Unlimited characters" in page.text
    assert HOSTILE not in page.text
    policy = page.headers["content-security-policy"]
    assert "form-action 'self' https://checkout.stripe.com https://billing.stripe.com;" in policy
