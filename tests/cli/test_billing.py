"""Tests of `afterwords billing`, on a Stripe server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.program import run
from tests.stripe_api import StripeServer, running_stripe


@pytest.fixture
def stripe(monkeypatch: pytest.MonkeyPatch) -> Iterator[StripeServer]:
    with running_stripe() as server:
        server.create_price("price_hobby", 900)
        for name, value in (
            ("SECRET_KEY", server.key),
            ("WEBHOOK_SECRET", server.webhooks.secrets[0]),
            ("PRICE_ID", "price_hobby"),
            ("API_URL", server.url),
        ):
            monkeypatch.setenv(f"AFTERWORDS_STRIPE_{name}", value)
        yield server


def test_subscriptions_are_reconciled_and_keys_reissued(stripe: StripeServer, tmp_path: Path) -> None:
    customer = stripe.create_customer({"email": "ann@example.com"})
    stripe.subscribe(customer["id"], "price_hobby")
    assert json.loads(run("billing", "reconcile", "--json").out) == {
        "customers": 1, "changed": 0, "added": 1, "failed": 0,
    }  # fmt: skip
    stripe.change_status(stripe.find("subscription")[0]["id"], "unpaid")
    assert run("billing", "reconcile").err.strip() == "Customers: 1. Changed: 1. Added: 0."

    first = run("billing", "reissue", "Ann@Example.com").out.strip()
    second = json.loads(run("billing", "reissue", customer["id"], "--json").out)

    assert first.startswith("aw_")
    assert second["api_key"] not in (first, "")
    states = {key["prefix"]: key["revoked_at"] for key in json.loads(run("keys", "list", "--json").out)}
    assert states[first[:8]] is not None
    assert states[second["api_key"][:8]] is None
    run("billing", "reissue", "bob@example.com").expect_error(4, "customer_not_found")
    run("billing", "reissue", "bob").expect_error(5, "invalid_field")
    with stripe.outage():
        run("billing", "reconcile").expect_error(8, "payments_failed")


def test_server_that_sells_nothing_says_so(tmp_path: Path) -> None:
    run("billing", "reconcile").expect_error(4, "billing_disabled")


@pytest.mark.parametrize(
    "command", ["billing reconcile", "billing reissue ann@example.com", "accounts close ann --yes"]
)
def test_commands_need_the_price(stripe: StripeServer, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.delenv("AFTERWORDS_STRIPE_PRICE_ID")
    error = run(*command.split()).expect_error(2, "server_setup")
    assert "AFTERWORDS_STRIPE_PRICE_ID" in error
