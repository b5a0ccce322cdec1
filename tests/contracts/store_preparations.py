"""Tests of any store: preparations of voices, which only workers see."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

from afterwords.models import JobStatus, VoiceStatus
from afterwords.server.records import Caller, Claim, FinishStatus, QueueLimits, ReapResult, StoredVoice, VoiceChanges
from tests.contracts.store_world import World, audio, request

LEASE_S = 15


async def add_unprepared(world: World, caller: Caller | None = None, **facts: object) -> StoredVoice:
    """Add a voice that has to be prepared."""
    voice = world.new_voice(caller or await world.caller(), **facts)
    return await world.store.add_voice(voice, prepare=True)


async def claim(world: World, *, backend: str = "tone", skip: tuple[str, ...] = ()) -> Claim | None:
    """Claim a preparation."""
    return await world.store.claim_preparation(
        backends=[backend], lease_s=LEASE_S, worker="w1", max_attempts=3, skip_voices=skip
    )


async def status(world: World, voice: StoredVoice) -> VoiceStatus:
    found = await world.store.get_voice(voice.voice_id, account_id=voice.account_id)
    assert found is not None
    return found.status


class PreparationContract:
    """Tests of preparations."""

    async def test_voice_is_preparing_until_its_preparation_ends(self, world: World) -> None:
        voice = await add_unprepared(world)
        assert voice.status is VoiceStatus.PREPARING
        listed = await world.store.list_voices(account_id=voice.account_id, limit=None, after=None)
        assert [found.status for found in listed] == [VoiceStatus.PREPARING]

        taken = await claim(world)
        assert taken is not None
        assert taken.is_preparation
        assert (taken.voice, taken.job.voice_id, taken.job.backend) == (voice, voice.voice_id, "tone")
        assert (taken.job.text, taken.job.char_count, taken.job.attempt) == (None, 0, 1)
        assert await world.store.get_preparation(taken.job.job_id) == taken
        assert await world.store.find_claimed("w1") == taken
        assert await world.store.find_claimed("w2") is None
        assert await claim(world) is None
        assert await status(world, voice) is VoiceStatus.PREPARING

        await world.store.end_preparation(taken.job.job_id, 2)
        assert await status(world, voice) is VoiceStatus.PREPARING
        await world.store.end_preparation(taken.job.job_id, 1)
        assert await status(world, voice) is VoiceStatus.READY
        assert await world.store.get_preparation(taken.job.job_id) is None

    async def test_voice_without_preparation_is_ready(self, world: World) -> None:
        voice = await world.add_voice()

        assert await status(world, voice) is VoiceStatus.READY
        assert await claim(world) is None

    async def test_repeated_upload_is_prepared_once(self, world: World) -> None:
        caller = await world.caller()
        again = request(caller, route="voices")
        first, second = [
            await world.store.add_voice(world.new_voice(caller), idempotency=again, prepare=True) for _ in range(2)
        ]

        assert (first, await claim(world) is not None, await claim(world)) == (second, True, None)

    async def test_account_does_not_see_its_preparations(self, world: World) -> None:
        caller = await world.caller()
        voice = await add_unprepared(world, caller)
        taken = await claim(world)
        assert taken is not None

        assert await world.store.list_jobs(account_id=caller.account_id, status=None, limit=None, after=None) == []
        assert await world.store.get_job(taken.job.job_id) is None
        assert await world.store.cancel(taken.job.job_id, account_id=caller.account_id) is None
        assert await world.store.read_queue() == []
        assert await world.characters_used() == 0
        job = world.new_job(caller, await world.add_voice())
        await world.store.submit(job, limits=QueueLimits(pending=1, pending_per_account=1))
        assert await world.store.revoke_key(caller.key_id, account_id=None) == [job.job_id]
        assert await status(world, voice) is VoiceStatus.PREPARING

    async def test_only_voices_of_the_backends_are_claimed(self, world: World) -> None:
        voice = await add_unprepared(world, backend="lite")

        assert await claim(world) is None
        assert await claim(world, backend="lite", skip=(voice.voice_id,)) is None
        assert await claim(world, backend="lite") is not None

    async def test_claim_of_jobs_never_returns_a_preparation(self, world: World) -> None:
        await add_unprepared(world)

        assert await world.claim() is None

    async def test_job_waits_while_its_voice_is_prepared(self, world: World) -> None:
        voice = await add_unprepared(world)
        taken = await claim(world)
        assert taken is not None
        asked = await world.add_job(voice=voice)
        other = await world.add_job()

        first = await world.claim()
        assert (first and first.job.job_id) == other.job_id
        assert await world.claim() is None
        await world.store.end_preparation(taken.job.job_id, 1)
        second = await world.claim()
        assert (second and second.job.job_id) == asked.job_id

    async def test_job_of_another_backend_does_not_wait(self, world: World) -> None:
        voice = await add_unprepared(world)
        assert await claim(world) is not None
        await world.add_job(voice=voice)
        job = await world.add_job(voice=voice, backend="lite")

        taken = await world.store.claim(backends=["tone", "lite"], lease_s=LEASE_S, worker="w2")

        assert (taken and taken.job.job_id) == job.job_id
        assert await world.store.claim(backends=["tone", "lite"], lease_s=LEASE_S, worker="w2") is None

    async def test_job_waits_for_a_dead_worker_one_lease_at_most(self, world: World) -> None:
        voice = await add_unprepared(world)
        await claim(world)
        await world.add_job(voice=voice)
        world.clock.advance(LEASE_S - 1)
        assert await world.claim() is None

        world.clock.advance(2)
        assert await world.claim() is not None

    async def test_voice_of_a_pending_job_is_not_prepared(self, world: World) -> None:
        voice = await add_unprepared(world)
        job = await world.add_job(voice=voice)

        assert await claim(world) is None
        await world.store.cancel(job.job_id, account_id=voice.account_id)
        assert await claim(world) is not None

    async def test_job_of_another_backend_does_not_prepare_the_voice(self, world: World) -> None:
        voice = await add_unprepared(world)
        await world.add_job(voice=voice, backend="lite")

        assert await claim(world) is not None

    async def test_finished_job_of_the_backend_makes_the_voice_ready(self, world: World) -> None:
        voice = await add_unprepared(world)
        for backend, expected in (("lite", VoiceStatus.PREPARING), ("tone", VoiceStatus.READY)):
            await world.add_job(voice=voice, backend=backend)
            taken = await world.store.claim(backends=[backend], lease_s=LEASE_S, worker="w1")
            assert taken is not None
            done = await world.store.finish(taken.job.job_id, 1, audio(f"jobs/{backend}.wav"))
            assert (done, await status(world, voice)) == (FinishStatus.DONE, expected)

    async def test_heartbeat_renews_the_lease_of_a_preparation(self, world: World) -> None:
        await add_unprepared(world)
        taken = await claim(world)
        assert taken is not None
        world.clock.advance(LEASE_S - 1)

        assert await world.store.heartbeat(taken.job.job_id, 1, lease_s=LEASE_S)
        assert not await world.store.heartbeat(taken.job.job_id, 2, lease_s=LEASE_S)
        world.clock.advance(LEASE_S - 1)
        assert await claim(world) is None
        world.clock.advance(2)
        assert await world.store.find_claimed("w1") is None
        again = await claim(world)
        assert (again and again.job.attempt) == 2
        assert not await world.store.heartbeat(taken.job.job_id, 1, lease_s=LEASE_S)

    async def test_released_preparation_uses_no_attempt(self, world: World) -> None:
        await add_unprepared(world)
        for attempt in range(1, 6):
            taken = await claim(world)
            assert taken is not None
            assert taken.job.attempt == attempt
            assert await world.store.release(taken.job.job_id, attempt)
            assert not await world.store.release(taken.job.job_id, attempt)

    async def test_failing_preparation_ends_after_its_attempts(self, world: World) -> None:
        voice = await add_unprepared(world)
        results = []
        for attempt in (1, 2, 3):
            taken = await claim(world)
            assert taken is not None
            results.append(await world.store.retry(taken.job.job_id, attempt, error="worker_lost", max_attempts=3))
            assert not await world.store.heartbeat(taken.job.job_id, attempt, lease_s=LEASE_S)

        assert results == [JobStatus.PENDING, JobStatus.PENDING, JobStatus.FAILED]
        assert (await status(world, voice), await claim(world)) == (VoiceStatus.READY, None)

    async def test_preparation_whose_workers_die_ends(self, world: World) -> None:
        voice = await add_unprepared(world)
        for _ in range(3):
            assert await claim(world) is not None
            world.clock.advance(LEASE_S + 1)
            assert await world.store.reap(max_attempts=3) == ReapResult()

        assert await claim(world) is None
        assert await status(world, voice) is VoiceStatus.READY

    async def test_preparation_that_waits_for_a_day_ends(self, world: World) -> None:
        waiting, running = [await add_unprepared(world, backend=backend) for backend in ("lite", "tone")]
        world.clock.advance(86_399)
        await world.store.delete_expired()
        assert await status(world, waiting) is VoiceStatus.PREPARING

        assert await claim(world) is not None
        world.clock.advance(2)
        await world.store.delete_expired()

        assert await status(world, waiting) is VoiceStatus.READY
        assert await status(world, running) is VoiceStatus.PREPARING

    async def test_lease_granted_before_the_clock_went_back_expires(self, world: World) -> None:
        await add_unprepared(world)
        await claim(world)
        world.clock.advance(-1000)

        assert await claim(world) is not None

    async def test_deleted_voice_ends_its_preparation(self, world: World) -> None:
        voice = await add_unprepared(world)
        taken = await claim(world)
        assert taken is not None

        await world.store.delete_voice(voice.voice_id, account_id=voice.account_id)

        assert not await world.store.heartbeat(taken.job.job_id, 1, lease_s=LEASE_S)
        assert await world.store.get_preparation(taken.job.job_id) is None
        assert await world.store.retry(taken.job.job_id, 1, error="worker_lost", max_attempts=3) is None

    async def test_changed_transcript_starts_another_preparation(self, world: World) -> None:
        voice = await add_unprepared(world)
        taken = await claim(world)
        assert taken is not None

        changes = VoiceChanges(ref_text="another transcript")
        changed = await world.store.update_voice(voice.voice_id, changes, account_id=voice.account_id, prepare=True)

        assert changed == replace(voice, ref_text="another transcript")
        assert not await world.store.heartbeat(taken.job.job_id, 1, lease_s=LEASE_S)
        again = await claim(world)
        assert again is not None
        assert (again.voice.ref_text, again.job.attempt) == ("another transcript", 1)

    async def test_changed_backend_without_preparation_is_ready(self, world: World) -> None:
        voice = await add_unprepared(world)

        changes = VoiceChanges(backend="lite")
        changed = await world.store.update_voice(voice.voice_id, changes, account_id=voice.account_id)

        assert changed is not None
        assert (changed.status, await status(world, voice)) == (VoiceStatus.READY, VoiceStatus.READY)

    async def test_renamed_voice_is_not_prepared_again(self, world: World) -> None:
        voice = await world.add_voice()

        changes = VoiceChanges(name="other", lang=voice.lang)
        changed = await world.store.update_voice(voice.voice_id, changes, account_id=voice.account_id, prepare=True)

        assert (changed and changed.status) is VoiceStatus.READY
        assert await claim(world) is None

    async def test_oldest_voice_of_an_account_is_prepared_first(self, world: World) -> None:
        voices = []
        for _ in range(3):
            voices.append(await add_unprepared(world))
            world.clock.advance(0.01)

        claims = [await claim(world) for _ in voices]

        assert [taken.voice.voice_id for taken in claims if taken] == [voice.voice_id for voice in voices]

    async def test_many_voices_of_an_account_do_not_delay_others(self, world: World) -> None:
        for _ in range(60):
            await add_unprepared(world, await world.caller("ann"))
        world.clock.advance(1)
        voice = await add_unprepared(world, await world.caller("bob"))

        claims = [await claim(world) for _ in range(60)]

        assert voice.voice_id in [taken.voice.voice_id for taken in claims if taken]  # misses once in 2^60 runs

    async def test_voice_is_claimed_once_at_a_time(self, world: World) -> None:
        for _ in range(10):
            await add_unprepared(world)

        claims = [await asyncio.gather(*[claim(world) for _ in range(8)]) for _ in range(10)]

        taken = Counter(each.voice.voice_id for group in claims for each in group if each)
        assert set(taken.values()) == {1}
