"""What the server takes and returns is what the package declares for this version of the API."""

from __future__ import annotations

import re
import sys
from typing import Any, get_args

import stripe as package
from stripe import checkout, params, radar
from stripe._api_version import _ApiVersion
from stripe.params import billing, billing_portal
from stripe.params import checkout as checkout_params

from tests.stripe_api import StripeServer
from tests.stripe_api.account import API_VERSION, Object, shown
from tests.stripe_api.endpoints import ENDPOINTS

PARAMETERS: dict[str, Any] = {
    "POST /v1/customers": params.CustomerCreateParams,
    "GET /v1/customers": params.CustomerListParams,
    "GET /v1/customers/search": params.CustomerSearchParams,
    "GET /v1/customers/{id}": params.CustomerRetrieveParams,
    "POST /v1/customers/{id}": params.CustomerUpdateParams,
    "DELETE /v1/customers/{id}": params.CustomerDeleteParams,
    "GET /v1/products/{id}": params.ProductRetrieveParams,
    "GET /v1/prices/{id}": params.PriceRetrieveParams,
    "POST /v1/checkout/sessions": checkout_params.SessionCreateParams,
    "GET /v1/checkout/sessions": checkout_params.SessionListParams,
    "GET /v1/checkout/sessions/{id}": checkout_params.SessionRetrieveParams,
    "POST /v1/checkout/sessions/{id}/expire": checkout_params.SessionExpireParams,
    "POST /v1/subscriptions": params.SubscriptionCreateParams,
    "GET /v1/subscriptions": params.SubscriptionListParams,
    "GET /v1/subscriptions/{id}": params.SubscriptionRetrieveParams,
    "POST /v1/subscriptions/{id}": params.SubscriptionUpdateParams,
    "DELETE /v1/subscriptions/{id}": params.SubscriptionCancelParams,
    "GET /v1/invoices": params.InvoiceListParams,
    "GET /v1/invoices/{id}": params.InvoiceRetrieveParams,
    "GET /v1/charges/{id}": params.ChargeRetrieveParams,
    "POST /v1/billing_portal/sessions": billing_portal.SessionCreateParams,
    "POST /v1/billing/meter_events": billing.MeterEventCreateParams,
    "GET /v1/events": params.EventListParams,
    "GET /v1/events/{id}": params.EventRetrieveParams,
}
CLASSES: dict[str, Any] = {
    "billing.meter_event": package.billing.MeterEvent,
    "billing_portal.session": package.billing_portal.Session,
    "charge": package.Charge,
    "checkout.session": checkout.Session,
    "customer": package.Customer,
    "dispute": package.Dispute,
    "event": package.Event,
    "invoice": package.Invoice,
    "line_item": package.InvoiceLineItem,
    "plan": package.Plan,
    "price": package.Price,
    "product": package.Product,
    "radar.early_fraud_warning": radar.EarlyFraudWarning,
    "subscription": package.Subscription,
    "subscription_item": package.SubscriptionItem,
}


def undeclared(parameters: Object, declared: Any) -> list[str]:
    """Return the parameters of an endpoint that a class lacks, also in objects and lists inside."""
    found = []
    for name, schema in parameters.items():
        hint = str(declared.__annotations__.get(name.removesuffix("!"), ""))
        if not hint:
            found.append(name)
        inner = schema[0] if isinstance(schema, list) else schema
        if isinstance(inner, dict):
            nested = re.search(r"\w+Params\w+|RangeQueryParam", hint)
            assert nested is not None, hint
            found += undeclared(inner, getattr(sys.modules[declared.__module__], nested[0]))
    return found


def test_parameters_are_declared() -> None:
    assert PARAMETERS.keys() == ENDPOINTS.keys()
    for route, endpoint in ENDPOINTS.items():
        assert undeclared(endpoint.parameters, PARAMETERS[route]) == [], route


def test_removed_parameter_is_not_declared() -> None:
    assert undeclared({"payment_method_types": [str]}, checkout_params.SessionCreateParams) == ["payment_method_types"]


def test_version_is_that_of_the_package() -> None:
    assert API_VERSION.partition(".")[2] == _ApiVersion.CURRENT.partition(".")[2]


def parts(value: Any) -> list[Object]:
    """Return the objects in a value."""
    if isinstance(value, list):
        return [part for one in value for part in parts(one)]
    if not isinstance(value, dict):
        return []
    inner = [part for one in value.values() for part in parts(one)]
    return [value, *inner] if isinstance(value.get("object"), str) and value["object"] != "list" else inner


def test_fields_of_objects_are_declared(stripe: StripeServer) -> None:
    customer = stripe.create_customer({"email": "ann@example.com"})["id"]
    items = [{"price": "price_hobby", "quantity": 1}]
    session = stripe.create_session({"mode": "subscription", "line_items": items, "success_url": "http://x"})
    subscription = stripe.pay(session["id"])["subscription"]
    stripe.dispute(subscription)
    stripe.warn_of_fraud(subscription)
    stripe.create_portal_session({"customer": customer})
    stripe.record_usage({"event_name": "characters", "payload": {"stripe_customer_id": customer, "value": "1"}})
    seen = set()
    for part in parts([shown(found) for found in stripe.objects.values()]):
        declared = CLASSES[part["object"]].__annotations__
        required = {name for name, hint in declared.items() if type(None) not in get_args(hint)} - {"OBJECT_NAME"}
        assert required <= part.keys() <= declared.keys(), part["object"]
        seen.add(part["object"])
    assert seen == CLASSES.keys()
