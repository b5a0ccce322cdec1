"""Events of Stripe: whatever arrives, the state is Stripe's; and what the customer and the operator hear of it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import insert

from afterwords.server.app_state import open_billing
from afterwords.server.clock import SystemClock
from afterwords.server.records import CheckoutState
from afterwords.server.services.billing import ALERTS, SYNCED, Reconciled
from afterwords.server.store import SqlStore
from afterwords.server.store.schema import customers
from tests.server.billing.conftest import LaterClock, Object, Shop, token_of
from tests.stripe_api.account import DAY_S

pytestmark = pytest.mark.anyio


async def subscription_of(shop: Shop, email: str) -> Object:
    [customer] = shop.stripe.find("customer", email=email)
    return shop.stripe.find("subscription", customer=customer["id"])[-1]


async def test_duplicates_are_looked_at_once(shop: Shop) -> None:
    key = await shop.buy_key("dup5@example.com")
    subscription = await subscription_of(shop, "dup5@example.com")
    shop.stripe.fail_next_invoice(subscription["id"], status="unpaid")
    shop.stripe.pay_open_invoice(subscription["id"])
    events, asked = shop.stripe.webhooks.take(), len(shop.stripe.requests)

    assert set(await shop.deliver(*(events * 5))) == {200}

    looks = [one for one in shop.stripe.requests[asked:] if one.route == "GET /v1/subscriptions"]
    assert len(looks) == len([event for event in events if event["type"] in SYNCED])
    assert await shop.status(key) == 200


async def test_five_duplicates_at_once_make_one_account(shop: Shop) -> None:
    async with shop.browser() as browser:
        session = await shop.session(browser, "dup@example.com")
        shop.stripe.pay(session["id"])
        events = shop.stripe.webhooks.take()
        answers = await asyncio.gather(*(shop.deliver(event) for event in events for _ in range(5)))
        assert {status for statuses in answers for status in statuses} == {200}
        assert await shop.billing.success(token_of(session), browser.cookie) is CheckoutState.READY
    owned = {one.account_id for one in await shop.state.store.list_accounts()}
    customer = await shop.state.store.find_customer(email="dup@example.com")
    assert customer is not None
    assert customer.account_id in owned


async def test_unpaid_suspends_and_paying_restores_the_key(shop: Shop) -> None:
    key = await shop.buy_key("unpaid@example.com")
    subscription = await subscription_of(shop, "unpaid@example.com")
    for status, answer in (
        ("past_due", 200),
        ("unpaid", 402),
        ("active", 200),
        ("paused", 402),
        ("trialing", 200),
        ("incomplete_expired", 402),
        ("active", 200),
    ):
        shop.stripe.change_status(subscription["id"], status)
        assert set(await shop.deliver()) == {200}
        assert await shop.status(key) == answer, status
    shop.stripe.cancel(subscription["id"])
    shop.stripe.subscribe(subscription["customer"], "price_hobby")  # and the late event of the first
    assert set(await shop.deliver()) == {200}
    assert await shop.status(key) == 200


async def test_lost_events_are_reconciled(shop: Shop) -> None:
    async with shop.browser() as browser:
        session = await shop.session(browser, "lost@example.com")
        key = await shop.buy_key("lost-too@example.com")
        shop.stripe.pay(session["id"])
        shop.stripe.change_status((await subscription_of(shop, "lost-too@example.com"))["id"], "unpaid")
        outside = shop.stripe.create_customer({"email": "dashboard@example.com"})
        shop.stripe.subscribe(outside["id"], "price_hobby")
        assert shop.stripe.webhooks.take()

        done = await shop.billing.reconcile()

        assert (done.changed, done.added, done.failed) == (2, 1, 0)
        assert await shop.billing.success(token_of(session), browser.cookie) is CheckoutState.READY
    assert await shop.status(key) == 402
    added = await shop.state.store.find_customer(email="dashboard@example.com")
    assert added is not None
    assert added.account_id is not None
    assert await shop.status((await shop.billing.reissue("Dashboard@example.com")).secret) == 200
    with shop.stripe.outage(), pytest.raises(Exception, match="Stripe"):
        await shop.billing.reconcile()
    assert await shop.status(key) == 402  # as before


async def test_only_changed_customers_are_read(shop: Shop) -> None:
    await shop.billing.reconcile()  # what other tests left
    keys = [await shop.buy_key(f"many{n}@example.com") for n in range(4)]
    subscriptions = [await subscription_of(shop, f"many{n}@example.com") for n in range(4)]
    shop.stripe.change_status(subscriptions[0]["id"], "unpaid")
    shop.stripe.advance_period(subscriptions[1]["id"])
    shop.stripe.update_subscription(subscriptions[2]["id"], {"cancel_at_period_end": True})
    shop.stripe.webhooks.take()
    shop.stripe.fail("GET /v1/customers/{id}", 400)
    shop.stripe.fail("GET /v1/subscriptions", 429)
    asked = len(shop.stripe.requests)

    done = await shop.billing.reconcile()

    read = [one.path for one in shop.stripe.requests[asked:] if one.route == "GET /v1/customers/{id}"]
    assert sorted(read) == sorted(f"/v1/customers/{one['customer']}" for one in subscriptions[:3])
    assert (done.failed, done.added) == (1, 0)
    assert await shop.billing.reconcile() == Reconciled(done.customers, 3 - 1 - done.changed, 0, 0)
    assert [await shop.status(key) for key in keys] == [402, 200, 200, 200]


async def test_servers_that_reconcile_at_once_do_not_fail(shop: Shop) -> None:
    for n in range(8):
        customer = shop.stripe.create_customer({"email": f"same{n}@example.com"})
        shop.stripe.subscribe(customer["id"], "price_hobby")
    shop.stripe.webhooks.take()
    state = shop.state
    secret = await state.store.secret()
    servers = [open_billing(state.settings, state.store, SystemClock(), secret) for _ in range(3)]
    done = await asyncio.gather(*(server.reconcile() for server in servers if server))
    assert [one.failed for one in done] == [0, 0, 0]
    await asyncio.gather(*(server.payments.close() for server in servers if server))


@pytest.mark.parametrize("how", ["event", "request", "housekeeping"])
async def test_renewal_moves_the_period(shop: Shop, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    key = await shop.buy_key(f"{how}@example.com")
    subscription = await subscription_of(shop, f"{how}@example.com")
    [item] = subscription["items"]["data"]
    item.update(
        current_period_start=item["current_period_start"] - 40 * DAY_S, current_period_end=shop.stripe.now() - 1
    )
    customer = await shop.billing.sync(subscription["customer"])
    assert customer is not None
    assert customer.account_id is not None
    shop.stripe.advance_period(subscription["id"])
    events = shop.stripe.webhooks.take()
    if how == "event":
        shop.stripe.webhooks.api_version = "2024-06-20"  # such an event has the period elsewhere
        try:
            assert set(await shop.deliver(*events)) == {200}
        finally:
            shop.stripe.webhooks.api_version = "2026-10-28.endive"
    else:
        monkeypatch.setattr(shop.state.store, "_clock", LaterClock(700))
        monkeypatch.setattr(shop.billing, "_clock", LaterClock(700))
    if how == "housekeeping":
        await shop.billing.renew_due()
    async with shop.browser() as client:  # the request itself asks Stripe if the period has ended
        usage = (await client.get("/v1/usage", headers={"Authorization": f"Bearer {key}"})).json()
    [renewed] = subscription["items"]["data"]
    assert datetime.fromisoformat(usage["period_end"]).timestamp() == renewed["current_period_end"]


async def test_imported_customer_is_reconciled(shop: Shop) -> None:
    minted, store = await shop.state.keys.create(), shop.state.store
    customer = shop.stripe.create_customer({"email": "imported@example.com"})
    subscription = shop.stripe.subscribe(customer["id"], "price_hobby")
    shop.stripe.webhooks.take()
    row = {"customer_id": customer["id"], "account_id": minted.key.account_id}  # as the import writes it
    assert isinstance(store, SqlStore)
    await store.database.write(lambda connection: connection.execute(insert(customers).values(row)) and None)
    await shop.billing.reconcile()
    synced = await store.find_customer(customer_id=customer["id"])
    assert synced is not None
    assert (synced.email, synced.status, synced.account_id) == ("imported@example.com", "active", minted.key.account_id)
    shop.stripe.cancel(subscription["id"])
    shop.stripe.webhooks.take()
    await shop.billing.reconcile()
    assert await shop.status(minted.secret) == 402


async def test_customer_hears_of_failed_payments(shop: Shop) -> None:
    await shop.buy_key("failed@example.com")
    subscription = await subscription_of(shop, "failed@example.com")
    shop.outbox.mails.clear()
    shop.stripe.fail_next_invoice(subscription["id"])
    events = shop.stripe.webhooks.take()
    assert set(await shop.deliver(*(events * 2))) == {200}
    [(to, subject, text)] = shop.outbox.mails
    assert (to, "payment failed" in subject, "/v1/account" in text) == ("failed@example.com", True, True)
    shop.outbox.fails = True
    try:
        shop.stripe.fail_next_invoice(subscription["id"])
        assert set(await shop.deliver()) == {200}  # mail that fails is not repeated with the event
    finally:
        shop.outbox.fails = False


async def test_no_mail_for_other_or_paid_invoices(shop: Shop) -> None:
    await shop.buy_key("both@example.com")
    subscription = await subscription_of(shop, "both@example.com")
    other = shop.stripe.subscribe(subscription["customer"], "price_other")
    shop.stripe.webhooks.take()
    shop.outbox.mails.clear()
    shop.stripe.fail_next_invoice(other["id"])
    assert set(await shop.deliver()) == {200}
    shop.stripe.fail_next_invoice(subscription["id"])
    late = shop.stripe.webhooks.take()
    shop.stripe.pay_open_invoice(subscription["id"])
    assert set(await shop.deliver(*shop.stripe.webhooks.take(), *late)) == {200}
    assert shop.outbox.mails == []


async def test_operator_hears_of_disputes(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    await shop.buy_key("dispute@example.com")
    dispute = shop.stripe.dispute((await subscription_of(shop, "dispute@example.com"))["id"])
    caplog.set_level(logging.WARNING, "afterwords.server")
    assert set(await shop.deliver(*(shop.stripe.webhooks.take() * 2))) == {200}
    [line] = [record.getMessage() for record in caplog.records]
    assert dispute["id"] in line
    assert dispute["charge"] in line
    assert "@" not in line
    assert sum(shop.state.metrics.payment_alerts.sums.values()) == 1


async def test_events_that_are_not_ours_are_taken(shop: Shop) -> None:
    foreign = shop.stripe.create_customer({"email": "foreign@example.com"})
    shop.stripe.subscribe(foreign["id"], "price_other")
    shop.stripe.emit("product.created", {"id": "prod_x", "object": "product"})
    shop.stripe.emit("customer.subscription.updated", {"id": "sub_x", "object": "subscription", "customer": None})
    requests = len(shop.stripe.requests)
    assert set(await shop.deliver()) == {200}
    assert len(shop.stripe.requests) == requests
    assert await shop.state.store.find_customer(customer_id=foreign["id"]) is None


def test_docs_name_every_event() -> None:
    page = (Path(__file__).parents[3] / "docs" / "billing.md").read_text("utf-8")
    named = re.findall(r"`((?:checkout\.session|customer|invoice|charge|radar)\.[a-z_.]+)`", page)
    assert set(named) == SYNCED | ALERTS


async def test_invalid_events_are_refused(shop: Shop) -> None:
    event = shop.stripe.emit("product.created", {"id": "prod_y", "object": "product"})
    shop.stripe.webhooks.take()
    good, headers = shop.stripe.webhooks.request(event)
    signature = headers["Stripe-Signature"]
    bodies = [b"null", b"[]", b'"x"', b"1", b"{}", b"[" * 100_000, b'{"id": NaN}', b"\xff", b"", b'{"object":"event"}']
    bodies.append(json.dumps({"object": "v2.core.event", "id": "evt_1", "type": "v1.billing.x"}).encode())
    bodies.append(json.dumps({"object": "event", "id": "evt_1", "type": "x", "data": None}).encode())
    for body in bodies:
        assert await send(shop, body, sign(shop, body)) == 400, body[:40]
    for changed in (good[:-1], good + b" ", good.replace(b"product", b"customer")):
        assert await send(shop, changed, signature) == 400
    now = int(time.time())
    for bad in (
        "",
        "x",
        "t=1",
        "t=,v1=",
        f"t={now},v0=1",
        "t=é,v1=é",
        f"t={'9' * 5000},v1=1",
        signature.replace("t=", "t=1"),
    ):
        assert await send(shop, good, bad) == 400, bad[:40]
    for at in (now - 400, now + 86_400):
        assert await send(shop, good, shop.stripe.webhooks.request(event, at=at)[1]["Stripe-Signature"]) == 400
    shop.stripe.webhooks.secrets.insert(0, "whsec_the-next-one")  # while it is rolled, either fits
    try:
        body, headers = shop.stripe.webhooks.request({**event, "id": "evt_rolled"})
    finally:
        del shop.stripe.webhooks.secrets[0]
    assert await send(shop, body, headers["Stripe-Signature"]) == 200


async def test_large_events_are_taken_and_huge_ones_not(shop: Shop) -> None:
    for size, status in ((400_000, 200), (600_000, 413)):
        event = {
            "id": f"evt_{size}",
            "type": "product.updated",
            "object": "event",
            "data": {"object": {"x": "y" * size}},
        }
        body = json.dumps(event).encode()
        assert await send(shop, body, sign(shop, body)) == status


def sign(shop: Shop, body: bytes) -> str:
    from stripe import WebhookSignature

    stamp = int(time.time())
    signed = WebhookSignature._compute_signature
    text = body.decode(errors="replace")
    return f"t={stamp},v1={signed(f'{stamp}.{text}', shop.stripe.webhooks.secrets[0])}"


async def send(shop: Shop, body: bytes, signature: str) -> int:
    async with shop.browser() as sender:
        headers = {"Stripe-Signature": signature.encode("utf-8")}
        return (await sender.post("/v1/webhooks/stripe", content=body, headers=headers)).status_code  # type: ignore[arg-type]
