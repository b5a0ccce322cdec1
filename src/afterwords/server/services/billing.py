"""Selling plans: checkouts, the keys that they show, and subscriptions as Stripe has them.

An event is only the reason to look: `sync` reads what is true at Stripe now, so duplicates, order and loss of events
change nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from hmac import compare_digest
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from cachetools import TTLCache
from limits import RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from afterwords.errors import (
    ConflictError,
    InvalidRequestError,
    LimitError,
    NotFoundError,
    ServiceUnavailableError,
)
from afterwords.server.failpoints import reach
from afterwords.server.metrics import Metrics
from afterwords.server.ports import Clock, Mailer, Payments, Store
from afterwords.server.records import (
    ENTITLED,
    UNSETTLED,
    CheckoutState,
    CustomerState,
    MeterBatch,
    NewKey,
    PaymentEvent,
    StoredCheckout,
    StoredCustomer,
    StoredSubscription,
    Subscription,
)
from afterwords.server.services.keys import PREFIX, SHOWN_CHARS, MintedKey, digest
from afterwords.server.services.signing import checkout_token, read_checkout_token
from afterwords.server.settings import Settings

log = logging.getLogger("afterwords.server")

T = TypeVar("T")

EMAIL_MAX_CHARS: Final = 254
"""Source: RFC 5321, 4.5.3.1.3, errata 1690."""
SAME_CHECKOUT: Final = timedelta(minutes=30)
"""How long the same browser, email and plan continue a checkout."""
TOKEN_LIFE: Final = timedelta(hours=1)
"""How long the success page of a checkout works after it was paid."""
LINK_LIFE: Final = TOKEN_LIFE + timedelta(days=1)
"""How long a link in a mail works after the checkout was paid: a day, since it is mailed while the page works."""
UNPAID_LIFE: Final = timedelta(days=14)
"""How long a success page waits: bank debits take days."""
LOOKS_MAX: Final = 5
LOOK_AGAIN_S: Final = 2
"""How long an answer of Stripe, or its failure, is used again for a success page that polls."""
FAILURES_MAX: Final = 10_000
UNANSWERED_MAX: Final = 3
"""Customers in a row whose look Stripe does not answer: the others would not be answered either."""
RECONCILE_AGAIN_S: Final = 3300
"""How long subscriptions that one process has reconciled are not reconciled by another one."""
RENEW_AGAIN_S: Final = 600
"""How long an account whose period has ended, and which Stripe has not renewed, is not looked at again."""
CHECKOUTS_PER_MINUTE: Final = 10
MAILS_PER_HOUR: Final = 3
BATCHES: Final = 100
METER_GIVE_UP: Final = timedelta(hours=23)
"""Stripe recognizes a repeated meter event for 24 hours."""

_FACTS: Final = ("subscription_id", "status", "price_id", "is_ending")
SUCCESS: Final = "success"
CONFIRM: Final = "confirm"

SYNCED: Final = frozenset(
    {
        "checkout.session.completed",
        "checkout.session.async_payment_succeeded",
        "checkout.session.async_payment_failed",
        "checkout.session.expired",
        "customer.deleted",
        "customer.updated",
        "customer.subscription.created",
        "customer.subscription.updated",
        "customer.subscription.deleted",
        "customer.subscription.paused",
        "customer.subscription.resumed",
        "invoice.paid",
        "invoice.payment_failed",
        "invoice.payment_action_required",
    }
)
"""Events after which a customer is looked at."""
UNPAID: Final = {
    "invoice.payment_failed": "Your payment failed",
    "invoice.payment_action_required": "Your bank asks you to confirm a payment",
}
"""Events after which the customer gets a mail, with its subject."""
UNPAID_STATUSES: Final = frozenset({"past_due", "unpaid", "incomplete"})
ALERTS: Final = frozenset({"charge.dispute.created", "radar.early_fraud_warning.created"})
"""Events that are logged for the operator."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What `reconcile` did: customers looked at, those that changed, were new, or could not be read."""

    customers: int
    changed: int
    added: int
    failed: int


class Billing:
    """The rules of selling plans.

    Args:
        mailer: None: no mail server is set, so that mail fails.
        secret: Secret of the server, which signs the tokens of checkouts.
        on_cancelled: Called with the jobs of keys that were replaced.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        payments: Payments,
        mailer: Mailer | None,
        clock: Clock,
        secret: bytes,
        *,
        metrics: Metrics | None = None,
        on_cancelled: Callable[[Sequence[str]], None] = lambda _: None,
    ) -> None:
        self.settings = settings
        self.payments = payments
        self._store = store
        self._mailer = mailer
        self._clock = clock
        self._secret = secret
        self._metrics = metrics or Metrics()
        self._on_cancelled = on_cancelled
        self._prices = {plan.price_id: name for name, plan in settings.all_plans.items() if plan.price_id}
        self._looks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Customers that are being looked at: one look at a time spares Stripe; the version decides."""
        self._failures: TTLCache[str, tuple[float, ServiceUnavailableError]] = TTLCache(
            FAILURES_MAX, ttl=LOOK_AGAIN_S, timer=clock.monotonic
        )
        """When looks failed, and how."""
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._checkout_limit = RateLimitItemPerMinute(max(1, CHECKOUTS_PER_MINUTE // settings.processes))
        self._mail_limit = RateLimitItemPerHour(MAILS_PER_HOUR)

    @property
    def can_mail(self) -> bool:
        """Whether a link can be mailed."""
        return self._mailer is not None

    def limit(self, client: str) -> None:
        """Count a checkout that a client begins, since each creates objects at Stripe.

        Raises:
            LimitError: The client began too many within a minute.
        """
        if not self._limiter.hit(self._checkout_limit, client):
            raise _limited(
                f"Only {CHECKOUTS_PER_MINUTE} checkouts may begin from one address within a minute.", wait_s=60
            )

    # -- checkout

    async def begin_checkout(
        self,
        email: str,
        plan: str | None,
        browser: str,
        *,
        account_id: str | None = None,
        key_id: str | None = None,
        is_only: bool = False,
    ) -> str:
        """Return the URL at which the browser continues: Stripe's page, or one of ours if it was paid already.

        Args:
            email: As typed: it proves nothing.
            plan: None: the plan that can be bought, the first of several.
            browser: Value of the browser's cookie.
            account_id: The account that is signed in.
            key_id: The key that it is signed in with, which must still be valid when the new key is shown.
            is_only: The cookie is that of an idempotency key: it may begin one checkout.

        Raises:
            InvalidRequestError: The address or the plan is invalid.
            ConflictError: `checkout_replaced`: another checkout of the same customer began meanwhile;
                `email_in_use`: the address is that of another account; `idempotency_conflict`.
            ServiceUnavailableError: Stripe does not answer, or with an error. Nothing was changed.
        """
        email, plan = normalize_email(email), self._check_plan(plan)
        own = await self._store.find_customer(account_id=account_id) if account_id else None
        checkout = await self._store.begin_checkout(
            email=email,
            plan=plan,
            browser_sha256=sha256(browser.encode()).digest(),
            account_id=account_id,
            key_id=key_id,
            since=self._clock.now() - SAME_CHECKOUT,
            is_only=is_only,
        )
        if checkout.paid_at is not None:
            return self._url(SUCCESS, checkout.checkout_id)
        try:
            return await self._continue_checkout(checkout, own)
        except NotFoundError:  # the customer was deleted at Stripe, or never paid what it bought: the address is free
            customer_id = (await self._reload(checkout)).customer_id
            if customer_id is not None:
                await self.sync(customer_id, forgets_missing=True)
            await self._store.save_session(checkout.checkout_id, None)
            return await self._continue_checkout(await self._reload(checkout), None)
        except ServiceUnavailableError as error:
            if error.code == "payments_failed":  # Stripe repeats the answer to the same idempotency key for a day
                await self._store.save_session(checkout.checkout_id, None)
            raise

    async def _continue_checkout(self, checkout: StoredCheckout, customer: StoredCustomer | None) -> str:
        customer, is_new = await self._bind_customer(checkout, customer)
        if checkout.account_id and customer.account_id not in (None, checkout.account_id):
            raise ConflictError(
                "Another account uses this email address.",
                code="email_in_use",
                hint="use another address, or sign in with a key of that account.",
            )
        return await self._open_session(checkout, customer.customer_id, is_new=is_new)

    async def _open_session(self, checkout: StoredCheckout, customer_id: str, *, is_new: bool) -> str:
        """Return the URL of the only open session of a customer, that of this checkout, unless there is a plan."""
        checkout_id, session = checkout.checkout_id, None
        found = await self.payments.list_open_sessions(customer_id)
        customer = await self._store.find_customer(customer_id=customer_id)
        if customer is None or customer.checkout_id != checkout_id:  # those found may be of a later checkout
            raise _replaced()
        for one in found:
            if one.checkout_id == checkout_id:
                session = one
            elif one.checkout_id and await self._store.get_checkout(one.checkout_id):
                if not await self.payments.expire_session(one.session_id):  # it was paid a moment ago
                    raise _replaced()
                await self._store.save_session(one.checkout_id, None)
        # Only now: a session that was not among them may have been paid.
        if not is_new and (customer := await self.sync(customer_id, forgets_missing=True)):
            if (await self._reload(checkout)).paid_at is not None:
                return self._url(SUCCESS, checkout_id)
            if customer.is_subscribed:
                return f"{self.settings.base_url}/v1/checkout/already-subscribed"
            if customer.is_former:
                raise NotFoundError(code="customer_not_found")  # so that another one is made
        if session is None:
            if checkout.session_id is not None:  # it has expired, and its idempotency key would return it
                await self._store.save_session(checkout_id, None)
                checkout = await self._reload(checkout)
            session = await self.payments.create_session(
                customer_id,
                checkout_id=checkout_id,
                price_id=self.settings.all_plans[checkout.plan].price_id or "",
                success_url=self._url(SUCCESS, checkout_id),
                cancel_url=f"{self.settings.base_url}/v1/signup",
                key=f"{checkout_id}-{checkout.tries}",
            )
            reach("session-created")
        if session.url is None or not await self._store.save_session(checkout_id, session.session_id):
            await self.payments.expire_session(session.session_id)
            await self._store.save_session(checkout_id, None)
            raise _replaced()
        reach("session-stored")
        return session.url

    async def _bind_customer(
        self, checkout: StoredCheckout, customer: StoredCustomer | None
    ) -> tuple[StoredCustomer, bool]:
        """Return the one customer with the address of a checkout, with this as the last one, and whether it is new.

        The portal of a customer shows cards and invoices, and the address proves nothing: one that had a subscription
        is used only with an account, for whose keys the address must be confirmed.
        """
        email, made, customer_id = checkout.email, None, None
        customer = customer or await self._store.find_customer(email=email)
        if customer is not None and not customer.is_former:
            customer_id = customer.customer_id
        else:
            for found in await self.payments.find_customers(email):  # one whose making was not answered
                known = await self._store.find_customer(customer_id=found)
                is_used = known is not None and (known.account_id or known.subscription_id)
                if not is_used and not (await self.payments.read_customer(found)).subscriptions:
                    customer_id = found
        if customer_id is None:
            made = customer_id = await self.payments.create_customer(
                email, checkout_id=checkout.checkout_id, key=f"{checkout.checkout_id}-customer-{checkout.tries}"
            )
            reach("customer-created")
        bound = await self._store.bind_customer(checkout.checkout_id, customer_id, email=email)
        reach("customer-stored")
        if made is not None and bound.customer_id != made:  # another checkout was faster
            await self.payments.delete_customer(made)
        return bound, bound.customer_id == made

    async def _reload(self, checkout: StoredCheckout) -> StoredCheckout:
        found = await self._store.get_checkout(checkout.checkout_id)
        if found is None:
            raise _replaced()
        return found

    def _check_plan(self, plan: str | None) -> str:
        sold = list(self._prices.values())
        if plan is None and sold:
            return sold[0]
        if plan not in sold:
            rule = f"it must be one of: {', '.join(sold)}" if sold else "no plan can be bought here"
            raise InvalidRequestError.invalid_field("plan", rule=rule)
        return plan

    def _url(self, purpose: str, checkout_id: str) -> str:
        token = checkout_token(self._secret, purpose, checkout_id)
        return f"{self.settings.base_url}/v1/checkout/{purpose}?token={token}"

    # -- the pages after it

    async def success(self, token: str, browser: str | None) -> CheckoutState:
        """Return what the success page shows. This uses nothing up, and looks at Stripe while it waits.

        Args:
            browser: Value of the browser's cookie, if it sent one.
        """
        checkout = await self._find_checkout(SUCCESS, token)
        if checkout is None:
            return CheckoutState.EXPIRED
        if not compare_digest(sha256((browser or "").encode()).digest(), checkout.browser_sha256):
            return CheckoutState.WRONG_BROWSER
        if checkout.paid_at is None and checkout.customer_id is not None:
            await self._look_again(checkout.customer_id)
            checkout = await self._reload(checkout)
        return self._state(checkout)

    async def show_key(self, token: str, browser: str | None) -> MintedKey | None:
        """Return the key of a checkout that is ready. None: it is not, or another request has shown the key."""
        if await self.success(token, browser) is not CheckoutState.READY:
            return None
        return await self._mint(token.partition(".")[0])

    async def send_confirmation(self, token: str, browser: str | None) -> None:
        """Mail a link to the customer's address, which proves that the browser may have a key of the account.

        Raises:
            ConflictError: The checkout needs no confirmation.
            LimitError: Too many mails were sent for it.
            ServiceUnavailableError: The mail server did not take it.
        """
        if await self.success(token, browser) is not CheckoutState.NEEDS_CONFIRMATION:
            raise ConflictError("This checkout needs no confirmation.", hint="reload its page.")
        checkout_id = token.partition(".")[0]
        if not self._limiter.hit(self._mail_limit, checkout_id):
            raise _limited(f"Only {MAILS_PER_HOUR} mails are sent for one checkout.", wait_s=3600)
        checkout = await self._find_checkout(SUCCESS, token)
        customer_id = checkout.customer_id if checkout else None
        customer = await self._store.find_customer(customer_id=customer_id) if customer_id else None
        if customer is None or customer.email is None:
            raise ServiceUnavailableError("The address of the customer is unknown.", code="mail_unavailable")
        why = "A plan was bought with this address, which already has an account. To get a key of that account, open"
        await self._mail_link(checkout_id, customer.email, "Confirm your address", why)

    async def _mail_link(self, checkout_id: str, email: str, subject: str, why: str) -> None:
        await self._mail(
            email,
            subject,
            f"{why}:\n\n{self._url(CONFIRM, checkout_id)}\n\n"
            "The link works once, for a day. If this was not you, ignore this mail: no key was shown.",
        )

    async def confirmation(self, token: str) -> CheckoutState:
        """Return whether a link that was mailed still gives a key: NEEDS_CONFIRMATION, READY, SHOWN or EXPIRED."""
        checkout = await self._find_checkout(CONFIRM, token)
        state = self._state(checkout, life=LINK_LIFE) if checkout else CheckoutState.EXPIRED
        return CheckoutState.EXPIRED if state is CheckoutState.WAITING else state

    async def confirm(self, token: str, *, revokes_others: bool = True) -> MintedKey | None:
        """Return the key of a checkout whose link was mailed. None: the link has expired, or was used.

        Args:
            revokes_others: Revoke the earlier keys of the account, which may be those of another person: the address
                was not confirmed when they were shown.
        """
        if await self.confirmation(token) not in (CheckoutState.NEEDS_CONFIRMATION, CheckoutState.READY):
            return None
        return await self._mint(token.partition(".")[0], is_confirmed=True, revokes_others=revokes_others)

    async def _find_checkout(self, purpose: str, token: str) -> StoredCheckout | None:
        checkout_id = read_checkout_token(self._secret, purpose, token)
        return await self._store.get_checkout(checkout_id) if checkout_id else None

    def _state(self, checkout: StoredCheckout, *, life: timedelta = TOKEN_LIFE) -> CheckoutState:
        now = self._clock.now()
        if checkout.shown_at is not None:
            return CheckoutState.SHOWN
        if checkout.paid_at is None:
            return CheckoutState.WAITING if now < checkout.created_at + UNPAID_LIFE else CheckoutState.EXPIRED
        if now >= checkout.paid_at + life:
            return CheckoutState.EXPIRED
        return CheckoutState.READY if checkout.account_id else CheckoutState.NEEDS_CONFIRMATION

    async def _look_again(self, customer_id: str) -> None:
        try:
            await self.sync(customer_id, max_age_s=LOOK_AGAIN_S)
        except ServiceUnavailableError as error:  # the page waits, and asks again
            log.warning("a customer is shown as before, because Stripe can't be read code=%s", error.code)

    async def _mint(
        self, checkout_id: str, *, is_confirmed: bool = False, revokes_others: bool = False
    ) -> MintedKey | None:
        secret, new = _new_key()
        reach("checkout-key-drawn")
        since = self._clock.now() - (LINK_LIFE if is_confirmed else TOKEN_LIFE)
        minted = await self._store.mint_checkout_key(
            checkout_id, new, since=since, is_confirmed=is_confirmed, revokes_others=revokes_others
        )
        reach("checkout-key-stored")
        if minted is None:
            return None
        key, cancelled = minted
        self._on_cancelled(cancelled)
        return MintedKey(secret, key)

    # -- subscriptions

    async def sync(
        self,
        customer_id: str,
        *,
        event_id: str | None = None,
        max_age_s: float | None = None,
        forgets_missing: bool = False,
    ) -> StoredCustomer | None:
        """Store what Stripe says of a customer now: the one function that changes access. None: unknown customer.

        A look that one of another server overtook is repeated, so that a slow answer never replaces a newer one.

        Args:
            event_id: The event that is the reason; nothing is done if it is known.
            max_age_s: How old the answer of Stripe may be when this begins; a later one, which another look wrote, is
                enough, too. None: it must be asked for now.
            forgets_missing: Whether a customer that Stripe does not know is one that was deleted, and not an error.

        Raises:
            ServiceUnavailableError: Stripe does not answer. Nothing is changed.
        """
        since = self._clock.monotonic() - (max_age_s or 0)
        enough_at = None if max_age_s is None else self._clock.now() - timedelta(seconds=max_age_s)
        async with self._looks.setdefault(customer_id, asyncio.Lock()):
            failed_at, failure = self._failures.get(customer_id, (-math.inf, None))
            if failure is not None and failed_at >= since:  # while this waited: Stripe would let it wait as long again
                raise ServiceUnavailableError(failure.message, code=failure.code)
            try:
                return await self._look(customer_id, event_id, enough_at, forgets_missing=forgets_missing)
            except ServiceUnavailableError as error:
                self._failures[customer_id] = (self._clock.monotonic(), error)
                raise

    async def _look(
        self, customer_id: str, event_id: str | None, enough_at: datetime | None, *, forgets_missing: bool
    ) -> StoredCustomer | None:
        for _ in range(LOOKS_MAX):
            customer = await self._store.find_customer(customer_id=customer_id)
            if customer is None or (event_id and await self._store.has_event(event_id)):
                return customer
            if enough_at and customer.synced_at and enough_at <= customer.synced_at <= self._clock.now():
                return customer
            try:
                state = await self.payments.read_customer(customer_id)
            except NotFoundError as error:  # of another Stripe account, or of the test mode
                if not forgets_missing:
                    raise ServiceUnavailableError(error.message, code="payments_failed") from error
                state = CustomerState(email=None, is_deleted=True, subscriptions=())
            reach("customer-read")
            chosen = self._choose(state.subscriptions)
            begun_by = chosen.checkout_id if chosen is not None else None
            checkout = await self._store.get_checkout(begun_by) if begun_by else None
            saved = await self._store.save_customer_state(
                customer_id,
                state,
                chosen,
                plan=self._prices[chosen.price_id] if chosen else None,
                version=customer.version,
                event_id=event_id,
            )
            reach("customer-synced")
            if saved is not None:
                if checkout is not None and checkout.paid_at is None and saved.is_entitled:
                    await self._mail_late_key(checkout, saved)
                return saved
        raise ServiceUnavailableError("This customer changes too often at the moment.")

    async def _mail_late_key(self, checkout: StoredCheckout, customer: StoredCustomer) -> None:
        """Mail the link to the key of a checkout that was paid late, as by bank debit: no page waits for it."""
        if customer.email and self._clock.now() >= checkout.created_at + TOKEN_LIFE:
            why = "Your payment has arrived. To get your key, open"
            try:
                await self._mail_link(checkout.checkout_id, customer.email, "Your payment has arrived", why)
            except ServiceUnavailableError:  # it is in the log; the operator can reissue the key
                self._metrics.housekeeping_failures.add("mail")

    def _choose(self, subscriptions: Iterable[Subscription]) -> Subscription | None:
        """Return the subscription that decides: one that gives access, then one that can be paid, then the newest."""
        ours = [one for one in subscriptions if one.price_id in self._prices]
        return max(
            ours, key=lambda one: (one.status in ENTITLED, one.status in UNSETTLED, one.created_at), default=None
        )

    async def handle_event(self, event: PaymentEvent) -> None:
        """Handle an event of Stripe, once; others than those of our customers are ignored.

        Raises:
            ServiceUnavailableError: Stripe does not answer. It repeats the event later.
        """
        if event.type in ALERTS:
            if not await self._store.has_event(event.event_id):
                self._metrics.payment_alerts.add(event.type)
                log.warning("Stripe reports type=%s id=%s charge=%s", event.type, event.object_id, event.charge_id)
                await self._store.add_event(event.event_id)  # last: a kill before it repeats the line
            return
        if event.type not in SYNCED or event.customer_id is None or await self._store.has_event(event.event_id):
            return
        customer = await self.sync(event.customer_id, event_id=event.event_id)
        if event.type not in UNPAID or customer is None or customer.status not in UNPAID_STATUSES:
            return  # the invoice is that of something else, or was paid since
        if customer.account_id and customer.email:
            try:
                await self._mail(
                    customer.email,
                    UNPAID[event.type],
                    "Your plan needs your attention, so that your keys stay valid. Sign in and open the billing "
                    "portal:\n\n"
                    f"{self.settings.base_url}/v1/account",
                )
            except ServiceUnavailableError:  # it is in the log; Stripe can send mail of its own
                self._metrics.housekeeping_failures.add("mail")

    async def renew(self, account_id: str) -> bool:
        """Look at the customer of an account whose period has ended. Return whether there is one."""
        customer = await self._store.find_customer(account_id=account_id)
        if customer is not None:
            await self._look_again(customer.customer_id)
        return customer is not None

    async def renew_due(self) -> None:
        """Look at the customers whose period has ended."""
        due = await self._store.list_due_customers(again_s=RENEW_AGAIN_S)
        await _visit(due, self.sync, unanswered_max=UNANSWERED_MAX)

    async def reconcile_due(self) -> None:
        """Reconcile, unless a process that shares the database did so within the hour."""
        if await self._store.claim_reconcile(again_s=RECONCILE_AGAIN_S):
            await self.reconcile()

    async def reconcile(self) -> Reconciled:
        """Repair what lost events left: look at customers whose subscription is not as Stripe lists it, or is new.

        Raises:
            ServiceUnavailableError: Stripe does not answer. That takes no access away.
        """
        done: Counter[str] = Counter()
        listed: defaultdict[str, list[Subscription]] = defaultdict(list)
        for price in self._prices:
            for one in await self.payments.list_subscriptions(price):
                listed[one.customer_id].append(one)
        known = {one.customer_id: one for one in await self._store.list_subscriptions()}

        async def visit(customer_id: str) -> None:
            before = known.get(customer_id)
            if before is None:
                state = await self.payments.read_customer(customer_id)
                if state.is_deleted:
                    return
                await self._store.add_customer(customer_id, email=state.email)
            after = await self.sync(customer_id, max_age_s=0)
            if before is None:
                done["added"] += 1
            elif after is not None and _facts(before) != _facts(after):
                done["changed"] += 1

        customers = dict.fromkeys([*known, *listed])
        due = [one for one in customers if one not in known or not self._is_current(known[one], listed[one])]
        failed = await _visit(due, visit, unanswered_max=UNANSWERED_MAX)
        return Reconciled(len(customers), done["changed"], done["added"], failed)

    def _is_current(self, stored: StoredSubscription, listed: Sequence[Subscription]) -> bool:
        """Return whether a customer and its account are as the subscriptions that Stripe lists demand."""
        chosen = self._choose(listed)
        if chosen is None:
            return stored.account_id is None and stored.subscription_id is None
        if any(getattr(stored, name) != getattr(chosen, name) for name in _FACTS):
            return False
        if chosen.status not in ENTITLED:
            return stored.account_id is None or stored.suspended_at is not None
        access = (stored.plan, stored.period_start, stored.period_end, stored.suspended_at)
        return access == (self._prices[chosen.price_id], chosen.period_start, chosen.period_end, None)

    # -- accounts

    async def customer(self, account_id: str) -> StoredCustomer | None:
        """Return the customer of an account."""
        return await self._store.find_customer(account_id=account_id)

    async def portal(self, account_id: str) -> str:
        """Return the URL of the billing portal, which opens for anyone for some minutes: neither store nor log it.

        Raises:
            NotFoundError: The account has no customer.
        """
        customer = await self._store.find_customer(account_id=account_id)
        if customer is None:
            raise _no_customer()
        return await self.payments.create_portal(
            customer.customer_id, return_url=f"{self.settings.base_url}/v1/account"
        )

    async def reissue(self, customer: str) -> MintedKey:
        """Return a new key for a customer whose page was lost; that of the same checkout is revoked.

        Args:
            customer: Email address, or id at Stripe.

        Raises:
            NotFoundError: There is no such customer, or they never paid.
        """
        by = {"customer_id": customer} if customer.startswith("cus_") else {"email": normalize_email(customer)}
        found = await self._store.find_customer(**by)
        if found is None or (found := await self.sync(found.customer_id)) is None:
            raise _no_customer()
        secret, new = _new_key()
        reissued = await self._store.reissue_key(found.customer_id, new)
        if reissued is None:
            raise NotFoundError(
                "The customer never had a plan.", code="customer_not_found", hint="they can sign up at /v1/signup."
            )
        key, cancelled = reissued
        self._on_cancelled(cancelled)
        return MintedKey(secret, key)

    async def cancel(self, account_id: str) -> None:
        """End the subscriptions of an account that is being closed, and separate it from its customer.

        Raises:
            ServiceUnavailableError: Stripe does not answer. The account must not be closed then.
            ConflictError: Stripe has not ended a subscription. Likewise.
        """
        customer = await self._store.find_customer(account_id=account_id)
        if customer is None:
            return
        for one in await self._list_live(customer):
            await self.payments.cancel_subscription(one)
        if await self._list_live(customer):
            raise ConflictError(
                "Stripe has not ended the subscription of the account.",
                hint="cancel it at Stripe, then run this again.",
            )
        await self.sync(customer.customer_id)
        await self._store.detach_customer(account_id)

    async def _list_live(self, customer: StoredCustomer) -> set[str]:
        """Return the subscriptions of a customer that have not ended: of our prices, or the one that was paid here."""
        state = await self.payments.read_customer(customer.customer_id)
        return {
            one.subscription_id
            for one in state.subscriptions
            if one.status not in ("canceled", "incomplete_expired")
            and (one.price_id in self._prices or one.subscription_id == customer.subscription_id)
        }

    # -- meter

    async def send_meters(self) -> None:
        """Report characters to Stripe. What Stripe did not answer is repeated, and given up before it counts twice."""
        await _visit(await self._store.close_meter_batches(limit=BATCHES), self._send_meter)

    async def _send_meter(self, batch: MeterBatch) -> None:
        why_lost = ""
        if self._clock.now() - batch.first_sent_at >= METER_GIVE_UP:
            why_lost = "no answer for 23 hours"
        else:
            try:
                at = min(batch.hour + timedelta(hours=1), batch.first_sent_at)
                await self.payments.send_meter_event(batch, at=at)
            except InvalidRequestError as error:
                why_lost = error.message
        if why_lost:
            self._metrics.meters_lost.add(amount=batch.characters)
            log.error(
                "characters were not reported to Stripe batch=%s customer=%s characters=%d: %s",
                batch.batch_id,
                batch.customer_id,
                batch.characters,
                why_lost,
            )
        await self._store.delete_meter_batch(batch.batch_id)

    async def _mail(self, to: str, subject: str, text: str) -> None:
        if self._mailer is None:
            log.error("a mail was not sent: AFTERWORDS_SMTP_URL is not set")
            raise ServiceUnavailableError(
                "This server can't send mail.", code="mail_unavailable", hint="ask its operator for a key."
            )
        await self._mailer.send(to, subject=subject, text=text)


def normalize_email(text: str) -> str:
    """Return an email address as it is stored.

    Raises:
        InvalidRequestError: It is not one.
    """
    email = text.strip().lower()
    name, _, domain = email.partition("@")
    is_plain = email.isprintable() and not any(sign.isspace() or sign in ',;<>"()[]\\' for sign in email)
    if not (name and domain and "@" not in domain and is_plain and len(email) <= EMAIL_MAX_CHARS):
        raise InvalidRequestError.invalid_field("email", rule="it must be an email address")
    return email


async def _visit(items: Iterable[T], visit: Callable[[T], Awaitable[object]], *, unanswered_max: int = 1) -> int:
    """Visit items one after the other, which keeps below Stripe's rate. Return how many failed.

    Raises:
        ServiceUnavailableError: Stripe, or the database, did not answer for so many in a row.
    """
    n_failed = n_unanswered = 0
    for item in items:
        try:
            await visit(item)
            n_unanswered = 0
        except ServiceUnavailableError as error:
            n_failed += 1
            n_unanswered = 0 if error.code == "payments_failed" else n_unanswered + 1
            if n_unanswered == unanswered_max:
                raise
        except NotFoundError:
            n_failed += 1
    return n_failed


def _new_key() -> tuple[str, NewKey]:
    secret = PREFIX + secrets.token_urlsafe(32)
    return secret, NewKey(digest(secret), prefix=secret[:SHOWN_CHARS])


def _facts(customer: StoredCustomer | StoredSubscription) -> tuple[object, ...]:
    return (customer.account_id, *(getattr(customer, name) for name in _FACTS))


def billing_disabled() -> NotFoundError:
    """Return the error of a server that sells no plans."""
    return NotFoundError(
        "This server sells no plans.",
        code="billing_disabled",
        hint="set AFTERWORDS_STRIPE_SECRET_KEY and the other settings of docs/billing.md.",
    )


def _no_customer() -> NotFoundError:
    return NotFoundError(
        "There is no such customer.",
        code="customer_not_found",
        hint="check the address; `afterwords billing reconcile` adds customers that subscribed elsewhere.",
    )


def _replaced() -> ConflictError:
    return ConflictError(
        "Another checkout with this address has begun.",
        code="checkout_replaced",
        hint="continue there, or sign up again.",
    )


def _limited(message: str, *, wait_s: int) -> LimitError:
    return LimitError(message, code="rate_limited", hint=f"wait {wait_s} s.", retry_after_s=wait_s)
