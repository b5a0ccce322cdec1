"""Webhooks, verified with the real package."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import httpx
import pytest
from stripe import SignatureVerificationError, StripeClient, Webhook

from tests.hosted.http_server import HttpRequest, HttpResponse, HttpServer
from tests.stripe_api import StripeServer
from tests.stripe_api.account import API_VERSION, Object


@dataclass
class Endpoint:
    """An endpoint that verifies what it receives, and answers with the next status, or 200."""

    secret: str
    statuses: list[int] = field(default_factory=list)
    received: list[Object] = field(default_factory=list)

    def respond(self, request: HttpRequest) -> HttpResponse:
        event = Webhook.construct_event(request.body, request.headers["stripe-signature"], self.secret)
        assert request.body.startswith(b'{\n  "')
        self.received.append(event.to_dict())
        status = self.statuses.pop(0) if self.statuses else 200
        return HttpResponse(status, b"{}", "application/json", {"Location": "/elsewhere"} if status == 302 else {})

    def types(self) -> list[str]:
        return [event["type"] for event in self.received]


@pytest.fixture
def endpoint(stripe: StripeServer) -> Iterator[Endpoint]:
    """Receive the webhooks of the server."""
    made = Endpoint(stripe.webhooks.secrets[0])
    server = HttpServer(made.respond)
    stripe.webhooks.url = f"{server.url}/v1/webhooks/stripe"
    yield made
    stripe.webhooks.url = None
    server.close()


def test_events_are_signed_and_sent(stripe: StripeServer, client: StripeClient, endpoint: Endpoint) -> None:
    customer = client.v1.customers.create({"email": "ann@example.com"}, {"idempotency_key": "key"})
    stripe.subscribe(customer.id, "price_hobby")
    stripe.webhooks.wait()
    assert endpoint.types() == [
        "customer.created",
        "invoice.created",
        "customer.subscription.created",
        "invoice.paid",
        "invoice.payment_succeeded",
    ]
    first = endpoint.received[0]
    assert (first["request"]["idempotency_key"], first["api_version"]) == ("key", API_VERSION)
    assert [event.id for event in client.v1.events.list({"type": "customer.created"})] == [first["id"]]
    assert client.v1.events.retrieve(first["id"]).data.object["id"] == customer.id


def test_update_names_what_changed(stripe: StripeServer, endpoint: Endpoint) -> None:
    subscription = stripe.subscribe(stripe.create_customer({})["id"], "price_hobby")["id"]
    stripe.change_status(subscription, "paused")
    stripe.change_status(subscription, "active")
    stripe.webhooks.wait()
    paused, resumed = endpoint.received[-2:]
    assert (paused["type"], resumed["type"]) == ("customer.subscription.paused", "customer.subscription.resumed")
    assert resumed["data"]["previous_attributes"] == {"status": "paused"}


def test_failed_event_is_sent_again(stripe: StripeServer, endpoint: Endpoint) -> None:
    endpoint.statuses = [500, 302, 404]
    stripe.create_customer({})
    stripe.webhooks.wait()
    assert endpoint.types() == ["customer.created"] * 4
    assert [status for _, status in stripe.webhooks.attempts] == [500, 302, 404, 200]


def test_held_events_are_sent_in_any_order(stripe: StripeServer, endpoint: Endpoint) -> None:
    stripe.webhooks.hold()
    stripe.create_customer({})
    stripe.delete_customer(stripe.find("customer")[0]["id"])
    assert len(stripe.webhooks.pending) == 2
    endpoint.statuses = [200, 503, 200, 503]
    assert stripe.webhooks.deliver(reversed, times=2) == [200, 503, 200, 503]
    assert endpoint.types() == ["customer.deleted", "customer.created"] * 2
    assert stripe.webhooks.deliver() == [200]  # what was never taken
    stripe.create_customer({})
    assert stripe.webhooks.deliver(lambda events: events[:0]) == []  # lost
    stripe.create_customer({})
    stripe.webhooks.release()
    stripe.webhooks.wait()
    assert len(endpoint.received) == 6


def test_signature_fits_each_secret_while_rolling(stripe: StripeServer) -> None:
    stripe.webhooks.secrets = ["whsec_new", "whsec_old"]
    stripe.create_customer({})
    body, headers = stripe.webhooks.request(stripe.events[0])
    signature = headers["Stripe-Signature"]
    for secret in stripe.webhooks.secrets:
        Webhook.construct_event(body, signature, secret)
    with pytest.raises(SignatureVerificationError):
        Webhook.construct_event(body, signature, "whsec_other")
    _, headers = stripe.webhooks.request(stripe.events[0], at=time.time() - 301)
    with pytest.raises(SignatureVerificationError, match="tolerance"):
        Webhook.construct_event(body, headers["Stripe-Signature"], "whsec_new")


def test_older_endpoint_gets_older_fields(stripe: StripeServer) -> None:
    subscription = stripe.subscribe(stripe.create_customer({})["id"], "price_hobby")
    stripe.webhooks.api_version = "2024-06-20"
    sent = {event["type"]: json.loads(stripe.webhooks.request(event)[0]) for event in stripe.events}
    found = sent["customer.subscription.created"]["data"]["object"]
    (item,) = found["items"]["data"]
    assert found["current_period_end"] == subscription["items"]["data"][0]["current_period_end"]
    assert "current_period_end" not in item
    invoice = sent["invoice.paid"]["data"]["object"]
    assert (invoice["subscription"], "parent" in invoice) == (subscription["id"], False)
    assert sent["invoice.paid"]["api_version"] == "2024-06-20"


def test_process_sends_webhooks() -> None:
    reached = Event()

    def respond(_: HttpRequest) -> HttpResponse:
        reached.set()
        return HttpResponse(200, b"{}", "application/json")

    endpoint = HttpServer(respond)
    command = [sys.executable, "-m", "tests.stripe_api", "--webhook", endpoint.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        url, key, _ = process.stdout.readline().split()
        httpx.post(f"{url}/v1/customers", auth=(key, ""), timeout=60).raise_for_status()
        assert reached.wait(60)
        process.kill()
    endpoint.close()
