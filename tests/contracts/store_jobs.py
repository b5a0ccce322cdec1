"""Tests of any store: jobs are accepted and charged once, within limits."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from afterwords.errors import ConflictError, LimitError, QuotaExceededError, SubscriptionError, VoiceNotFoundError
from afterwords.models import JobStatus, SpeechFormat
from afterwords.server.records import FinishStatus, QueueLimits, QueueState, Quota
from afterwords.server.store import SqlStore
from afterwords.server.store.database import Database
from afterwords.server.store.schema import usage
from tests.contracts.store_world import MANY, START, TEXT, World, audio, digest, request
from tests.error_codes import has_code


def database_of(world: World) -> Database:
    assert isinstance(world.store, SqlStore)
    return world.store.database


async def charges(world: World) -> dict[tuple[str, str], int]:
    """Return the characters of each period and day."""
    rows = select(usage.c.period, usage.c.day, usage.c.characters)
    return {(row[0], row[1]): row[2] for row in await database_of(world).read(lambda one: one.execute(rows).all())}


class JobContract:
    """Tests of jobs."""

    async def test_accepted_job_is_returned_as_submitted(self, world: World) -> None:
        ann = await world.caller()
        asked = world.new_job(
            ann,
            await world.add_voice(ann),
            speed=1.25,
            seed=2**63 - 1,
            response_format=SpeechFormat.OPUS,
            text="Grüße 🌅",
        )

        submitted = await world.store.submit(asked, limits=MANY)

        job = submitted.job
        assert submitted.is_new
        assert await world.store.get_job(asked.job_id, account_id=ann.account_id) == job
        assert (job.status, job.attempt, job.lease_expires) == (JobStatus.PENDING, 0, None)
        assert (job.speed, job.seed, job.response_format) == (1.25, 2**63 - 1, SpeechFormat.OPUS)
        assert (job.text, job.created_at, job.completed_at) == ("Grüße 🌅", START, None)
        assert await world.characters_used() == len(TEXT)

    async def test_job_of_another_account_is_missing(self, world: World) -> None:
        job = await world.add_job()
        bob = await world.caller("bob")

        assert await world.store.get_job(job.job_id, account_id=bob.account_id) is None
        assert await world.store.cancel(job.job_id, account_id=bob.account_id) is None
        assert await world.store.list_jobs(account_id=bob.account_id, status=None, limit=None, after=None) == []
        assert await world.store.list_jobs(account_id=bob.account_id, status=None, limit=9, after=job.job_id) == []
        assert (await world.reload(job)).status is JobStatus.PENDING

    async def test_job_for_a_missing_voice_is_rejected_and_not_charged(self, world: World) -> None:
        ann = await world.caller()
        lost = world.new_voice(ann)

        with pytest.raises(VoiceNotFoundError):
            await world.add_job(ann, lost)
        assert await world.characters_used() == 0

    async def test_queue_counts_pending_jobs_by_backend(self, world: World) -> None:
        assert await world.store.read_queue() == []
        await world.add_claimed_job()
        world.clock.advance(5)
        await world.add_job()
        other = await world.add_job(backend="other")
        cancelled = await world.add_job(backend="third")
        await world.store.cancel(cancelled.job_id, account_id=cancelled.account_id)

        queue = {state.backend: state for state in await world.store.read_queue()}

        assert queue == {
            "tone": QueueState("tone", waiting=1, running=1, oldest_at=START),
            "other": QueueState("other", waiting=1, running=0, oldest_at=other.created_at),
        }

    async def test_pace_is_that_of_spoken_jobs_of_the_backend(self, world: World) -> None:
        await world.add_claimed_job()
        assert await world.store.read_pace("tone") is None
        for synth_ms in (100, 400, 0):  # imported jobs have 0
            job = await world.add_claimed_job()
            await world.store.finish(job.job_id, 1, replace(audio(), synth_ms=synth_ms))

        assert await world.store.read_pace("tone") == pytest.approx(0.5 / (2 * len(TEXT)))
        assert await world.store.read_pace("other") is None

    async def test_duplicate_of_a_pending_job_returns_that_job(self, world: World) -> None:
        ann = await world.caller()
        asked = world.new_job(ann, await world.add_voice(ann))
        duplicates = [replace(asked, job_id=f"duplicate {number}") for number in range(20)]

        first = await world.store.submit(asked, limits=MANY)
        others = await asyncio.gather(*[world.store.submit(duplicate, limits=MANY) for duplicate in duplicates])

        assert {(other.is_new, other.job.job_id) for other in others} == {(False, first.job.job_id)}
        assert await world.characters_used() == len(TEXT)

    async def test_same_text_is_a_new_job_for_another_voice_or_later(self, world: World) -> None:
        ann = await world.caller()
        here, there = await world.add_voice(ann), await world.add_voice(ann)
        same = {"flight_key": "f" * 64}
        first = await world.add_claimed_job(caller=ann, voice=here, **same)

        assert (await world.store.submit(world.new_job(ann, there, **same), limits=MANY)).is_new
        await world.store.finish(first.job_id, 1, audio())
        assert (await world.store.submit(world.new_job(ann, here, **same), limits=MANY)).is_new

    async def test_repeated_request_returns_the_first_job_even_if_final(self, world: World) -> None:
        ann = await world.caller()
        voice = await world.add_voice(ann)
        asked = request(ann)
        first = await world.store.submit(world.new_job(ann, voice), limits=MANY, idempotency=asked)
        await world.store.cancel(first.job.job_id, account_id=ann.account_id)

        second = await world.store.submit(world.new_job(ann, voice), limits=MANY, idempotency=asked)

        assert (second.is_new, second.job.job_id, second.job.status) == (False, first.job.job_id, JobStatus.CANCELLED)
        assert await world.characters_used() == 0

    async def test_job_idempotency_key_with_another_body_conflicts(self, world: World) -> None:
        ann = await world.caller()
        voice = await world.add_voice(ann)
        await world.store.submit(world.new_job(ann, voice), limits=MANY, idempotency=request(ann))
        other = request(ann, body="other")

        with pytest.raises(ConflictError, check=has_code("idempotency_conflict")):
            await world.store.submit(world.new_job(ann, voice), limits=MANY, idempotency=other)
        with pytest.raises(ConflictError, check=has_code("idempotency_conflict")):
            await world.store.find_repeated_job(other)
        assert await world.characters_used() == len(TEXT)

    async def test_repeated_duplicate_returns_the_same_job(self, world: World) -> None:
        ann = await world.caller()
        voice = await world.add_voice(ann)
        same = {"flight_key": "f" * 64}
        first = await world.add_job(ann, voice, **same)
        await world.store.submit(world.new_job(ann, voice, **same), limits=MANY, idempotency=request(ann))
        await world.store.cancel(first.job_id, account_id=ann.account_id)

        again = await world.store.submit(world.new_job(ann, voice, **same), limits=MANY, idempotency=request(ann))

        assert (again.is_new, again.job.job_id) == (False, first.job_id)

    async def test_job_of_a_repeated_request_is_found(self, world: World) -> None:
        ann = await world.caller()
        voice = await world.add_voice(ann)
        asked = request(ann)
        assert await world.store.find_repeated_job(asked) is None
        assert await world.store.find_repeated_job(request(ann, body="other")) is None

        made = await world.store.submit(world.new_job(ann, voice), limits=MANY, idempotency=asked)

        assert await world.store.find_repeated_job(asked) == made.job.job_id

    async def test_rejected_request_does_not_use_its_idempotency_key(self, world: World) -> None:
        ann = await world.caller()
        voice = await world.add_voice(ann)
        full = QueueLimits(pending=0, pending_per_account=1)
        with pytest.raises(LimitError, check=has_code("queue_full")):
            await world.store.submit(world.new_job(ann, voice), limits=full, idempotency=request(ann))

        other = request(ann, body="other")
        assert (await world.store.submit(world.new_job(ann, voice), limits=MANY, idempotency=other)).is_new

    async def test_limits_count_pending_jobs_per_account_and_in_total(self, world: World) -> None:
        ann, bob, eve = [await world.caller(name) for name in ("ann", "bob", "eve")]
        of = {caller.account_id: await world.add_voice(caller) for caller in (ann, bob, eve)}
        limits = QueueLimits(pending=3, pending_per_account=2)
        for caller in (ann, ann, bob):
            await world.store.submit(world.new_job(caller, of[caller.account_id]), limits=limits)

        with pytest.raises(LimitError, match="2 waiting jobs", check=has_code("too_many_concurrent_requests")):
            await world.store.submit(world.new_job(ann, of[ann.account_id]), limits=limits)
        with pytest.raises(LimitError, match="3 waiting jobs", check=has_code("queue_full")):
            await world.store.submit(world.new_job(eve, of[eve.account_id]), limits=limits)
        claim = await world.claim()
        assert claim is not None
        await world.store.finish(claim.job.job_id, 1, audio())
        assert (await world.store.submit(world.new_job(eve, of[eve.account_id]), limits=limits)).is_new

    async def test_concurrent_requests_respect_the_limits(self, world: World) -> None:
        ann = await world.caller("ann", character_limit=10 * len(TEXT))
        voice = await world.add_voice(ann)
        many = [world.store.submit(world.new_job(ann, voice), limits=MANY) for _ in range(50)]

        ends = await asyncio.gather(*many, return_exceptions=True)

        assert sum(not isinstance(end, BaseException) for end in ends) == 10
        assert (await world.store.get_usage(ann)).characters == 10 * len(TEXT)

    async def test_concurrent_requests_respect_the_plan_of_their_account(self, world: World) -> None:
        ann = await world.caller("ann")
        others = [await world.caller(name, account_id=ann.account_id) for name in ("bob", "eve")]
        await world.set_account(ann, plan="free")
        voice = await world.add_voice(ann)
        callers = [ann, *others]
        many = [world.store.submit(world.new_job(callers[i % 3], voice, char_count=7), limits=MANY) for i in range(50)]

        ends = await asyncio.gather(*many, return_exceptions=True)

        refused = [end for end in ends if isinstance(end, BaseException)]
        assert {type(end) for end in refused} == {QuotaExceededError}
        assert len(refused) == 50 - 100 // 7
        assert (await world.store.get_usage(ann)).characters == 100 // 7 * 7

    async def test_concurrent_requests_respect_the_pending_jobs_of_a_plan(self, world: World) -> None:
        ann = await world.caller("ann")
        await world.set_account(ann, plan="small")
        voice = await world.add_voice(ann)
        many = [world.store.submit(world.new_job(ann, voice, char_count=1), limits=MANY) for _ in range(50)]

        ends = await asyncio.gather(*many, return_exceptions=True)

        assert sum(not isinstance(end, BaseException) for end in ends) == 3
        assert {getattr(end, "code", "") for end in ends} == {"", "too_many_concurrent_requests"}

    async def test_only_accepted_jobs_cost_characters_of_a_plan(self, world: World) -> None:
        ann = await world.caller("ann")
        await world.set_account(ann, plan="small")
        voice = await world.add_voice(ann)
        first = await world.store.submit(world.new_job(ann, voice, char_count=60, flight_key="same"), limits=MANY)
        again = await world.store.submit(world.new_job(ann, voice, char_count=60, flight_key="same"), limits=MANY)
        with pytest.raises(QuotaExceededError, match=r"60 of the 100 characters of its plan small.*2026-02-01"):
            await world.add_job(ann, voice, char_count=41)
        await world.store.cancel(first.job.job_id, account_id=ann.account_id)
        last = await world.store.submit(world.new_job(ann, voice, char_count=100), limits=MANY)

        assert (first.quota, again.quota, last.quota) == (Quota(60, 100), Quota(60, 100), Quota(100, 100))

    async def test_quota_is_that_with_fewer_characters_left(self, world: World) -> None:
        ann = await world.caller("ann")
        capped = await world.caller("capped", account_id=ann.account_id, character_limit=50)
        voice = await world.add_voice(ann)
        unlimited = await world.store.submit(world.new_job(ann, voice), limits=MANY)
        await world.set_account(ann, plan="small")
        of_key = await world.store.submit(world.new_job(capped, voice, char_count=3), limits=MANY)
        with pytest.raises(QuotaExceededError, match="The key has used 3 of its 50"):
            await world.add_job(capped, voice, char_count=48)

        assert (unlimited.quota, of_key.quota) == (None, Quota(3, 50))

    async def test_plan_that_is_not_configured_allows_nothing(self, world: World) -> None:
        ann = await world.caller("ann")
        voice = await world.add_voice(ann)
        await world.set_account(ann, plan="gone")

        with pytest.raises(QuotaExceededError, match="gone, is not in the settings"):
            await world.add_job(ann, voice)
        assert await world.store.count_plans() == {"gone": 1}

    async def test_suspended_account_submits_no_job_although_it_was_found(self, world: World) -> None:
        ann = await world.caller("ann")
        voice = await world.add_voice(ann)
        await world.set_account(ann, plan="small", suspended_at=START)
        found = await world.store.find_caller(digest("ann"))

        with pytest.raises(SubscriptionError):
            await world.add_job(ann, voice)
        assert found is not None
        assert (found.is_suspended, found.plan) == (True, "small")

    async def test_jobs_are_listed_newest_first_by_status(self, world: World) -> None:
        ann = await world.caller()
        voice = await world.add_voice(ann)
        made = [await world.add_job(ann, voice) for _ in range(7)]
        newest = [job.job_id for job in reversed(made)]
        await world.store.cancel(made[2].job_id, account_id=ann.account_id)

        async def page(
            status: JobStatus | None = None, limit: int | None = None, after: str | None = None
        ) -> list[str]:
            found = await world.store.list_jobs(account_id=ann.account_id, status=status, limit=limit, after=after)
            return [job.job_id for job in found]

        assert await page() == newest
        assert await page(limit=3) == newest[:3]
        assert await page(limit=3, after=newest[2]) == newest[3:6]
        assert await page(status=JobStatus.CANCELLED) == [made[2].job_id]
        assert await page(status=JobStatus.PENDING, limit=4, after=made[3].job_id) == [made[1].job_id, made[0].job_id]
        assert await page(status=JobStatus.READY) == []
        assert await page(after="no such job") == []

    async def test_cancelled_job_is_refunded_and_loses_its_text(self, world: World) -> None:
        job = await world.add_claimed_job()
        world.clock.advance(2)

        cancelled = await world.store.cancel(job.job_id, account_id=job.account_id)
        again = await world.store.cancel(job.job_id, account_id=job.account_id)

        assert cancelled is not None
        assert again == cancelled == await world.reload(job)
        assert (cancelled.status, cancelled.text, cancelled.error) == (JobStatus.CANCELLED, None, None)
        assert cancelled.completed_at == world.clock.now()
        assert await world.characters_used() == 0
        assert await world.store.finish(job.job_id, 1, audio()) is FinishStatus.ALREADY

    async def test_job_is_refunded_in_the_period_it_was_charged_to(self, world: World) -> None:
        ann, voice = await world.caller(), await world.add_voice()
        in_month = await world.add_job(ann, voice)
        ends = START + timedelta(days=30)
        await world.set_account(ann, period_start=START, period_end=ends)  # the account got a subscription
        in_first = await world.add_job(ann, voice)
        await world.set_account(ann, period_start=ends, period_end=ends + timedelta(days=30))
        world.clock.advance(31 * 86_400)
        await world.add_job(ann, voice)
        for job in (in_month, in_first):
            await world.store.cancel(job.job_id, account_id=ann.account_id)
        assert await charges(world) == {
            ("2026-01", "2026-01-31"): 0,
            ("2026-01-31T12:00:00Z", "2026-01-31"): 0,
            ("2026-03-02T12:00:00Z", "2026-03-03"): len(TEXT),
        }

    async def test_charge_without_a_day_is_refunded(self, world: World) -> None:
        ann, voice = await world.caller(), await world.add_voice()
        old = [await world.add_job(ann, voice, char_count=50) for _ in range(3)]
        moved = update(usage).values(day="2026-01-01")  # as migration 0014 does
        await database_of(world).write(lambda connection: connection.execute(moved) and None)
        await world.store.cancel(old[0].job_id, account_id=ann.account_id)
        assert await charges(world) == {("2026-01", "2026-01-01"): 100}
        new = await world.add_job(ann, voice, char_count=20)
        await world.store.cancel(old[1].job_id, account_id=ann.account_id)
        assert await charges(world) == {("2026-01", "2026-01-01"): 50, ("2026-01", "2026-01-31"): 20}
        for job in (new, old[2]):
            await world.store.cancel(job.job_id, account_id=ann.account_id)
        assert sum((await charges(world)).values()) == 0

    async def test_ready_job_is_not_cancelled(self, world: World) -> None:
        job = await world.add_claimed_job()
        await world.store.finish(job.job_id, 1, audio())

        seen = await world.store.cancel(job.job_id, account_id=job.account_id)

        assert seen is not None
        assert seen.status is JobStatus.READY
        assert await world.store.cancel("no such job", account_id=job.account_id) is None
        assert await world.characters_used() == len(TEXT)

    async def test_job_with_lost_audio_fails_once_and_is_refunded(self, world: World) -> None:
        job = await world.add_claimed_job()
        await world.store.mark_audio_lost(job.job_id)
        assert (await world.reload(job)).status is JobStatus.PENDING
        await world.store.finish(job.job_id, 1, audio())

        await asyncio.gather(*[world.store.mark_audio_lost(job.job_id) for _ in range(5)])

        seen = await world.reload(job)
        assert (seen.status, seen.error, seen.audio_key) == (JobStatus.FAILED, "audio_lost", None)
        assert await world.characters_used() == 0

    async def test_old_idempotency_keys_and_tombstones_are_deleted(self, world: World) -> None:
        ann = await world.caller()
        voice = await world.add_voice(ann)
        old = await world.store.submit(world.new_job(ann, voice), limits=MANY, idempotency=request(ann))
        world.clock.advance(24 * 3600 + 1)
        await world.store.submit(world.new_job(ann, voice), limits=MANY, idempotency=request(ann, key="young"))

        await world.store.delete_expired()

        assert await world.store.find_repeated_job(request(ann, body="other")) is None
        assert old.is_new
        with pytest.raises(ConflictError, check=has_code("idempotency_conflict")):
            await world.store.find_repeated_job(request(ann, key="young", body="other"))
        await world.store.delete_voice(voice.voice_id, account_id=ann.account_id)
        assert list(await world.store.list_unpurged()) == [voice.voice_id]
