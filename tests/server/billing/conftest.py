"""Fixtures of billing tests: a server in this process that sells a plan at a Stripe server on loopback."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from afterwords.errors import ServiceUnavailableError
from afterwords.server.app import AfterwordsApp, create_app
from afterwords.server.app_state import ServerState
from afterwords.server.clock import SystemClock
from afterwords.server.services.billing import Billing
from afterwords.server.settings import load_settings
from tests.stripe_api import StripeServer, running_stripe

URL = "http://127.0.0.1:7860"
Object = dict[str, Any]


@dataclass
class Outbox:
    """The mail that was sent. `fails`: none is taken."""

    mails: list[tuple[str, str, str]] = field(default_factory=list)
    fails: bool = False

    async def send(self, to: str, *, subject: str, text: str) -> None:
        if self.fails:
            raise ServiceUnavailableError(code="mail_unavailable")
        self.mails.append((to, subject, text))


class LaterClock(SystemClock):
    """The time of this machine, some seconds later."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._later = timedelta(seconds=seconds)

    def now(self) -> datetime:
        return super().now() + self._later


class Browser(httpx.AsyncClient):
    """A browser: it keeps its cookies."""

    async def sign_up(self, email: str, **fields: Any) -> httpx.Response:
        return await self.post("/v1/checkout", json={"email": email, **fields})

    @property
    def cookie(self) -> str | None:
        return self.cookies.get("aw_checkout")


@dataclass
class Shop:
    """A server and its Stripe account."""

    stripe: StripeServer
    app: AfterwordsApp
    state: ServerState
    outbox: Outbox
    database: Path
    _addresses: Iterator[int] = field(default_factory=count)

    @property
    def billing(self) -> Billing:
        assert self.state.billing is not None
        return self.state.billing

    def browser(self, address: str = "") -> Browser:
        """Return a browser, at an address of its own unless one is given."""
        address = address or str(IPv4Address("10.1.0.0") + next(self._addresses))
        return Browser(transport=httpx.ASGITransport(self.app, client=(address, 1)), base_url=URL)

    async def session(self, browser: Browser, email: str) -> Object:
        """Sign up, and return the open session of Stripe."""
        answer = await browser.sign_up(email)
        assert answer.status_code == 200, answer.text
        session: Object = self.stripe.objects[answer.json()["url"].rpartition("/")[2]]
        return session

    async def deliver(self, *events: Object) -> list[int]:
        """Send events, or all that wait, and return the statuses of the answers."""
        statuses = []
        events = events or tuple(self.stripe.webhooks.take())
        async with self.browser() as sender:
            for event in events:
                body, headers = self.stripe.webhooks.request(event)
                answer = await sender.post("/v1/webhooks/stripe", content=body, headers=headers)
                statuses.append(answer.status_code)
        return statuses

    async def buy(self, browser: Browser, email: str) -> str:
        """Sign up and pay, and return the token of the success page."""
        session = self.stripe.pay((await self.session(browser, email))["id"])
        assert set(await self.deliver()) <= {200}
        return token_of(session)

    async def buy_key(self, email: str) -> str:
        """Return the key of a new customer."""
        async with self.browser() as browser:
            token = await self.buy(browser, email)
            minted = await self.billing.show_key(token, browser.cookie)
        assert minted is not None
        return minted.secret

    async def status(self, key: str) -> int:
        """Return the status of a request with a key."""
        self.state.keys._callers.clear()  # which last half a second
        async with self.browser() as client:
            return (await client.get("/v1/keys", headers={"Authorization": f"Bearer {key}"})).status_code


def token_of(session: Object) -> str:
    return str(session["success_url"]).partition("token=")[2]


def confirmation_in(mail: tuple[str, str, str]) -> str:
    """Return the token of the link in a mail."""
    found = re.search(r"/v1/checkout/confirm\?token=(\S+)", mail[2])
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def stripe() -> Iterator[StripeServer]:
    with running_stripe() as server:
        server.create_price("price_hobby", 900)
        server.create_price("price_other", 500, product_id="prod_other", name="Other")
        server.webhooks.hold()
        yield server


@pytest.fixture(scope="module")
async def shop(stripe: StripeServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    """Return a running server; its events are delivered by `Shop.deliver`."""
    home = tmp_path_factory.mktemp("billing") / "home"
    settings = load_settings(
        home=home,
        backends=("tone",),
        workers=0,
        rate_limit=0,
        stripe_secret_key=stripe.key,
        stripe_webhook_secret=stripe.webhooks.secrets[0],
        stripe_price_id="price_hobby",
        stripe_api_url=stripe.url,
        stripe_meter_event="characters",
        processes=1,
    )
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        assert app.lifetime.state is not None
        outbox = Outbox()
        state = app.lifetime.state
        assert state.billing is not None
        state.billing._mailer = outbox
        yield Shop(stripe, app, state, outbox, home / "server" / "afterwords.db")


async def together(*tasks: Any) -> list[Any]:
    return list(await asyncio.gather(*tasks))
