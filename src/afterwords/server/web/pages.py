"""What all pages share: templates, the stylesheet, forms, and the headers that keep the scripts of others out."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Awaitable, Callable
from datetime import date
from functools import cache
from hashlib import sha256
from pathlib import Path
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Any, Final, ParamSpec
from urllib.parse import parse_qsl, urlsplit

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from afterwords.errors import AfterwordsError, InvalidRequestError
from afterwords.server.auth import SESSION_COOKIE, SESSION_S, Credential, requires
from afterwords.server.concurrency import in_thread
from afterwords.server.routes.reference import BASE_STYLE
from afterwords.server.routes.responses import context_of, state_of
from afterwords.server.routing import error_response
from afterwords.server.services.signing import form_token
from afterwords.server.settings import LOCAL_NAMES, Plan

if TYPE_CHECKING:
    from jinja2 import Environment

FORM_MAX_BYTES: Final = 16 * 1024
STRIPE_PAGES: Final = ("https://checkout.stripe.com", "https://billing.stripe.com")
PAGE: Final[dict[str, Any]] = {"description": "The page.", "content": {"text/html": {"schema": {"type": "string"}}}}
"""Documents a response that is a page."""
FOLDER: Final = Path(__file__).parent

P = ParamSpec("P")


def page(credential: Credential) -> Callable[[Callable[P, Awaitable[Response]]], Callable[P, Awaitable[Response]]]:
    """Declare the credential of an endpoint whose errors are pages, too."""
    return requires(credential, max_body_bytes=FORM_MAX_BYTES, answer_error=error_page)


async def render(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """Return a page that no cache stores, no other page frames, and that runs only the scripts of its template."""
    nonce = token_urlsafe(16)
    values["root"] = "../" * context_of(request).route.rpartition("/v1/")[2].count("/")
    values["token"] = form_token(state_of(request).authenticator.secret, request.cookies.get(SESSION_COOKIE, ""))
    values["plans_for_sale"] = plans_for_sale(request)
    page = await in_thread(lambda: _environment().get_template(template).render(nonce=nonce, style=_style(), **values))
    policy = (
        f"default-src 'none'; style-src 'sha256-{_style_digest()}'; script-src 'nonce-{nonce}'; img-src data:; "
        f"connect-src 'self'; form-action {_form_targets(request)}; base-uri 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return HTMLResponse(page, status, headers)


async def error_page(request: Request, error: AfterwordsError) -> Response:
    """Return an error as a page, or as JSON for a program."""
    if not accepts_page(request):
        return error_response(error, context_of(request).request_id)
    status = error.http_status
    response = await render(request, "message.html", status=status, title=error.message, text=error.hint)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    response.headers.update(error.headers)
    return response


def redirect(location: str) -> Response:
    """Return a redirect to a page after a form: a path relative to the form's, or a URL."""
    return Response(status_code=303, headers={"Location": location, "Cache-Control": "no-store"})


def at_own_name(request: Request) -> Response | None:
    """Return a redirect if a page of this machine was opened by another of its names: to browsers, they are two sites.

    Links and the pages of Stripe lead to the server's own name, where a cookie of the other one is missing.
    """
    here, own = urlsplit(f"//{request.headers.get('host', '')}"), urlsplit(state_of(request).settings.base_url)
    try:
        is_same_port = here.port == own.port
    except ValueError:  # it is beyond 65535
        return None
    is_other_name = here.hostname != own.hostname and {here.hostname, own.hostname} <= LOCAL_NAMES
    if not is_other_name or not is_same_port:
        return None
    return RedirectResponse(str(request.url.replace(scheme=own.scheme, netloc=own.netloc)), 307)


def set_session(request: Request, response: Response, session: str) -> None:
    """Sign the browser in; an empty session signs it out.

    Without a path, the cookie belongs to the folder of the request's path, as the browser sees it behind any proxy.
    """
    is_https = "https" in (request.url.scheme, urlsplit(state_of(request).settings.base_url).scheme)
    max_age_s = SESSION_S if session else 0
    response.set_cookie(
        SESSION_COOKIE, session, max_age=max_age_s, path=None, secure=is_https, httponly=True, samesite="strict"
    )


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form that one of our pages sent.

    Raises:
        InvalidRequestError: A page of another site sent it, or it belongs to another session.
    """
    form = dict(parse_qsl((await request.body()).decode("utf-8", "replace"), keep_blank_values=True))
    session = request.cookies.get(SESSION_COOKIE)
    if session is None:
        check_origin(request)
        return form
    expected = form_token(state_of(request).authenticator.secret, session)
    if not hmac.compare_digest(form.get("token", "").encode(), expected.encode()):
        raise _foreign_form()
    return form


def check_origin(request: Request) -> None:
    """Refuse a form of another site, as far as the browser names the sender.

    Raises:
        InvalidRequestError: A page of another site sent it.
    """
    if site := request.headers.get("sec-fetch-site"):
        is_ours = site in ("same-origin", "none")
    else:  # over http, an older browser: our pages send no referrer, so that it sends the origin null
        origin = request.headers.get("origin", "null")
        public = urlsplit(state_of(request).settings.base_url).netloc
        is_ours = origin == "null" or urlsplit(origin).netloc in (request.headers.get("host"), public)
    if not is_ours:
        raise _foreign_form()


def _foreign_form() -> InvalidRequestError:
    return InvalidRequestError(
        "The form was not sent by a page of this session.", hint="reload the page, and try again."
    )


def accepts_page(request: Request) -> bool:
    """Return whether a browser opens a page, and not a program that expects JSON."""
    return "text/html" in request.headers.get("accept", "")


def plans_for_sale(request: Request) -> dict[str, Plan]:
    """Return the plans that can be bought here."""
    state = state_of(request)
    plans = state.settings.all_plans if state.billing is not None else {}
    return {name: plan for name, plan in plans.items() if plan.price_id}


def _form_targets(request: Request) -> str:
    """Return the origins that a form may lead to, as Chromium also checks where its response redirects to."""
    state = state_of(request)
    if state.billing is None:
        return "'self'"
    api = urlsplit(state.settings.stripe_api_url)
    pages = STRIPE_PAGES if api.hostname == "api.stripe.com" else (f"{api.scheme}://{api.netloc}",)
    return " ".join(("'self'", *pages))


@cache
def _style() -> str:
    return BASE_STYLE + (FOLDER / "style.css").read_text("utf-8")


@cache
def _style_digest() -> str:
    return base64.b64encode(sha256(_style().encode()).digest()).decode()


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda number: f"{number:,}"
    environment.filters["date"] = format_date
    environment.filters["sentence"] = lambda text: text[:1].upper() + text[1:]
    return environment


def format_date(moment: date) -> str:
    """Return a date such as 3 November 2026."""
    return f"{moment.day} {moment:%B %Y}"
