"""Stripe down, answers lost, and kills between payment and page: nothing half-made, and at most one key."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import suppress
from pathlib import Path
from unittest.mock import AsyncMock

import httpx
import pytest
from pydantic import SecretStr

from afterwords.errors import ConflictError, MissingExtraError
from afterwords.server import failpoints
from afterwords.server.app import create_app
from afterwords.server.records import CheckoutState
from afterwords.server.settings import load_settings
from afterwords.server.stripe_payments import StripePayments
from tests.server.billing.conftest import LaterClock, Object, Shop, token_of

pytestmark = pytest.mark.anyio

CREATED = ("customer", "checkout.session")


class KilledError(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


def counts(shop: Shop) -> list[int]:
    return [shop.stripe.count(kind) for kind in CREATED]


@pytest.mark.parametrize("status", [500, 503, 429, 0])
async def test_stripe_down_is_503_and_leaves_nothing(shop: Shop, status: int) -> None:
    before = counts(shop)
    async with shop.browser() as browser:
        with shop.stripe.outage(status):
            answer = await browser.sign_up(f"down{status}@example.com")
        assert answer.status_code == 503, answer.text
        assert answer.headers["retry-after"]
        code = answer.json()["error"]["code"]
        assert code == ("payments_failed" if status else "payments_unavailable")
        assert counts(shop) == before
        await shop.session(browser, f"down{status}@example.com")
    assert counts(shop) == [before[0] + 1, before[1] + 1]


@pytest.mark.parametrize("route", ["POST /v1/customers", "POST /v1/checkout/sessions"])
@pytest.mark.parametrize("status", [500, 0])
async def test_lost_answer_makes_no_second_object(shop: Shop, route: str, status: int) -> None:
    before = counts(shop)
    email = f"lost{status}{route[-3:]}@example.com"
    shop.stripe.fail(route, status, times=3, performs=True)  # as often as the package tries
    async with shop.browser() as browser:
        browser.cookies.set("aw_checkout", "c" * 43)
        assert (await browser.sign_up(email)).status_code == 503
        await shop.session(browser, email)
    assert counts(shop) == [before[0] + 1, before[1] + 1]


async def test_failed_expiry_is_tried_again(shop: Shop) -> None:
    async with shop.browser() as one, shop.browser() as two:
        await shop.session(one, "expiry@example.com")
        shop.stripe.fail("POST /v1/checkout/sessions/{id}/expire", 500)
        assert (await two.sign_up("expiry@example.com")).status_code == 503
        await shop.session(two, "expiry@example.com")


async def test_event_is_repeated_after_stripe_was_down(shop: Shop) -> None:
    async with shop.browser() as browser:
        session = await shop.session(browser, "repeat@example.com")
        shop.stripe.pay(session["id"])
        events = shop.stripe.webhooks.take()
        completed = [event for event in events if event["type"] == "checkout.session.completed"]
        with shop.stripe.outage():
            assert await shop.deliver(*completed) == [503]
            assert await shop.billing.success(token_of(session), browser.cookie) is CheckoutState.WAITING
        assert await shop.deliver(*completed) == [200]
        assert await shop.billing.success(token_of(session), browser.cookie) is CheckoutState.READY


@pytest.mark.parametrize("place", failpoints.IN_BILLING)
async def test_kill_leaves_one_customer_session_and_key(
    shop: Shop, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kill once at a place, then do everything again, as browser, Stripe and operator would."""
    email, before = f"{place}@example.com", counts(shop)
    killed: list[str] = []

    def kill(reached: str) -> None:
        if reached == place and not killed:
            killed.append(place)
            raise KilledError

    monkeypatch.setattr("afterwords.server.services.billing.reach", kill)
    async with shop.browser() as browser:
        browser.cookies.set("aw_checkout", "k" * 43)
        session = None
        for _ in range(2):
            with suppress(KilledError):
                url = await shop.billing.begin_checkout(email, None, "k" * 43)
                session = shop.stripe.objects[url.rpartition("/")[2]]
        assert session is not None
        shop.stripe.pay(session["id"])
        events = shop.stripe.webhooks.take()
        for _ in range(2):
            with suppress(KilledError, BaseExceptionGroup):
                await shop.deliver(*events)
        shown = []
        for _ in range(2):
            with suppress(KilledError):
                shown.append(await shop.billing.show_key(token_of(session), "k" * 43))
    assert killed == [place]
    assert counts(shop) == [before[0] + 1, before[1] + 1]
    customer = await shop.state.store.find_customer(email=email)
    assert customer is not None
    [key] = await shop.state.keys.list(account_id=customer.account_id)
    assert len([one for one in shown if one]) == (0 if place == "checkout-key-stored" else 1)
    again = await shop.billing.reissue(email)  # a page that was lost
    keys = {one.key_id: one for one in await shop.state.keys.list(account_id=customer.account_id)}
    assert (keys[key.key_id].revoked_at is not None, keys[again.key.key_id].revoked_at) == (True, None)


async def test_reissue_replaces_only_the_key_of_its_checkout(shop: Shop) -> None:
    key = await shop.buy_key("reissue@example.com")
    customer = await shop.state.store.find_customer(email="reissue@example.com")
    assert customer is not None
    own = await shop.state.keys.create(account_id=customer.account_id)
    [bought] = [
        one for one in await shop.state.keys.list(account_id=customer.account_id) if key.startswith(one.prefix or "-")
    ]
    rotated = await shop.state.keys.rotate(bought.key_id, account_id=None, overlap_s=3600)
    first = await shop.billing.reissue("reissue@example.com")
    second = await shop.billing.reissue(customer.customer_id)
    statuses = [await shop.status(one) for one in (key, rotated.secret, first.secret, second.secret, own.secret)]
    assert statuses == [401, 401, 401, 200, 200]


async def test_closing_cancels_and_separates_the_customer(shop: Shop) -> None:
    await shop.buy_key("close@example.com")
    customer = await shop.state.store.find_customer(email="close@example.com")
    assert customer is not None
    assert customer.account_id is not None
    with shop.stripe.outage(), pytest.raises(Exception, match="Stripe"):
        await shop.billing.cancel(customer.account_id)
    assert (await shop.billing.customer(customer.account_id)) is not None
    await shop.billing.cancel(customer.account_id)
    assert shop.stripe.find("subscription", customer=customer.customer_id)[0]["status"] == "canceled"
    assert set(await shop.deliver()) == {200}
    async with shop.browser() as browser:  # a new subscription is that of a new account
        token = await shop.buy(browser, "close@example.com")
        minted = await shop.billing.show_key(token, browser.cookie)
    assert minted is not None
    assert minted.key.account_id != customer.account_id
    assert minted.key.account_id is not None
    await shop.billing.portal(minted.key.account_id)
    assert shop.stripe.find("billing_portal.session")[-1]["customer"] != customer.customer_id
    await shop.billing.reconcile()
    former = await shop.state.store.find_customer(customer_id=customer.customer_id)
    assert former is not None
    assert (former.email, former.account_id) == (None, None)


async def test_closing_cancels_a_price_that_left_the_settings(shop: Shop) -> None:
    await shop.buy_key("left@example.com")
    customer = await shop.state.store.find_customer(email="left@example.com")
    assert customer is not None
    assert customer.account_id is not None
    [subscription] = shop.stripe.find("subscription", customer=customer.customer_id)
    move(subscription)
    await shop.billing.sync(customer.customer_id)
    await shop.billing.cancel(customer.account_id)
    assert subscription["status"] == "canceled"


async def test_account_with_a_live_subscription_stays_open(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await shop.buy_key("live@example.com")
    customer = await shop.state.store.find_customer(email="live@example.com")
    assert customer is not None
    assert customer.account_id is not None
    monkeypatch.setattr(shop.billing.payments, "cancel_subscription", AsyncMock())  # for instance, one that is too late
    with pytest.raises(ConflictError, match="has not ended"):
        await shop.billing.cancel(customer.account_id)
    assert await shop.billing.customer(customer.account_id) is not None


async def test_price_that_left_the_settings_leaves_no_status(shop: Shop) -> None:
    key = await shop.buy_key("moved@example.com")
    [customer] = shop.stripe.find("customer", email="moved@example.com")
    [subscription] = shop.stripe.find("subscription", customer=customer["id"])
    subscription["cancel_at_period_end"] = True
    await shop.billing.sync(customer["id"])
    move(subscription)
    assert (await shop.billing.reconcile()).changed == 1
    synced = await shop.state.store.find_customer(customer_id=customer["id"])
    assert synced is not None
    assert (synced.status, synced.is_ending, synced.is_subscribed, await shop.status(key)) == (None, False, False, 402)
    async with shop.browser() as browser:
        await shop.session(browser, "moved@example.com")  # a plan can be bought again


def move(subscription: Object) -> None:
    """Move a subscription to a price that is not one of ours."""
    item = subscription["items"]["data"][0]
    item["price"] = {**item["price"], "id": "price_other"}


async def test_requests_share_a_look_that_hangs(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await shop.buy_key("hangs@example.com")
    customer = await shop.state.store.find_customer(email="hangs@example.com")
    assert customer is not None
    assert customer.account_id is not None
    payments = StripePayments(SecretStr(shop.stripe.key), None, api_url=shop.stripe.url, timeout_s=0.2)
    monkeypatch.setattr(shop.billing, "payments", payments)
    monkeypatch.setattr(shop.billing, "_clock", LaterClock(3600))
    answer, asked = shop.stripe.delay("GET /v1/customers/{id}"), len(shop.stripe.requests)
    try:
        await asyncio.gather(*(shop.billing.renew(customer.account_id) for _ in range(6)))
        await shop.billing.renew(customer.account_id)
    finally:
        answer.released.set()
        await payments.close()
    assert [one.route for one in shop.stripe.requests[asked:]] == ["GET /v1/customers/{id}"]


async def test_customer_that_stripe_does_not_know_is_replaced(shop: Shop) -> None:
    key = await shop.buy_key("mode@example.com")
    [test_mode] = shop.stripe.find("customer", email="mode@example.com")
    del shop.stripe.objects[test_mode["id"]]  # as in the live mode
    assert await shop.status(key) == 200
    async with shop.browser() as browser:
        token = await shop.buy(browser, "mode@example.com")
        minted = await shop.billing.show_key(token, browser.cookie)
    assert minted is not None
    assert [await shop.status(one) for one in (key, minted.secret)] == [402, 200]


async def test_server_starts_and_answers_while_stripe_is_down(tmp_path: Path) -> None:
    nowhere = {"stripe_secret_key": "sk_test_x", "stripe_webhook_secret": "whsec_x", "stripe_price_id": "price_x"}
    settings = load_settings(
        home=tmp_path / "home", backends=("tone",), workers=0, stripe_api_url="http://127.0.0.1:1", **nowhere
    )
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        state = app.lifetime.state
        assert state is not None
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860") as client:
            assert (await client.get("/v1/health")).status_code == 200
        async with asyncio.timeout(60):
            while not state.metrics.housekeeping_failures.sums[("reconcile",)]:
                await asyncio.sleep(0.05)


async def test_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stripe", None)
    with pytest.raises(MissingExtraError, match="'billing'") as caught:
        StripePayments(SecretStr("sk_test_x"), None, api_url="http://127.0.0.1:1")
    assert "billing" in caught.value.hint


async def test_log_has_no_address_token_or_secret(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with shop.browser() as browser:
        token = await shop.buy(browser, "logged@example.com")
        minted = await shop.billing.show_key(token, browser.cookie)
        assert minted is not None
        with shop.stripe.outage():
            await browser.sign_up("unlogged@example.com")
        shop.stripe.fail("POST /v1/checkout/sessions", 500, times=3)
        await browser.sign_up("unlogged@example.com")
    secrets = [minted.secret, token, browser.cookie or "-", shop.stripe.key, shop.stripe.webhooks.secrets[0]]
    assert "Stripe refused" in caplog.text
    assert not [secret for secret in [*secrets, "logged@", "logged%40", "/pay/"] if secret in caplog.text]
