"""From sign-up to the key: one customer, one open session, one key for the browser that began."""

from __future__ import annotations

import pytest

from afterwords.server.records import CheckoutState
from tests.server.billing.conftest import Shop, together, token_of

pytestmark = pytest.mark.anyio


async def test_paid_checkout_shows_one_key(shop: Shop) -> None:
    async with shop.browser() as browser, shop.browser() as other:
        answer = await browser.sign_up("Ann@Example.com ")
        assert "aw_checkout=" in (cookie := answer.headers["set-cookie"])
        assert {"HttpOnly", "SameSite=lax", "Path=/v1/checkout"} <= set(cookie.split("; "))
        session = shop.stripe.objects[answer.json()["url"].rpartition("/")[2]]
        token = token_of(session)
        poll = await browser.get("/v1/checkout/success", params={"token": token})
        assert (poll.json(), poll.headers["referrer-policy"]) == ({"ready": False}, "no-referrer")
        shop.stripe.pay(session["id"])
        assert set(await shop.deliver()) == {200}
        for _ in range(3):  # polling uses nothing up
            assert (await browser.get("/v1/checkout/success", params={"token": token})).json() == {"ready": True}
        assert await shop.billing.success(token, other.cookie) is CheckoutState.WRONG_BROWSER
        assert await shop.billing.show_key(token, other.cookie) is None

        shown = await together(*(shop.billing.show_key(token, browser.cookie) for _ in range(12)))

        [minted] = [one for one in shown if one is not None]
        assert await shop.billing.success(token, browser.cookie) is CheckoutState.SHOWN
        assert await shop.status(minted.secret) == 200
        assert minted.secret.encode() not in b"".join(
            path.read_bytes() for path in shop.database.parent.glob("afterwords.db*")
        )
        assert shop.stripe.count("customer", email="ann@example.com") == 1
        again = await browser.sign_up("ann@example.com")
        assert again.json()["url"].endswith("/v1/checkout/already-subscribed")
