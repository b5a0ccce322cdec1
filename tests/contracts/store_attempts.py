"""What every store promises to those who speak: one attempt at a time, in turns, ended once."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from afterwords.models import JobStatus
from afterwords.server.records import AttemptResult, CacheEntry, FinishStatus, ReapResult
from tests.contracts.store_world import TEXT, World, audio, digest


class AttemptClaims:
    """Attempts: claimed, renewed, ended, and taken from workers that are lost."""

    async def test_claim_opens_an_attempt_with_its_lease(self, world: World) -> None:
        voice = await world.voice()
        asked = await world.job(voice=voice)

        claim = await world.claim(lease_s=15)

        assert claim is not None
        assert claim.voice == voice
        assert (claim.job.job_id, claim.job.text, claim.job.attempt) == (asked.job_id, TEXT, 1)
        assert claim.job.lease_expires == world.clock.monotonic() + 15
        assert await world.claim() is None

    async def test_only_jobs_of_the_named_backends_are_claimed(self, world: World) -> None:
        job = await world.job(backend="lite")

        assert await world.store.claim(backends=["tone", "qwen3-1.7b"], lease_s=15, worker="w") is None
        assert await world.store.claim(backends=[], lease_s=15, worker="w") is None
        claim = await world.store.claim(backends=["tone", "lite"], lease_s=15, worker="w")
        assert claim is not None
        assert claim.job.job_id == job.job_id

    async def test_jobs_of_excepted_voices_wait(self, world: World) -> None:
        busy, free = await world.voice(), await world.voice()
        await world.job(voice=busy)
        asked = await world.job(voice=free)

        claim = await world.store.claim(backends=["tone"], lease_s=15, worker="w", skip_voices=[busy.voice_id])

        assert claim is not None
        assert claim.job.job_id == asked.job_id
        others = [busy.voice_id, "unknown"]
        assert await world.store.claim(backends=["tone"], lease_s=15, worker="w", skip_voices=others) is None
        assert await world.claim() is not None

    async def test_jobs_of_one_account_are_claimed_oldest_first(self, world: World) -> None:
        made = [await world.job() for _ in range(4)]

        claims = [await world.claim() for _ in range(4)]

        assert [claim.job.job_id for claim in claims if claim] == [job.job_id for job in made]

    async def test_accounts_take_turns(self, world: World) -> None:
        ann, bob = await world.caller("ann"), await world.caller("bob")
        hers, his = await world.voice(ann), await world.voice(bob)
        for _ in range(5):
            await world.job(ann, hers)
        first = await world.claim()
        for _ in range(2):
            await world.job(bob, his)

        claims = [first, *[await world.claim() for _ in range(6)]]

        order = ["ann" if claim and claim.job.account_id == ann.account_id else "bob" for claim in claims]
        assert order == ["ann", "bob", "ann", "bob", "ann", "ann", "ann"]

    async def test_thousand_jobs_of_one_account_do_not_delay_anothers_single_job(self, world: World) -> None:
        ann, bob = await world.caller("ann"), await world.caller("bob")
        hers, his = await world.voice(ann), await world.voice(bob)
        for _ in range(20):
            await asyncio.gather(*[world.job(ann, hers) for _ in range(50)])
        await world.claim()
        single = await world.job(bob, his)

        claim = await world.claim()

        assert claim is not None
        assert claim.job.job_id == single.job_id

    async def test_no_job_is_claimed_twice_at_once(self, world: World) -> None:
        voice = await world.voice()
        for _ in range(20):
            await world.job(voice=voice)

        claims = await asyncio.gather(*[world.claim() for _ in range(30)])

        assert Counter(claim.job.job_id for claim in claims if claim).most_common(1)[0][1] == 1
        assert sum(claim is not None for claim in claims) == 20

    async def test_heartbeat_renews_the_lease_of_the_attempt_alone(self, world: World) -> None:
        job = await world.claimed()
        world.clock.pass_s(10)

        assert await world.store.heartbeat(job.job_id, 1, lease_s=15)
        assert not await world.store.heartbeat(job.job_id, 2, lease_s=15)
        assert not await world.store.heartbeat("no such job", 1, lease_s=15)

        world.clock.pass_s(14)
        assert await world.store.reap(max_attempts=3) == ReapResult()
        assert await world.store.finish(job.job_id, 1, audio()) is FinishStatus.DONE
        assert not await world.store.heartbeat(job.job_id, 1, lease_s=15)

    async def test_ready_job_names_its_audio_fills_the_cache_and_loses_its_text(self, world: World) -> None:
        job = await world.claimed()
        world.clock.pass_s(3)

        assert await world.store.finish(job.job_id, 1, audio("jobs/x.wav")) is FinishStatus.DONE

        seen = await world.seen(job)
        assert (seen.status, seen.text, seen.lease_expires, seen.attempt) == (JobStatus.READY, None, None, 1)
        assert (seen.audio_key, seen.audio_sha256) == ("jobs/x.wav", digest("audio").hex())
        assert (seen.audio_bytes, seen.synth_ms, seen.completed_at) == (4800, 120, world.clock.now())
        entry = CacheEntry(job.voice_id, job.cache_key, digest("audio").hex(), 4800, 120)
        assert await world.store.get_cached(job.voice_id, job.cache_key) == entry
        assert await world.spent() == len(TEXT)

    async def test_failed_job_keeps_its_code_and_gives_back_its_charge(self, world: World) -> None:
        job = await world.claimed()

        assert await world.store.finish(job.job_id, 1, AttemptResult(error="runaway_audio")) is FinishStatus.DONE

        seen = await world.seen(job)
        assert (seen.status, seen.error, seen.text) == (JobStatus.FAILED, "runaway_audio", None)
        assert await world.store.get_cached(job.voice_id, job.cache_key) is None
        assert await world.spent() == 0

    @pytest.mark.parametrize("outcome", [audio(), AttemptResult(error="runaway_audio")], ids=["ready", "failed"])
    async def test_fifty_results_at_once_end_the_job_once(self, world: World, outcome: AttemptResult) -> None:
        ann = await world.caller()
        voice = await world.voice(ann)
        await world.job(ann, voice, char_count=1000)
        job = await world.claimed(caller=ann, voice=voice, char_count=10)
        last = await world.claim()
        assert last is not None

        ends = await asyncio.gather(*[world.store.finish(last.job.job_id, 1, outcome) for _ in range(50)])

        assert Counter(ends) == {FinishStatus.DONE: 1, FinishStatus.ALREADY: 49}
        assert job.char_count == 1000
        assert await world.spent() == (1010 if outcome.audio_key else 1000)

    async def test_result_of_another_attempt_or_after_the_lease_is_stale(self, world: World) -> None:
        job = await world.claimed()

        assert await world.store.finish(job.job_id, 2, audio()) is FinishStatus.STALE
        assert await world.store.finish(job.job_id, 0, audio()) is FinishStatus.STALE
        world.clock.pass_s(15)
        assert await world.store.finish(job.job_id, 1, audio()) is FinishStatus.STALE
        assert await world.store.finish(job.job_id, None, audio()) is FinishStatus.STALE
        assert (await world.seen(job)).status is JobStatus.PENDING
        assert await world.store.finish("no such job", 1, audio()) is FinishStatus.GONE

    async def test_late_result_of_a_lost_worker_is_stale_while_the_job_waits_again(self, world: World) -> None:
        job = await world.claimed()
        world.clock.pass_s(16)
        await world.store.reap(max_attempts=3)

        assert await world.store.finish(job.job_id, 1, audio()) is FinishStatus.STALE
        assert await world.store.finish(job.job_id, None, audio()) is FinishStatus.STALE
        again = await world.claim()
        assert again is not None
        assert again.job.attempt == 2
        assert await world.store.finish(job.job_id, 1, audio()) is FinishStatus.STALE
        assert await world.store.finish(job.job_id, 2, audio()) is FinishStatus.DONE

    async def test_result_without_an_attempt_counts_for_the_current_one(self, world: World) -> None:
        claimed, waiting = await world.claimed(), await world.job()

        assert await world.store.finish(claimed.job_id, None, audio()) is FinishStatus.DONE
        assert await world.store.finish(waiting.job_id, None, audio("jobs/two.wav")) is FinishStatus.DONE
        assert await world.claim() is None

    async def test_job_given_back_waits_as_if_it_had_not_been_claimed(self, world: World) -> None:
        job = await world.claimed()
        for attempt in range(1, 6):
            assert await world.store.release(job.job_id, attempt)
            assert not await world.store.release(job.job_id, attempt)
            claim = await world.claim()
            assert claim is not None
            assert claim.job.returned == attempt, "by which its worker knows that it was never lost"
        world.clock.pass_s(16)

        reaped = await world.store.reap(max_attempts=2)
        seen = await world.seen(job)

        assert reaped == ReapResult(requeued=(job.job_id,))
        assert (seen.attempt, seen.status, seen.text) == (6, JobStatus.PENDING, TEXT)

    async def test_retry_waits_at_once_until_the_attempts_are_used_up(self, world: World) -> None:
        job = await world.claimed()

        async def retry(attempt: int) -> JobStatus | None:
            return await world.store.retry(job.job_id, attempt, error="out_of_memory", max_attempts=2)

        assert await retry(2) is None
        assert await retry(1) is JobStatus.PENDING
        assert await retry(1) is None
        assert await world.claim() is not None
        assert await retry(2) is JobStatus.FAILED
        assert await retry(2) is None
        seen = await world.seen(job)
        assert (seen.status, seen.error, seen.text) == (JobStatus.FAILED, "out_of_memory", None)
        assert await world.spent() == 0

    async def test_lost_worker_costs_an_attempt_and_the_last_one_the_job(self, world: World) -> None:
        job = await world.claimed()
        world.clock.pass_s(14.9)
        assert await world.store.reap(max_attempts=2) == ReapResult()
        world.clock.pass_s(0.1)
        assert await world.store.reap(max_attempts=2) == ReapResult(requeued=(job.job_id,))
        assert await world.store.reap(max_attempts=2) == ReapResult()

        assert await world.claim() is not None
        world.clock.pass_s(15)

        assert await world.store.reap(max_attempts=2) == ReapResult(failed=(job.job_id,))
        seen = await world.seen(job)
        assert (seen.status, seen.error, seen.text) == (JobStatus.FAILED, "worker_lost", None)
        assert await world.spent() == 0

    async def test_lease_further_ahead_than_it_ever_lasted_is_over(self, world: World) -> None:
        job = await world.claimed()
        world.clock.steady_s -= 3600

        assert await world.store.reap(max_attempts=3) == ReapResult(requeued=(job.job_id,))

    async def test_step_of_the_wall_clock_ends_no_lease(self, world: World) -> None:
        job = await world.claimed()
        for hours in (-2, 1):
            world.clock.wall = world.clock.wall.replace(hour=world.clock.wall.hour + hours)
            assert await world.store.reap(max_attempts=3) == ReapResult()

        assert await world.store.finish(job.job_id, 1, audio()) is FinishStatus.DONE
