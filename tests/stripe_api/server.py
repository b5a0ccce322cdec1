"""The HTTP side: keys, idempotency, errors on demand, and pages."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from secrets import token_hex
from threading import Event, Lock
from typing import Any, Final
from urllib.parse import parse_qsl

from tests.hosted.http_server import HttpRequest, HttpResponse, HttpServer
from tests.stripe_api import pages
from tests.stripe_api.account import API_VERSION, DAY_S, Account, Object, Params, StripeError, shown
from tests.stripe_api.endpoints import ENDPOINTS, find_endpoint, parse
from tests.stripe_api.webhooks import Webhooks

KEY: Final = "sk_test_a-key-of-the-tests"
PORTAL_LINK_S: Final = 300
GATE_S: Final = 120
MESSAGES: Final = {
    429: "Request rate limit exceeded.",
    500: "An unknown error occurred.",
    503: "Stripe is temporarily unavailable.",
}


@dataclass
class LoggedRequest:
    """A request to the API: the status of its answer is 0 while there is none, or if the connection was cut."""

    route: str
    path: str
    params: Params = field(repr=False)
    idempotency_key: str | None
    status: int = 0


@dataclass
class Fault:
    """What happens to the next requests of a route; a status of 0 cuts the connection, None answers normally."""

    route: str
    times: int
    status: int | None = None
    performs: bool = False
    reached: Event = field(default_factory=Event)
    """Set when the answer is ready."""
    released: Event = field(default_factory=Event)
    """Setting it lets the answer go; only `delay` waits for it."""

    def __post_init__(self) -> None:
        if self.status is not None:
            self.released.set()


@dataclass
class _Kept:
    """The first request with an idempotency key; it has no answer while it is running."""

    request: tuple[str, list[tuple[str, str]]]
    created: int
    answer: HttpResponse | None = None


class StripeServer(Account):
    """An account and its server on a free port of 127.0.0.1. Thread-safe.

    Attributes:
        key: The secret key.
        requests: All requests to the API, oldest first.
        webhooks: The endpoint for webhooks.
    """

    def __init__(self, port: int = 0) -> None:
        super().__init__()
        self.key = KEY
        self.requests: list[LoggedRequest] = []
        self.webhooks = Webhooks(API_VERSION)
        self._kept: dict[str, _Kept] = {}
        self._faults: list[Fault] = []
        self._delays: list[Fault] = []
        self._faults_lock = Lock()
        self._server = HttpServer(self._respond, port)
        self.url = self._server.url

    def close(self) -> None:
        for fault in self._delays:
            fault.released.set()
        self.webhooks.close()
        self._server.close()

    def emit(self, kind: str, found: Object, previous: Object | None = None) -> Object:
        event = super().emit(kind, found, previous)
        self.webhooks.add(event)
        return event

    def fail(self, route: str = "", status: int = 0, *, times: int = 1, performs: bool = False) -> None:
        """Answer the next requests with an error.

        Args:
            route: As in `ENDPOINTS`; empty: any.
            status: 500 is kept with the idempotency key, 429 and 503 are not; 0 cuts the connection.
            times: How many requests.
            performs: Perform the request before.
        """
        with self._faults_lock:
            self._faults.append(Fault(route, times, status, performs))

    def delay(self, route: str = "") -> Fault:
        """Keep the answer to the next request, with what is true when it is asked, until it is `released`."""
        with self._faults_lock:
            self._faults.append(fault := Fault(route, 1, performs=True))
            self._delays.append(fault)
        return fault

    @contextmanager
    def outage(self, status: int | None = 503) -> Iterator[None]:
        """Answer every request with an error meanwhile; None: refuse connections."""
        if status is not None:
            with self._faults_lock:
                self._faults.insert(0, fault := Fault("", 10**9, status))
            try:
                yield
            finally:
                with self._faults_lock:
                    self._faults.remove(fault)
            return
        self._server.close()
        try:
            yield
        finally:
            self._server = HttpServer(self._respond, int(self.url.rpartition(":")[2]))

    def _respond(self, request: HttpRequest) -> HttpResponse:
        if not request.path.startswith("/v1/"):
            try:
                return self._show_page(request)
            except StripeError as error:
                return _html(error.status, pages.message(str(error)))
        try:
            self._authenticate(request)
            route, ids = find_endpoint(request.method, request.path)
        except StripeError as error:
            return _json(error.status, error.body)
        form = request.body.decode() if request.method == "POST" else request.target.partition("?")[2]
        key = request.headers.get("idempotency-key") if request.method == "POST" else None
        logged = LoggedRequest(route, request.path, dict(parse_qsl(form)), key)
        self.requests.append(logged)
        fault = self._next_fault(route)
        if fault is not None and not fault.performs and fault.status != 500:
            if fault.status == 0:
                raise ConnectionResetError
            answer = _failure(fault.status)
        else:
            answer = self._answer_once(logged, ids, form, fault)
        logged.status = answer.status
        return answer

    def _authenticate(self, request: HttpRequest) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme == "Basic":
            given = base64.b64decode(given).decode().removesuffix(":")
        if given != self.key:
            raise StripeError(f"Invalid API Key provided: {given[:8]}***", status=401)
        version = request.headers.get("stripe-version", API_VERSION)
        if version.partition(".")[2] != API_VERSION.partition(".")[2]:
            raise StripeError(f"Invalid Stripe API version: {version}")

    def _next_fault(self, route: str) -> Fault | None:
        with self._faults_lock:
            fault = next((one for one in self._faults if one.route in ("", route)), None)
            if fault is not None:
                fault.times -= 1
                if not fault.times:
                    self._faults.remove(fault)
            return fault

    def _answer_once(self, logged: LoggedRequest, ids: Sequence[str], form: str, fault: Fault | None) -> HttpResponse:
        """Answer a request, or repeat the answer to the first one with its idempotency key."""
        key, kept = logged.idempotency_key, _Kept((logged.path, sorted(parse_qsl(form))), self.now())
        try:
            replayed = None if key is None else self._begin(key, kept)
        except StripeError as error:
            return _json(error.status, error.body)
        answer, is_kept = (replayed, True) if replayed else self._perform(logged, ids, form, fault)
        if fault is not None:
            fault.reached.set()
            fault.released.wait(GATE_S)
        with self.lock:
            if key is not None and not replayed:
                kept.answer = answer
                if not is_kept:
                    del self._kept[key]
        if fault is not None and fault.status == 0:
            raise ConnectionResetError
        return answer

    def _begin(self, key: str, kept: _Kept) -> HttpResponse | None:
        """Note that a key is in use, or return the answer to its first request."""
        if len(key) > 255:
            raise StripeError("Idempotency keys may have 255 characters.", kind="idempotency_error")
        with self.lock:
            first = self._kept.get(key)
            if first is None or first.created <= self.now() - DAY_S:
                self._kept[key] = kept
                return None
            if first.request != kept.request:
                raise StripeError(
                    "Keys for idempotent requests can only be used with the same parameters they were first used with. "
                    f"Try using a key other than '{key}' if you meant to execute a different request.",
                    kind="idempotency_error",
                )
            if first.answer is None:
                raise StripeError(
                    f"There is currently another in-progress request using this Idempotent Key ({key}).",
                    code="idempotency_key_in_use",
                    status=409,
                    kind="idempotency_error",
                )
            return replace(first.answer, headers={**first.answer.headers, "Idempotent-Replayed": "true"})

    def _perform(
        self, logged: LoggedRequest, ids: Sequence[str], form: str, fault: Fault | None
    ) -> tuple[HttpResponse, bool]:
        """Return the answer to a request, and whether it is kept with the idempotency key."""
        answer, is_kept = _failure(500), True
        if fault is None or fault.performs:
            try:
                with self.lock:
                    answer = _json(200, self._call(logged, ids, form))
            except StripeError as error:
                answer, is_kept = _json(error.status, error.body), error.is_kept
        if fault is not None and fault.status:
            return _failure(fault.status), fault.status == 500
        return answer, is_kept

    def _call(self, logged: LoggedRequest, ids: Sequence[str], form: str) -> Object:
        self.expire_due()
        endpoint = ENDPOINTS[logged.route]
        params = parse(form, endpoint.parameters)
        expanded = params.pop("expand", [])
        self.request = {"id": f"req_{token_hex(7)}", "idempotency_key": logged.idempotency_key}
        try:
            found = shown(endpoint.respond(self, *ids, params))
        finally:
            self.request = {"id": None, "idempotency_key": None}
        if found["object"] == "list":
            found["data"] = [shown(one) for one in found["data"]]
        for path in expanded:
            _expand(found, path.split("."), self.objects)
        return found

    def _show_page(self, request: HttpRequest) -> HttpResponse:
        kind, _, object_id = request.path[1:].partition("/")
        form = dict(parse_qsl(request.body.decode()))
        with self.lock:
            self.expire_due()
            found = self.objects.get(object_id)
            if found is not None and (kind, found["object"]) == ("pay", "checkout.session"):
                return self._show_checkout(found, form)
            if found is not None and (kind, found["object"]) == ("portal", "billing_portal.session"):
                return self._show_portal(found, form)
        return _html(404, pages.message("Page not found"))

    def _show_checkout(self, session: Object, form: dict[str, str]) -> HttpResponse:
        customer = self.objects[session["customer"]] if session["customer"] else None
        if session["status"] != "open":
            return _html(410, pages.message(f"This session is {session['status']}"))
        if not form:
            return _html(200, pages.checkout(session, customer))
        try:
            self.pay(session["id"], email=form.get("email", ""), is_declined=form.get("card") == pages.DECLINED_CARD)
        except StripeError as error:
            return _html(error.status, pages.checkout(session, customer, str(error)))
        return _redirect(session["success_url"].replace("{CHECKOUT_SESSION_ID}", session["id"]))

    def _show_portal(self, portal: Object, form: dict[str, str]) -> HttpResponse:
        if portal["created"] <= self.now() - PORTAL_LINK_S:
            return _html(410, pages.message("This link has expired"))
        if form:
            subscription_id, action = form["subscription"], form["action"]
            if action == "pay":
                self.pay_open_invoice(subscription_id)
            else:
                self.update_subscription(subscription_id, {"cancel_at_period_end": action == "cancel"})
            return _redirect(portal["url"])
        subscriptions = self.find("subscription", customer=portal["customer"])
        return _html(200, pages.portal(portal, subscriptions, self.find("invoice", status="open")))


def _json(status: int, body: Object) -> HttpResponse:
    headers = {"Request-Id": f"req_{token_hex(7)}", "Stripe-Version": API_VERSION}
    return HttpResponse(status, json.dumps(body, indent=2).encode(), "application/json", headers)


def _failure(status: int | None) -> HttpResponse:
    kind, code = ("invalid_request_error", "rate_limit") if status == 429 else ("api_error", "")
    return _json(status or 500, StripeError(MESSAGES.get(status or 500, "Error."), kind=kind, code=code).body)


def _html(status: int, page: bytes) -> HttpResponse:
    return HttpResponse(status, page, "text/html; charset=utf-8", {"Cache-Control": "no-store"})


def _redirect(url: str) -> HttpResponse:
    return HttpResponse(303, b"", "text/plain", {"Location": url})


def _expand(found: Any, path: Sequence[str], objects: dict[str, Object]) -> None:
    """Replace the ID at a path by its object."""
    if isinstance(found, list):
        for one in found:
            _expand(one, path, objects)
        return
    name, *deeper = path
    if isinstance(found[name], str):
        found[name] = shown(objects[found[name]])
    if deeper and found[name] is not None:
        _expand(found[name], deeper, objects)


@contextmanager
def running_stripe(port: int = 0) -> Iterator[StripeServer]:
    """Run a server."""
    server = StripeServer(port)
    try:
        yield server
    finally:
        server.close()
