"""Tests of any store: claims, leases, results, retries."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from afterwords.models import JobStatus, new_id
from afterwords.server.cache_key import cache_path
from afterwords.server.records import AttemptResult, CacheEntry, FinishStatus, ReapResult, ReportKind
from tests.contracts.store_world import TEXT, World, audio, digest

REPORTS: dict[ReportKind, str] = {"timing": "timestamps", "verification": "verify"}
"""Kinds of reports, and the fields of a job that ask for them."""


class AttemptContract:
    """Tests of attempts."""

    async def test_claim_starts_an_attempt_with_a_lease(self, world: World) -> None:
        voice = await world.add_voice()
        asked = await world.add_job(voice=voice)

        claim = await world.claim(lease_s=15)

        assert claim is not None
        assert claim.voice == voice
        assert (claim.job.job_id, claim.job.text, claim.job.attempt) == (asked.job_id, TEXT, 1)
        assert claim.job.lease_expires == world.clock.monotonic() + 15
        assert await world.claim() is None

    async def test_claim_returns_only_jobs_of_the_backends(self, world: World) -> None:
        job = await world.add_job(backend="lite")

        assert await world.store.claim(backends=["tone", "qwen3-1.7b"], lease_s=15, worker="w") is None
        assert await world.store.claim(backends=[], lease_s=15, worker="w") is None
        claim = await world.store.claim(backends=["tone", "lite"], lease_s=15, worker="w")
        assert claim is not None
        assert claim.job.job_id == job.job_id

    async def test_jobs_of_skipped_voices_wait(self, world: World) -> None:
        busy, free = await world.add_voice(), await world.add_voice()
        await world.add_job(voice=busy)
        asked = await world.add_job(voice=free)

        claim = await world.store.claim(backends=["tone"], lease_s=15, worker="w", skip_voices=[busy.voice_id])

        assert claim is not None
        assert claim.job.job_id == asked.job_id
        others = [busy.voice_id, "unknown"]
        assert await world.store.claim(backends=["tone"], lease_s=15, worker="w", skip_voices=others) is None
        assert await world.claim() is not None

    async def test_oldest_job_of_an_account_is_claimed_first(self, world: World) -> None:
        made = [await world.add_job() for _ in range(4)]

        claims = [await world.claim() for _ in range(4)]

        assert [claim.job.job_id for claim in claims if claim] == [job.job_id for job in made]

    async def test_accounts_are_served_round_robin(self, world: World) -> None:
        ann, bob = await world.caller("ann"), await world.caller("bob")
        hers, his = await world.add_voice(ann), await world.add_voice(bob)
        for _ in range(5):
            await world.add_job(ann, hers)
        first = await world.claim()
        for _ in range(2):
            await world.add_job(bob, his)

        claims = [first, *[await world.claim() for _ in range(6)]]

        order = ["ann" if claim and claim.job.account_id == ann.account_id else "bob" for claim in claims]
        assert order == ["ann", "bob", "ann", "bob", "ann", "ann", "ann"]

    async def test_backlog_of_an_account_does_not_delay_another(self, world: World) -> None:
        ann, bob = await world.caller("ann"), await world.caller("bob")
        hers, his = await world.add_voice(ann), await world.add_voice(bob)
        for _ in range(20):
            await asyncio.gather(*[world.add_job(ann, hers) for _ in range(50)])
        await world.claim()
        single = await world.add_job(bob, his)

        claim = await world.claim()

        assert claim is not None
        assert claim.job.job_id == single.job_id

    async def test_concurrent_claims_never_get_the_same_job(self, world: World) -> None:
        voice = await world.add_voice()
        for _ in range(20):
            await world.add_job(voice=voice)

        claims = await asyncio.gather(*[world.claim() for _ in range(30)])

        assert Counter(claim.job.job_id for claim in claims if claim).most_common(1)[0][1] == 1
        assert sum(claim is not None for claim in claims) == 20

    async def test_claim_is_found_by_its_worker_until_the_lease_ends(self, world: World) -> None:
        job = await world.add_claimed_job()
        found = await world.store.find_claimed("w1")
        assert found is not None
        assert (found.job, found.voice.voice_id) == (await world.reload(job), job.voice_id)
        assert await world.store.find_claimed("w2") is None

        world.clock.advance(15)
        assert await world.store.find_claimed("w1") is None

    async def test_heartbeat_renews_only_the_lease_of_its_attempt(self, world: World) -> None:
        job = await world.add_claimed_job()
        world.clock.advance(10)

        assert await world.store.heartbeat(job.job_id, 1, lease_s=15)
        assert not await world.store.heartbeat(job.job_id, 2, lease_s=15)
        assert not await world.store.heartbeat("no such job", 1, lease_s=15)

        world.clock.advance(14)
        assert await world.store.reap(max_attempts=3) == ReapResult()
        assert await world.store.finish(job.job_id, 1, audio()) is FinishStatus.DONE
        assert not await world.store.heartbeat(job.job_id, 1, lease_s=15)

    async def test_ready_job_has_audio_and_cache_entry_but_no_text(self, world: World) -> None:
        job = await world.add_claimed_job(reading="{}")
        world.clock.advance(3)
        assert job.reading == "{}"

        assert await world.store.finish(job.job_id, 1, audio("jobs/x.wav")) is FinishStatus.DONE

        seen = await world.reload(job)
        assert (seen.status, seen.text, seen.lease_expires, seen.attempt) == (JobStatus.READY, None, None, 1)
        assert seen.reading is None
        assert (seen.audio_key, seen.audio_sha256) == ("jobs/x.wav", digest("audio").hex())
        assert (seen.audio_bytes, seen.synth_ms, seen.completed_at) == (4800, 120, world.clock.now())
        entry = CacheEntry(job.voice_id, job.cache_key, digest("audio").hex(), 4800, 120)
        assert await world.store.get_cached(job.voice_id, job.cache_key) == entry
        assert await world.characters_used() == len(TEXT)

    async def test_failed_job_has_its_code_and_is_refunded(self, world: World) -> None:
        job = await world.add_claimed_job()

        assert await world.store.finish(job.job_id, 1, AttemptResult(error="runaway_audio")) is FinishStatus.DONE

        seen = await world.reload(job)
        assert (seen.status, seen.error, seen.text) == (JobStatus.FAILED, "runaway_audio", None)
        assert await world.store.get_cached(job.voice_id, job.cache_key) is None
        assert await world.characters_used() == 0

    @pytest.mark.parametrize("result", [audio(), AttemptResult(error="runaway_audio")], ids=["ready", "failed"])
    async def test_concurrent_results_end_the_job_once(self, world: World, result: AttemptResult) -> None:
        ann = await world.caller()
        voice = await world.add_voice(ann)
        await world.add_job(ann, voice, char_count=1000)
        job = await world.add_claimed_job(caller=ann, voice=voice, char_count=10)
        last = await world.claim()
        assert last is not None

        ends = await asyncio.gather(*[world.store.finish(last.job.job_id, 1, result) for _ in range(50)])

        assert Counter(ends) == {FinishStatus.DONE: 1, FinishStatus.ALREADY: 49}
        assert job.char_count == 1000
        assert await world.characters_used() == (1010 if result.audio_key else 1000)

    async def test_result_of_another_attempt_or_expired_lease_is_stale(self, world: World) -> None:
        job = await world.add_claimed_job()

        assert await world.store.finish(job.job_id, 2, audio()) is FinishStatus.STALE
        assert await world.store.finish(job.job_id, 0, audio()) is FinishStatus.STALE
        world.clock.advance(15)
        assert await world.store.finish(job.job_id, 1, audio()) is FinishStatus.STALE
        assert await world.store.finish(job.job_id, None, audio()) is FinishStatus.STALE
        assert (await world.reload(job)).status is JobStatus.PENDING
        assert await world.store.finish("no such job", 1, audio()) is FinishStatus.GONE

    async def test_late_result_of_a_requeued_job_is_stale(self, world: World) -> None:
        job = await world.add_claimed_job()
        world.clock.advance(16)
        await world.store.reap(max_attempts=3)

        assert await world.store.finish(job.job_id, 1, audio()) is FinishStatus.STALE
        assert await world.store.finish(job.job_id, None, audio()) is FinishStatus.STALE
        again = await world.claim()
        assert again is not None
        assert again.job.attempt == 2
        assert await world.store.finish(job.job_id, 1, audio()) is FinishStatus.STALE
        assert await world.store.finish(job.job_id, 2, audio()) is FinishStatus.DONE

    async def test_result_without_attempt_ends_the_current_one(self, world: World) -> None:
        claimed, waiting = await world.add_claimed_job(), await world.add_job()

        assert await world.store.finish(claimed.job_id, None, audio()) is FinishStatus.DONE
        assert await world.store.finish(waiting.job_id, None, audio("jobs/two.wav")) is FinishStatus.DONE
        assert await world.claim() is None

    async def test_released_attempt_does_not_count(self, world: World) -> None:
        job = await world.add_claimed_job()
        for attempt in range(1, 6):
            assert await world.store.release(job.job_id, attempt)
            assert not await world.store.release(job.job_id, attempt)
            claim = await world.claim()
            assert claim is not None
            assert claim.job.returned == attempt, "by which its worker knows that it was not lost"
        world.clock.advance(16)

        reaped = await world.store.reap(max_attempts=2)
        seen = await world.reload(job)

        assert reaped == ReapResult(requeued=(job.job_id,))
        assert (seen.attempt, seen.status, seen.text) == (6, JobStatus.PENDING, TEXT)

    async def test_retry_requeues_until_the_attempts_are_used_up(self, world: World) -> None:
        job = await world.add_claimed_job()

        async def retry(attempt: int) -> JobStatus | None:
            return await world.store.retry(job.job_id, attempt, error="out_of_memory", max_attempts=2)

        assert await retry(2) is None
        assert await retry(1) is JobStatus.PENDING
        assert await retry(1) is None
        assert await world.claim() is not None
        assert await retry(2) is JobStatus.FAILED
        assert await retry(2) is None
        seen = await world.reload(job)
        assert (seen.status, seen.error, seen.text) == (JobStatus.FAILED, "out_of_memory", None)
        assert await world.characters_used() == 0

    async def test_expired_lease_uses_up_an_attempt(self, world: World) -> None:
        job = await world.add_claimed_job()
        world.clock.advance(14.9)
        assert await world.store.reap(max_attempts=2) == ReapResult()
        world.clock.advance(0.1)
        assert await world.store.reap(max_attempts=2) == ReapResult(requeued=(job.job_id,))
        assert await world.store.reap(max_attempts=2) == ReapResult()

        assert await world.claim() is not None
        world.clock.advance(15)

        assert await world.store.reap(max_attempts=2) == ReapResult(failed=(job.job_id,))
        seen = await world.reload(job)
        assert (seen.status, seen.error, seen.text) == (JobStatus.FAILED, "worker_lost", None)
        assert await world.characters_used() == 0

    async def test_lease_longer_than_granted_has_expired(self, world: World) -> None:
        job = await world.add_claimed_job()
        world.clock.monotonic_s -= 3600

        assert await world.store.reap(max_attempts=3) == ReapResult(requeued=(job.job_id,))

    async def test_step_of_the_wall_clock_expires_no_lease(self, world: World) -> None:
        job = await world.add_claimed_job()
        for hours in (-2, 1):
            world.clock.wall = world.clock.wall.replace(hour=world.clock.wall.hour + hours)
            assert await world.store.reap(max_attempts=3) == ReapResult()

        assert await world.store.finish(job.job_id, 1, audio()) is FinishStatus.DONE

    async def test_reports_are_stored_by_the_attempt_that_holds_it(self, world: World) -> None:
        for kind, option in REPORTS.items():
            job = await world.add_claimed_job(**{option: True})
            assert job.reports == [kind]
            assert not await world.store.save_report(job.job_id, 2, kind, "{}")
            assert await world.store.save_report(job.job_id, 1, kind, '{"characters":"Grüße"}')

            await world.store.finish(job.job_id, 1, audio())

            assert await world.store.get_report(job.job_id, kind) == '{"characters":"Grüße"}'
            assert not await world.store.save_report(job.job_id, 1, kind, "{}")
            assert await world.store.get_cached(job.voice_id, job.cache_key) is None

    async def test_reports_are_stored_only_if_they_were_requested(self, world: World) -> None:
        job = await world.add_claimed_job()

        for kind in REPORTS:
            assert not await world.store.save_report(job.job_id, 1, kind, "{}")

    async def test_timing_that_is_not_kept_is_removed_with_the_text(self, world: World) -> None:
        job = await world.add_claimed_job(timestamps=True, keeps_timing=False)
        assert await world.store.save_report(job.job_id, 1, "timing", '{"characters":"Grüße"}')

        await world.store.finish(job.job_id, 1, audio())

        assert await world.store.get_report(job.job_id, "timing") is None

    async def test_only_a_final_job_of_the_account_is_removed(self, world: World) -> None:
        job = await world.add_claimed_job()
        assert await world.store.remove_job(job.job_id, account_id=job.account_id) is None
        await world.store.finish(job.job_id, 1, audio())
        assert await world.store.get_cached(job.voice_id, job.cache_key)
        assert await world.store.remove_job(job.job_id, account_id=new_id()) is None

        paths = await world.store.remove_job(job.job_id, account_id=job.account_id)

        assert paths == [f"jobs/{job.job_id}.wav", "jobs/one.wav", cache_path(job.voice_id, job.cache_key)]
        assert await world.store.get_job(job.job_id) is None
        assert await world.store.get_cached(job.voice_id, job.cache_key) is None

    async def test_reports_are_removed_if_the_job_fails(self, world: World) -> None:
        failed, lost, cancelled = [await world.add_claimed_job(timestamps=True, verify=True) for _ in range(3)]
        for job in (failed, lost, cancelled):
            for kind in REPORTS:
                assert await world.store.save_report(job.job_id, 1, kind, "{}")

        await world.store.finish(failed.job_id, 1, AttemptResult(error="synthesis_failed"))
        await world.store.finish(lost.job_id, 1, audio())
        await world.store.mark_audio_lost(lost.job_id)
        await world.store.cancel(cancelled.job_id, account_id=cancelled.account_id)

        for job in (failed, lost, cancelled):
            assert [await world.store.get_report(job.job_id, kind) for kind in REPORTS] == [None, None]
