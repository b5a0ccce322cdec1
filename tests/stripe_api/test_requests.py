"""Keys, idempotency, pages of lists, and errors on demand, asked for with the real package."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from stripe import (
    APIConnectionError,
    APIError,
    AuthenticationError,
    HTTPXClient,
    IdempotencyError,
    InvalidRequestError,
    RateLimitError,
    StripeClient,
)

from tests.stripe_api import StripeServer
from tests.stripe_api.account import DAY_S


def post(stripe: StripeServer, path: str, key: str, **form: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {stripe.key}", "Idempotency-Key": key}
    return httpx.post(f"{stripe.url}{path}", headers=headers, data=form, timeout=60, trust_env=False)


def test_wrong_key_is_refused(client: StripeClient) -> None:
    with pytest.raises(AuthenticationError):
        client.v1.customers.list({}, {"api_key": "sk_test_wrong"})


def test_other_api_version_is_refused(stripe: StripeServer, client: StripeClient) -> None:
    with pytest.raises(InvalidRequestError, match="version"):
        client.v1.customers.list({}, {"stripe_version": "2026-03-25.dahlia"})


def test_async_client_works_too(stripe: StripeServer) -> None:
    async def list_all() -> list[str]:
        http = HTTPXClient()
        client = StripeClient(stripe.key, base_addresses={"api": stripe.url}, http_client=http)
        made = [(await client.v1.customers.create_async({})).id for _ in range(12)]
        page = await client.v1.customers.list_async({"limit": 5})
        found = [one.id async for one in page.auto_paging_iter()]
        await http.close_async()  # type: ignore[no-untyped-call]
        assert found == made[::-1]
        return found

    assert len(asyncio.run(list_all())) == 12


def test_page_holds_10_newest_first(stripe: StripeServer, client: StripeClient) -> None:
    made = [stripe.create_customer({})["id"] for _ in range(12)]
    page = client.v1.customers.list()
    assert ([one.id for one in page.data], page.has_more) == (made[:1:-1], True)
    rest = client.v1.customers.list({"starting_after": page.data[-1].id})
    assert ([one.id for one in rest.data], rest.has_more) == (made[1::-1], False)
    with pytest.raises(InvalidRequestError, match="limit"):
        client.v1.customers.list({"limit": 101})


def test_same_key_and_parameters_are_replayed(stripe: StripeServer) -> None:
    first, second = [post(stripe, "/v1/customers", "key", email="ann@example.com") for _ in range(2)]
    assert (second.json(), second.headers["idempotent-replayed"]) == (first.json(), "true")
    assert "idempotent-replayed" not in first.headers
    assert stripe.count("customer") == 1
    stripe.advance(DAY_S)
    assert post(stripe, "/v1/customers", "key", email="ann@example.com").json() != first.json()


def test_key_of_other_request_is_refused(stripe: StripeServer, client: StripeClient) -> None:
    customer = client.v1.customers.create({"email": "ann@example.com"}, {"idempotency_key": "key"})
    with pytest.raises(IdempotencyError) as error:
        client.v1.customers.create({"email": "bo@example.com"}, {"idempotency_key": "key"})
    assert error.value.http_status == 400
    with pytest.raises(IdempotencyError):
        client.v1.customers.update(customer.id, {"email": "ann@example.com"}, {"idempotency_key": "key"})
    with pytest.raises(IdempotencyError, match="255"):
        client.v1.customers.create({}, {"idempotency_key": "x" * 256})


def test_500_is_kept_and_503_is_not(stripe: StripeServer, client: StripeClient) -> None:
    for performs in (False, True):
        stripe.fail("POST /v1/customers", 500, performs=performs)
        for _ in range(2):
            with pytest.raises(APIError) as error:
                client.v1.customers.create({}, {"idempotency_key": f"key-{performs}"})
            assert error.value.http_status == 500
        assert stripe.count("customer") == performs
    stripe.fail(status=503)
    with pytest.raises(APIError):
        client.v1.customers.create({}, {"idempotency_key": "other"})
    client.v1.customers.create({}, {"idempotency_key": "other"})


def test_failed_validation_is_not_kept(stripe: StripeServer) -> None:
    assert post(stripe, "/v1/customers", "key", mail="ann@example.com").status_code == 400
    assert post(stripe, "/v1/customers", "key", email="ann@example.com").status_code == 200


def test_key_in_use_is_a_conflict(stripe: StripeServer, client: StripeClient) -> None:
    slow = stripe.delay("POST /v1/customers")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, stripe, "/v1/customers", "key")
        assert slow.reached.wait(60)
        with pytest.raises(APIError, match="in-progress") as error:
            client.v1.customers.create({}, {"idempotency_key": "key"})
        slow.released.set()
        assert error.value.http_status == 409
        made = first.result(60).json()["id"]
    assert client.v1.customers.create({}, {"idempotency_key": "key"}).id == made


def test_lost_answer_was_performed(stripe: StripeServer, client: StripeClient) -> None:
    stripe.fail("POST /v1/customers", performs=True)
    with pytest.raises(APIConnectionError):
        client.v1.customers.create({}, {"idempotency_key": "key"})
    assert stripe.count("customer") == 1
    assert client.v1.customers.create({}, {"idempotency_key": "key"}).id == stripe.find("customer")[0]["id"]
    assert [(logged.idempotency_key, logged.status) for logged in stripe.requests] == [("key", 0), ("key", 200)]
    stripe.fail("POST /v1/customers")  # lost before it was performed
    with pytest.raises(APIConnectionError):
        client.v1.customers.create({}, {"idempotency_key": "other"})
    assert stripe.count("customer") == 1


def test_slow_answer_was_true_when_asked(stripe: StripeServer, client: StripeClient) -> None:
    customer = stripe.create_customer({})["id"]
    subscription = stripe.subscribe(customer, "price_hobby")["id"]
    slow = stripe.delay("GET /v1/subscriptions/{id}")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.v1.subscriptions.retrieve, subscription)
        assert slow.reached.wait(60)
        stripe.change_status(subscription, "unpaid")
        second = client.v1.subscriptions.retrieve(subscription)
        slow.released.set()
        assert (first.result(60).status, second.status) == ("active", "unpaid")


def test_rate_limit_on_demand(stripe: StripeServer, client: StripeClient) -> None:
    stripe.fail("GET /v1/customers", 429, times=2)
    for _ in range(2):
        with pytest.raises(RateLimitError):
            client.v1.customers.list()
    client.v1.customers.list()


def test_outage_ends(stripe: StripeServer, client: StripeClient) -> None:
    with stripe.outage(), pytest.raises(APIError) as error:
        client.v1.customers.list()
    assert error.value.http_status == 503
    with stripe.outage(None), pytest.raises(APIConnectionError):
        client.v1.customers.list()
    client.v1.customers.list()


def test_replayed_answer_can_be_lost_too(stripe: StripeServer, client: StripeClient) -> None:
    stripe.fail("POST /v1/customers", times=2, performs=True)
    for _ in range(2):
        with pytest.raises(APIConnectionError):
            client.v1.customers.create({}, {"idempotency_key": "key"})
    client.v1.customers.create({}, {"idempotency_key": "key"})
    assert stripe.count("customer") == 1
