"""Tests of a server that sells a plan and is killed between the sign-up and the page with the key."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from afterwords.server import failpoints
from tests.cli.program import run
from tests.e2e.invariants import query
from tests.e2e.served import Served, wait_until
from tests.stripe_api import StripeServer, running_stripe

EMAIL = "ann@example.com"
IN_LOOKS = ("customer-read", "customer-synced")
CASES = [
    pytest.param(place, is_sent, marks=[pytest.mark.soak] if place != "checkout-key-stored" else [])
    for is_sent, places in ((True, failpoints.IN_BILLING), (False, IN_LOOKS))
    for place in places
]
CUSTOMERS = """
    SELECT customer_id, status, subscription_id, customers.account_id, plan, suspended_at
    FROM customers JOIN accounts ON accounts.account_id = customers.account_id
"""
KEYS = """
    SELECT revoked_at IS NOT NULL
    FROM keys JOIN customers ON customers.account_id = keys.account_id ORDER BY keys.seq
"""


class Shop:
    """A server that dies at a failpoint, is started again, and sells to one browser."""

    def __init__(self, home: Path, stripe: StripeServer, place: str) -> None:
        self.stripe = stripe
        self.n_kills = 0
        self.browser = httpx.Client(trust_env=False, timeout=60, headers={"Accept": "text/html"})
        self.served = Served(
            home,
            {
                "AFTERWORDS_STRIPE_SECRET_KEY": stripe.key,
                "AFTERWORDS_STRIPE_WEBHOOK_SECRET": stripe.webhooks.secrets[0],
                "AFTERWORDS_STRIPE_PRICE_ID": "price_hobby",
                "AFTERWORDS_STRIPE_API_URL": stripe.url,
                "AFTERWORDS_HOME": str(home),
                "AFTERWORDS_WORKERS": "0",
            },
        )
        self.served.start(AFTERWORDS_FAILPOINT=place)
        self.served.port = int(self.served.url.rpartition(":")[2])  # Stripe's pages lead back to it
        stripe.webhooks.url = f"{self.served.url}/v1/webhooks/stripe"

    def close(self) -> None:
        self.browser.close()
        if self.served.is_running:
            self.served.kill()

    def ask(self, send: Callable[[], httpx.Response]) -> str:
        """Return what a request of the browser is answered with: the page, or where it leads to."""
        try:
            answer = send()
        except httpx.TransportError:
            self.restart()
            answer = send()
        assert answer.status_code in (200, 303), answer.text
        return str(answer.headers.get("location", answer.text))

    def deliver(self) -> None:
        """Wait until the server has taken all events of Stripe."""

        def are_taken() -> bool:
            if not self.served.is_running:
                self.restart()
            taken = {attempt.event["id"] for attempt in self.stripe.webhooks.attempts if attempt.status == 200}
            return len(taken) == self.stripe.count("event")

        wait_until(are_taken, what="the events")

    def restart(self) -> None:
        assert self.served.died() == -signal.SIGKILL
        self.n_kills += 1
        self.served.start()

    def status(self, key: str) -> int:
        with self.served.client(key) as client:
            return client.get("/v1/usage").status_code

    def check_state(self) -> None:
        """Check that Stripe has one of everything, and that the server knows what Stripe does."""
        assert [self.stripe.count(kind) for kind in ("customer", "subscription")] == [1, 1]
        assert self.stripe.count("checkout.session", status="open") == 0
        [subscription] = self.stripe.find("subscription")
        [customer] = query(self.served, CUSTOMERS)
        assert customer[:3] == (subscription["customer"], "active", subscription["id"])
        assert customer[4:] == ("hobby", None)
        assert query(self.served, KEYS) == [(False,)]


@pytest.fixture
def stripe() -> Iterator[StripeServer]:
    with running_stripe() as server:
        server.create_price("price_hobby", 900)
        yield server


@pytest.mark.parametrize(("place", "is_sent"), CASES)
def test_kill_leaves_one_customer_and_key(place: str, is_sent: bool, stripe: StripeServer, tmp_path: Path) -> None:
    """Kill the server once; Stripe and the browser repeat what got no answer, and the operator replaces the key."""
    with closing(Shop(tmp_path / "home", stripe, place)) as shop:
        url = shop.ask(lambda: shop.browser.post(f"{shop.served.url}/v1/checkout", data={"email": EMAIL}))
        assert stripe.count("checkout.session", status="open") == 1
        if not is_sent:  # the page looks at Stripe
            stripe.webhooks.hold()
        session = stripe.pay(url.rpartition("/")[2])
        if is_sent:
            shop.deliver()
        page = shop.ask(lambda: shop.browser.get(session["success_url"]))

        assert shop.n_kills == 1
        shop.check_state()
        shown = set(re.findall("aw_[A-Za-z0-9_-]{43}", page))
        assert len(shown) == (0 if place == "checkout-key-stored" else 1)
        stripe.webhooks.release()
        shop.deliver()
        for event in [attempt.event for attempt in stripe.webhooks.attempts]:
            assert stripe.webhooks.send(event) == 200
        assert "was shown already" in shop.ask(lambda: shop.browser.get(session["success_url"]))
        shop.check_state()
        assert {shop.status(key) for key in shown} <= {200}

        reissued = run("billing", "reissue", EMAIL, env=shop.served.settings).out.strip()
        wait_until(lambda: all(shop.status(key) == 401 for key in shown), what="the end of the earlier key")
        assert shop.status(reissued) == 200
        assert query(shop.served, KEYS) == [(True,), (False,)]
