"""Tests of any store: actions on keys, worker tokens and voices are recorded together with them."""

from __future__ import annotations

from dataclasses import astuple, replace
from datetime import timedelta

import pytest

from afterwords.errors import ConflictError
from afterwords.server.records import ACTOR, Actor, AuditAction, CustomerState, NewKey, Subscription
from afterwords.server.store.audit import AUDIT_AGE
from tests.contracts.store_world import START, World, digest


class AuditContract:
    """Tests of the audit log."""

    async def test_actions_are_recorded_newest_first(self, world: World) -> None:
        store = world.store
        key = await store.add_key(NewKey(digest("k")))
        ACTOR.set(Actor("admin", "request 1"))
        token = await store.add_worker_token(digest("t"), label="secret label", prefix="awt_")
        world.clock.advance(1)
        assert await store.revoke_worker_token(token.token_id)
        assert await store.revoke_worker_token(token.token_id)
        ACTOR.set(Actor(key.key_id, "request 2"))
        new = await store.rotate_key(key.key_id, account_id=None, sha256=digest("n"), overlap_s=0)
        assert new is not None
        for _ in range(2):
            assert await store.revoke_key(new.key_id, account_id=None) == []
        assert await store.revoke_key("unknown", account_id=None) is None
        caller = await world.caller("ann")
        voice = await world.add_voice(caller)
        for _ in range(2):
            await store.delete_voice(voice.voice_id, account_id=caller.account_id)

        late, account = START + timedelta(seconds=1), key.account_id
        expected = [
            (START, AuditAction.KEY_CREATED, key.key_id, account, "cli", None),
            (START, AuditAction.WORKER_TOKEN_CREATED, token.token_id, None, "admin", "request 1"),
            (late, AuditAction.WORKER_TOKEN_REVOKED, token.token_id, None, "admin", "request 1"),
            (late, AuditAction.KEY_ROTATED, key.key_id, account, key.key_id, "request 2"),
            (late, AuditAction.KEY_CREATED, new.key_id, account, key.key_id, "request 2"),
            (late, AuditAction.KEY_REVOKED, new.key_id, account, key.key_id, "request 2"),
            (late, AuditAction.KEY_CREATED, caller.key_id, caller.account_id, key.key_id, "request 2"),
            (late, AuditAction.VOICE_DELETED, voice.voice_id, caller.account_id, key.key_id, "request 2"),
        ]
        entries = await store.list_audit(limit=None)
        assert [astuple(entry) for entry in reversed(entries)] == expected
        assert await store.list_audit(limit=2) == entries[:2]

    async def test_suspensions_are_recorded_once(self, world: World) -> None:
        caller = await world.caller("ann")
        await world.add_customer(caller)
        state = CustomerState(email=None, is_deleted=False, subscriptions=())
        active = Subscription("sub_1", "cus_1", "active", "price_1", START, START, False, START)
        statuses = ["unpaid", "canceled", "active", "past_due"]
        for version, status in enumerate(statuses):
            chosen = replace(active, status=status)
            await world.store.save_customer_state("cus_1", state, chosen, plan="small", version=version)

        first, second, *_ = await world.store.list_audit(limit=None)
        assert (first.action, second.action) == (AuditAction.ACCOUNT_RESUMED, AuditAction.ACCOUNT_SUSPENDED)
        assert {(entry.target_id, entry.actor) for entry in (first, second)} == {(caller.account_id, "stripe")}
        assert len(await world.store.list_audit(limit=None)) == 3

    async def test_refused_action_is_not_recorded(self, world: World) -> None:
        caller = await world.caller("ann")
        await world.store.rotate_key(caller.key_id, account_id=None, sha256=digest("n"), overlap_s=60)
        before = await world.store.list_audit(limit=None)
        with pytest.raises(ConflictError):
            await world.store.rotate_key(caller.key_id, account_id=None, sha256=digest("m"), overlap_s=60)
        assert await world.store.list_audit(limit=None) == before

    async def test_entries_are_deleted_after_400_days(self, world: World) -> None:
        await world.caller("ann")
        world.clock.advance(AUDIT_AGE.total_seconds())
        await world.store.delete_expired()
        bob = await world.caller("bob")
        assert len(await world.store.list_audit(limit=None)) == 2
        world.clock.advance(1)
        await world.store.delete_expired()
        assert [entry.target_id for entry in await world.store.list_audit(limit=None)] == [bob.key_id]
