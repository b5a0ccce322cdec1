"""The account page: a browser signs in with an API key, sees plan and usage, and manages the keys of the account."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ValidationError

from afterwords.errors import ConflictError, InvalidRequestError, NotFoundError, ServiceError
from afterwords.models import ApiKey, Usage, parse_id
from afterwords.server.auth import Credential
from afterwords.server.records import Scope
from afterwords.server.routes.billing import billing_of, start_checkout
from afterwords.server.routes.responses import base_url, caller_of, context_of, state_of
from afterwords.server.routes.schemas import NewKeyBody
from afterwords.server.web.pages import at_own_name, format_date, page, read_form, redirect, render, set_session

router = APIRouter(include_in_schema=False)
OVERLAPS: Final = {0: "now", 3600: "in an hour", 86_400: "in a day"}
"""When a replaced key ends, in seconds and in words."""
SCOPES: Final = {
    Scope.SYNTHESIZE: "speak",
    Scope.VOICES_READ: "read voices",
    Scope.VOICES_WRITE: "create, change and delete voices",
}
BAR_HEIGHT: Final = 100
INSTANT: Final = timedelta(microseconds=1)


@router.get("/v1/account")
@page(Credential.PUBLIC)
async def account(request: Request) -> Response:
    """Show the account of a browser that is signed in, and otherwise the form to sign in."""
    state = state_of(request)
    caller = await state.authenticator.find_session(context_of(request).headers.get(b"cookie", ()))
    if caller is None:
        if elsewhere := at_own_name(request):
            return elsewhere
        if request.headers.get("sec-fetch-site") == "cross-site":  # the browser withholds the cookie: open it again
            return await render(request, "reload.html")
        return await render(request, "sign_in.html", error=None)
    usage = await state.synthesis.get_usage(caller)
    customer = await state.billing.customer(caller.account_id) if state.billing is not None else None
    keys = await _list_keys(request, caller.account_id)
    return await render(
        request,
        "account.html",
        me=caller,
        customer=customer,
        usage=usage,
        last_day=usage.period_end - INSTANT,
        bars=_bars(usage),
        keys=keys,
        overlaps=OVERLAPS,
        scopes=SCOPES,
    )


@router.post("/v1/account/sign-in")
@page(Credential.PUBLIC)
async def sign_in(request: Request) -> Response:
    """Start the session of a browser with an API key."""
    form = await read_form(request)
    try:
        session = await context_of(request).sign_in(form.get("key", "").strip())
    except ServiceError as error:
        if error.http_status >= 500:
            raise
        return await render(request, "sign_in.html", status=error.http_status, error=error)
    response = redirect("../account")
    set_session(request, response, session)
    return response


@router.post("/v1/account/sign-out")
@page(Credential.SESSION)
async def sign_out(request: Request) -> Response:
    """End the session of a browser."""
    await read_form(request)
    response = redirect("../account")
    set_session(request, response, "")
    return response


@router.post("/v1/account/portal")
@page(Credential.SESSION)
async def portal(request: Request) -> Response:
    """Open Stripe's billing portal. Its URL opens for anyone, for some minutes: it is neither stored nor logged."""
    await read_form(request)
    return redirect(await billing_of(request).portal(caller_of(request).account_id))


@router.post("/v1/account/subscribe")
@page(Credential.SESSION)
async def subscribe(request: Request) -> Response:
    """Begin a checkout for the account."""
    form = await read_form(request)
    started = await start_checkout(request, form.get("email", ""), form.get("plan"), by=caller_of(request))
    return started.answer(redirect(started.url), request)


@router.post("/v1/account/create-key")
@page(Credential.SESSION)
async def create_key(request: Request) -> Response:
    """Create a key with scopes for the account, and show it once."""
    form, caller = await read_form(request), caller_of(request)
    keys = await _list_keys(request, caller.account_id)
    newest = keys[-1].key_id if keys else None
    if newest is None or newest != form.get("newest"):  # reloading the page of a new key must not create another one
        raise ConflictError("The account has a newer key than this form.", hint="open the account page again.")
    try:
        body = NewKeyBody(
            label=form.get("label", "").strip() or None, scopes=[scope for scope in SCOPES if scope in form]
        )
    except ValidationError:
        raise InvalidRequestError.invalid_field("label", rule="it must have at most 200 characters") from None
    if not body.scopes:
        raise InvalidRequestError.invalid_field("scopes", rule="there must be at least one")
    minted = await state_of(request).keys.create(label=body.label, scopes=body.scopes, by=caller.key_id)
    return await show_key(request, minted.secret)


@router.post("/v1/account/replace-key")
@page(Credential.SESSION)
async def replace_key(request: Request) -> Response:
    """Replace a key of the account, and show the new one once."""
    form, caller, state = await read_form(request), caller_of(request), state_of(request)
    key_id = _key_of(form)
    overlap_s = next((seconds for seconds in OVERLAPS if str(seconds) == form.get("overlap_s")), 0)
    minted = await state.keys.rotate(key_id, account_id=caller.account_id, by=caller.key_id, overlap_s=overlap_s)
    response = await show_key(request, minted.secret)
    if key_id == caller.key_id:  # the session goes on with the new key
        set_session(request, response, state.authenticator.create_session(minted.key.key_id))
    return response


@router.post("/v1/account/revoke-key")
@page(Credential.SESSION)
async def revoke_key(request: Request) -> Response:
    """Revoke a key of the account; the session ends with its own key."""
    form, caller = await read_form(request), caller_of(request)
    await state_of(request).keys.revoke(_key_of(form), account_id=caller.account_id, by=caller.key_id)
    return redirect("../account")


def _key_of(form: Mapping[str, str]) -> str:
    if (key_id := parse_id(form.get("key_id", ""))) is None:
        raise NotFoundError(code="key_not_found")
    return key_id


async def show_key(request: Request, secret: str) -> Response:
    """Return the page that shows a new key, and how to use it."""
    return await render(request, "key.html", key=secret, url=base_url(request))


async def _list_keys(request: Request, account_id: str) -> list[ApiKey]:
    """Return the valid keys of an account, oldest first."""
    keys, now = await state_of(request).keys.list(account_id=account_id), datetime.now(UTC)
    return [key for key in keys if key.revoked_at is None and (key.expires_at is None or now < key.expires_at)]


class DayBar(NamedTuple):
    """A day in the chart of a period."""

    height: int
    title: str


def _bars(usage: Usage) -> list[DayBar]:
    """Return a bar for each day of the period, the highest with a height of BAR_HEIGHT."""
    characters = {day.day: day.characters for day in usage.days}
    first, last = usage.period_start.date(), (usage.period_end - INSTANT).date()
    days = [first + timedelta(days=n) for n in range((last - first).days + 1)]
    peak = max(characters.values(), default=0) or 1
    return [
        DayBar(
            round(BAR_HEIGHT * characters.get(day, 0) / peak),
            f"{format_date(day)}: {characters.get(day, 0):,} characters",
        )
        for day in days
    ]
