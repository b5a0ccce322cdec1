"""The endpoints of the API: the parameters that each takes, and what it does."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from tests.stripe_api.account import Account, Object, Params, StripeError


@dataclass(frozen=True)
class Text:
    """A string with a limit."""

    max_length: int


@dataclass(frozen=True)
class Endpoint:
    """The parameters and the function of an endpoint; `{id}` in its route is an argument.

    Names of parameters end with ! if they are required.
    """

    parameters: Object
    respond: Callable[..., Object]


METADATA: Final = object()
"""Strings by name: up to 50, names of 40 characters, values of 500."""

EXPAND: Final = {"expand": [str]}
RANGE: Final = {"gt": int, "gte": int, "lt": int, "lte": int}
PAGE: Final = {"limit": int, "starting_after": str, "created": RANGE, **EXPAND}
CUSTOMER: Final = {
    "email": Text(512),
    "name": Text(256),
    "description": str,
    "phone": str,
    "metadata": METADATA,
    **EXPAND,
}
SESSION: Final = {
    "mode!": ("subscription",),
    "customer": str,
    "customer_email": str,
    "client_reference_id": Text(200),
    "line_items!": [{"price!": str, "quantity!": int}],
    "metadata": METADATA,
    "subscription_data": {"description": str, "metadata": METADATA, "trial_period_days": int},
    "success_url!": str,
    "cancel_url": str,
    "expires_at": int,
    "locale": str,
    "allow_promotion_codes": bool,
    "billing_address_collection": ("auto", "required"),
    "payment_method_collection": ("always", "if_required"),
    "ui_mode": ("hosted_page",),
    **EXPAND,
}
STATUSES: Final = (
    "active", "all", "canceled", "ended", "incomplete", "incomplete_expired", "past_due", "paused", "trialing",
    "unpaid",
)  # fmt: skip


def _list(kind: str, url: str, **defaults: str) -> Callable[..., Object]:
    return lambda account, params: account.list(kind, url, {**defaults, **params})


def _retrieve(kind: str) -> Callable[..., Object]:
    return lambda account, object_id, _params: account.get(object_id, kind)


def _without_parameters(method: Callable[[Account, str], Object]) -> Callable[..., Object]:
    return lambda account, object_id, _params: method(account, object_id)


ENDPOINTS: Final[dict[str, Endpoint]] = {
    "POST /v1/customers": Endpoint(CUSTOMER, Account.create_customer),
    "GET /v1/customers": Endpoint({"email": str, **PAGE}, _list("customer", "/v1/customers")),
    "GET /v1/customers/search": Endpoint({"query!": str, "limit": int}, Account.search_customers),
    "GET /v1/customers/{id}": Endpoint(EXPAND, _retrieve("customer")),
    "POST /v1/customers/{id}": Endpoint(CUSTOMER, Account.update_customer),
    "DELETE /v1/customers/{id}": Endpoint({}, _without_parameters(Account.delete_customer)),
    "GET /v1/products/{id}": Endpoint(EXPAND, _retrieve("product")),
    "GET /v1/prices/{id}": Endpoint(EXPAND, _retrieve("price")),
    "POST /v1/checkout/sessions": Endpoint(SESSION, Account.create_session),
    "GET /v1/checkout/sessions": Endpoint(
        {"customer": str, "status": ("open", "complete", "expired"), "subscription": str, **PAGE},
        _list("checkout.session", "/v1/checkout/sessions"),
    ),
    "GET /v1/checkout/sessions/{id}": Endpoint(EXPAND, _retrieve("checkout.session")),
    "POST /v1/checkout/sessions/{id}/expire": Endpoint(EXPAND, _without_parameters(Account.expire_session)),
    "POST /v1/subscriptions": Endpoint(
        {"customer!": str, "items!": [{"price!": str}], "metadata": METADATA, "trial_period_days": int, **EXPAND},
        Account.create_subscription,
    ),
    "GET /v1/subscriptions": Endpoint(
        {"customer": str, "price": str, "status": STATUSES, **PAGE},
        _list("subscription", "/v1/subscriptions", status="current"),
    ),
    "GET /v1/subscriptions/{id}": Endpoint(EXPAND, _retrieve("subscription")),
    "POST /v1/subscriptions/{id}": Endpoint(
        {
            "cancel_at_period_end": bool,
            "description": str,
            "items": [{"id!": str, "price!": str}],
            "metadata": METADATA,
            "proration_behavior": ("always_invoice", "create_prorations", "none"),
            **EXPAND,
        },
        Account.update_subscription,
    ),
    "DELETE /v1/subscriptions/{id}": Endpoint(
        {"invoice_now": bool, "prorate": bool, **EXPAND}, _without_parameters(Account.cancel)
    ),
    "GET /v1/invoices": Endpoint(
        {"customer": str, "status": ("draft", "open", "paid", "uncollectible", "void"), "subscription": str, **PAGE},
        _list("invoice", "/v1/invoices"),
    ),
    "GET /v1/invoices/{id}": Endpoint(EXPAND, _retrieve("invoice")),
    "GET /v1/charges/{id}": Endpoint(EXPAND, _retrieve("charge")),
    "POST /v1/billing_portal/sessions": Endpoint(
        {"customer!": str, "return_url": str, "locale": str, **EXPAND}, Account.create_portal_session
    ),
    "POST /v1/billing/meter_events": Endpoint(
        {"event_name!": Text(100), "identifier": Text(100), "payload!": METADATA, "timestamp": int, **EXPAND},
        Account.record_usage,
    ),
    "GET /v1/events": Endpoint({"type": str, "types": [str], **PAGE}, _list("event", "/v1/events")),
    "GET /v1/events/{id}": Endpoint(EXPAND, _retrieve("event")),
}
PATTERNS: Final = {route: re.compile(re.escape(route).replace(r"\{id\}", "([^/]+)")) for route in ENDPOINTS}


def find_endpoint(method: str, path: str) -> tuple[str, tuple[str, ...]]:
    """Return the route of a request and the ID in its path, or raise StripeError."""
    for route, pattern in PATTERNS.items():
        if match := pattern.fullmatch(f"{method} {path}"):
            return route, match.groups()
    raise StripeError(f"Unrecognized request URL ({method}: {path}).", status=404)


def parse(form: str, parameters: Object) -> Params:
    """Parse the parameters of a request, or raise StripeError for one that the endpoint does not have."""
    tree: Object = {}
    for name, value in parse_qsl(form, keep_blank_values=True):
        *outer, last = re.split(r"\]?\[", name.removesuffix("]"))  # a[b][0] or, to append, a[]
        place = tree
        for part in outer:
            place = place.setdefault(part, {})
        place[last or str(len(place))] = value
    return _convert_fields(tree, parameters, "")


def _convert_fields(tree: Object, parameters: Object, parent: str) -> Object:
    def full_name(name: str) -> str:
        return f"{parent}[{name}]" if parent else name

    for name in parameters:
        if name.endswith("!") and not tree.get(name[:-1]):
            param = full_name(name[:-1])
            raise StripeError(f"Missing required param: {param}.", code="parameter_missing", param=param)
    schemas = {name.removesuffix("!"): schema for name, schema in parameters.items()}
    for name in tree:
        if name not in schemas:
            param = full_name(name)
            raise StripeError(f"Received unknown parameter: {param}", code="parameter_unknown", param=param)
    return {name: _convert(value, schemas[name], full_name(name)) for name, value in tree.items()}


def _convert(value: Any, schema: Any, param: str) -> Any:
    """Convert one parameter; an empty string unsets it."""
    if value == "":
        return {} if schema is METADATA else None
    is_nested = isinstance(schema, dict | list) or schema is METADATA
    if is_nested != isinstance(value, dict):
        raise StripeError(f"Invalid {'object' if is_nested else 'string'}", code="parameter_invalid", param=param)
    if schema is METADATA:
        if len(value) > 50 or any(
            len(name) > 40 or not isinstance(text, str) or len(text) > 500 for name, text in value.items()
        ):
            raise StripeError("Metadata is too long.", code="parameter_invalid", param=param)
        return value
    if isinstance(schema, list):
        return [_convert(item, schema[0], f"{param}[{place}]") for place, item in enumerate(value.values())]
    if isinstance(schema, dict):
        return _convert_fields(value, schema, param)
    if schema is int:
        if not re.fullmatch("-?[0-9]+", value):
            raise StripeError(f"Invalid integer: {value}", code="parameter_invalid_integer", param=param)
        return int(value)
    if schema is bool or isinstance(schema, tuple):
        choices = ("true", "false") if schema is bool else schema
        if value not in choices:
            raise StripeError(
                f"Invalid {param}: must be one of {', '.join(choices)}", code="parameter_invalid", param=param
            )
        return value == "true" if schema is bool else value
    if isinstance(schema, Text) and len(value) > schema.max_length:
        raise StripeError(
            f"Invalid string: must be at most {schema.max_length} characters", code="parameter_invalid", param=param
        )
    return value
