"""Tests of any store: plans of accounts, and their end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from afterwords.errors import ConflictError, InvalidRequestError, UnauthorizedError
from afterwords.models import ApiKey
from afterwords.server.records import AuditAction, NewKey
from tests.contracts.store_world import START, World, digest


class AccountContract:
    """Tests of accounts."""

    async def test_accounts_are_listed_with_plan_and_subscription(self, world: World) -> None:
        ann, bob = await world.caller("ann", plan="small"), await world.caller("bob")
        ends = START + timedelta(days=30)
        await world.set_account(ann, period_start=START, period_end=ends, suspended_at=START)
        await world.add_customer(ann, subscription_id="sub_1", status="unpaid")

        first, second = await world.store.list_accounts()

        assert (first.account_id, first.plan, first.limit) == (ann.account_id, "small", 100)
        assert (first.period_start, first.period_end, first.suspended_at) == (START, ends, START)
        assert (first.customer_id, first.subscription) == ("cus_1", "unpaid")
        assert (second.account_id, second.plan, second.limit, second.customer_id) == (bob.account_id, None, None, None)
        assert second.period_start == datetime(2026, 1, 1, tzinfo=UTC)

    async def test_plan_is_set_and_recorded(self, world: World) -> None:
        ann = await world.caller("ann")
        assert await world.store.set_plan(ann.account_id, "small")
        assert (await world.caller("ann")).plan == "small"
        assert await world.store.set_plan(ann.account_id, None)
        assert (await world.caller("ann")).plan is None

        assert not await world.store.set_plan("unknown", "small")
        with pytest.raises(InvalidRequestError, match="small, free"):
            await world.store.set_plan(ann.account_id, "unknown")
        entries = await world.store.list_audit(limit=2)
        assert {(entry.action, entry.target_id) for entry in entries} == {(AuditAction.PLAN_CHANGED, ann.account_id)}

    async def test_plan_of_a_subscription_can_not_be_set(self, world: World) -> None:
        ann = await world.caller("ann", plan="small")
        await world.add_customer(ann)  # as the import writes it: Stripe was not asked yet
        assert await world.store.set_plan(ann.account_id, "free")
        for status in ("active", "unpaid"):
            await world.set_customer(ann, subscription_id="sub_1", status=status, synced_at=START)
            with pytest.raises(ConflictError, match="sub_1"):
                await world.store.set_plan(ann.account_id, "small")
        assert (await world.caller("ann")).plan == "free"

    async def test_plan_is_set_after_the_end_of_the_subscription(self, world: World) -> None:
        ann = await world.caller("ann", plan="small")
        await world.add_customer(ann, subscription_id="sub_1", status="canceled", synced_at=START)
        ended = START - timedelta(days=9)
        await world.set_account(ann, period_start=ended - timedelta(days=30), period_end=ended, suspended_at=ended)

        assert await world.store.set_plan(ann.account_id, "free")

        [account] = await world.store.list_accounts()
        assert (account.plan, account.suspended_at, account.customer_id) == ("free", None, None)
        assert account.period_start == datetime(2026, 1, 1, tzinfo=UTC)

    async def test_closed_account_has_no_customer(self, world: World) -> None:
        ann = await world.caller("ann", plan="small")
        await world.add_customer(ann, subscription_id="sub_1", status="canceled", synced_at=START)
        await world.store.close_account(ann.account_id)
        assert await world.store.find_customer(account_id=ann.account_id) is None

    async def test_only_a_new_account_gets_the_plan_of_its_key(self, world: World) -> None:
        ann = await world.caller("ann", plan="small")
        assert ann.plan == "small"
        for key in (NewKey(digest("x"), plan="free", account_id=ann.account_id), NewKey(digest("x"), plan="unknown")):
            with pytest.raises(InvalidRequestError, match="plan"):
                await world.store.add_key(key)
        assert (await world.caller("ann")).plan == "small"

    async def test_closed_account_has_no_valid_key_and_no_job(self, world: World) -> None:
        ann = await world.caller("ann")
        await world.caller("other", account_id=ann.account_id)
        await world.store.rotate_key(ann.key_id, account_id=None, sha256=digest("new"), overlap_s=60)
        job = await world.add_job(ann)

        assert await world.store.close_account(ann.account_id) == [job.job_id]

        assert [await world.store.find_caller(digest(name)) for name in ("ann", "new", "other")] == [None] * 3
        [account] = await world.store.list_accounts()
        assert (account.keys, account.characters, account.closed_at) == (0, 0, START)
        with pytest.raises(InvalidRequestError, match="account"):
            await world.store.add_key(NewKey(digest("x"), account_id=ann.account_id))
        with pytest.raises(ConflictError, match="closed"):
            await world.store.set_plan(ann.account_id, "small")
        assert await world.store.close_account(ann.account_id) == []
        assert await world.store.close_account("unknown") is None
        closed = [entry for entry in await world.store.list_audit(limit=None) if entry.action == "account_closed"]
        assert [entry.target_id for entry in closed] == [ann.account_id]

    async def test_request_after_the_end_adds_no_row(self, world: World) -> None:
        ann, voice = await world.caller("ann"), await world.add_voice()
        await world.store.close_account(ann.account_id)

        with pytest.raises(UnauthorizedError):
            await world.add_voice(ann)
        with pytest.raises(UnauthorizedError):
            await world.store.add_key(NewKey(digest("x"), scopes=("synthesize",)), by=ann.key_id)
        with pytest.raises(UnauthorizedError):
            await world.add_job(ann, voice)
        assert not await world.store.set_alias("mine", voice.voice_id, account_id=ann.account_id)
        assert await world.store.rotate_key(ann.key_id, account_id=None, sha256=digest("y"), overlap_s=60) is None
        assert [one.voice_id for one in await world.store.find_voices("me", account_id=ann.account_id)] == [
            voice.voice_id
        ]
        assert len(await world.store.list_keys(account_id=ann.account_id)) == 1

    async def test_key_made_while_an_account_closes_is_not_valid(self, world: World) -> None:
        ann = await world.caller("ann")
        names = [f"key {number}" for number in range(8)]
        made = [world.store.add_key(NewKey(digest(name), account_id=ann.account_id)) for name in names]

        closing = world.store.close_account(ann.account_id)
        results = await asyncio.gather(*made[:4], closing, *made[4:], return_exceptions=True)

        assert results.pop(4) == []
        assert not [one for one in results if not isinstance(one, ApiKey | InvalidRequestError)]
        assert [await world.store.find_caller(digest(name)) for name in names] == [None] * 8
