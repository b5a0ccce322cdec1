"""From sign-up to the key: one customer, one open session, one key for the browser that began."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress

import pytest
from httpx import Response

from afterwords.errors import ConflictError, LimitError
from afterwords.server.app_state import open_billing
from afterwords.server.clock import SystemClock
from afterwords.server.records import CheckoutState
from tests.error_codes import has_code
from tests.server.billing.conftest import LaterClock, Shop, confirmation_in, together, token_of
from tests.stripe_api.account import StripeError

pytestmark = pytest.mark.anyio

HOSTILE = [
    "",
    "ann",
    "@example.com",
    "ann@",
    "a@b@example.com",
    "ann@example.com\r\nBcc: all@example.com",
    "ann @example.com",
    "ann@exam\0ple.com",
    "ann@example.com,bob@example.com",
    '"<script>alert(1)</script>"@example.com',
    "\u202eann@example.com",
    f"{'a' * 250}@example.com",
]


async def test_paid_checkout_shows_one_key(shop: Shop) -> None:
    async with shop.browser() as browser, shop.browser() as other:
        answer = await browser.sign_up("Ann@Example.com ")
        cookie = answer.headers["set-cookie"].split("; ")
        assert {"HttpOnly", "SameSite=lax", "Path=/v1"} <= set(cookie)
        session = shop.stripe.objects[answer.json()["url"].rpartition("/")[2]]
        token = token_of(session)
        poll = await browser.get("/v1/checkout/success", params={"token": token})
        assert (poll.json(), poll.headers["referrer-policy"]) == ({"ready": False, "state": "waiting"}, "no-referrer")
        shop.stripe.pay(session["id"])
        assert set(await shop.deliver()) == {200}
        for _ in range(3):  # polling uses nothing up
            assert (await browser.get("/v1/checkout/success", params={"token": token})).json() == {
                "ready": True,
                "state": "ready",
            }
        assert await shop.billing.success(token, other.cookie) is CheckoutState.WRONG_BROWSER
        assert await shop.billing.show_key(token, other.cookie) is None

        shown = await together(*(shop.billing.show_key(token, browser.cookie) for _ in range(12)))

        [minted] = [one for one in shown if one is not None]
        assert await shop.billing.success(token, browser.cookie) is CheckoutState.SHOWN
        assert await shop.status(minted.secret) == 200
        files = [path.read_bytes() for path in shop.database.parent.glob("afterwords.db*")]
        assert minted.secret.encode() not in b"".join(files)
        assert cookie[0].partition("=")[2].encode() not in b"".join(files)
        assert shop.stripe.count("customer", email="ann@example.com") == 1
        again = await browser.sign_up("ann@example.com")
        assert again.json()["url"].endswith("/v1/checkout/already-subscribed")


async def test_poll_alone_finds_the_payment(shop: Shop) -> None:
    async with shop.browser() as browser:
        session = await shop.session(browser, "poll@example.com")
        shop.stripe.pay(session["id"])
        shop.stripe.webhooks.take()
        assert await shop.billing.success(token_of(session), browser.cookie) is CheckoutState.READY


async def test_same_browser_gets_its_session_back(shop: Shop) -> None:
    async with shop.browser() as browser:
        first = await shop.session(browser, "same@example.com")
        assert await shop.session(browser, "Same@example.com") is first
        clicks = await together(*(browser.sign_up("same@example.com") for _ in range(3)))
        assert {answer.json()["url"] for answer in clicks} == {first["url"]}
    assert shop.stripe.count("checkout.session", customer=first["customer"]) == 1


async def test_idempotency_key_stands_for_the_cookie(shop: Shop) -> None:
    email, once = "retry@example.com", {"Idempotency-Key": "91f5c0de-70c4-4a52-9f0e-0c7d7f2f6b11"}

    async def ask(key: dict[str, str] = once, cookie: str = "", **fields: str) -> Response:
        async with shop.browser() as program:
            program.cookies.update({"aw_checkout": cookie} if cookie else {})
            return await program.post("/v1/checkout", json={"email": email} | fields, headers=key)

    first, *others = await together(*(ask() for _ in range(3)))
    again = await ask(cookie=first.cookies["aw_checkout"])
    for answer in (*others, again):
        assert (answer.json(), answer.cookies["aw_checkout"]) == (first.json(), first.cookies["aw_checkout"])
    session = shop.stripe.objects[first.json()["url"].rpartition("/")[2]]
    assert shop.stripe.count("checkout.session", customer=session["customer"]) == 1
    for cookie in ("", first.cookies["aw_checkout"]):
        other = await ask(cookie=cookie, email="other-retry@example.com")
        assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert shop.stripe.count("customer", email="other-retry@example.com") == 0
    assert (await ask({"Idempotency-Key": "a b"})).status_code == 422
    shop.stripe.pay(session["id"])
    assert set(await shop.deliver()) == {200}
    state = await shop.billing.success(token_of(session), first.cookies["aw_checkout"])
    assert state is CheckoutState.READY
    elsewhere = await ask({"Idempotency-Key": "another"}, cookie="d" * 43)  # a browser keeps its cookie
    assert elsewhere.cookies["aw_checkout"] == "d" * 43


@pytest.mark.parametrize("is_at_once", [False, True])
async def test_two_browsers_have_one_open_session(shop: Shop, is_at_once: bool) -> None:
    email = f"two{is_at_once}@example.com".lower()
    async with shop.browser() as one, shop.browser() as two:
        if is_at_once:
            answers = await together(one.sign_up(email), two.sign_up(email))
            assert {answer.status_code for answer in answers} <= {200, 409}
        else:
            old = await shop.session(one, email)
            await shop.session(two, email)
            assert shop.stripe.objects[old["id"]]["status"] == "expired"
            back = await shop.session(one, email)  # with another idempotency key, or Stripe would repeat the old one
            assert back["id"] != old["id"]
    [customer] = shop.stripe.find("customer", email=email)
    assert shop.stripe.count("checkout.session", customer=customer["id"], status="open") == 1


async def test_overtaken_checkout_leaves_the_later_session_open(shop: Shop) -> None:
    email = "overtaken@example.com"
    other = open_billing(shop.state.settings, shop.state.store, SystemClock(), b"of another server")
    assert other is not None
    async with shop.browser() as one, shop.browser() as two:
        await shop.session(one, email)
        slow = shop.stripe.delay("GET /v1/subscriptions")
        overtaken = asyncio.create_task(two.sign_up(email))
        assert await asyncio.to_thread(slow.reached.wait, 60)
        url = await other.begin_checkout(email, None, "a cookie")
        slow.released.set()
        answer = await overtaken
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "checkout_replaced")
    [customer] = shop.stripe.find("customer", email=email)
    assert [one["url"] for one in shop.stripe.find("checkout.session", customer=customer["id"], status="open")] == [url]
    await other.payments.close()


async def test_session_that_expires_meanwhile_is_replaced(shop: Shop) -> None:
    async with shop.browser() as one, shop.browser() as two:
        old = await shop.session(one, "meanwhile@example.com")
        slow = shop.stripe.delay("GET /v1/checkout/sessions")
        later = asyncio.create_task(two.sign_up("meanwhile@example.com"))
        assert await asyncio.to_thread(slow.reached.wait, 60)
        shop.stripe.expire_session(old["id"])  # as an overtaken checkout does with its own
        slow.released.set()
        assert (await later).status_code == 200
    assert shop.stripe.count("checkout.session", customer=old["customer"], status="open") == 1


async def test_payment_during_another_checkout_is_seen(shop: Shop) -> None:
    async with shop.browser() as one, shop.browser() as two:
        session = await shop.session(one, "during@example.com")
        slow = shop.stripe.delay("GET /v1/subscriptions")
        late = asyncio.create_task(two.sign_up("during@example.com"))
        assert await asyncio.to_thread(slow.reached.wait, 60)
        with suppress(StripeError):  # the session has expired
            shop.stripe.pay(session["id"])
        slow.released.set()
        await late
    payable = shop.stripe.count("checkout.session", customer=session["customer"], status="open")
    assert payable + shop.stripe.count("subscription", customer=session["customer"]) == 1


@pytest.mark.parametrize("is_known", [True, False])
async def test_paid_checkout_continues_at_its_page(shop: Shop, is_known: bool) -> None:
    email = f"paid{is_known}@example.com"
    async with shop.browser() as browser, shop.browser() as other:
        session = await shop.session(browser, email)
        shop.stripe.pay(session["id"])
        if is_known:
            assert set(await shop.deliver()) == {200}
        assert (await other.sign_up(email)).json()["url"].endswith("/already-subscribed")
        assert (await browser.sign_up(email)).json()["url"] == session["success_url"]
        assert await shop.billing.show_key(token_of(session), browser.cookie) is not None
        assert (await browser.sign_up(email)).json()["url"].endswith("/already-subscribed")


async def test_session_paid_in_another_tab_is_the_only_one(shop: Shop) -> None:
    async with shop.browser() as one, shop.browser() as two:
        session = await shop.session(one, "tabs@example.com")
        shop.stripe.pay(session["id"])  # its events are late
        answer = await two.sign_up("tabs@example.com")
    assert answer.json()["url"].endswith("/v1/checkout/already-subscribed")


async def test_bank_debit_is_waited_for(shop: Shop) -> None:
    async with shop.browser() as browser:
        session = await shop.session(browser, "debit@example.com")
        shop.stripe.pay(session["id"], debit="incomplete")
        assert set(await shop.deliver()) == {200}
        assert await shop.billing.success(token_of(session), browser.cookie) is CheckoutState.WAITING
        assert (await browser.sign_up("debit@example.com")).json()["url"].endswith("/already-subscribed")
        shop.stripe.settle(session["id"])
        assert set(await shop.deliver()) == {200}
        assert await shop.billing.success(token_of(session), browser.cookie) is CheckoutState.READY


async def test_late_debit_mails_the_link_to_its_key(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    async with shop.browser() as browser:
        session = await shop.session(browser, "late-debit@example.com")
        shop.stripe.pay(session["id"], debit="incomplete")
        assert set(await shop.deliver()) == {200}
        for part in (shop.billing, shop.state.store):
            monkeypatch.setattr(part, "_clock", LaterClock(5 * 86_400))
        await shop.state.store.delete_expired()
        assert await shop.billing.success(token_of(session), browser.cookie) is CheckoutState.WAITING
        shop.outbox.mails.clear()
        shop.stripe.settle(session["id"])
        assert set(await shop.deliver()) == {200}
        [mail] = shop.outbox.mails
        assert (mail[0], mail[1]) == ("late-debit@example.com", "Your payment has arrived")
        monkeypatch.setattr(shop.billing, "_clock", LaterClock(6 * 86_400))  # the next day
        assert await shop.billing.success(token_of(session), browser.cookie) is CheckoutState.EXPIRED
        page = await browser.get(f"/v1/checkout/confirm?token={confirmation_in(mail)}", headers={"accept": "text/html"})
        assert ("Show the key" in page.text, "Revoke" in page.text) == (True, False)
        minted = await shop.billing.confirm(confirmation_in(mail))
    assert minted is not None
    assert await shop.status(minted.secret) == 200


@pytest.mark.parametrize("email", HOSTILE)
async def test_hostile_address_is_refused_and_not_shown(shop: Shop, email: str) -> None:
    before = len(shop.stripe.requests)
    async with shop.browser() as browser:
        json = await browser.post("/v1/checkout", json={"email": email})
        form = await browser.post("/v1/checkout", data={"email": email})
    for answer in (json, form):
        assert answer.status_code in (400, 422), answer.text
        assert not email or email not in answer.text
    assert len(shop.stripe.requests) == before


async def test_form_is_redirected_to_the_page_of_stripe(shop: Shop) -> None:
    async with shop.browser() as browser:
        answer = await browser.post("/v1/checkout", data={"email": "form+tag@example.com"})
    assert (answer.status_code, "aw_checkout=" in answer.headers["set-cookie"]) == (303, True)
    assert shop.stripe.objects[answer.headers["location"].rpartition("/")[2]]["status"] == "open"


async def test_clients_are_limited_by_address(shop: Shop) -> None:
    async with shop.browser("10.0.0.2") as busy, shop.browser("10.0.0.3") as other:
        statuses = [(await busy.sign_up("busy@example.com")).status_code for _ in range(12)]
        assert statuses == [200] * 10 + [429] * 2
        assert (await other.sign_up("other@example.com")).status_code == 200


async def test_unknown_plan_and_forged_token_are_refused(shop: Shop) -> None:
    async with shop.browser() as browser:
        refused = await browser.sign_up("plan@example.com", plan="free")
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "plan")
        token = token_of(await shop.session(browser, "plan@example.com"))
        for forged in ("", "x", token[:-1], f"{token[:-1]}é", token.replace("-", "0", 1), token + "0"):
            assert await shop.billing.success(forged, browser.cookie) is CheckoutState.EXPIRED
        assert await shop.billing.confirmation(token) is CheckoutState.EXPIRED  # of another purpose


async def test_former_customer_confirms_the_address(shop: Shop) -> None:
    old_key = await shop.buy_key("former@example.com")
    [customer] = shop.stripe.find("customer", email="former@example.com")
    [subscription] = shop.stripe.find("subscription", customer=customer["id"])
    shop.stripe.cancel(subscription["id"])
    assert set(await shop.deliver()) == {200}
    assert await shop.status(old_key) == 402
    async with shop.browser() as browser:
        token = await shop.buy(browser, "former@example.com")
        assert await shop.status(old_key) == 200  # by itself
        assert await shop.billing.success(token, browser.cookie) is CheckoutState.NEEDS_CONFIRMATION
        assert await shop.billing.show_key(token, browser.cookie) is None
        for _ in range(3):
            await shop.billing.send_confirmation(token, browser.cookie)
        with pytest.raises(LimitError):
            await shop.billing.send_confirmation(token, browser.cookie)
    mail = shop.outbox.mails[-1]
    assert mail[0] == "former@example.com"
    link = confirmation_in(mail)
    assert await shop.billing.confirmation(link) is CheckoutState.NEEDS_CONFIRMATION
    assert await shop.billing.confirm(token) is None
    minted = [one for one in await together(*(shop.billing.confirm(link) for _ in range(3))) if one]
    assert len(minted) == 1
    assert await shop.billing.confirmation(link) is CheckoutState.SHOWN
    assert await shop.status(minted[0].secret) == 200
    assert minted[0].key.account_id == await account_of(shop, "former@example.com")
    with pytest.raises(ConflictError):
        await shop.billing.send_confirmation(token, browser.cookie)


@pytest.mark.parametrize("revokes_others", [True, False])
async def test_confirmed_owner_revokes_the_keys_of_others(shop: Shop, revokes_others: bool) -> None:
    email = f"future{revokes_others}@example.com"
    async with shop.browser() as owner:
        early = await shop.buy_key(email)  # with an address that is not theirs
        [customer] = shop.stripe.find("customer", email=email.lower())
        shop.stripe.cancel(shop.stripe.find("subscription", customer=customer["id"])[0]["id"])
        assert set(await shop.deliver()) == {200}
        token = await shop.buy(owner, email)
        await shop.billing.send_confirmation(token, owner.cookie)
        link = confirmation_in(shop.outbox.mails[-1])
        fields = {"checkout": link} | ({"revoke": "on"} if revokes_others else {})
        page = await owner.get("/v1/checkout/confirm", params={"token": link}, headers={"accept": "text/html"})
        assert 'name="revoke" checked' in page.text
        shown = await owner.post("/v1/checkout/confirm", data=fields, headers={"accept": "text/html"})
        [secret] = set(re.findall(r"aw_[\w-]{43}", shown.text))
    assert (await shop.status(secret), await shop.status(early)) == (200, 401 if revokes_others else 200)


async def account_of(shop: Shop, email: str) -> str | None:
    found = await shop.state.store.find_customer(email=email)
    return found.account_id if found else None


async def test_signed_in_account_needs_no_confirmation(shop: Shop) -> None:
    own = (await shop.state.keys.create()).key
    async with shop.browser() as browser:
        browser.cookies.set("aw_checkout", "b" * 43)
        begin = shop.billing.begin_checkout
        url = await begin("signed-in@example.com", None, "b" * 43, account_id=own.account_id)
        session = shop.stripe.pay(url.rpartition("/")[2])
        assert await shop.billing.success(token_of(session), "b" * 43) is CheckoutState.READY
        assert await account_of(shop, "signed-in@example.com") == own.account_id
        url = await begin("elsewhere@example.com", None, "b" * 43, account_id=own.account_id)
        assert url.endswith("/already-subscribed")  # the customer of the account counts, not the address
        another = (await shop.state.keys.create()).key.account_id
        with pytest.raises(ConflictError, check=has_code("email_in_use")):
            await begin("signed-in@example.com", None, "b" * 43, account_id=another)


@pytest.mark.parametrize("is_paid", [True, False])
async def test_key_that_was_revoked_gets_no_other(shop: Shop, is_paid: bool) -> None:
    own = (await shop.state.keys.create()).key
    stolen = (await shop.state.keys.create(account_id=own.account_id)).key
    url = await shop.billing.begin_checkout(
        f"thief{is_paid}@example.com", None, "t" * 43, account_id=own.account_id, key_id=stolen.key_id
    )
    if is_paid:
        session = shop.stripe.pay(url.rpartition("/")[2])
        assert set(await shop.deliver()) == {200}
    await shop.state.keys.revoke(stolen.key_id, account_id=own.account_id)
    if not is_paid:
        session = shop.stripe.pay(url.rpartition("/")[2])
        assert set(await shop.deliver()) == {200}
    async with shop.browser() as browser:
        browser.cookies.set("aw_checkout", "t" * 43)
        page = await browser.get(f"/v1/checkout/success?token={token_of(session)}", headers={"accept": "text/html"})
    keys = await shop.state.keys.list(account_id=own.account_id)
    assert {key.key_id for key in keys} == {own.key_id, stolen.key_id}
    if is_paid:
        assert "This link has expired" in page.text
    else:  # the payer gets an account of their own
        [secret] = set(re.findall(r"aw_[\w-]{43}", page.text))
        assert await shop.status(secret) == 200


async def test_deleted_customer_is_forgotten_and_may_come_back(shop: Shop) -> None:
    key = await shop.buy_key("deleted@example.com")
    [customer] = shop.stripe.find("customer", email="deleted@example.com")
    shop.stripe.delete_customer(customer["id"])
    async with shop.browser() as browser:
        token = await shop.buy(browser, "deleted@example.com")  # the event of the deletion comes with the others
        assert await shop.billing.success(token, browser.cookie) is CheckoutState.READY  # an account of its own
        minted = await shop.billing.show_key(token, browser.cookie)
    assert minted is not None
    assert (await shop.status(key), await shop.status(minted.secret)) == (402, 200)
    gone = await shop.state.store.find_customer(customer_id=customer["id"])
    assert gone is not None
    assert (gone.email, gone.status) == (None, "canceled")


async def test_address_is_unknown_after_it_moved(shop: Shop) -> None:
    await shop.buy_key("old@example.com")
    [customer] = shop.stripe.find("customer", email="old@example.com")
    shop.stripe.update_customer(customer["id"], {"email": "New@example.com"})
    assert set(await shop.deliver()) == {200}
    assert await account_of(shop, "new@example.com") is not None
    async with shop.browser() as browser:
        token = await shop.buy(browser, "old@example.com")
        assert await shop.billing.success(token, browser.cookie) is CheckoutState.READY
    assert await account_of(shop, "old@example.com") != await account_of(shop, "new@example.com")


async def test_customer_of_another_product_is_not_used(shop: Shop) -> None:
    victim = shop.stripe.create_customer({"email": "elsewhere@example.com"})
    shop.stripe.subscribe(victim["id"], "price_other")
    async with shop.browser() as browser:
        token = await shop.buy(browser, "elsewhere@example.com")  # which proves nothing
        minted = await shop.billing.show_key(token, browser.cookie)
    assert minted is not None
    assert minted.key.account_id is not None
    await shop.billing.portal(minted.key.account_id)
    assert shop.stripe.find("billing_portal.session")[-1]["customer"] != victim["id"]


@pytest.mark.parametrize("had", ["nothing", "a plan", "another product"])
async def test_customer_that_had_a_subscription_is_not_adopted(shop: Shop, had: str) -> None:
    email = f"{had.replace(' ', '-')}@example.com"
    made = await shop.billing.payments.create_customer(email, checkout_id="lost", key=f"lost {had}")
    if had != "nothing":
        price = "price_hobby" if had == "a plan" else "price_other"
        shop.stripe.cancel(shop.stripe.subscribe(made, price)["id"])
        shop.stripe.webhooks.take()
    async with shop.browser() as browser:
        assert ((await shop.session(browser, email))["customer"] == made) is (had == "nothing")


async def test_debit_that_failed_leaves_its_customer(shop: Shop) -> None:
    async with shop.browser() as browser, shop.browser() as other:
        first = await shop.session(browser, "failed-debit@example.com")
        shop.stripe.pay(first["id"], debit="incomplete")
        assert set(await shop.deliver()) == {200}
        [subscription] = shop.stripe.find("subscription", customer=first["customer"])
        shop.stripe.change_status(subscription["id"], "incomplete_expired")
        shop.stripe.webhooks.take()
        second = await shop.session(other, "failed-debit@example.com")
        assert second["customer"] != first["customer"]
        await shop.billing.reconcile()
        assert (await shop.session(other, "failed-debit@example.com"))["customer"] == second["customer"]


async def test_pages_end_an_hour_after_the_payment(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    async with shop.browser() as browser:
        token = await shop.buy(browser, "late@example.com")
        monkeypatch.setattr(shop.billing, "_clock", LaterClock(3600))
        assert await shop.billing.success(token, browser.cookie) is CheckoutState.EXPIRED
        assert await shop.billing.show_key(token, browser.cookie) is None
