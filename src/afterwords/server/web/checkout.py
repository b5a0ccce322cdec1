"""The pages on which a plan is bought: sign-up, the page after the payment, and the one that a mailed link opens."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from afterwords.errors import ServiceError
from afterwords.server.auth import Credential
from afterwords.server.records import CheckoutState
from afterwords.server.routes.billing import DISABLED, PAYMENTS, PRIVATE, billing_of, browser_of, start_checkout
from afterwords.server.routes.responses import IdempotencyKey, context_of, errors, json_response
from afterwords.server.routes.schemas import CheckoutBody, CheckoutReady, CheckoutStarted
from afterwords.server.routing import FORM, parse_body
from afterwords.server.web.account import show_key
from afterwords.server.web.pages import (
    PAGE,
    accepts_page,
    at_own_name,
    check_origin,
    page,
    plans_for_sale,
    read_form,
    render,
)

router = APIRouter(tags=["billing"])

MESSAGES: Final = {
    CheckoutState.SHOWN: (
        "This key was shown already",
        "A key is shown once. If you did not copy it, sign in with another key of the account and create a new one, or "
        "ask the operator of this server.",
    ),
    CheckoutState.EXPIRED: (
        "This link has expired",
        "It works for an hour after the payment, and for a day in a mail. If you have paid and have no key, ask the "
        "operator of this server.",
    ),
    CheckoutState.WRONG_BROWSER: (
        "Open this page where you began",
        "The key is shown only in the browser that began to buy the plan.",
    ),
}
Token = Annotated[str, Query(max_length=200, description="From the URL of the page.")]


@router.get("/v1/signup", responses={200: PAGE, 404: {**PAGE, "description": "The page; nothing is for sale."}})
@page(Credential.PUBLIC)
async def signup(request: Request) -> Response:
    """Show the form that begins a checkout."""
    return at_own_name(request) or await _signup_page(request)


@router.post(
    "/v1/checkout",
    responses={
        200: {"model": CheckoutStarted},
        303: {"description": "The same URL, for a form."},
        **errors(
            _400="missing_field, invalid_json, invalid_multipart, invalid_host",
            _404="billing_disabled",
            _408="request_timeout",
            _409="idempotency_conflict, checkout_replaced, email_in_use",
            _413="request_too_large",
            _422="invalid_field, invalid_unicode",
            _429="rate_limited",
        ),
        **PAYMENTS,
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {kind: {"schema": CheckoutBody.model_json_schema()} for kind in ("application/json", FORM)},
        }
    },
)
@page(Credential.PUBLIC)
async def checkout(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
    """Begin to buy a plan, and return the page on which it is paid.

    The cookie that is set lets this browser alone see the key later. With the same cookie, address and plan, the same
    checkout is returned for 30 minutes. A program that keeps no cookies gets the same one by an `Idempotency-Key`,
    which must be as secret as the cookie: a random UUID.
    """
    is_form = request.headers.get("content-type", "").startswith(FORM)
    if is_form:
        check_origin(request)
    body = parse_body(CheckoutBody, await request.body(), request)
    try:
        started = await start_checkout(request, body.email, body.plan, idempotency_key=idempotency_key)
    except ServiceError as error:
        if not accepts_page(request):
            raise
        return await _signup_page(request, error=error, email=body.email, plan=body.plan)
    if is_form:
        return started.answer(RedirectResponse(started.url, 303, headers=PRIVATE), request)
    return started.answer(json_response(CheckoutStarted(url=started.url)), request)


@router.get(
    "/v1/checkout/success",
    responses={
        200: {"model": CheckoutReady, "content": PAGE["content"]},
        **DISABLED,
        **errors(_422="invalid_field"),
        **PAYMENTS,
    },
)
@page(Credential.PUBLIC)
async def success(request: Request, token: Token = "") -> Response:
    """Return whether the page of a checkout can show its key. This uses nothing up, and may be polled.

    A browser that accepts HTML gets the page. It shows the key once, to the browser that began the checkout.
    """
    billing, browser = billing_of(request), browser_of(request)
    state = await billing.success(token, browser)
    if not accepts_page(request):
        context_of(request).is_routine = True
        return json_response(CheckoutReady(ready=state is CheckoutState.READY, state=state), headers=PRIVATE)
    purposes = [request.headers.get(name, "") for name in ("sec-purpose", "purpose", "x-moz")]
    is_early = context_of(request).is_head or any("prefetch" in purpose for purpose in purposes)
    if state is CheckoutState.READY and not is_early:
        minted = await billing.show_key(token, browser)
        if minted is not None:
            return await show_key(request, minted.secret)
        state = await billing.success(token, browser)
        state = CheckoutState.EXPIRED if state is CheckoutState.READY else state  # the key that began it was revoked
    if state is CheckoutState.NEEDS_CONFIRMATION:
        return await render(request, "send_confirmation.html", checkout=token, can_mail=billing.can_mail)
    if state in MESSAGES:
        title, text = MESSAGES[state]
        return await render(request, "message.html", title=title, text=text)
    return await render(request, "waiting.html")


@router.get("/v1/checkout/already-subscribed", responses={200: PAGE})
@page(Credential.PUBLIC)
async def already_subscribed(request: Request) -> Response:
    """Show that the address has a plan already, without any fact of its account."""
    return await render(request, "already_subscribed.html")


@router.post("/v1/checkout/send-confirmation", include_in_schema=False)
@page(Credential.PUBLIC)
async def send_confirmation(request: Request) -> Response:
    """Mail the link that lets a checkout join the account of its address."""
    form = await read_form(request)
    await billing_of(request).send_confirmation(form.get("checkout", ""), browser_of(request))
    title, text = "Check your mail", "Open the link in the mail within a day: the page behind it shows your key."
    return await render(request, "message.html", title=title, text=text)


@router.get("/v1/checkout/confirm", include_in_schema=False)
@page(Credential.PUBLIC)
async def confirm(request: Request, token: Token = "") -> Response:
    """Show a button for the key of a mailed link: opening the link, as mail scanners do, uses nothing up."""
    state = await billing_of(request).confirmation(token)
    if state in (CheckoutState.NEEDS_CONFIRMATION, CheckoutState.READY):
        is_new = state is CheckoutState.READY
        return await render(request, "confirm.html", checkout=token, is_new=is_new)
    title, text = MESSAGES[state]
    return await render(request, "message.html", title=title, text=text)


@router.post("/v1/checkout/confirm", include_in_schema=False)
@page(Credential.PUBLIC)
async def show_confirmed_key(request: Request) -> Response:
    """Show the key of a mailed link, once."""
    form = await read_form(request)
    billing, token = billing_of(request), form.get("checkout", "")
    minted = await billing.confirm(token, revokes_others="revoke" in form)
    if minted is not None:
        return await show_key(request, minted.secret)
    title, text = MESSAGES.get(await billing.confirmation(token), MESSAGES[CheckoutState.EXPIRED])
    return await render(request, "message.html", title=title, text=text)


async def _signup_page(
    request: Request, *, error: ServiceError | None = None, email: str = "", plan: str | None = None
) -> Response:
    plans = plans_for_sale(request)
    if not plans:
        title, text = "Nothing is for sale here", "To use this server, ask its operator for an API key."
        return await render(request, "message.html", status=404, title=title, text=text)
    status = error.http_status if error else 200
    return await render(
        request, "signup.html", status=status, error=error, email=email, plans=plans, chosen=plan or next(iter(plans))
    )
