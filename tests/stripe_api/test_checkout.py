"""Customers, checkout and subscriptions, asked for with the real package."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx
import pytest
from stripe import InvalidRequestError, StripeClient

from tests.stripe_api import StripeServer
from tests.stripe_api.account import month_after
from tests.stripe_api.pages import DECLINED_CARD

if TYPE_CHECKING:
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


def test_paying_makes_the_subscription(stripe: StripeServer, client: StripeClient) -> None:
    customer = client.v1.customers.create({"email": "ann@example.com"})
    session = client.v1.checkout.sessions.create(order(customer.id))
    assert (session.status, session.payment_status, session.subscription) == ("open", "unpaid", None)
    assert session.url is not None
    assert "ann@example.com" in httpx.get(session.url).text

    declined = httpx.post(session.url, data={"card": DECLINED_CARD})
    assert (declined.status_code, "declined" in declined.text, stripe.count("subscription")) == (402, True, 0)

    paid = httpx.post(session.url, data={"card": "4242424242424242"})
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


def test_periods_clamp_to_the_month() -> None:
    anchor = int(datetime(2026, 1, 31, 9, 30, tzinfo=UTC).timestamp())
    days = [datetime.fromtimestamp(month_after(anchor, months), UTC).strftime("%m-%d") for months in range(1, 4)]
    assert days == ["02-28", "03-31", "04-30"]
