"""Characters reported to Stripe's meter: each once, late ones with their time, and loudly given up."""

from __future__ import annotations

import logging
from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy import insert

from afterwords.server.store import SqlStore
from afterwords.server.store.schema import meter_batches
from tests.server.billing.conftest import LaterClock, Shop

pytestmark = pytest.mark.anyio


async def add_batch(shop: Shop, customer_id: str, characters: int, *, hours_ago: float = 0) -> str:
    store, batch_id = shop.state.store, str(uuid4())
    assert isinstance(store, SqlStore)
    hour = shop.billing._clock.now() - timedelta(hours=hours_ago)
    row = {"batch_id": batch_id, "customer_id": customer_id, "hour": hour, "characters": characters}
    await store.database.write(lambda connection: connection.execute(insert(meter_batches).values(row)) and None)
    return batch_id


async def test_batches_are_reported_once(shop: Shop) -> None:
    await shop.buy_key("meter@example.com")
    [customer] = shop.stripe.find("customer", email="meter@example.com")
    shop.stripe.meter_sums.clear()
    now = shop.stripe.now()
    await add_batch(shop, customer["id"], 100, hours_ago=3)
    await add_batch(shop, customer["id"], 20)
    shop.stripe.fail("POST /v1/billing/meter_events", 0, times=3, performs=True)  # the answers are lost
    with pytest.raises(Exception, match="Stripe"):
        await shop.billing.send_meters()
    for _ in range(2):
        await shop.billing.send_meters()
    assert shop.stripe.meter_sums == {customer["id"]: 120}
    times = [event["timestamp"] for event in shop.stripe.find("billing.meter_event")]
    assert sorted(round((now - at) / 3600) for at in times) == [0, 2]  # the end of its hour, but not the future


async def test_batch_without_an_answer_is_given_up(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    customer = shop.stripe.create_customer({"email": "silent@example.com"})
    batch_id = await add_batch(shop, customer["id"], 7)
    with shop.stripe.outage():
        await shop.billing.send_meters()
    monkeypatch.setattr(shop.billing, "_clock", LaterClock(23 * 3600 + 60))
    await shop.billing.send_meters()
    assert not shop.stripe.find("billing.meter_event", identifier=batch_id)
    assert shop.state.metrics.meters_lost.sums[()] == 7
    [line] = [
        record.getMessage()
        for record in caplog.records
        if record.levelno == logging.ERROR and batch_id in record.getMessage()
    ]
    assert "23 hours" in line


async def test_refused_batch_does_not_hold_up_the_others(shop: Shop) -> None:
    customer = shop.stripe.create_customer({"email": "refused@example.com"})
    await add_batch(shop, customer["id"], 10**16)
    await add_batch(shop, customer["id"], 5)
    await shop.billing.send_meters()
    assert shop.stripe.meter_sums[customer["id"]] == 5
