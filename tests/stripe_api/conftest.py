"""Fixtures for tests of the Stripe server: a server of its own for each test, and clients of the real package."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from stripe import HTTPXClient, StripeClient

from tests.stripe_api import StripeServer, running_stripe


@pytest.fixture
def stripe() -> Iterator[StripeServer]:
    with running_stripe() as server:
        server.create_price("price_hobby", 900)
        yield server


@pytest.fixture
def client(stripe: StripeServer) -> Iterator[StripeClient]:
    """Return a client that tries once."""
    http = HTTPXClient(allow_sync_methods=True, timeout=60)
    yield StripeClient(stripe.key, base_addresses={"api": stripe.url}, max_network_retries=0, http_client=http)
    http.close()  # type: ignore[no-untyped-call]


@pytest.fixture
def browser() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=60) as http:
        yield http
