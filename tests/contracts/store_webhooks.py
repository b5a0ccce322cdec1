"""Tests of any store: webhooks are due once a job is final, and again until they are settled."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from typing import Final

import pytest

from afterwords.models import JobStatus
from afterwords.server.records import AttemptResult, StoredJob
from tests.contracts.store_world import World, audio, digest

URL: Final = "https://example.org/hook"
DELAYS_S: Final = (5, 30, 120, 600, 3600, 6 * 3600)


class WebhookContract:
    """Tests of webhooks."""

    async def end_job(self, world: World, result: AttemptResult | None = None) -> StoredJob:
        job = await world.add_claimed_job(webhook_url=URL)
        await world.store.finish(job.job_id, 1, result or audio())
        return await world.reload(job)

    @pytest.mark.parametrize("result", [audio(), AttemptResult(error="runaway_audio")], ids=["ready", "failed"])
    async def test_webhook_is_due_once_the_job_is_final(self, world: World, result: AttemptResult) -> None:
        waits = await world.add_job(webhook_url=URL)
        assert await world.store.claim_webhooks(limit=9) == []
        claim = await world.claim()
        assert claim is not None
        assert claim.job.job_id == waits.job_id

        await world.store.finish(waits.job_id, 1, result)

        [call] = await world.store.claim_webhooks(limit=9)
        assert (call.job, call.url, call.tries) == (await world.reload(waits), URL, 1)

    async def test_cancelled_and_lost_jobs_have_webhooks_too(self, world: World) -> None:
        lost = await world.add_claimed_job(webhook_url=URL)
        cancelled = await world.add_job(webhook_url=URL)
        await world.store.cancel(cancelled.job_id, account_id=cancelled.account_id)
        world.clock.advance(16)
        await world.store.reap(max_attempts=1)

        calls = await world.store.claim_webhooks(limit=9)

        ends = {call.job.job_id: call.job.status for call in calls}
        assert ends == {lost.job_id: JobStatus.FAILED, cancelled.job_id: JobStatus.CANCELLED}

    async def test_job_without_url_has_no_webhook(self, world: World) -> None:
        job = await world.add_claimed_job()
        await world.store.finish(job.job_id, 1, audio())

        assert await world.store.claim_webhooks(limit=9) == []

    async def test_signing_key_survives_rotation(self, world: World) -> None:
        ann = await world.caller()
        await self.end_job(world)
        await world.store.rotate_key(ann.key_id, account_id=None, sha256=digest("new"), overlap_s=0)

        [call] = await world.store.claim_webhooks(limit=9)

        assert call.signing_key == hmac.digest(digest("ann"), b"afterwords webhook v1", hashlib.sha256)
        assert repr(call.signing_key) not in repr(call)

    async def test_revoking_a_key_ends_its_webhooks_and_jobs(self, world: World) -> None:
        ann = await world.caller()
        await self.end_job(world)
        pending = await world.add_job(webhook_url=URL)

        assert await world.store.revoke_key(ann.key_id, account_id=None) == [pending.job_id]

        job = await world.store.get_job(pending.job_id)
        assert job is not None
        assert job.status is JobStatus.CANCELLED
        assert await world.store.claim_webhooks(limit=9) == []

    async def test_unsettled_webhook_is_due_again_with_growing_delays(self, world: World) -> None:
        await self.end_job(world)
        for tries, delay_s in enumerate((*DELAYS_S, DELAYS_S[-1]), start=1):
            [call] = await world.store.claim_webhooks(limit=9)
            assert call.tries == tries
            world.clock.advance(delay_s - 0.5)
            assert await world.store.claim_webhooks(limit=9) == []
            world.clock.advance(0.5)

        assert await world.store.claim_webhooks(limit=9) == []
        world.clock.advance(10 * 24 * 3600)
        assert await world.store.claim_webhooks(limit=9) == []

    async def test_settled_webhook_is_not_due_again(self, world: World) -> None:
        job = await self.end_job(world)
        await world.store.claim_webhooks(limit=9)

        await world.store.settle_webhook(job.job_id)

        world.clock.advance(24 * 3600)
        assert await world.store.claim_webhooks(limit=9) == []

    async def test_webhooks_are_claimed_longest_due_first(self, world: World) -> None:
        ends = []
        for _ in range(3):
            ends.append((await self.end_job(world)).job_id)
            world.clock.advance(1)

        first = await world.store.claim_webhooks(limit=2)
        second = await world.store.claim_webhooks(limit=2)

        assert [call.job.job_id for call in [*first, *second]] == ends

    async def test_concurrent_claims_never_get_the_same_webhook(self, world: World) -> None:
        await self.end_job(world)

        calls = await asyncio.gather(*[world.store.claim_webhooks(limit=9) for _ in range(5)])

        assert sorted(len(some) for some in calls) == [0, 0, 0, 0, 1]

    async def test_webhook_is_due_after_the_clock_was_set_back(self, world: World) -> None:
        await self.end_job(world)
        world.clock.monotonic_s -= 7 * 3600

        assert len(await world.store.claim_webhooks(limit=9)) == 1
