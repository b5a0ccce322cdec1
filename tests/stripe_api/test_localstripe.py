"""The Stripe server agrees with localstripe, which others wrote, on the fields that billing reads.

localstripe has plans instead of prices by ID, no Checkout, no portal, no meters, and ignores idempotency keys. Its
objects have the fields of an older version of the API next to some newer ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
import pytest
from stripe import Event, StripeClient, Webhook
from stripe.params import SubscriptionCreateParamsItem

from tests.hosted.http_server import HttpRequest, HttpResponse, HttpServer
from tests.s3 import free_port, listening
from tests.stripe_api import StripeServer

SECRET = "whsec_of-both"
TYPES = ("customer.created", "customer.subscription.created", "customer.subscription.deleted", "customer.deleted")


@pytest.fixture
def localstripe() -> Iterator[str]:
    """Run localstripe as a process, and return its URL."""
    port = free_port()
    with listening([str(Path(sys.executable).with_name("localstripe")), "--port", str(port), "--from-scratch"], port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def events() -> Iterator[tuple[str, Queue[dict[str, Any]]]]:
    """Receive webhooks: the URL, and the verified events."""
    received: Queue[dict[str, Any]] = Queue()

    def respond(request: HttpRequest) -> HttpResponse:
        verified: Event = Webhook.construct_event(request.body, request.headers["stripe-signature"], SECRET)
        received.put(json.loads(str(verified)))
        return HttpResponse(200, b"{}", "application/json")

    server = HttpServer(respond)
    yield server.url, received
    server.close()


def life(
    client: StripeClient, events: Queue[dict[str, Any]], item: SubscriptionCreateParamsItem, *, has_cards: bool
) -> dict[str, Any]:
    """Return what billing sees of a customer who subscribes and cancels."""
    received: dict[str, Any] = {}

    def receive(kind: str) -> None:
        """Wait for the event of the last change: those of two changes may arrive in any order."""
        while kind not in received:
            event = events.get(timeout=60)
            if event["type"] in TYPES:
                received[event["type"]] = event

    customer = client.v1.customers.create({"email": "ann@example.com", "metadata": {"a": "b"}})
    receive("customer.created")
    if has_cards:
        card: Any = {"number": "4242424242424242", "exp_month": 12, "exp_year": 2099, "cvc": "123"}
        method = client.v1.payment_methods.create({"type": "card", "card": card})
        client.v1.payment_methods.attach(method.id, {"customer": customer.id})
        client.v1.customers.update(customer.id, {"invoice_settings": {"default_payment_method": method.id}})
    made = client.v1.subscriptions.create({"customer": customer.id, "items": [item], "metadata": {"checkout": "1"}})
    receive("customer.subscription.created")
    (invoice,) = client.v1.invoices.list({"customer": customer.id}).data
    assert invoice.parent is not None
    assert invoice.parent.subscription_details is not None
    seen: dict[str, Any] = {
        "customer": (customer.object, customer.email, customer.metadata, customer.livemode),
        "by email": [one.id == customer.id for one in client.v1.customers.list({"email": "ann@example.com"})],
        "other email": client.v1.customers.list({"email": "bo@example.com"}).data,
        "subscription": (made.object, made.status, made.cancel_at_period_end, made.metadata, made.livemode),
        "is of the customer": made.customer == customer.id,
        "plan": made["items"].data[0].plan.id,
        "quantity": made["items"].data[0].quantity,
        "invoice": (invoice.object, invoice.status, invoice.amount_due, invoice.amount_paid, invoice.currency),
        "invoice is of": invoice.parent.subscription_details.subscription == made.id,
        "invoice is the latest": made.latest_invoice == invoice.id,
        "found": [one.id == made.id for one in client.v1.subscriptions.list({"customer": customer.id})],
    }
    ended = client.v1.subscriptions.cancel(made.id)
    receive("customer.subscription.deleted")
    seen["ended"] = (ended.status, isinstance(ended.ended_at, int))
    seen["current"] = client.v1.subscriptions.list({"customer": customer.id}).data
    seen["all"] = [one.status for one in client.v1.subscriptions.list({"customer": customer.id, "status": "all"})]
    seen["deleted"] = client.v1.customers.delete(customer.id).to_dict()
    del seen["deleted"]["id"]
    receive("customer.deleted")
    assert list(received) == list(TYPES)
    for kind, event in received.items():
        found = event["data"]["object"]
        seen[kind] = (event["object"], event["id"][:4], event["livemode"], found["object"], found.get("status"))
    created = received["customer.subscription.created"]["data"]["object"]
    seen["period"] = (created["current_period_start"] - made.created, created["current_period_end"] - made.created)
    return seen


def test_servers_agree(
    stripe: StripeServer, client: StripeClient, localstripe: str, events: tuple[str, Queue[dict[str, Any]]]
) -> None:
    url, received = events
    stripe.webhooks.secrets, stripe.webhooks.url = [SECRET], url
    stripe.webhooks.api_version = "2024-06-20"  # localstripe's subscriptions have its fields
    ours = life(client, received, {"price": "price_hobby"}, has_cards=False)

    settings = {"url": url, "secret": SECRET}
    httpx.post(f"{localstripe}/_config/webhooks/events", data=settings, timeout=60).raise_for_status()
    other = StripeClient("sk_test_other", base_addresses={"api": localstripe}, http_client=client._requestor._client)
    plan: Any = {
        "id": "price_hobby",
        "amount": 900,
        "currency": "usd",
        "interval": "month",
        "product": {"name": "Hobby"},
    }
    other.v1.plans.create(plan)
    theirs = life(other, received, {"plan": "price_hobby"}, has_cards=True)
    assert ours == theirs
