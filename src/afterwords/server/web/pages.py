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
from fastapi.responses import HTMLResponse, Response

from afterwords.errors import AfterwordsError, InvalidRequestError
from afterwords.server.auth import SESSION_COOKIE, SESSION_S, Credential, requires
from afterwords.server.concurrency import in_thread
from afterwords.server.routes.reference import BASE_STYLE
from afterwords.server.routes.responses import context_of, state_of
from afterwords.server.services.signing import form_token

if TYPE_CHECKING:
    from jinja2 import Environment

FORM_MAX_BYTES: Final = 8 * 1024
FOLDER: Final = Path(__file__).parent

P = ParamSpec("P")


def page(credential: Credential) -> Callable[[Callable[P, Awaitable[Response]]], Callable[P, Awaitable[Response]]]:
    """Declare the credential of an endpoint whose errors are pages, too."""
    return requires(credential, max_body_bytes=FORM_MAX_BYTES, answer_error=error_page)


async def render(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """Return a page that no cache stores, no other page frames, and that runs only the scripts of its template."""
    nonce = token_urlsafe(16)
    values["root"] = "../" * context_of(request).route.rpartition("/v1/")[2].count("/")
    values["session"] = session = request.cookies.get(SESSION_COOKIE, "")
    values["token"] = form_token(state_of(request).authenticator.secret, session)
    page = await in_thread(lambda: _environment().get_template(template).render(nonce=nonce, style=_style(), **values))
    policy = (
        f"default-src 'none'; style-src 'sha256-{_style_digest()}'; script-src 'nonce-{nonce}'; img-src data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return HTMLResponse(page, status, headers)


async def error_page(request: Request, error: AfterwordsError) -> Response:
    """Return the page for an error."""
    hint = error.hint[:1].upper() + error.hint[1:]
    response = await render(request, "message.html", status=error.http_status, title=error.message, text=hint)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    response.headers.update(error.headers)
    return response


def redirect(location: str) -> Response:
    """Return a redirect to a page after a form: a path relative to the form's, or a URL."""
    return Response(status_code=303, headers={"Location": location, "Cache-Control": "no-store"})


def set_cookie(request: Request, response: Response, name: str, value: str, *, max_age_s: int, is_strict: bool) -> None:
    """Set a cookie for the folder of the request's path: as the browser sees it, also behind a proxy with a prefix."""
    is_https = "https" in (request.url.scheme, urlsplit(state_of(request).settings.base_url).scheme)
    response.set_cookie(
        name,
        value,
        max_age=max_age_s,
        path=None,
        secure=is_https,
        httponly=True,
        samesite="strict" if is_strict else "lax",
    )


def set_session(request: Request, response: Response, session: str) -> None:
    """Sign the browser in; an empty session signs it out."""
    set_cookie(request, response, SESSION_COOKIE, session, max_age_s=SESSION_S if session else 0, is_strict=True)


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form that one of our pages sent.

    Raises:
        InvalidRequestError: A page of another site sent it, or it belongs to another session.
    """
    form = dict(parse_qsl((await request.body()).decode("utf-8", "replace"), keep_blank_values=True))
    if session := request.cookies.get(SESSION_COOKIE):
        expected = form_token(state_of(request).authenticator.secret, session)
        is_ours = hmac.compare_digest(form.get("token", "").encode(), expected.encode())
    else:
        is_ours = is_same_origin(request)
    if not is_ours:
        raise InvalidRequestError(
            "The form was not sent by a page of this session.", hint="reload the page, and try again."
        )
    return form


def is_same_origin(request: Request) -> bool:
    """Return whether the browser says that one of our pages, or no page, sent a request."""
    if site := request.headers.get("sec-fetch-site"):
        return site in ("same-origin", "none")
    origin = request.headers.get("origin", "null")  # null: our pages send no referrer, so browsers hide their origin
    public = urlsplit(state_of(request).settings.base_url).netloc
    return origin == "null" or urlsplit(origin).netloc in (request.headers.get("host"), public)


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
    return environment


def format_date(moment: date) -> str:
    """Return a date such as 3 November 2026."""
    return f"{moment.day} {moment:%B %Y}"
