"""The clock, the service for payments, and mail."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from afterwords.server.records import (
    CustomerState,
    MeterBatch,
    PaymentEvent,
    PaymentSession,
    Subscription,
)


class Clock(Protocol):
    """The time. Tests pass their own."""

    def now(self) -> datetime:
        """Return the wall-clock time: aware, UTC, whole milliseconds."""

    def monotonic(self) -> float:
        """Return seconds since the epoch that steps of the wall clock don't change while the process lives."""

    def synchronize(self, monotonic: float) -> None:
        """Set the monotonic time: servers on several machines use that of their database for leases."""


class Payments(Protocol):
    """Stripe. Its state is always read again, since events are lost and reordered.

    All methods raise ServiceUnavailableError: `payments_unavailable` if there was no answer, so that the outcome is
    unknown, and `payments_failed` if the answer was an error.
    """

    async def find_customers(self, email: str) -> list[str]:
        """Return the ids of the customers with exactly this address that checkouts created, newest first."""

    async def create_customer(self, email: str, *, checkout_id: str, key: str) -> str:
        """Create the customer of a checkout; the same idempotency key returns the same one."""

    async def delete_customer(self, customer_id: str) -> None: ...

    async def read_customer(self, customer_id: str) -> CustomerState:
        """Return a customer with all subscriptions."""

    async def list_subscriptions(self, price_id: str) -> list[Subscription]:
        """Return all subscriptions of a price, also those that have ended, with all of their items."""

    async def cancel_subscription(self, subscription_id: str) -> None:
        """End a subscription now, unless it has ended."""

    async def create_session(
        self, customer_id: str, *, checkout_id: str, price_id: str, success_url: str, cancel_url: str, key: str
    ) -> PaymentSession:
        """Create the session of a checkout; the same idempotency key returns the same one.

        Raises:
            NotFoundError: The customer was deleted.
        """

    async def list_open_sessions(self, customer_id: str) -> list[PaymentSession]: ...

    async def expire_session(self, session_id: str) -> bool:
        """Expire a session. Return False if it was paid before."""

    async def create_portal(self, customer_id: str, *, return_url: str) -> str:
        """Return the short-lived URL of the billing portal of a customer."""

    async def send_meter_event(self, batch: MeterBatch, *, at: datetime) -> None:
        """Report a batch. Reporting it again changes nothing.

        Raises:
            InvalidRequestError: Stripe refuses it for good.
        """

    def read_event(self, body: bytes, signature: str) -> PaymentEvent:
        """Check the signature of a webhook, and return its event.

        Raises:
            InvalidRequestError: The signature is wrong or too old, or the body is not an event.
        """

    async def close(self) -> None: ...


class Mailer(Protocol):
    """Mail to customers."""

    async def send(self, to: str, *, subject: str, text: str) -> None:
        """Send a mail.

        Raises:
            ServiceUnavailableError: The mail server did not take it.
        """
