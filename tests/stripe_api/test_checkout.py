"""Customers, checkout and subscriptions, asked for with the real package."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import httpx
import pytest
from stripe import InvalidRequestError, Invoice, StripeClient

from tests.stripe_api import StripeServer
from tests.stripe_api.account import DAY_S, month_after
from tests.stripe_api.pages import DECLINED_CARD
from tests.stripe_api.server import PORTAL_LINK_S

if TYPE_CHECKING:
    from stripe.params import SubscriptionListParams
    from stripe.params.checkout import SessionCreateParams

SUCCESS = "http://127.0.0.1:1/success?session_id={CHECKOUT_SESSION_ID}"


def order(customer: str) -> SessionCreateParams:
    return {
        "mode": "subscription",
        "customer": customer,
        "line_items": [{"price": "price_hobby", "quantity": 1}],
        "success_url": SUCCESS,
        "subscription_data": {"metadata": {"checkout": "1"}},
    }


def test_paying_makes_the_subscription(stripe: StripeServer, client: StripeClient, browser: httpx.Client) -> None:
    customer = client.v1.customers.create({"email": "ann@example.com"})
    session = client.v1.checkout.sessions.create(order(customer.id))
    assert (session.status, session.payment_status, session.subscription) == ("open", "unpaid", None)
    assert session.url is not None
    assert "ann@example.com" in browser.get(session.url).text

    declined = browser.post(session.url, data={"card": DECLINED_CARD})
    assert (declined.status_code, "declined" in declined.text, stripe.count("subscription")) == (402, True, 0)

    paid = browser.post(session.url, data={"card": "4242424242424242"})
    assert paid.headers["location"] == SUCCESS.replace("{CHECKOUT_SESSION_ID}", session.id)
    session = client.v1.checkout.sessions.retrieve(session.id, {"expand": ["subscription"]})
    assert (session.status, session.payment_status, session.url) == ("complete", "paid", None)
    (found,) = client.v1.subscriptions.list({"customer": customer.id, "price": "price_hobby", "status": "all"}).data
    assert session.subscription == found
    assert (found.status, found.metadata["checkout"]) == ("active", "1")
    item = found["items"].data[0]
    assert item.current_period_end == month_after(item.current_period_start, 1)
    assert not hasattr(found, "current_period_end")  # since 2025-03-31 only items have it


def test_deleted_customer_is_missing(client: StripeClient) -> None:
    customer = client.v1.customers.create({"email": "ann@example.com"})
    assert client.v1.customers.delete(customer.id).deleted
    assert client.v1.customers.retrieve(customer.id).to_dict() == {
        "id": customer.id,
        "object": "customer",
        "deleted": True,
    }
    with pytest.raises(InvalidRequestError) as error:
        client.v1.checkout.sessions.create(order(customer.id))
    assert (error.value.http_status, error.value.code, error.value.param) == (400, "resource_missing", "customer")


def test_emails_are_exact_and_may_repeat(client: StripeClient) -> None:
    first = client.v1.customers.create({"email": "ann@example.com", "metadata": {"a": "1", "b": "2"}})
    second = client.v1.customers.create({"email": "ann@example.com"})
    client.v1.customers.create({"email": "Ann@example.com"})
    assert [one.id for one in client.v1.customers.list({"email": "ann@example.com"})] == [second.id, first.id]
    changed = client.v1.customers.update(first.id, {"email": "bo@example.com", "metadata": {"b": "", "c": "3"}})
    assert changed.metadata is not None
    assert (changed.email, changed.metadata.to_dict()) == ("bo@example.com", {"a": "1", "c": "3"})


def test_search_lags(stripe: StripeServer, client: StripeClient) -> None:
    client.v1.customers.create({"email": "ann@example.com"})
    assert client.v1.customers.search({"query": 'email:"ann@example.com"'}).data == []
    stripe.advance(60)
    assert len(client.v1.customers.search({"query": 'email:"ann@example.com"'}).data) == 1


def test_session_without_customer_makes_one(stripe: StripeServer, client: StripeClient) -> None:
    client.v1.customers.create({"email": "ann@example.com"})
    wanted = order("")
    del wanted["customer"]
    session = client.v1.checkout.sessions.create({**wanted, "customer_email": "ann@example.com"})
    stripe.pay(session.id)
    assert stripe.count("customer", email="ann@example.com") == 2


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"payment_method_types": ["card"]}, "parameter_unknown", "payment_method_types"),
        ({"ui_mode": "hosted"}, "parameter_invalid", "ui_mode"),
        ({"customer_email": "ann@example.com"}, None, "customer"),
        ({"line_items": [{"price": "price_other", "quantity": 1}]}, "resource_missing", "line_items[0][price]"),
        ({"line_items": [{"price": "price_hobby"}]}, "parameter_missing", "line_items[0][quantity]"),
        ({"line_items": "price_hobby"}, "parameter_invalid", "line_items"),
        ({"success_url": ""}, "parameter_missing", "success_url"),
        ({"client_reference_id": "x" * 201}, "parameter_invalid", "client_reference_id"),
        ({"expires_at": 1}, None, "expires_at"),
        ({"expires_at": "soon"}, "parameter_invalid_integer", "expires_at"),
        ({"subscription_data": {"trial": 3}}, "parameter_unknown", "subscription_data[trial]"),
        ({"metadata": {"name": "x" * 501}}, "parameter_invalid", "metadata"),
    ],
)
def test_wrong_parameter_is_refused(
    stripe: StripeServer, client: StripeClient, change: dict[str, object], code: str | None, param: str
) -> None:
    customer = stripe.create_customer({"email": "ann@example.com"})["id"]
    with pytest.raises(InvalidRequestError) as error:
        client.v1.checkout.sessions.create(cast("SessionCreateParams", {**order(customer), **change}))
    assert (error.value.http_status, error.value.code, error.value.param) == (400, code, param)
    assert stripe.count("checkout.session") == 0


def test_expired_session_cannot_be_paid(stripe: StripeServer, client: StripeClient, browser: httpx.Client) -> None:
    customer = stripe.create_customer({"email": "ann@example.com"})["id"]
    sessions = client.v1.checkout.sessions
    by_hand, in_time, later = [sessions.create(order(customer)) for _ in range(3)]
    page = by_hand.url
    assert page is not None
    expired = sessions.expire(by_hand.id)
    assert (expired.status, expired.url) == ("expired", None)
    assert browser.post(page, data={"card": "4242424242424242"}).status_code == 410
    with pytest.raises(InvalidRequestError, match="status of expired"):
        sessions.expire(by_hand.id)
    stripe.pay(in_time.id)
    stripe.advance(DAY_S)
    assert [one.id for one in sessions.list({"customer": customer, "status": "expired"})] == [later.id, by_hand.id]
    assert [one.id for one in sessions.list({"customer": customer, "status": "complete"})] == [in_time.id]
    assert [event["data"]["object"]["id"] for event in stripe.find("event", type="checkout.session.expired")] == [
        by_hand.id,
        later.id,
    ]


def test_trial_needs_no_payment(stripe: StripeServer, client: StripeClient) -> None:
    customer = stripe.create_customer({"email": "ann@example.com"})["id"]
    session = client.v1.checkout.sessions.create({**order(customer), "subscription_data": {"trial_period_days": 7}})
    assert stripe.pay(session.id)["payment_status"] == "no_payment_required"
    (found,) = client.v1.subscriptions.list({"customer": customer})
    item = found["items"].data[0]
    assert (found.status, item.current_period_end - item.current_period_start) == ("trialing", 7 * DAY_S)
    stripe.advance_period(found.id)
    assert client.v1.subscriptions.retrieve(found.id).status == "active"


def test_bank_debit_is_settled_later(stripe: StripeServer, client: StripeClient) -> None:
    customer = stripe.create_customer({"email": "ann@example.com"})["id"]
    good, bad = [client.v1.checkout.sessions.create(order(customer)) for _ in range(2)]
    for session in (good, bad):
        assert stripe.pay(session.id, debit="incomplete")["payment_status"] == "unpaid"
        stripe.settle(session.id, is_paid=session is good)
    assert client.v1.checkout.sessions.retrieve(good.id).payment_status == "paid"
    statuses = [one.status for one in client.v1.subscriptions.list({"customer": customer})]
    assert statuses == ["past_due", "active"]
    assert {"checkout.session.async_payment_succeeded", "checkout.session.async_payment_failed"} <= {
        event["type"] for event in stripe.events
    }


def test_subscription_lives_and_ends(stripe: StripeServer, client: StripeClient) -> None:
    customer = stripe.create_customer({"email": "ann@example.com"})["id"]
    stripe.create_price("price_other", 500)
    other = client.v1.subscriptions.create({"customer": customer, "items": [{"price": "price_other"}]})
    found = client.v1.subscriptions.create({"customer": customer, "items": [{"price": "price_hobby"}]})
    start = found["items"].data[0].current_period_start

    stripe.fail_next_invoice(found.id, status="unpaid", needs_action=True)
    late = client.v1.subscriptions.retrieve(found.id, {"expand": ["latest_invoice"]})
    assert (late.status, late["items"].data[0].current_period_start) == ("unpaid", month_after(start, 1))
    assert isinstance(late.latest_invoice, Invoice)
    assert late.latest_invoice.parent is not None
    assert late.latest_invoice.parent.subscription_details is not None
    assert (late.latest_invoice.status, late.latest_invoice.parent.subscription_details.subscription) == (
        "open",
        found.id,
    )
    stripe.pay_open_invoice(found.id)
    charge = stripe.dispute(found.id)["charge"]
    assert client.v1.charges.retrieve(charge).customer == customer
    assert client.v1.subscriptions.retrieve(found.id).status == "active"

    updated = client.v1.subscriptions.update(found.id, {"cancel_at_period_end": True})
    assert (updated.status, updated.cancel_at) == ("active", month_after(start, 2))
    stripe.advance_period(found.id)
    client.v1.subscriptions.cancel(other.id)
    of_price: SubscriptionListParams = {"customer": customer, "price": "price_hobby"}
    assert client.v1.subscriptions.list(of_price).data == []  # without canceled ones
    assert [one.id for one in client.v1.subscriptions.list({**of_price, "status": "all"})] == [found.id]
    assert [event["type"].removeprefix("customer.") for event in stripe.events[-8:]] == [
        "subscription.updated",  # unpaid
        "invoice.paid",
        "invoice.payment_succeeded",
        "subscription.updated",
        "charge.dispute.created",
        "subscription.updated",
        "subscription.deleted",
        "subscription.deleted",
    ]


def test_portal_pays_and_cancels(stripe: StripeServer, client: StripeClient, browser: httpx.Client) -> None:
    customer = stripe.create_customer({"email": "ann@example.com"})["id"]
    subscription = stripe.subscribe(customer, "price_hobby")["id"]
    stripe.fail_next_invoice(subscription)
    portal = client.v1.billing_portal.sessions.create({"customer": customer, "return_url": "http://x/account"})
    page = browser.get(portal.url).text
    assert "Pay invoice" in page
    assert "http://x/account" in page
    for action in ("pay", "cancel"):
        assert browser.post(portal.url, data={"subscription": subscription, "action": action}).status_code == 303
    found = client.v1.subscriptions.retrieve(subscription)
    assert (found.status, found.cancel_at_period_end) == ("active", True)
    stripe.advance(PORTAL_LINK_S)
    assert browser.get(portal.url).status_code == 410


def test_meter_events_count_once(stripe: StripeServer, client: StripeClient) -> None:
    customer = stripe.create_customer({"email": "ann@example.com"})["id"]
    now = stripe.now()

    def send(identifier: str, value: str, at: int) -> None:
        client.v1.billing.meter_events.create(
            {
                "event_name": "characters",
                "identifier": identifier,
                "payload": {"stripe_customer_id": customer, "value": value},
                "timestamp": at,
            }
        )

    send("one", "200", now - 34 * DAY_S)
    send("two", "40", now)
    with pytest.raises(InvalidRequestError, match="already exists with identifier one") as error:
        send("one", "200", now)
    assert error.value.code is None
    for at, value in ((now - 36 * DAY_S, "1"), (now + 600, "1"), (now, "1.5"), (now, "9" * 16)):
        with pytest.raises(InvalidRequestError):
            send("three", value, at)
    assert stripe.meter_sums == {customer: 240}
    stripe.advance(DAY_S)
    send("one", "1", now)  # its identifier is free again after 24 hours
    assert stripe.meter_sums == {customer: 241}


def test_periods_clamp_to_the_month() -> None:
    anchor = int(datetime(2026, 1, 31, 9, 30, tzinfo=UTC).timestamp())
    days = [datetime.fromtimestamp(month_after(anchor, months), UTC).strftime("%m-%d") for months in range(1, 4)]
    assert days == ["02-28", "03-31", "04-30"]
