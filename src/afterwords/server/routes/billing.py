"""Selling plans: the start of a checkout, which pages in `web/` share, and the route for events of Stripe."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import Response

from afterwords.server.auth import Credential, requires
from afterwords.server.records import Caller
from afterwords.server.routes.responses import context_of, errors, json_response, state_of
from afterwords.server.routes.schemas import EventReceived
from afterwords.server.services.billing import Billing, billing_disabled
from afterwords.server.services.signing import checkout_browser

router = APIRouter(tags=["billing"])

EVENT_MAX_BYTES: Final = 512 * 1024
"""Of an event of Stripe: some pass 128 KiB."""
COOKIE: Final = "aw_checkout"
COOKIE_LIFE_S: Final = 14 * 86_400
"""Bank debits take days."""
DISABLED: Final = errors(_400="invalid_host", _404="billing_disabled")
PAYMENTS: Final = errors(_500="internal_error", _503="payments_unavailable, payments_failed, database_unavailable")
PRIVATE: Final = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
"""Headers of pages whose URL has a token."""


def billing_of(request: Request) -> Billing:
    """Return the billing of the server that handles a request.

    Raises:
        NotFoundError: It sells no plans.
    """
    billing = state_of(request).billing
    if billing is None:
        raise billing_disabled()
    return billing


def browser_of(request: Request) -> str | None:
    """Return the cookie of the browser that began a checkout."""
    value = request.cookies.get(COOKIE, "")
    return value if re.fullmatch("[A-Za-z0-9_-]{43}", value) else None


@dataclass(frozen=True, slots=True)
class Started:
    """A checkout that has begun: where it continues, and the browser that may see its key."""

    url: str
    browser: str = field(repr=False)

    def answer(self, response: Response, request: Request) -> Response:
        """Set the cookie of the browser."""
        base = urlsplit(state_of(request).settings.base_url)
        response.set_cookie(
            COOKIE,
            self.browser,
            max_age=COOKIE_LIFE_S,
            path=f"{base.path}/v1",  # also to the account page, where a checkout may begin
            secure=base.scheme == "https",
            httponly=True,
            samesite="lax",  # Stripe's page leads back to ours
        )
        return response


async def start_checkout(
    request: Request,
    email: str,
    plan: str | None = None,
    *,
    by: Caller | None = None,
    idempotency_key: str | None = None,
) -> Started:
    """Begin a checkout for the browser that sent a request; see `Billing.begin_checkout`.

    Args:
        by: The key that is signed in.
        idempotency_key: Gives the cookie of a program that sent none, so that a retry continues the same checkout.
    """
    billing, context = billing_of(request), context_of(request)
    billing.limit(
        state_of(request).authenticator.client_address(
            (request.scope.get("client") or ("",))[0], context.headers.get(b"x-forwarded-for", ())
        )
    )
    if idempotency_key is None:
        new = secrets.token_urlsafe(32)
    else:
        new = checkout_browser(state_of(request).authenticator.secret, idempotency_key)
    browser = browser_of(request) or new
    account_id, key_id = (by.account_id, by.key_id) if by else (None, None)
    url = await billing.begin_checkout(
        email, plan, browser, account_id=account_id, key_id=key_id, is_only=browser == new
    )
    return Started(url, browser)


@router.post(
    "/v1/webhooks/stripe",
    responses={
        200: {"model": EventReceived},
        **errors(
            _400="invalid_signature, invalid_event, invalid_host",
            _404="billing_disabled",
            _408="request_timeout",
            _413="request_too_large",
        ),
        **PAYMENTS,
    },
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}},
)
@requires(Credential.STRIPE_SIGNATURE, max_body_bytes=EVENT_MAX_BYTES)
async def receive_event(request: Request) -> Response:
    """Receive an event of Stripe. After 503, Stripe repeats it."""
    billing = billing_of(request)
    event = billing.payments.read_event(await request.body(), request.headers.get("stripe-signature", ""))
    await billing.handle_event(event)
    return json_response(EventReceived(received=True))
