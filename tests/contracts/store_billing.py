"""Tests of any store: checkouts, customers as Stripe has them, the keys of checkouts, and batches for a meter."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest

from afterwords.errors import ConflictError
from afterwords.models import ApiKey
from afterwords.server.records import (
    AttemptResult,
    CustomerState,
    NewKey,
    StoredCheckout,
    StoredCustomer,
    Subscription,
)
from tests.contracts.store_world import World, audio, digest
from tests.error_codes import has_code

HOUR = timedelta(hours=1)
EMAIL = "ann@example.com"


class BillingContract:
    """Tests of billing."""

    async def begin(self, world: World, browser: str = "b", email: str = EMAIL, **facts: Any) -> StoredCheckout:
        values = {"plan": "hobby", "account_id": None, "since": world.clock.now() - HOUR} | facts
        return await world.store.begin_checkout(email=email, browser_sha256=digest(browser), **values)

    async def bind(self, world: World, checkout: StoredCheckout, customer_id: str = "cus_1") -> StoredCustomer:
        return await world.store.bind_customer(checkout.checkout_id, customer_id, email=checkout.email)

    def subscription(self, world: World, status: str = "active", **facts: Any) -> Subscription:
        now = world.clock.now()
        values: dict[str, Any] = {
            "subscription_id": "sub_1",
            "customer_id": "cus_1",
            "status": status,
            "price_id": "price_1",
            "period_start": now,
            "period_end": now + timedelta(days=30),
            "is_ending": False,
            "created_at": now,
        }
        return Subscription(**{**values, **facts})

    async def sync(
        self, world: World, chosen: Subscription | None, *, version: int = -1, email: str = EMAIL, **facts: Any
    ) -> StoredCustomer | None:
        """Write what Stripe says of the customer, as if it was read at a version, or now."""
        before = await world.store.find_customer(customer_id="cus_1")
        assert before is not None
        state = CustomerState(email, is_deleted=facts.pop("is_deleted", False), subscriptions=())
        version = before.version if version < 0 else version
        return await world.store.save_customer_state("cus_1", state, chosen, plan="small", version=version, **facts)

    async def pay(self, world: World, browser: str = "b", **facts: Any) -> tuple[StoredCheckout, StoredCustomer]:
        """Begin a checkout and pay it."""
        checkout = await self.begin(world, browser, **facts)
        await self.bind(world, checkout)
        customer = await self.sync(world, self.subscription(world, checkout_id=checkout.checkout_id))
        assert customer is not None
        return await self.reload(world, checkout), customer

    async def reload(self, world: World, checkout: StoredCheckout) -> StoredCheckout:
        found = await world.store.get_checkout(checkout.checkout_id)
        assert found is not None
        return found

    async def mint(self, world: World, checkout: StoredCheckout, name: str = "new", **facts: Any) -> ApiKey | None:
        since: datetime = world.clock.now() - HOUR
        minted = await world.store.mint_checkout_key(checkout.checkout_id, NewKey(digest(name)), since=since, **facts)
        return minted[0] if minted else None

    async def test_checkout_continues_in_the_same_browser(self, world: World) -> None:
        first = await self.begin(world)
        clicks = await asyncio.gather(*(self.begin(world) for _ in range(5)))
        assert {one.checkout_id for one in clicks} == {first.checkout_id}
        owner = await world.caller("owner")
        others = [
            await self.begin(world, "another"),
            await self.begin(world, email="bob@example.com"),
            await self.begin(world, plan="other"),
            await self.begin(world, account_id=owner.account_id),
            await self.begin(world, since=world.clock.now() + HOUR),
        ]
        assert len({first.checkout_id, *(one.checkout_id for one in others)}) == 6

    async def test_idempotency_key_begins_one_checkout(self, world: World) -> None:
        first, again = [await self.begin(world, is_only=True) for _ in range(2)]
        assert again == first
        for other in ({"email": "bob@example.com"}, {"plan": "small"}):
            with pytest.raises(ConflictError, check=has_code("idempotency_conflict")):
                await self.begin(world, is_only=True, **other)
        assert await self.begin(world, email="bob@example.com") != first
        world.clock.advance(HOUR.total_seconds() + 1)
        assert (await self.begin(world, email="eve@example.com", is_only=True)).email == "eve@example.com"

    async def test_first_customer_of_an_address_wins(self, world: World) -> None:
        one, two = await self.begin(world, "one"), await self.begin(world, "two")
        bound = await asyncio.gather(self.bind(world, one, "cus_1"), self.bind(world, two, "cus_2"))
        [winner] = {customer.customer_id for customer in bound}
        customer = await world.store.find_customer(email=EMAIL)
        assert customer is not None
        assert customer.customer_id == winner
        last, first = (one, two) if customer.checkout_id == one.checkout_id else (two, one)
        assert await world.store.save_session(last.checkout_id, "cs_1")
        assert not await world.store.save_session(first.checkout_id, "cs_2")
        assert not await world.store.save_session(first.checkout_id, None)
        assert ((await self.reload(world, first)).tries, (await self.reload(world, first)).session_id) == (1, None)

    async def test_entitled_customer_gets_one_account(self, world: World) -> None:
        checkout, customer = await self.pay(world)
        assert customer.account_id is not None
        assert (checkout.account_id, checkout.paid_at) == (customer.account_id, world.clock.now())
        again = await self.sync(world, self.subscription(world, checkout_id=checkout.checkout_id))
        assert again is not None
        assert again.account_id == customer.account_id
        [account] = await world.store.list_accounts()
        assert account.account_id == customer.account_id

    async def test_overtaken_look_is_not_written(self, world: World) -> None:
        _, customer = await self.pay(world)
        looks = (self.sync(world, self.subscription(world, status), version=customer.version) for status in "ab")
        written = [one for one in await asyncio.gather(*looks) if one]
        assert len(written) == 1
        after = await world.store.find_customer(customer_id="cus_1")
        assert after is not None
        assert (after.version, after.status) == (customer.version + 1, written[0].status)

    async def test_account_is_suspended_and_opened_again(self, world: World) -> None:
        checkout, _ = await self.pay(world)
        await self.mint(world, checkout)
        for status, is_suspended in (("unpaid", True), ("canceled", True), ("active", False), ("past_due", False)):
            await self.sync(world, self.subscription(world, status))
            caller = await world.store.find_caller(digest("new"))
            assert caller is not None
            assert (caller.is_suspended, caller.plan) == (is_suspended, "small")
        await self.sync(world, None, is_deleted=True)
        caller = await world.store.find_caller(digest("new"))
        assert caller is not None
        assert caller.is_suspended
        assert await world.store.find_customer(email=EMAIL) is None
        assert (await self.reload(world, checkout)).email == ""

    async def test_key_of_a_checkout_is_created_once(self, world: World) -> None:
        checkout = await self.begin(world)
        assert await self.mint(world, checkout) is None  # not paid
        checkout, customer = await self.pay(world)
        minted = await asyncio.gather(*(self.mint(world, checkout, f"key {n}") for n in range(12)))
        [key] = [one for one in minted if one]
        assert key.account_id == customer.account_id
        shown = await self.reload(world, checkout)
        assert (shown.key_id, shown.shown_at) == (key.key_id, world.clock.now())
        assert len(await world.store.list_keys(account_id=customer.account_id)) == 1

    async def test_checkout_of_a_closed_account_gets_no_key(self, world: World) -> None:
        checkout, customer = await self.pay(world)
        assert customer.account_id is not None
        await world.store.close_account(customer.account_id)
        assert await self.mint(world, checkout) is None
        assert await world.store.reissue_key("cus_1", NewKey(digest("again"))) is None
        assert await world.store.list_keys(account_id=customer.account_id) == []

    async def test_key_of_an_account_that_existed_needs_proof(self, world: World) -> None:
        await self.pay(world, "first")
        checkout, customer = await self.pay(world, "second")
        assert (checkout.account_id, checkout.paid_at) == (None, world.clock.now())
        assert await self.mint(world, checkout) is None
        world.clock.advance(3600.5)
        assert await self.mint(world, checkout, is_confirmed=True) is None  # too late
        world.clock.advance(-1)
        key = await self.mint(world, checkout, is_confirmed=True)
        assert key is not None
        assert key.account_id == customer.account_id

    async def test_confirmed_key_replaces_all_others(self, world: World) -> None:
        checkout, customer = await self.pay(world, "first")
        await self.mint(world, checkout, "first")
        job = await world.add_job(await world.caller("first"))
        unshown, _ = await self.pay(world, "second", account_id=customer.account_id)
        last, _ = await self.pay(world, "third")
        minted = await world.store.mint_checkout_key(
            last.checkout_id, NewKey(digest("new")), since=world.clock.now(), is_confirmed=True, revokes_others=True
        )
        assert minted is not None
        assert (minted[0].account_id, minted[1]) == (customer.account_id, [job.job_id])
        keys = await world.store.list_keys(account_id=customer.account_id)
        assert [key.key_id for key in keys if key.revoked_at is None] == [minted[0].key_id]
        assert await self.mint(world, unshown) is None

    async def test_checkout_of_a_revoked_key_gets_no_key(self, world: World) -> None:
        owner = await world.caller("owner")
        facts = {"account_id": owner.account_id, "key_id": owner.key_id}
        checkout, customer = await self.pay(world, **facts)
        assert customer.account_id == owner.account_id
        assert (await self.begin(world, "other", **facts)).checkout_id != checkout.checkout_id
        await world.store.revoke_key(owner.key_id, account_id=None)
        assert await self.mint(world, checkout) is None
        assert await self.mint(world, checkout, is_confirmed=True) is None

    async def test_signed_in_account_is_used_once(self, world: World) -> None:
        owner = await world.caller("owner")
        checkout, customer = await self.pay(world, account_id=owner.account_id)
        assert (customer.account_id, checkout.account_id) == (owner.account_id, owner.account_id)
        await world.store.detach_customer(owner.account_id)
        again = await self.sync(world, self.subscription(world))
        assert again is not None
        assert again.account_id not in (None, owner.account_id)

    async def test_reissued_key_replaces_that_of_the_checkout(self, world: World) -> None:
        checkout, customer = await self.pay(world)
        await self.mint(world, checkout, "first")
        caller = await world.caller("first")
        job = await world.add_job(caller)
        reissued = await world.store.reissue_key("cus_1", NewKey(digest("second")))
        assert reissued is not None
        assert (reissued[0].account_id, reissued[1]) == (customer.account_id, [job.job_id])
        assert await world.store.find_caller(digest("first")) is None
        assert await world.store.find_caller(digest("second")) is not None
        await world.store.add_customer("cus_2", email=EMAIL)  # which another customer has
        assert await world.store.reissue_key("cus_2", NewKey(digest("third"))) is None
        added = await world.store.find_customer(customer_id="cus_2")
        assert added is not None
        assert added.email is None

    async def test_address_goes_to_one_of_many_customers(self, world: World) -> None:
        ids = [f"cus_{n}" for n in range(8)]
        await asyncio.gather(*(world.store.add_customer(one, email=EMAIL) for one in ids * 2))
        state = CustomerState("moved@example.com", is_deleted=False, subscriptions=())
        checkout = await self.begin(world, email="moved@example.com")
        await asyncio.gather(
            self.bind(world, checkout, "cus_new"),
            *(world.store.save_customer_state(one, state, None, plan=None, version=0) for one in ids),
        )
        found = [await world.store.find_customer(customer_id=one) for one in [*ids, "cus_new"]]
        assert [one.email for one in found if one].count("moved@example.com") == 1

    async def test_due_customers_are_listed(self, world: World) -> None:
        await self.pay(world)
        assert await world.store.list_due_customers(again_s=600) == []
        world.clock.advance(31 * 86_400)
        assert await world.store.list_due_customers(again_s=600) == ["cus_1"]
        await self.sync(world, self.subscription(world, period_end=world.clock.now()))
        assert await world.store.list_due_customers(again_s=600) == []  # looked at a moment ago
        world.clock.advance(601)
        assert await world.store.list_due_customers(again_s=600) == ["cus_1"]
        await self.sync(world, self.subscription(world, "canceled", period_end=world.clock.now()))
        world.clock.advance(601)
        assert await world.store.list_due_customers(again_s=600) == []

    async def test_subscriptions_are_listed_with_their_accounts(self, world: World) -> None:
        _, customer = await self.pay(world)
        await world.store.add_customer("cus_2", email="bob@example.com")
        first, second = await world.store.list_subscriptions()
        assert (first.customer_id, first.account_id, first.status) == ("cus_1", customer.account_id, "active")
        assert (first.plan, first.period_start, first.suspended_at) == ("small", world.clock.now(), None)
        assert (second.customer_id, second.account_id, second.status, second.plan) == ("cus_2", None, None, None)

    async def test_one_process_at_a_time_reconciles(self, world: World) -> None:
        async def claims() -> int:
            return sum(await asyncio.gather(*(world.store.claim_reconcile(again_s=3300) for _ in range(5))))

        assert await claims() == 1
        world.clock.advance(3299)
        assert await claims() == 0
        world.clock.advance(1)
        assert await claims() == 1
        world.clock.advance(-1)  # the clock was set back
        assert await claims() == 1

    async def test_events_are_stored_with_their_effect(self, world: World) -> None:
        _, customer = await self.pay(world)
        assert await self.sync(world, None, version=customer.version - 1, event_id="evt_1") is None
        assert not await world.store.has_event("evt_1")
        assert await self.sync(world, None, event_id="evt_1") is not None
        assert await world.store.has_event("evt_1")
        await asyncio.gather(*(world.store.add_event("evt_2") for _ in range(3)))
        assert await world.store.has_event("evt_2")

    async def test_old_rows_of_billing_are_deleted(self, world: World) -> None:
        unpaid = await self.begin(world, email="unpaid@example.com")
        await world.store.bind_customer(unpaid.checkout_id, "cus_2", email=unpaid.email)
        debit = await self.begin(world, email=EMAIL)
        await self.bind(world, debit)
        await self.sync(world, self.subscription(world, "incomplete"))
        await world.store.add_event("evt_1")
        world.clock.advance(3 * 86_400)
        await world.store.delete_expired()
        await world.store.delete_expired()
        assert await world.store.get_checkout(unpaid.checkout_id) is None
        assert await world.store.find_customer(customer_id="cus_2") is None
        assert await world.store.get_checkout(debit.checkout_id) is not None  # its payment may arrive
        assert await world.store.has_event("evt_1")
        world.clock.advance(33 * 86_400)
        await world.store.delete_expired()
        assert not await world.store.has_event("evt_1")

    async def test_characters_of_an_hour_are_one_batch(self, world: World) -> None:
        checkout, _ = await self.pay(world)
        await self.mint(world, checkout)
        caller = await world.caller("new")
        voice = await world.add_voice(caller)

        async def speak(*, is_ready: bool = True) -> int:
            job = await world.add_job(caller, voice)
            claim = await world.claim()
            assert claim is not None
            result = audio(f"jobs/{job.job_id}.wav") if is_ready else AttemptResult(error="runaway_audio")
            await world.store.finish(job.job_id, 1, result)
            return job.char_count

        spoken = await speak()
        await speak(is_ready=False)
        spoken += await speak()
        [batch] = await world.store.close_meter_batches(limit=9)
        assert (batch.customer_id, batch.characters, batch.first_sent_at) == ("cus_1", spoken, world.clock.now())
        more = await speak()
        batches = await world.store.close_meter_batches(limit=9)
        assert sorted(one.characters for one in batches) == sorted([spoken, more])
        assert batches[0].batch_id == batch.batch_id or batches[1].batch_id == batch.batch_id
        for one in batches:
            await world.store.delete_meter_batch(one.batch_id)
        assert await world.store.close_meter_batches(limit=9) == []
        await world.add_claimed_job(caller=await world.caller("without a customer"))
        assert await world.store.close_meter_batches(limit=9) == []
