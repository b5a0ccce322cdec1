"""The pages that Stripe hosts: checkout, and the customer portal."""

from __future__ import annotations

from html import escape

from tests.stripe_api.account import Object

PAGE = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title></head>
<body><main><h1>{title}</h1>
{body}
</main></body>
</html>
"""
CARD = "4242424242424242"
DECLINED_CARD = "4000000000000002"


def _page(title: str, body: str) -> bytes:
    return PAGE.format(title=escape(title), body=body).encode()


def message(text: str) -> bytes:
    return _page(text, "")


def checkout(session: Object, customer: Object | None, error: str = "") -> bytes:
    """Return the form that pays a session, with the card's number in a field."""
    if customer is None:
        email = escape(session["customer_email"] or "", quote=True)
        who = f'<label>Email <input type="email" name="email" value="{email}" required></label>'
    else:
        who = f"<p>{escape(customer['email'] or '')}</p>"
    amount = f"{session['amount_total'] / 100:.2f}"
    back = f'<p><a href="{escape(session["cancel_url"], quote=True)}">Back</a></p>' if session["cancel_url"] else ""
    return _page(
        "Subscribe",
        f'<p role="alert">{escape(error)}</p><p>US${amount} per month</p>'
        f'<form method="post">{who}<label>Card number <input name="card" value="{CARD}" required></label>'
        f"<button>Pay</button></form>{back}",
    )


def portal(portal_session: Object, subscriptions: list[Object], open_invoices: list[Object]) -> bytes:
    """Return the page on which a customer pays an open invoice or cancels."""
    rows = "".join(
        f"<li>{escape(one['items']['data'][0]['price']['id'])}: {escape(one['status'])}"
        f"{', ends with its period' if one['cancel_at_period_end'] else ''} "
        + "".join(
            f'<form method="post"><input type="hidden" name="subscription" value="{one["id"]}">'
            f'<button name="action" value="{action}">{label}</button></form>'
            for action, label in _actions(one, open_invoices)
        )
        + "</li>"
        for one in subscriptions
    )
    back = portal_session["return_url"]
    link = f'<p><a href="{escape(back, quote=True)}">Return</a></p>' if back else ""
    return _page("Billing", f"<ul>{rows}</ul>{link}")


def _actions(subscription: Object, open_invoices: list[Object]) -> list[tuple[str, str]]:
    found = []
    if any(subscription["latest_invoice"] == invoice["id"] for invoice in open_invoices):
        found.append(("pay", "Pay invoice"))
    if subscription["status"] != "canceled":
        is_ending = subscription["cancel_at_period_end"]
        found.append(("keep", "Keep subscription") if is_ending else ("cancel", "Cancel subscription"))
    return found
