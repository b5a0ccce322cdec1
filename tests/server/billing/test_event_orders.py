"""Events of Stripe in any order, repeated, late or lost: access is what Stripe says in the end.

Real parts on both sides of the wire: the Stripe server of `tests.stripe_api`, and billing over a database.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import Engine, create_engine, delete, select

from afterwords.errors import ServiceUnavailableError
from afterwords.server.clock import SystemClock
from afterwords.server.ports import Store
from afterwords.server.records import CheckoutState
from afterwords.server.services.billing import Billing
from afterwords.server.services.keys import digest
from afterwords.server.settings import Settings
from afterwords.server.store import SqlStore
from afterwords.server.store.schema import accounts, checkouts, customers
from afterwords.server.stripe_payments import StripePayments
from tests.stripe_api import StripeServer, running_stripe
from tests.stripe_api.account import Object, StripeError

if TYPE_CHECKING:
    from tests.postgres import PostgresServer

PRICE: Final = "price_hobby"
OTHER_PRICE: Final = "price_of_another_product"
BROWSER: Final = "a-cookie-of-the-tests"
ENTITLED: Final = ("trialing", "active", "past_due")
UNSETTLED: Final = ("incomplete", "unpaid", "paused")
ACCESS_EVENTS: Final = (
    "checkout.session.completed",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "invoice.paid",
    "invoice.payment_failed",
)
"""Types of events after which access is what Stripe says."""


@dataclass
class World:
    """A Stripe account, and two servers with one database that sell plans with it."""

    stripe: StripeServer
    store: Store
    billing: Billing
    other: Billing
    database: Engine
    runner: asyncio.Runner


@pytest.fixture(scope="module")
def stripe() -> Iterator[StripeServer]:
    with running_stripe() as server:
        server.webhooks.hold()
        yield server


@pytest.fixture(scope="module")
def world(stripe: StripeServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Run billing on SQLite."""
    folder = tmp_path_factory.mktemp("billing")
    yield from running_world(stripe, "sqlite:///billing.db", f"sqlite:///{folder / 'billing.db'}", folder)


@pytest.fixture(scope="module")
def postgres_world(
    stripe: StripeServer, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """Run billing on Postgres."""
    url = postgres.url(postgres.create_database())
    driver_url = url.replace("postgresql://", "postgresql+psycopg://")
    yield from running_world(stripe, url, driver_url, tmp_path_factory.mktemp("billing"))


def running_world(stripe: StripeServer, url: str, driver_url: str, folder: Path) -> Iterator[World]:
    database = create_engine(driver_url)
    with asyncio.Runner() as runner:
        store = SqlStore(url, clock=SystemClock(), folder=folder)
        runner.run(store.open())
        key, secret = SecretStr(stripe.key), SecretStr(stripe.webhooks.secrets[0])
        payments = StripePayments(key, secret, api_url=stripe.url)
        settings = Settings(stripe_price_id=PRICE, public_url="http://127.0.0.1:1")
        one, other = [Billing(settings, store, payments, None, SystemClock(), b"of the tests") for _ in range(2)]
        yield World(stripe, store, one, other, database, runner)
        runner.run(payments.close())
        runner.run(store.close())
    database.dispose()


class Buyer:
    """A customer with a checkout, and the events about them; nothing else is at Stripe, or in the tables of billing.

    Attributes:
        pending: Events that did not arrive yet, oldest first.
        arrived: Those that did.
    """

    def __init__(self, world: World) -> None:
        self.world, self.stripe = world, world.stripe
        self.stripe.objects.clear()
        self.stripe.webhooks.take()
        with world.database.begin() as connection:
            for table in (checkouts, customers):
                connection.execute(delete(table))
        for price in (PRICE, OTHER_PRICE):
            self.stripe.create_price(price, 900)
        self.run(world.billing.begin_checkout("ann@example.com", None, BROWSER))
        self.customer_id: str = self.stripe.find("customer")[0]["id"]
        self.token = ""
        self.pending: list[Object] = []
        self.arrived: list[Object] = []
        self._accounts: set[str] = set()
        self._key: str | None = None

    def run(self, call: Any) -> Any:
        return self.world.runner.run(call)

    def pay(self) -> None:
        (session,) = self.stripe.find("checkout.session")
        self.token = parse_qs(urlsplit(session["success_url"]).query)["token"][0]
        self.stripe.pay(session["id"])
        self.pending += self.stripe.webhooks.take()

    def do(self, step: str) -> None:
        """Let something happen at Stripe."""
        STEPS[step](self)
        self.pending += self.stripe.webhooks.take()

    @property
    def current(self) -> str:
        """The newest subscription that has not ended."""
        return str([one for one in self.subscriptions() if one["status"] != "canceled"][-1]["id"])

    def subscriptions(self) -> list[Object]:
        """Return the subscriptions of our price, oldest first."""
        found = self.stripe.find("subscription", customer=self.customer_id)
        return [one for one in found if one["items"]["data"][0]["price"]["id"] == PRICE]

    async def handle(self, event: Object, billing: Billing) -> None:
        """Let an event arrive at a server, as it is sent."""
        body, headers = self.stripe.webhooks.request(event)
        await billing.handle_event(billing.payments.read_event(body, headers["Stripe-Signature"]))

    def receive(self, event: Object) -> None:
        """Let an event arrive, perhaps once more, and check what it has changed."""
        is_new = event in self.pending
        self.run(self.handle(event, self.world.billing))
        if is_new:
            self.pending.remove(event)
            self.arrived.append(event)
            if event["type"] in ACCESS_EVENTS and event["data"]["object"]["customer"] == self.customer_id:
                self.check()

    def receive_all(self) -> None:
        for event in list(self.pending):
            self.receive(event)

    def check(self) -> None:
        """Check that access is what Stripe says now."""
        best = max(self.subscriptions()[::-1], key=lambda one: (one["status"] in ENTITLED, one["status"] in UNSETTLED))
        is_entitled = best["status"] in ENTITLED
        customer = self.run(self.world.store.find_customer(customer_id=self.customer_id))
        assert customer.status == best["status"]
        if customer.account_id is None:
            assert not is_entitled
            return
        self._accounts.add(customer.account_id)
        assert len(self._accounts) == 1, "the account stays the same"
        self._take_key()
        if self._key is not None:
            caller = self.run(self.world.store.find_caller(digest(self._key)))
            assert (caller.account_id, caller.is_suspended) == (customer.account_id, not is_entitled)
        with self.world.database.connect() as connection:
            account = connection.execute(select(accounts).where(accounts.c.account_id == customer.account_id)).one()
        assert (account.suspended_at is None) == is_entitled
        if is_entitled:
            item = best["items"]["data"][0]
            period = [datetime.fromtimestamp(item[f"current_period_{end}"], UTC) for end in ("start", "end")]
            assert [account.period_start, account.period_end] == period
            assert (customer.subscription_id, account.plan) == (best["id"], "hobby")

    def _take_key(self) -> None:
        """Take the key that the page of the checkout shows once."""
        billing = self.world.billing
        if self._key is None and self.run(billing.success(self.token, BROWSER)) is CheckoutState.READY:
            self._key = self.run(billing.show_key(self.token, BROWSER)).secret


STEPS: Final[dict[str, Callable[[Buyer], object]]] = {
    "subscribe": lambda buyer: buyer.stripe.subscribe(buyer.customer_id, PRICE),
    "renew": lambda buyer: buyer.stripe.advance_period(buyer.current),
    "fail": lambda buyer: buyer.stripe.fail_next_invoice(buyer.current),
    "fail for good": lambda buyer: buyer.stripe.fail_next_invoice(buyer.current, status="unpaid"),
    "pay": lambda buyer: buyer.stripe.pay_open_invoice(buyer.current),
    "cancel": lambda buyer: buyer.stripe.cancel(buyer.current),
    "delete": lambda buyer: buyer.stripe.delete_customer(buyer.customer_id),
    "dispute": lambda buyer: buyer.stripe.dispute(buyer.current),
    "buy something else": lambda buyer: buyer.stripe.subscribe(buyer.customer_id, OTHER_PRICE),
}
HISTORIES: Final = {
    "bought": (),
    "failed": ("fail for good",),
    "paid again": ("fail for good", "pay"),
    "canceled": ("cancel",),
    "bought again": ("cancel", "subscribe"),
    "bought twice": ("subscribe", "cancel"),
    "unpaid before a canceled one": ("fail for good", "subscribe", "cancel"),
    "deleted": ("delete",),
}
ARRIVALS: Final = st.tuples(st.sampled_from(("arrive", "all arrive", "repeat", "lose")), st.integers(0, 99))
SCRIPTS: Final = st.lists(st.sampled_from(sorted(STEPS)) | ARRIVALS | ARRIVALS, max_size=12)


def play(world: World, script: list[str | tuple[str, int]], rest: Random) -> None:
    """Play what happens and arrives, then let the rest arrive, or repair what was lost."""
    buyer = Buyer(world)
    buyer.pay()
    is_lossy = False
    for part in script:
        if isinstance(part, str):
            with suppress(IndexError, StripeError):  # there is nothing to cancel or to pay
                buyer.do(part)
            continue
        what, place = part
        events = buyer.arrived if what == "repeat" else buyer.pending
        if what == "all arrive":
            buyer.receive_all()
        elif events and what == "lose":
            is_lossy = True
            buyer.pending.remove(events[place % len(events)])
        elif events:
            buyer.receive(events[place % len(events)])
    if is_lossy:
        buyer.run(world.billing.reconcile())
        buyer.check()
    left = list(buyer.pending)
    rest.shuffle(left)
    for event in left:
        buyer.receive(event)
    buyer.check()


@examples(max_examples=25)
@given(script=SCRIPTS, rest=st.randoms(use_true_random=False))
def test_events_end_in_the_state_of_stripe(world: World, script: list[str | tuple[str, int]], rest: Random) -> None:
    play(world, script, rest)


@examples(max_examples=5)
@given(script=SCRIPTS, rest=st.randoms(use_true_random=False))
def test_events_on_postgres(postgres_world: World, script: list[str | tuple[str, int]], rest: Random) -> None:
    play(postgres_world, script, rest)


@pytest.mark.parametrize("steps", HISTORIES.values(), ids=HISTORIES)
def test_events_arrive_as_they_happen(world: World, steps: tuple[str, ...]) -> None:
    buyer = Buyer(world)
    buyer.pay()
    buyer.receive_all()
    for step in steps:
        buyer.do(step)
        buyer.receive_all()


@pytest.mark.parametrize("steps", HISTORIES.values(), ids=HISTORIES)
def test_events_arrive_backwards_and_twice(world: World, steps: tuple[str, ...]) -> None:
    arrive(world, steps, lambda events: [*reversed(events), *events])


@pytest.mark.soak
@pytest.mark.parametrize("steps", HISTORIES.values(), ids=HISTORIES)
def test_events_arrive_in_every_order(world: World, steps: tuple[str, ...]) -> None:
    count = arrive(world, steps, list)
    for order in itertools.permutations(range(count)):
        arrive(world, steps, lambda events: [events[place] for place in order for _ in range(2)])  # noqa: B023


def arrive(world: World, steps: Sequence[str], order: Callable[[list[Object]], list[Object]]) -> int:
    """Let the newest event of each kind about each object arrive in an order, and return how many there are."""
    buyer = Buyer(world)
    buyer.pay()
    for step in steps:
        buyer.do(step)
    newest = {
        (event["type"], event["data"]["object"]["id"]): event
        for event in buyer.pending
        if event["type"] in ACCESS_EVENTS
    }
    for event in order(list(newest.values())):
        buyer.receive(event)
    buyer.check()
    return len(newest)


@pytest.mark.parametrize("steps", [("fail for good",), ("fail for good", "pay"), ("cancel",), ("cancel", "subscribe")])
def test_slow_look_never_replaces_a_newer_one(world: World, steps: tuple[str, ...]) -> None:
    look_twice(world, steps)


def test_slow_look_on_postgres(postgres_world: World) -> None:
    look_twice(postgres_world, ("fail for good",))


def look_twice(world: World, steps: Sequence[str]) -> None:
    """Let one server look slowly and, after the last step, the other one fast."""
    buyer = Buyer(world)
    buyer.pay()
    for step in steps[:-1]:
        buyer.do(step)
    early = buyer.pending[-1]
    slow = world.stripe.delay("GET /v1/subscriptions")

    async def look() -> None:
        asked_first = asyncio.create_task(buyer.handle(early, world.billing))
        assert await asyncio.to_thread(slow.reached.wait, 60)
        buyer.do(steps[-1])
        late = [event for event in buyer.pending if event["type"] in ACCESS_EVENTS][-1]
        await buyer.handle(late, world.other)
        slow.released.set()
        await asked_first

    buyer.run(look())
    buyer.check()


def test_reconcile_without_stripe_takes_nothing_away(world: World) -> None:
    buyer = Buyer(world)
    buyer.pay()
    buyer.receive_all()
    world.stripe.fail("GET /v1/subscriptions", 400)
    with pytest.raises(ServiceUnavailableError):
        buyer.run(world.billing.reconcile())
    buyer.check()
