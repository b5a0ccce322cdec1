"""The port `Payments` over Stripe's package, the only module that imports it. Its objects become our records here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import SecretStr
from pydantic_core import from_json

from afterwords.errors import InvalidRequestError, MissingExtraError, NotFoundError, ServiceUnavailableError
from afterwords.server.records import CustomerState, MeterBatch, PaymentEvent, PaymentSession, Subscription

if TYPE_CHECKING:
    from stripe import StripeClient
    from stripe.params import SubscriptionListParams

log = logging.getLogger("afterwords.server")

T = TypeVar("T")

CALL_TIMEOUT_S: Final = 10
LIST_TIMEOUT_S: Final = 600
RETRIES: Final = 2
RATE_RETRIES: Final = 2
"""Of reads after status 429, which the package does not repeat."""
PAGE: Final = 100
TOLERANCE_S: Final = 300
"""How far the time of a signature may be from ours, as in Stripe's own check."""
CHECKOUT_KEY: Final = "afterwords_checkout"
"""Names the checkout in the metadata of its subscription, and of the customer that it created."""


class StripePayments:
    """Stripe.

    Args:
        secret_key: Key of the API.
        webhook_secret: Signs the events.
        api_url: URL of the API.
        meter_event: Name of the meter events.
        timeout_s: Of a call with its retries; the package would wait 80 s.

    Raises:
        MissingExtraError: The package is not installed.
    """

    def __init__(
        self,
        secret_key: SecretStr,
        webhook_secret: SecretStr | None,
        *,
        api_url: str,
        meter_event: str | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        try:
            import stripe
        except ImportError:
            raise MissingExtraError.for_extra("billing", purpose="Selling plans") from None
        stripe.enable_telemetry = False
        logging.getLogger("stripe").setLevel(logging.WARNING)  # it logs URLs, of which some have an email address
        logging.getLogger("httpx").addFilter(lambda record: api_url not in record.getMessage())  # so does this one
        self._webhook_secret, self._meter_event, self._timeout_s = webhook_secret, meter_event or "", timeout_s
        self._http = stripe.HTTPXClient(timeout=timeout_s)
        self._client: StripeClient = stripe.StripeClient(
            secret_key.get_secret_value(),
            base_addresses={"api": api_url},
            max_network_retries=RETRIES,
            http_client=self._http,
        )

    async def close(self) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call]

    # -- customers

    async def find_customers(self, email: str) -> list[str]:
        async with self._calling("list customers"):
            found = await self._client.v1.customers.list_async({"email": email, "limit": PAGE})
        return [one["id"] for one in (each.to_dict() for each in found.data) if CHECKOUT_KEY in (one["metadata"] or {})]

    async def create_customer(self, email: str, *, checkout_id: str, key: str) -> str:
        async with self._calling("create a customer"):
            made = await self._client.v1.customers.create_async(
                {"email": email, "metadata": {CHECKOUT_KEY: checkout_id}}, {"idempotency_key": key}
            )
        return made.id

    async def delete_customer(self, customer_id: str) -> None:
        async with self._calling("delete a customer"):
            await self._client.v1.customers.delete_async(customer_id)

    async def read_customer(self, customer_id: str) -> CustomerState:
        """Return a customer with all subscriptions."""
        from stripe import InvalidRequestError as Refused

        async with self._calling("read a customer"):
            try:
                found = await _repeat(lambda: self._client.v1.customers.retrieve_async(customer_id))
            except Refused as error:
                if error.code != "resource_missing":
                    raise
                raise _customer_not_found() from None
            customer = found.to_dict()
            if customer.get("deleted"):  # which has ended the subscriptions
                return CustomerState(email=None, is_deleted=True, subscriptions=())
            subscriptions = await self._list_subscriptions({"customer": customer_id})
        email = (customer.get("email") or "").strip().lower() or None
        return CustomerState(email, is_deleted=False, subscriptions=tuple(subscriptions))

    async def list_subscriptions(self, price_id: str) -> list[Subscription]:
        async with self._calling("list subscriptions", timeout_s=LIST_TIMEOUT_S):
            return await self._list_subscriptions({"price": price_id})

    async def _list_subscriptions(self, of: SubscriptionListParams) -> list[Subscription]:
        """Return the items of all subscriptions, page by page."""
        params: SubscriptionListParams = {**of, "status": "all", "limit": PAGE}
        page = await _repeat(lambda: self._client.v1.subscriptions.list_async(params))
        found = list(page.data)
        while page.has_more:
            page = await _repeat(page.next_page_async)
            found += page.data
        return _items([one.to_dict() for one in found])

    async def cancel_subscription(self, subscription_id: str) -> None:
        """End a subscription now, unless it has ended."""
        from stripe import InvalidRequestError as Refused

        async with self._calling("cancel a subscription"):
            try:
                await self._client.v1.subscriptions.cancel_async(subscription_id)
            except Refused as error:
                if error.code != "resource_missing":
                    raise

    # -- checkout and portal

    async def create_session(
        self, customer_id: str, *, checkout_id: str, price_id: str, success_url: str, cancel_url: str, key: str
    ) -> PaymentSession:
        """Create the session of a checkout."""
        from stripe import InvalidRequestError as Refused

        async with self._calling("create a Checkout Session"):
            try:
                made = await self._client.v1.checkout.sessions.create_async(
                    {
                        "mode": "subscription",
                        "customer": customer_id,
                        "client_reference_id": checkout_id,
                        "line_items": [{"price": price_id, "quantity": 1}],
                        "subscription_data": {"metadata": {CHECKOUT_KEY: checkout_id}},
                        "success_url": success_url,
                        "cancel_url": cancel_url,
                    },
                    {"idempotency_key": key},
                )
            except Refused as error:
                if (error.code, error.param) != ("resource_missing", "customer"):
                    raise
                raise _customer_not_found() from None
        return _session(made)

    async def list_open_sessions(self, customer_id: str) -> list[PaymentSession]:
        async with self._calling("list Checkout Sessions"):
            page = await self._client.v1.checkout.sessions.list_async(
                {"customer": customer_id, "status": "open", "limit": PAGE}
            )
        return [_session(one) for one in page.data]

    async def expire_session(self, session_id: str) -> bool:
        """Expire a session."""
        from stripe import InvalidRequestError as Refused

        async with self._calling("expire a Checkout Session"):
            try:
                await self._client.v1.checkout.sessions.expire_async(session_id)
            except Refused:  # it is not open
                found = await self._client.v1.checkout.sessions.retrieve_async(session_id)
                return found.status == "expired"
        return True

    async def create_portal(self, customer_id: str, *, return_url: str) -> str:
        async with self._calling("open the billing portal"):
            made = await self._client.v1.billing_portal.sessions.create_async(
                {"customer": customer_id, "return_url": return_url}
            )
        return made.url

    async def send_meter_event(self, batch: MeterBatch, *, at: datetime) -> None:
        """Report a batch."""
        from stripe import InvalidRequestError as Refused

        payload = {"stripe_customer_id": batch.customer_id, "value": str(batch.characters)}
        async with self._calling("report characters"):
            try:
                await self._client.v1.billing.meter_events.create_async(
                    {
                        "event_name": self._meter_event,
                        "identifier": batch.batch_id,
                        "timestamp": int(at.timestamp()),
                        "payload": payload,
                    }
                )
            except Refused as error:
                if batch.batch_id not in str(error):  # "already exists": the answer to the first one was lost
                    raise InvalidRequestError(f"Stripe refused it, status {error.http_status}.") from None

    @asynccontextmanager
    async def _calling(self, what: str, *, timeout_s: float | None = None) -> AsyncIterator[None]:
        """Limit the time of a call, and translate its failure. The log has Stripe's codes, and none of its messages."""
        from stripe import APIConnectionError, StripeError

        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                yield
        except (APIConnectionError, TimeoutError) as error:
            log.warning("Stripe did not answer what=%r kind=%s", what, type(error).__name__)
            raise ServiceUnavailableError(
                "Stripe, which handles payments, does not answer; nothing was charged.", code="payments_unavailable"
            ) from None
        except StripeError as error:
            log.error(
                "Stripe refused what=%r status=%s code=%s param=%s stripe_request=%s",
                what,
                error.http_status,
                error.code,
                getattr(error, "param", None),
                error.request_id,
            )
            raise ServiceUnavailableError(
                "Stripe, which handles payments, answered with an error; nothing was charged.", code="payments_failed"
            ) from None

    # -- webhooks

    def read_event(self, body: bytes, signature: str) -> PaymentEvent:
        """Check the signature of a webhook, and return its event."""
        from stripe import SignatureVerificationError, WebhookSignature

        assert self._webhook_secret is not None
        try:
            text = body.decode()
            signature.encode("ascii")
            WebhookSignature.verify_header(text, signature, self._webhook_secret.get_secret_value(), TOLERANCE_S)
            signed_at = int(next(part[2:] for part in signature.split(",") if part.startswith("t=")))
        except (SignatureVerificationError, UnicodeError) as error:
            raise _invalid_signature() from error
        if signed_at > time.time() + TOLERANCE_S:
            raise _invalid_signature()
        try:
            event: Any = from_json(text, allow_inf_nan=False)
        except ValueError:
            event = None
        found = _read_event(event)
        if found is None:
            raise InvalidRequestError(
                "The body is not an event of Stripe.", code="invalid_event", hint="send snapshot events only."
            )
        return found


def _invalid_signature() -> InvalidRequestError:
    return InvalidRequestError(
        "The Stripe-Signature header does not sign this body, or is too old.",
        code="invalid_signature",
        hint="set AFTERWORDS_STRIPE_WEBHOOK_SECRET to the secret of this endpoint.",
    )


def _read_event(event: Any) -> PaymentEvent | None:
    match event:
        case {"object": "event", "id": str(event_id), "type": str(kind), "data": {"object": dict(about)}}:
            own = about.get("id") if about.get("object") == "customer" else about.get("customer")
            ids = (about.get("id"), own.get("id") if isinstance(own, dict) else own, about.get("charge"))
            return PaymentEvent(event_id, kind, *(value if isinstance(value, str) else None for value in ids))
    return None


def _session(found: Any) -> PaymentSession:
    session = found.to_dict()
    return PaymentSession(session["id"], session.get("url"), session.get("client_reference_id"))


def _items(subscriptions: list[dict[str, Any]]) -> list[Subscription]:
    """Return each item of subscriptions: the periods are those of the items."""
    return [
        Subscription(
            subscription_id=one["id"],
            customer_id=one["customer"],
            status=one["status"],
            price_id=item["price"]["id"],
            period_start=_time(item["current_period_start"]),
            period_end=_time(item["current_period_end"]),
            is_ending=bool(one.get("cancel_at_period_end") or one.get("cancel_at")),
            created_at=_time(one["created"]),
            checkout_id=(one.get("metadata") or {}).get(CHECKOUT_KEY),
        )
        for one in subscriptions
        for item in one["items"]["data"]
    ]


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


async def _repeat(read: Callable[[], Awaitable[T]]) -> T:
    """Read again after a while, if Stripe answers that there are too many requests."""
    from stripe import RateLimitError

    for _ in range(RATE_RETRIES):
        try:
            return await read()
        except RateLimitError as error:
            wait_s = (error.headers or {}).get("retry-after", "")
            await asyncio.sleep(int(wait_s) if wait_s.isdecimal() else 1)
    return await read()


def _customer_not_found() -> NotFoundError:
    return NotFoundError("Stripe has no such customer.", code="customer_not_found")
