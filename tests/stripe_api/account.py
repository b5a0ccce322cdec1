"""The objects of a Stripe account, and what happens to them."""

from __future__ import annotations

import calendar
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from functools import wraps
from secrets import token_hex
from threading import RLock
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

Object = dict[str, Any]
Params = dict[str, Any]

API_VERSION: Final = "2026-10-28.endive"
DAY_S: Final = 86_400
SEARCH_LAG_S: Final = 60
DECLINED: Final = "Your card was declined."
WITHOUT_METADATA: Final = ("billing.meter_event", "billing_portal.session", "event", "radar.early_fraud_warning")
ENDED: Final = ("canceled", "incomplete_expired")


class StripeError(Exception):
    """The error of an answer."""

    def __init__(
        self, message: str, *, code: str = "", param: str = "", status: int = 400, kind: str = "invalid_request_error"
    ) -> None:
        super().__init__(message)
        self.status, self.is_kept = status, not code.startswith("parameter_")
        details = {"code": code, "message": message, "param": param, "type": kind}
        self.body = {"error": {name: value for name, value in details.items() if value}}


def month_after(anchor: int, months: int) -> int:
    """Return the time some months after another: on its day, or the last day of a shorter month."""
    first = datetime.fromtimestamp(anchor, UTC)
    year, month = divmod(first.year * 12 + first.month - 1 + months, 12)
    day = min(first.day, calendar.monthrange(year, month + 1)[1])
    return int(first.replace(year=year, month=month + 1, day=day).timestamp())


def as_list(url: str, data: Sequence[Object], *, has_more: bool = False) -> Object:
    return {"object": "list", "data": list(data), "has_more": has_more, "url": url}


P = ParamSpec("P")
R = TypeVar("R")


def locked(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Let one thread at a time run such methods of an account."""

    @wraps(method)
    def run(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.lock:
            return method(self, *args, **kwargs)

    return run


class Account:
    """An account. Times are seconds of its own clock, which `advance` moves."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.url = ""
        self.objects: dict[str, Object] = {}
        self.meter_sums: dict[str, int] = {}
        self.request: Object = {"id": None, "idempotency_key": None}
        """The API request that is being answered: events name it."""
        self._ahead_s = 0

    @property
    def events(self) -> list[Object]:
        """All events, oldest first."""
        return self.find("event")

    def now(self) -> int:
        return int(time.time()) + self._ahead_s

    @locked
    def advance(self, seconds: int) -> None:
        """Move the clock, and expire the sessions whose time is over."""
        self._ahead_s += seconds
        self.expire_due()

    @locked
    def find(self, kind: str, /, **fields: Any) -> list[Object]:
        """Return the objects of a kind with these fields, oldest first, without deleted ones."""
        return [
            found
            for found in self.objects.values()
            if found["object"] == kind
            and not found.get("deleted")
            and all(found.get(name) == value for name, value in fields.items())
        ]

    def count(self, kind: str, /, **fields: Any) -> int:
        return len(self.find(kind, **fields))

    @locked
    def create_price(
        self, price_id: str, amount: int, *, product_id: str = "prod_hobby", name: str = "Hobby"
    ) -> Object:
        """Create a monthly price, and its product if there is none."""
        if product_id not in self.objects:
            product: Object = {
                "active": True,
                "description": None,
                "images": [],
                "livemode": False,
                "marketing_features": [],
            }
            self._add(product_id, "product", **product, name=name, type="service", updated=self.now(), url=None)
        recurring = {"interval": "month", "interval_count": 1, "meter": None, "trial_period_days": None}
        return self._add(
            price_id, "price", active=True, billing_scheme="per_unit", currency="usd", lookup_key=None, nickname=None,
            product=product_id, recurring={**recurring, "usage_type": "licensed"}, tax_behavior="unspecified",
            tiers_mode=None, type="recurring", unit_amount=amount, unit_amount_decimal=str(amount),
        )  # fmt: skip

    # Customers

    def get(self, object_id: str, kind: str, *, param: str = "id", status: int = 404) -> Object:
        """Return an object, or raise StripeError."""
        found = self.objects.get(object_id)
        if found is None or found["object"] != kind:
            raise StripeError(f"No such {kind}: '{object_id}'", code="resource_missing", param=param, status=status)
        return found

    def customer(self, customer_id: str) -> Object:
        """Return a customer for use in another object, or raise StripeError."""
        found = self.get(customer_id, "customer", param="customer", status=400)
        if found.get("deleted"):
            raise StripeError(f"No such customer: '{customer_id}'", code="resource_missing", param="customer")
        return found

    @locked
    def create_customer(self, params: Params) -> Object:
        fields: Object = {
            "address": None, "balance": 0, "currency": None, "default_source": None, "delinquent": False,
            "description": None, "discount": None, "email": None, "invoice_prefix": token_hex(4).upper(),
            "name": None, "phone": None, "preferred_locales": [], "shipping": None, "tax_exempt": "none",
        }  # fmt: skip
        made = self._add(self.new_id("cus"), "customer", **{**fields, **params})
        self.emit("customer.created", made)
        return made

    @locked
    def update_customer(self, customer_id: str, params: Params) -> Object:
        found = self.customer(customer_id)
        return self._update(found, "customer.updated", **self._merged(found, params))

    @locked
    def delete_customer(self, customer_id: str) -> Object:
        """Cancel the subscriptions of a customer, and leave only its ID."""
        found = self.get(customer_id, "customer")
        if found.get("deleted"):
            raise StripeError(f"No such customer: '{customer_id}'", code="resource_missing", param="id", status=404)
        for subscription in self.find("subscription", customer=customer_id):
            if subscription["status"] not in ENDED:
                self.cancel(subscription["id"])
        self.emit("customer.deleted", found)
        gone = {"id": customer_id, "object": "customer", "deleted": True}
        self.objects[customer_id] = gone
        return gone

    def search_customers(self, params: Params) -> Object:
        """Return the customers with an email, without those that the index does not have yet."""
        email = params["query"].removeprefix('email:"').removesuffix('"')
        found = [one for one in self.find("customer", email=email) if one["created"] <= self.now() - SEARCH_LAG_S]
        page = as_list("/v1/customers/search", found[: params.get("limit", 10)])
        return {**page, "object": "search_result", "next_page": None}

    # Checkout

    @locked
    def create_session(self, params: Params) -> Object:
        if params.get("customer") and params.get("customer_email"):
            raise StripeError(
                "You may only specify one of these parameters: customer, customer_email.", param="customer"
            )
        if params.get("customer"):
            self.customer(params["customer"])
        for place, item in enumerate(params["line_items"]):
            self.get(item["price"], "price", param=f"line_items[{place}][price]", status=400)
        now = self.now()
        expires_at = params.pop("expires_at", None) or now + DAY_S
        if not now + 1800 <= expires_at <= now + DAY_S:
            raise StripeError("The `expires_at` timestamp must be 30 minutes to 24 hours from now.", param="expires_at")
        session_id = f"cs_test_{token_hex(29)}"  # as long as Stripe's
        total = sum(self.objects[item["price"]]["unit_amount"] * item["quantity"] for item in params["line_items"])
        fields = {
            "allow_promotion_codes": None, "amount_subtotal": total, "amount_total": total,
            "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
            "billing_address_collection": None, "cancel_url": None, "client_reference_id": None, "currency": "usd",
            "custom_fields": [], "custom_text": {}, "customer": None, "customer_details": None,
            "customer_email": None, "expires_at": expires_at, "invoice": None, "locale": None, "payment_intent": None,
            "payment_link": None, "payment_method_collection": "always", "payment_method_types": ["card"],
            "payment_status": "unpaid", "setup_intent": None, "shipping_options": [], "status": "open",
            "subscription": None, "ui_mode": "hosted_page", "url": f"{self.url}/pay/{session_id}",
        }  # fmt: skip
        ordered = {"line_items": params.pop("line_items"), "subscription_data": params.pop("subscription_data", {})}
        made = self._add(session_id, "checkout.session", **{**fields, **params})
        made["_ordered"] = ordered
        return made

    @locked
    def expire_session(self, session_id: str) -> Object:
        session = self.get(session_id, "checkout.session")
        if session["status"] != "open":
            raise StripeError(
                'Only Checkout Sessions with a status in ["open"] can be expired. This Checkout Session has a status '
                f"of {session['status']}."
            )
        session.update(status="expired", url=None)
        self.emit("checkout.session.expired", session)
        return session

    def expire_due(self) -> None:
        for session in self.find("checkout.session", status="open"):
            if session["expires_at"] <= self.now():
                self.expire_session(session["id"])

    @locked
    def pay(
        self, session_id: str, *, email: str = "payer@example.com", is_declined: bool = False, debit: str | None = None
    ) -> Object:
        """Pay a session on its page, and return it.

        Args:
            session_id: An open session.
            email: What the person types if the session has no customer.
            is_declined: The card is declined: raises StripeError, and nothing is made.
            debit: Pay by a bank debit, which `settle` ends; the status of the subscription until then.
        """
        session = self.get(session_id, "checkout.session")
        if session["status"] != "open":
            raise StripeError(f"This Checkout Session is {session['status']}.", status=410)
        if is_declined:
            raise StripeError(DECLINED, code="card_declined", status=402, kind="card_error")
        if session["customer"] is None:
            session["customer"] = self.create_customer({"email": session["customer_email"] or email})["id"]
        customer = self.customer(session["customer"])
        data = session["_ordered"]["subscription_data"]
        subscription = self.subscribe(
            customer["id"],
            *(item["price"] for item in session["_ordered"]["line_items"]),
            metadata=data.get("metadata"),
            trial_days=data.get("trial_period_days"),
            debit=debit,
        )
        is_free = subscription["status"] == "trialing"
        session.update(
            status="complete",
            url=None,
            payment_status="no_payment_required" if is_free else "unpaid" if debit else "paid",
            subscription=subscription["id"],
            invoice=subscription["latest_invoice"],
            customer_details={
                "email": customer["email"],
                "name": customer["name"],
                "phone": None,
                "tax_exempt": "none",
            },
        )
        self.emit("checkout.session.completed", session)
        return session

    @locked
    def settle(self, session_id: str, *, is_paid: bool = True) -> None:
        """End the bank debit of a session."""
        session = self.get(session_id, "checkout.session")
        if is_paid:
            self._settle_invoice(self.objects[session["invoice"]])
            session["payment_status"] = "paid"
        else:
            self.emit("invoice.payment_failed", self.objects[session["invoice"]])
            self.change_status(session["subscription"], "past_due")
        self.emit(f"checkout.session.async_payment_{'succeeded' if is_paid else 'failed'}", session)

    # Subscriptions

    @locked
    def subscribe(
        self,
        customer_id: str,
        *price_ids: str,
        metadata: dict[str, str] | None = None,
        trial_days: int | None = None,
        debit: str | None = None,
    ) -> Object:
        """Start a subscription, whose first invoice is paid, and return it."""
        self.customer(customer_id)
        now = self.now()
        anchor = now + trial_days * DAY_S if trial_days else now
        period_end = anchor if trial_days else month_after(anchor, 1)
        made = self._add(
            self.new_id("sub"), "subscription", application=None, automatic_tax={"enabled": False, "liability": None},
            billing_cycle_anchor=anchor, billing_mode={"type": "flexible", "updated_at": None}, billing_schedules=[],
            cancel_at=None, cancel_at_period_end=False, canceled_at=None,
            cancellation_details={"comment": None, "feedback": None, "reason": None},
            collection_method="charge_automatically", currency="usd", customer=customer_id, days_until_due=None,
            default_payment_method=None, description=None, discounts=[], ended_at=None,
            invoice_settings={"account_tax_ids": None, "issuer": {"type": "self"}}, latest_invoice=None,
            pause_collection=None, pending_setup_intent=None, schedule=None, start_date=now,
            status="trialing" if trial_days else debit or "active", trial_end=anchor if trial_days else None,
            trial_start=now if trial_days else None,
        )  # fmt: skip
        made["metadata"] = metadata or {}
        url = f"/v1/subscription_items?subscription={made['id']}"
        made["items"] = as_list(url, [self._item(made["id"], price_id, now, period_end) for price_id in price_ids])
        invoice = self._bill(made, "subscription_create")
        self.emit("customer.subscription.created", made)
        if not debit:
            self._settle_invoice(invoice)
        return made

    def create_subscription(self, params: Params) -> Object:
        """Subscribe a customer without a page, as in the Dashboard."""
        prices = [item["price"] for item in params["items"]]
        for place, price_id in enumerate(prices):
            self.get(price_id, "price", param=f"items[{place}][price]", status=400)
        trial_days, metadata = params.get("trial_period_days"), params.get("metadata")
        return self.subscribe(params["customer"], *prices, metadata=metadata, trial_days=trial_days)

    @locked
    def update_subscription(self, subscription_id: str, params: Params) -> Object:
        found = self.get(subscription_id, "subscription")
        if found["status"] in ENDED and params.keys() - {"metadata"}:
            raise StripeError("A canceled subscription can only update its cancellation_details and metadata.")
        changes = self._merged(found, params)
        if "items" in changes:
            items = deepcopy(found["items"])
            for item in changes["items"]:
                place = next((n for n, old in enumerate(items["data"]) if old["id"] == item.get("id")), None)
                if place is None:
                    raise StripeError("Invalid subscription item.", code="resource_missing", param="items[0][id]")
                price = self.get(item["price"], "price", param="items[0][price]", status=400)
                items["data"][place] |= {"price": deepcopy(price), "plan": _plan(price)}
            changes["items"] = items
        if "cancel_at_period_end" in changes:
            is_ending = changes["cancel_at_period_end"]
            changes["cancel_at"] = found["items"]["data"][0]["current_period_end"] if is_ending else None
            changes["canceled_at"] = self.now() if is_ending else None
        return self._update(found, "customer.subscription.updated", **changes)

    @locked
    def change_status(self, subscription_id: str, status: str) -> Object:
        """Give a subscription a status, as the Dashboard's rules for failed payments do."""
        found = self.get(subscription_id, "subscription")
        kind = "paused" if status == "paused" else "resumed" if found["status"] == "paused" else "updated"
        return self._update(found, f"customer.subscription.{kind}", status=status)

    @locked
    def cancel(self, subscription_id: str) -> Object:
        """End a subscription now."""
        found = self.get(subscription_id, "subscription")
        if found["status"] in ENDED:
            raise StripeError(
                f"No such subscription: '{subscription_id}'", code="resource_missing", param="id", status=404
            )
        now = self.now()
        found.update(status="canceled", canceled_at=now, ended_at=now, cancel_at_period_end=False)
        self.emit("customer.subscription.deleted", found)
        return found

    @locked
    def advance_period(self, subscription_id: str, *, is_paid: bool = True) -> Object:
        """Let the period of a subscription end: it is renewed and billed, or canceled if that was asked for.

        The clock stays, so that several periods can pass in a test. The period also moves if the payment fails.
        """
        found = self.get(subscription_id, "subscription")
        if found["cancel_at_period_end"]:
            return self.cancel(subscription_id)
        items = deepcopy(found["items"])
        anchor, start = found["billing_cycle_anchor"], items["data"][0]["current_period_end"]
        end = next(end for months in range(1, 1200) if (end := month_after(anchor, months)) > start)
        for item in items["data"]:
            item.update(current_period_start=start, current_period_end=end)
        status = "active" if found["status"] == "trialing" else found["status"]
        self._update(found, "customer.subscription.updated", items=items, status=status)
        invoice = self._bill(found, "subscription_cycle")
        if is_paid:
            self._settle_invoice(invoice)
        return found

    @locked
    def fail_next_invoice(
        self, subscription_id: str, *, status: str = "past_due", needs_action: bool = False
    ) -> Object:
        """Renew a subscription with a card that is declined, or whose bank asks its owner to act.

        The subscription is past_due and then gets the status, which is a setting in the Dashboard.
        """
        found = self.advance_period(subscription_id, is_paid=False)
        invoice = self.objects[found["latest_invoice"]]
        invoice.update(attempt_count=1, attempted=True, next_payment_attempt=self.now() + 3 * DAY_S)
        self.emit("invoice.payment_failed", invoice)
        if needs_action:
            self.emit("invoice.payment_action_required", invoice)
        self.change_status(subscription_id, "past_due")
        return found if status == "past_due" else self.change_status(subscription_id, status)

    @locked
    def pay_open_invoice(self, subscription_id: str) -> Object:
        """Pay the newest open invoice of a subscription, as in the portal."""
        found = self.get(subscription_id, "subscription")
        self._settle_invoice(self.objects[found["latest_invoice"]])
        return found

    @locked
    def dispute(self, subscription_id: str) -> Object:
        """Dispute the last charge of a subscription; its status stays."""
        charge = self._last_charge(subscription_id)
        charge["disputed"] = True
        made = self._add(
            self.new_id("du"), "dispute", amount=charge["amount"], balance_transactions=[], charge=charge["id"],
            currency="usd", enhanced_eligibility_types=[], evidence={}, evidence_details={"has_evidence": False},
            is_charge_refundable=True, reason="fraudulent", status="needs_response",
        )  # fmt: skip
        self.emit("charge.dispute.created", made)
        return made

    @locked
    def warn_of_fraud(self, subscription_id: str) -> Object:
        """Send the warning of a card's bank about the last charge of a subscription."""
        fields = {
            "actionable": True,
            "charge": self._last_charge(subscription_id)["id"],
            "fraud_type": "made_with_lost_card",
        }
        made = self._add(self.new_id("issfr"), "radar.early_fraud_warning", **fields)
        self.emit("radar.early_fraud_warning.created", made)
        return made

    @locked
    def refund(self, subscription_id: str) -> Object:
        """Refund the last charge of a subscription; its status stays."""
        charge = self._last_charge(subscription_id)
        charge.update(refunded=True, amount_refunded=charge["amount"])
        self.emit("charge.refunded", charge)
        return charge

    def _last_charge(self, subscription_id: str) -> Object:
        customer = self.get(subscription_id, "subscription")["customer"]
        return self.find("charge", customer=customer)[-1]

    def _item(self, subscription_id: str, price_id: str, start: int, end: int) -> Object:
        price = self.objects[price_id]
        return {
            "id": self.new_id("si"), "object": "subscription_item", "created": self.now(), "current_period_end": end,
            "current_period_start": start, "discounts": [], "metadata": {}, "plan": _plan(price),
            "price": deepcopy(price), "quantity": 1, "subscription": subscription_id, "tax_rates": [],
        }  # fmt: skip

    def _bill(self, subscription: Object, reason: str) -> Object:
        """Make an open invoice for the period of a subscription."""
        items = subscription["items"]["data"]
        amount = 0 if subscription["status"] == "trialing" else sum(item["price"]["unit_amount"] for item in items)
        now, invoice_id = self.now(), self.new_id("in")
        details = {"metadata": subscription["metadata"], "subscription": subscription["id"]}
        lines: list[Object] = [
            {"id": self.new_id("il"), "object": "line_item", "amount": amount, "currency": "usd", "metadata": {},
             "discountable": True, "discounts": [], "livemode": False, "subtotal": amount,
             "period": {"start": item["current_period_start"], "end": item["current_period_end"]}}
            for item in items
        ]  # fmt: skip
        made = self._add(
            invoice_id, "invoice", amount_due=amount, amount_overpaid=0, amount_paid=0, amount_remaining=amount,
            amount_shipping=0, attempt_count=0, attempted=False,
            automatic_tax={"enabled": False, "liability": None, "status": None}, billing_reason=reason,
            collection_method="charge_automatically", currency="usd", customer=subscription["customer"],
            customer_email=self.objects[subscription["customer"]]["email"], default_tax_rates=[], discounts=[],
            hosted_invoice_url=None, issuer={"type": "self"}, lines=as_list(f"/v1/invoices/{invoice_id}/lines", lines),
            next_payment_attempt=None, number=None,
            parent={"quote_details": None, "subscription_details": details, "type": "subscription_details"},
            payment_settings={"default_mandate": None}, period_end=now, period_start=now,
            post_payment_credit_notes_amount=0, pre_payment_credit_notes_amount=0, starting_balance=0, status="open",
            status_transitions={"finalized_at": now, "marked_uncollectible_at": None, "paid_at": None},
            subtotal=amount, total=amount,
        )  # fmt: skip
        subscription["latest_invoice"] = invoice_id
        self.emit("invoice.created", made)
        return made

    def _settle_invoice(self, invoice: Object) -> None:
        if invoice["status"] != "open":
            raise StripeError(f"Invoice is {invoice['status']}.")
        amount = invoice["amount_due"]
        if amount:
            self._add(
                self.new_id("ch"), "charge", amount=amount, amount_captured=amount, amount_refunded=0,
                billing_details={}, captured=True, currency="usd", customer=invoice["customer"], disputed=False,
                paid=True, refunded=False, status="succeeded",
            )  # fmt: skip
        times = {**invoice["status_transitions"], "paid_at": self.now()}
        invoice.update(status="paid", amount_paid=amount, amount_remaining=0, status_transitions=times)
        invoice.update(attempt_count=invoice["attempt_count"] + 1, attempted=True, next_payment_attempt=None)
        self.emit("invoice.paid", invoice)
        self.emit("invoice.payment_succeeded", invoice)
        subscription = self.objects[invoice["parent"]["subscription_details"]["subscription"]]
        if subscription["status"] in ("past_due", "unpaid", "incomplete"):
            self.change_status(subscription["id"], "active")

    # Other objects

    @locked
    def create_portal_session(self, params: Params) -> Object:
        self.customer(params["customer"])
        portal_id = self.new_id("bps")
        fields = {"configuration": "bpc_1", "flow": None, "locale": None, "on_behalf_of": None, "return_url": None}
        return self._add(
            portal_id, "billing_portal.session", **{**fields, **params}, url=f"{self.url}/portal/{portal_id}"
        )

    @locked
    def record_usage(self, params: Params) -> Object:
        """Add a meter event: its identifier is unique for 24 hours, and its errors have no code.

        An unknown customer is not refused, but nothing is counted: Stripe reports that hours later.
        """
        now, payload = self.now(), params["payload"]
        at = params.get("timestamp") or now
        if not now - 35 * DAY_S <= at <= now + 300:
            raise StripeError("The timestamp must be within the past 35 days or up to 5 minutes in the future.")
        if not payload.get("value", "").isdigit() or len(payload["value"]) > 15:
            raise StripeError("The value must be a whole number of up to 15 digits.")
        identifier = params.get("identifier") or token_hex(16)
        if any(known["created"] > now - DAY_S for known in self.find("billing.meter_event", identifier=identifier)):
            raise StripeError(f"An event already exists with identifier {identifier}.")
        customer_id = payload.get("stripe_customer_id", "")
        if self.find("customer", id=customer_id):
            self.meter_sums[customer_id] = self.meter_sums.get(customer_id, 0) + int(payload["value"])
        fields = {"event_name": params["event_name"], "identifier": identifier, "payload": payload, "timestamp": at}
        made = self._add(self.new_id("meter"), "billing.meter_event", **fields)
        del made["id"]  # its identifier is all
        return made

    def list(self, kind: str, url: str, params: Params) -> Object:
        """Return a page, newest first. Parameters that are not of pages select objects."""
        limit = params.pop("limit", 10)
        if not 1 <= limit <= 100:
            raise StripeError(
                "Invalid integer: limit must be 1 to 100.", code="parameter_invalid_integer", param="limit"
            )
        after = params.pop("starting_after", None)
        found = self.find(kind)[::-1]
        if after is not None:
            self.get(after, kind, param="starting_after", status=400)
            found = found[[one["id"] for one in found].index(after) + 1 :]
        found = [one for one in found if all(_has(one, name, value) for name, value in params.items())]
        return as_list(url, found[:limit], has_more=len(found) > limit)

    def emit(self, kind: str, found: Object, previous: Object | None = None) -> Object:
        """Record an event."""
        data: Object = {"object": shown(found)}
        if previous is not None:
            data["previous_attributes"] = deepcopy(previous)
        return self._add(
            self.new_id("evt"), "event", api_version=API_VERSION, data=data, pending_webhooks=1,
            request=dict(self.request), type=kind,
        )  # fmt: skip

    def new_id(self, prefix: str) -> str:
        return f"{prefix}_{token_hex(12)}"

    def _add(self, object_id: str, kind: str, **fields: Any) -> Object:
        base: Object = {"id": object_id, "object": kind, "created": self.now(), "livemode": False}
        if kind not in WITHOUT_METADATA:
            base["metadata"] = {}
        self.objects[object_id] = base | fields
        return self.objects[object_id]

    def _merged(self, found: Object, params: Params) -> Object:
        """Return changes, with new metadata merged into the old; an empty value deletes one."""
        if not params.get("metadata"):
            return params
        merged = {**found["metadata"], **params["metadata"]}
        return {**params, "metadata": {name: value for name, value in merged.items() if value}}

    def _update(self, found: Object, kind: str, **changes: Any) -> Object:
        previous = {name: found[name] for name, value in changes.items() if found[name] != value}
        if previous:
            found.update(changes)
            self.emit(kind, found, previous)
        return found


def shown(found: Object) -> Object:
    """Return a copy of an object as Stripe shows it."""
    return deepcopy({name: value for name, value in found.items() if not name.startswith("_")})


def _plan(price: Object) -> Object:
    """Return a price in the older form that items still carry."""
    return {
        "id": price["id"], "object": "plan", "active": True, "amount": price["unit_amount"],
        "billing_scheme": "per_unit", "created": price["created"], "currency": price["currency"], "interval": "month",
        "interval_count": 1, "livemode": False, "metadata": {}, "product": price["product"], "usage_type": "licensed",
    }  # fmt: skip


def _has(found: Object, name: str, value: Any) -> bool:
    """Return whether a list that asks for a value has an object."""
    match name, value:
        case "price", _:
            return any(item["price"]["id"] == value for item in found["items"]["data"])
        case "created", {}:
            compare = {"gt": int.__gt__, "gte": int.__ge__, "lt": int.__lt__, "lte": int.__le__}
            return all(compare[how](found["created"], limit) for how, limit in value.items())
        case "subscription", _ if found["object"] == "invoice":
            return bool(found["parent"]["subscription_details"]["subscription"] == value)
        case "status", "all":
            return True
        case "status", "current":  # not a value of clients: what Stripe lists without a status
            return bool(found["status"] != "canceled")
        case "status", "ended":
            return found["status"] in ENDED
        case _:
            return bool(found[name] == value)
