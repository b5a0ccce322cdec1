"""Tests of any store: accounts, keys and their usage."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from afterwords.errors import ConflictError, InsufficientScopeError, QuotaExceededError, UnauthorizedError
from afterwords.server.records import NewKey
from tests.contracts.store_world import MANY, START, TEXT, World, audio, digest
from tests.error_codes import has_code


class KeyContract:
    """Tests of keys."""

    async def test_key_is_found_by_its_digest(self, world: World) -> None:
        shown = await world.store.add_key(
            NewKey(digest("k"), label="laptop", scopes=("voices:read", "synthesize"), character_limit=100)
        )

        caller = await world.store.find_caller(digest("k"))

        assert caller is not None
        assert (caller.key_id, caller.spending_id) == (shown.key_id, shown.key_id)
        assert (caller.scopes, caller.character_limit) == (frozenset({"voices:read", "synthesize"}), 100)
        assert (shown.label, shown.scopes, shown.created_at) == ("laptop", ("voices:read", "synthesize"), START)
        assert await world.store.find_caller(digest("another")) is None
        assert await world.store.find_caller_by_id(shown.key_id) == caller
        assert await world.store.find_caller_by_id("no such key") is None

    async def test_key_without_an_account_gets_a_new_one(self, world: World) -> None:
        ann, bob = await world.caller("ann"), await world.caller("bob")
        again = await world.caller("again", account_id=ann.account_id)

        assert ann.account_id == again.account_id
        assert ann.account_id != bob.account_id

    async def test_home_keys_share_an_account_that_stays_open(self, world: World) -> None:
        assert await world.store.get_home_account() is None
        await world.caller("ann")
        for name in ("home", "again"):
            await world.store.add_key(NewKey(digest(name), is_home=True))
        first, second = await world.store.find_caller(digest("home")), await world.store.find_caller(digest("again"))
        bob = await world.caller("bob")

        assert first is not None
        assert second is not None
        assert first.account_id == second.account_id == await world.store.get_home_account()
        assert bob.account_id != first.account_id
        with pytest.raises(ConflictError, match="library"):
            await world.store.close_account(first.account_id)
        assert await world.store.find_caller(digest("home")) == first

    async def test_worker_token_is_valid_until_it_is_revoked(self, world: World) -> None:
        store = world.store
        first = await store.add_worker_token(digest("first"), label="gpu", prefix="awp_1234")
        second = await store.add_worker_token(digest("second"), label=None, prefix="awp_5678")

        assert await store.list_worker_tokens() == [first, second]
        assert (first.label, first.created_at, first.revoked_at) == ("gpu", START, None)
        assert await store.find_worker_token(digest("first")) == first.token_id
        assert await store.find_worker_token(digest("another")) is None
        assert await store.revoke_worker_token(first.token_id)
        assert await store.find_worker_token(digest("first")) is None
        assert not await store.is_worker_token_valid(first.token_id)
        assert await store.is_worker_token_valid(second.token_id)
        assert [token.revoked_at for token in await store.list_worker_tokens()] == [START, None]
        assert not await store.revoke_worker_token(digest("unknown").hex()[:36])

    async def test_keys_are_listed_oldest_first(self, world: World) -> None:
        names = ["ann", "bob", "eve"]
        callers = [await world.caller(name) for name in names]

        everyone = await world.store.list_keys(account_id=None)
        bobs = await world.store.list_keys(account_id=callers[1].account_id)

        assert [key.key_id for key in everyone] == [caller.key_id for caller in callers]
        assert [key.key_id for key in bobs] == [callers[1].key_id]

    async def test_key_is_revoked_once(self, world: World) -> None:
        ann = await world.caller("ann")
        assert await world.store.revoke_key(ann.key_id, account_id=ann.account_id) == []
        world.clock.advance(60)
        assert await world.store.revoke_key(ann.key_id, account_id=None) == []

        [key] = await world.store.list_keys(account_id=ann.account_id)

        assert await world.store.find_caller(digest("ann")) is None
        assert await world.store.find_caller_by_id(ann.key_id) is None
        assert key.revoked_at == START

    async def test_revoked_key_submits_no_job_although_it_was_found(self, world: World) -> None:
        ann = await world.caller("ann")
        voice = await world.add_voice(ann)
        await world.store.revoke_key(ann.key_id, account_id=None)

        with pytest.raises(UnauthorizedError):
            await world.add_job(ann, voice)
        assert await world.store.list_jobs(account_id=ann.account_id, status=None, limit=None, after=None) == []

    async def test_key_of_another_account_is_missing(self, world: World) -> None:
        ann, bob = await world.caller("ann"), await world.caller("bob")

        assert await world.store.revoke_key(ann.key_id, account_id=bob.account_id) is None
        assert await world.store.revoke_key("no such key", account_id=None) is None
        rotated = await world.store.rotate_key(ann.key_id, account_id=bob.account_id, sha256=digest("x"), overlap_s=0)
        assert rotated is None
        assert await world.store.find_caller(digest("ann")) == ann

    async def test_rotated_key_keeps_everything_but_the_digest(self, world: World) -> None:
        ann = await world.caller("ann", label="mine", scopes=("synthesize",), character_limit=70)

        new = await world.store.rotate_key(ann.key_id, account_id=ann.account_id, sha256=digest("new"), overlap_s=10)

        heir = await world.store.find_caller(digest("new"))
        assert new is not None
        assert heir is not None
        assert (heir.key_id, heir.account_id, heir.spending_id) == (new.key_id, ann.account_id, ann.spending_id)
        assert (new.label, heir.scopes, heir.character_limit) == ("mine", frozenset({"synthesize"}), 70)

    async def test_rotated_key_expires_after_the_overlap(self, world: World) -> None:
        ann = await world.caller("ann")
        await world.store.rotate_key(ann.key_id, account_id=None, sha256=digest("new"), overlap_s=10)

        world.clock.advance(9.999)
        assert await world.store.find_caller(digest("ann")) == ann
        world.clock.advance(0.001)
        assert await world.store.find_caller(digest("ann")) is None
        assert await world.store.find_caller_by_id(ann.key_id) is None
        again = await world.store.rotate_key(ann.key_id, account_id=None, sha256=digest("newer"), overlap_s=10)
        assert again is None

    async def test_rotated_key_can_not_rotate_or_revoke_others(self, world: World) -> None:
        ann = await world.caller("ann")
        new = await world.store.rotate_key(
            ann.key_id, account_id=ann.account_id, by=ann.key_id, sha256=digest("new"), overlap_s=5
        )
        assert new is not None

        for target in (ann.key_id, new.key_id):
            with pytest.raises(ConflictError, check=has_code("key_replaced")):
                await world.store.rotate_key(
                    target, account_id=ann.account_id, by=ann.key_id, sha256=digest("thief"), overlap_s=5
                )
        with pytest.raises(ConflictError, check=has_code("key_replaced")):
            await world.store.revoke_key(new.key_id, account_id=ann.account_id, by=ann.key_id)
        assert await world.store.find_caller(digest("thief")) is None
        assert await world.store.find_caller(digest("new")) is not None

    async def test_rotated_key_can_be_revoked_but_not_rotated(self, world: World) -> None:
        ann = await world.caller("ann")
        new = await world.store.rotate_key(ann.key_id, account_id=None, sha256=digest("new"), overlap_s=5)
        assert new is not None

        for by in (None, new.key_id):
            with pytest.raises(ConflictError, check=has_code("key_replaced")):
                await world.store.rotate_key(ann.key_id, account_id=None, by=by, sha256=digest("c"), overlap_s=500)
        assert await world.store.revoke_key(ann.key_id, account_id=ann.account_id, by=ann.key_id) == []
        assert await world.store.find_caller(digest("ann")) is None

    async def test_limited_key_changes_only_itself(self, world: World) -> None:
        ann = await world.caller("ann")
        capped = await world.caller("capped", account_id=ann.account_id, character_limit=5)
        scoped = await world.caller("scoped", account_id=ann.account_id, scopes=("voices:read",))

        for narrow in (capped, scoped):
            with pytest.raises(InsufficientScopeError):
                await world.store.rotate_key(
                    ann.key_id, account_id=ann.account_id, by=narrow.key_id, sha256=digest("wide"), overlap_s=0
                )
            with pytest.raises(InsufficientScopeError):
                await world.store.revoke_key(ann.key_id, account_id=ann.account_id, by=narrow.key_id)
        assert await world.store.rotate_key(
            capped.key_id, account_id=ann.account_id, by=capped.key_id, sha256=digest("still capped"), overlap_s=0
        )

    async def test_usage_is_counted_per_calendar_month(self, world: World) -> None:
        await world.add_job()
        january = await world.store.get_usage(await world.caller())
        world.clock.advance(12 * 3600)
        february = await world.store.get_usage(await world.caller())

        assert (january.characters, january.limit) == (len(TEXT), None)
        assert (january.period_start, january.period_end) == (
            datetime(2026, 1, 1, tzinfo=UTC),
            datetime(2026, 2, 1, tzinfo=UTC),
        )
        assert (february.characters, february.period_start) == (0, datetime(2026, 2, 1, tzinfo=UTC))

    async def test_december_ends_with_the_year(self, world: World) -> None:
        world.clock.wall = datetime(2026, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)

        usage = await world.store.get_usage(await world.caller())

        assert usage.period_end == datetime(2027, 1, 1, tzinfo=UTC)

    async def test_usage_is_counted_in_the_period_of_a_subscription(self, world: World) -> None:
        ann, bob = await world.caller("ann", character_limit=60), await world.caller("bob")
        await world.add_job(ann, char_count=50)
        await world.add_job(bob, char_count=5)
        began, ends = START.replace(day=14, hour=9, minute=30), datetime(2026, 2, 14, 9, 30, tzinfo=UTC)
        await world.set_account(ann, period_start=began, period_end=ends)
        await world.add_job(ann, char_count=11)
        world.clock.advance(24 * 3600)
        with pytest.raises(QuotaExceededError, match="11 of its 60") as refused:
            await world.add_job(ann, char_count=50)
        await world.add_job(ann, char_count=4)

        usage = await world.store.get_usage(ann)

        assert (usage.characters, usage.period_start, usage.period_end) == (15, began, ends)
        assert [(f"{one.day}", one.characters) for one in usage.days] == [("2026-01-31", 11), ("2026-02-01", 4)]
        assert refused.value.retry_after_s == (ends - world.clock.now()).total_seconds()
        assert [key.characters for key in await world.store.list_keys(account_id=None)] == [15, 0]
        assert [account.characters for account in await world.store.list_accounts()] == [15, 0]

    async def test_usage_goes_to_an_ended_period_until_it_is_renewed(self, world: World) -> None:
        ann = await world.caller()
        await world.set_account(ann, period_start=START - timedelta(days=31), period_end=START - timedelta(minutes=5))
        await world.add_job(ann, char_count=50)
        before = await world.store.get_usage(ann)
        await world.set_account(ann, period_start=START - timedelta(minutes=5), period_end=START + timedelta(days=28))

        assert (before.characters, before.period_end) == (50, START - timedelta(minutes=5))
        assert await world.characters_used() == 0

    async def test_usage_is_per_key_with_a_limit_else_per_account(self, world: World) -> None:
        ann = await world.caller("ann")
        capped = await world.caller("capped", account_id=ann.account_id, character_limit=500)
        voice = await world.add_voice(ann)
        await world.add_job(ann, voice, char_count=30)
        await world.add_job(capped, voice, char_count=4)

        assert (await world.store.get_usage(ann)).characters == 34
        assert (await world.store.get_usage(capped)).characters == 4

    async def test_usage_shows_the_limit_with_fewer_characters_left(self, world: World) -> None:
        ann = await world.caller("ann")
        capped = await world.caller("capped", account_id=ann.account_id, character_limit=50)
        await world.set_account(ann, plan="small")
        voice = await world.add_voice(ann)
        await world.add_job(capped, voice, char_count=4)
        of_key = await world.store.get_usage(capped)
        await world.add_job(ann, voice, char_count=51)
        of_plan = await world.store.get_usage(capped)
        await world.set_account(ann, plan="removed from the settings")

        assert (of_key.characters, of_key.limit, of_key.plan) == (4, 50, "small")
        assert [day.characters for day in of_key.days] == [4]
        assert (of_plan.characters, of_plan.limit) == (55, 100)
        assert [day.characters for day in of_plan.days] == [55]
        assert (await world.store.get_usage(ann)).limit == 0

    async def test_character_limit_is_exact_and_survives_rotation(self, world: World) -> None:
        ann = await world.caller("ann", character_limit=50)
        voice = await world.add_voice(ann)
        await world.add_job(ann, voice, char_count=30)
        await world.store.rotate_key(ann.key_id, account_id=None, sha256=digest("new"), overlap_s=0)
        heir = await world.store.find_caller(digest("new"))
        assert heir is not None

        with pytest.raises(QuotaExceededError, match="30 of its 50") as refused:
            await world.store.submit(world.new_job(heir, voice, char_count=21), limits=MANY)
        await world.add_job(heir, voice, char_count=20)

        assert (await world.store.get_usage(heir)).characters == 50
        assert refused.value.retry_after_s == 12 * 3600

    async def test_refund_goes_to_the_month_of_the_charge(self, world: World) -> None:
        ann = await world.caller("ann", character_limit=60)
        voice = await world.add_voice(ann)
        await world.add_job(ann, voice, char_count=50)
        world.clock.advance(12 * 3600)
        await world.add_job(ann, voice, char_count=7)
        claim = await world.claim()
        assert claim is not None

        await world.store.finish(claim.job.job_id, 1, audio())
        await world.store.mark_audio_lost(claim.job.job_id)

        assert await world.characters_used() == 7
        world.clock.wall = START
        assert await world.characters_used() == 0

    async def test_use_of_keys_is_stored(self, world: World) -> None:
        ann, bob = await world.caller("ann", prefix="aw_annie"), await world.caller("bob")
        await world.add_job(ann, char_count=7)
        world.clock.advance(60)
        await world.store.mark_keys_used([ann.key_id])

        first, second = await world.store.list_keys(account_id=None)

        assert (first.key_id, first.account_id, first.prefix) == (ann.key_id, ann.account_id, "aw_annie")
        assert (first.used_at, first.characters) == (world.clock.now(), 7)
        assert (second.key_id, second.used_at, second.characters) == (bob.key_id, None, 0)

    async def test_accounts_are_listed_with_their_usage(self, world: World) -> None:
        ann, bob = await world.caller("ann"), await world.caller("bob")
        other = await world.caller("other", account_id=ann.account_id)
        await world.store.revoke_key(other.key_id, account_id=None)
        voice = await world.add_voice(ann, ref_duration_s=2.0, ref_sample_rate=24_000)
        job = await world.add_job(ann, voice, char_count=7)
        await world.claim()
        await world.store.finish(job.job_id, 1, audio())

        first, second = await world.store.list_accounts()

        assert (first.account_id, first.keys, first.voices, first.characters) == (ann.account_id, 1, 1, 7)
        assert first.storage_bytes == 2 * 24_000 * 2 + 2 * 4800
        assert (second.account_id, second.keys, second.voices, second.storage_bytes) == (bob.account_id, 1, 0, 0)

    async def test_rotated_key_can_not_create_keys(self, world: World) -> None:
        ann = await world.caller("ann")
        await world.store.rotate_key(ann.key_id, account_id=None, sha256=digest("new"), overlap_s=5)

        with pytest.raises(ConflictError, check=has_code("key_replaced")):
            await world.store.add_key(NewKey(digest("x"), scopes=("synthesize",)), by=ann.key_id)
