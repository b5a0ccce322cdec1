"""A small Stripe server of our own, on loopback, for tests of billing.

It is written from Stripe's documentation and the declarations of the package `stripe`, not from our server:

    with running_stripe() as stripe:
        price = stripe.create_price("price_hobby", 900)
        stripe.webhooks.url = f"{server}/v1/webhooks/stripe"  # until then, events wait
        client = StripeClient(stripe.key, base_addresses={"api": stripe.url})
        session = client.v1.checkout.sessions.create({...})
        stripe.pay(session.id)  # as does a POST to session.url, or "Pay" in a browser
        stripe.webhooks.wait()  # until the endpoint has answered every event with 2xx

- Objects: `objects` by ID, `find("customer", email=...)`, and `count("customer")`.
- What happens to them: `pay`, `settle`, `subscribe`, `advance_period`, `fail_next_invoice`, `pay_open_invoice`,
  `change_status`, `cancel`, `delete_customer`, `dispute`, `warn_of_fraud`, `refund`, and `advance` for Stripe's clock.
- Webhooks: `webhooks.hold()` keeps events back, `webhooks.deliver(order, times)` sends them in any order, `release()`
  sends the rest. Failed ones are repeated until the endpoint takes them. A test that sends events itself gets them by
  `webhooks.take()`, and signs each with `webhooks.request(event)`. `webhooks.secrets` and `webhooks.api_version` are
  the endpoint's.
- Requests: `requests` logs them. `fail(route, status)` answers with an error, `fail(route, performs=True)` performs a
  request and cuts the connection, `delay(route)` answers later with what was true when asked, `outage()` is down.

A parameter that Stripe has and `endpoints.py` lacks is refused, as those that Stripe lacks.
`python -m tests.stripe_api --port 8420 --webhook URL` runs it as a process.
"""

from __future__ import annotations

from tests.stripe_api.server import StripeServer, running_stripe

__all__ = ["StripeServer", "running_stripe"]
