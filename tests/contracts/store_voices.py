"""Tests of any store: voices, their cache entries, and their deletion."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

import pytest

from afterwords.errors import ConflictError, VoiceNotFoundError
from afterwords.models import Provenance, new_id
from afterwords.server.cache_key import cache_path, prompt_path
from afterwords.server.records import Actor, CacheEntry, FinishStatus, VoiceChanges
from afterwords.server.store import SqlStore, voices
from tests.contracts.store_world import MANY, World, audio, digest, request
from tests.error_codes import has_code


class VoiceContract:
    """Tests of voices."""

    async def test_voice_is_returned_as_stored(self, world: World) -> None:
        seal = Provenance(
            original_sha256=digest("original").hex(),
            window_start_s=1.5,
            software="afterwords 0.3",
            sealed_at=world.clock.now(),
            seal=digest("seal").hex(),
        )
        ann = await world.caller()
        kept = await world.add_voice(ann, family="us", provenance=seal, ref_text="Grüße, 東京 🌅")
        bare = await world.add_voice(ann, ref_text=None, consent=None, metadata={})

        assert await world.store.get_voice(kept.voice_id, account_id=ann.account_id) == kept
        assert await world.store.get_voice(bare.voice_id, account_id=ann.account_id) == bare

    async def test_voice_of_another_account_is_missing(self, world: World) -> None:
        voice = await world.add_voice()
        bob = await world.caller("bob")

        assert await world.store.get_voice(voice.voice_id, account_id=bob.account_id) is None
        assert await world.store.list_voices(account_id=bob.account_id, limit=None, after=None) == []
        assert await world.store.list_voices(account_id=bob.account_id, limit=None, after=voice.voice_id) == []
        changed = await world.store.update_voice(voice.voice_id, VoiceChanges(name="x"), account_id=bob.account_id)
        assert changed is None
        assert await world.store.delete_voice(voice.voice_id, account_id=bob.account_id) is None
        with pytest.raises(VoiceNotFoundError):
            await world.add_job(bob, voice)

    async def test_voices_are_found_by_exact_name(self, world: World) -> None:
        ann, bob = await world.caller(), await world.caller("bob")
        kept = [await world.add_voice(ann, name="me") for _ in range(3)]
        await world.add_voice(ann, name="Me")
        await world.add_voice(bob, name="me again")

        assert await world.store.find_voices("me", account_id=ann.account_id) == kept[:2]
        assert await world.store.find_voices("me", account_id=bob.account_id) == []

    async def test_alias_names_a_voice_until_it_is_deleted(self, world: World) -> None:
        store, ann, bob = world.store, await world.caller(), await world.caller("bob")
        me, mum = await world.add_voice(ann, name="me"), await world.add_voice(ann, name="mum")

        assert await store.set_alias("nova", me.voice_id, account_id=ann.account_id)
        assert await store.set_alias("alloy", me.voice_id, account_id=ann.account_id)
        assert await store.set_alias("alloy", mum.voice_id, account_id=ann.account_id)
        assert not await store.set_alias("alloy", me.voice_id, account_id=bob.account_id)
        assert await store.find_by_alias("alloy", account_id=ann.account_id) == mum
        assert await store.find_by_alias("alloy", account_id=bob.account_id) is None
        assert [
            (alias.alias, alias.voice_id, alias.voice) for alias in await store.list_aliases(account_id=ann.account_id)
        ] == [
            ("alloy", mum.voice_id, "mum"),
            ("nova", me.voice_id, "me"),
        ]
        assert not await store.remove_alias("nova", account_id=bob.account_id)
        assert await store.remove_alias("nova", account_id=ann.account_id)
        await store.delete_voice(mum.voice_id, account_id=ann.account_id)
        assert await store.find_by_alias("alloy", account_id=ann.account_id) is None
        assert await store.list_aliases(account_id=ann.account_id) == []

    async def test_home_voice_is_stored_once_with_a_free_id(self, world: World) -> None:
        ann = await world.caller()
        other = await world.add_voice(await world.caller("bob"))
        home_id = other.voice_id

        kept = await world.store.add_voice(replace(other, account_id=ann.account_id, home_id=home_id))
        again = await world.store.add_voice(replace(other, account_id=ann.account_id, home_id=home_id, name="again"))

        assert kept == again
        assert (kept.home_id, kept.voice_id != home_id) == (home_id, True)
        await world.store.delete_voice(kept.voice_id, account_id=ann.account_id)
        fresh = await world.store.add_voice(replace(kept, voice_id=kept.voice_id))
        assert fresh.voice_id != kept.voice_id

    async def test_voices_of_one_millisecond_are_listed_in_order(self, world: World) -> None:
        ann = await world.caller()
        kept = [await world.add_voice(ann, name=f"{number}") for number in range(7)]

        everything = await world.store.list_voices(account_id=ann.account_id, limit=None, after=None)
        first = await world.store.list_voices(account_id=ann.account_id, limit=3, after=None)
        second = await world.store.list_voices(account_id=ann.account_id, limit=3, after=first[-1].voice_id)

        assert everything == kept
        assert first + second == kept[:6]
        assert await world.store.list_voices(account_id=ann.account_id, limit=3, after="no such voice") == []

    async def test_repeated_upload_returns_the_first_voice(self, world: World) -> None:
        ann = await world.caller()
        asked = request(ann, route="voices")
        assert await world.store.find_repeated_voice(asked) is None
        first = await world.store.add_voice(world.new_voice(ann), idempotency=asked)
        second = await world.store.add_voice(world.new_voice(ann), idempotency=asked)

        assert second == first == await world.store.find_repeated_voice(asked)
        assert await world.store.list_voices(account_id=ann.account_id, limit=None, after=None) == [first]

    async def test_voice_idempotency_key_with_another_body_conflicts(self, world: World) -> None:
        ann = await world.caller()
        kept = await world.store.add_voice(world.new_voice(ann), idempotency=request(ann))
        other = request(ann, body="other")

        with pytest.raises(ConflictError, check=has_code("idempotency_conflict")):
            await world.store.add_voice(world.new_voice(ann), idempotency=other)
        with pytest.raises(ConflictError, check=has_code("idempotency_conflict")):
            await world.store.find_repeated_voice(other)
        assert await world.store.list_voices(account_id=ann.account_id, limit=None, after=None) == [kept]

    async def test_idempotency_keys_are_per_account_and_route(self, world: World) -> None:
        ann, bob = await world.caller("ann"), await world.caller("bob")
        first = await world.store.add_voice(world.new_voice(ann), idempotency=request(ann, route="voices"))
        second = await world.store.add_voice(world.new_voice(ann), idempotency=request(ann, route="import"))
        third = await world.store.add_voice(world.new_voice(bob), idempotency=request(bob, route="voices"))

        assert len({first.voice_id, second.voice_id, third.voice_id}) == 3

    async def test_update_changes_only_the_given_fields(self, world: World) -> None:
        voice = await world.add_voice()

        changes = VoiceChanges(name="you", metadata={"mood": "loud"})
        changed = await world.store.update_voice(voice.voice_id, changes, account_id=voice.account_id)

        assert changed == replace(voice, name="you", metadata={"mood": "loud"})
        assert await world.store.get_voice(voice.voice_id, account_id=voice.account_id) == changed
        nothing = await world.store.update_voice(voice.voice_id, VoiceChanges(), account_id=voice.account_id)
        assert nothing == changed

    @pytest.mark.parametrize(
        ("changes", "is_kept"),
        [
            (VoiceChanges(name="you", backend="lite", family="us"), True),
            (VoiceChanges(ref_text="another transcript"), False),
            (VoiceChanges(lang="de"), False),
        ],
    )
    async def test_another_transcript_or_language_removes_cached_audio(
        self, world: World, changes: VoiceChanges, is_kept: bool
    ) -> None:
        voice = await world.add_voice()
        job = await world.add_claimed_job(voice=voice)
        await world.store.finish(job.job_id, 1, audio())

        await world.store.update_voice(voice.voice_id, changes, account_id=voice.account_id)

        assert (await world.store.get_cached(voice.voice_id, job.cache_key) is not None) == is_kept

    async def test_job_before_a_change_is_not_cached_or_shared(self, world: World) -> None:
        ann = await world.caller()
        voice = await world.add_voice(ann)
        old = await world.add_claimed_job(caller=ann, voice=voice, flight_key="f" * 64, cache_key="c" * 64)
        await world.store.update_voice(voice.voice_id, VoiceChanges(ref_text="new"), account_id=ann.account_id)

        again = world.new_job(ann, voice, flight_key="f" * 64, cache_key="c" * 64)
        new = await world.store.submit(again, limits=MANY)
        assert await world.store.finish(old.job_id, 1, audio()) is FinishStatus.DONE

        assert new.is_new
        assert await world.store.get_cached(voice.voice_id, "c" * 64) is None

    async def test_delete_cached_keeps_an_entry_that_replaced_it(self, world: World) -> None:
        voice = await world.add_voice()
        entries: list[CacheEntry] = []
        for content in ("first", "second"):
            job = await world.add_claimed_job(voice=voice, cache_key="c" * 64)
            await world.store.finish(job.job_id, 1, audio(f"jobs/{job.job_id}.wav", content=content))
            entry = await world.store.get_cached(voice.voice_id, "c" * 64)
            assert entry is not None
            entries.append(entry)

        await world.store.delete_cached(entries[0])
        assert await world.store.get_cached(voice.voice_id, "c" * 64) == entries[1]
        assert entries[1] == CacheEntry(voice.voice_id, "c" * 64, digest("second").hex(), 4800, 120)
        await world.store.delete_cached(entries[1])
        assert await world.store.get_cached(voice.voice_id, "c" * 64) is None

    async def test_deleting_a_voice_deletes_its_rows(self, world: World) -> None:
        ann = await world.caller()
        asked = request(ann, route="voices")
        voice = await world.store.add_voice(world.new_voice(ann), idempotency=asked)
        ready = await world.add_claimed_job(caller=ann, voice=voice, webhook_url="https://example.org/")
        await world.store.finish(ready.job_id, 1, audio(f"jobs/{ready.job_id}.wav"))
        waits = await world.add_job(ann, voice)

        paths = await world.store.delete_voice(voice.voice_id, account_id=ann.account_id)

        assert paths is not None
        assert f"jobs/{ready.job_id}.wav" in paths
        assert await world.store.get_voice(voice.voice_id, account_id=ann.account_id) is None
        assert await world.store.get_job(ready.job_id) is None
        assert await world.store.get_job(waits.job_id) is None
        assert await world.store.get_cached(voice.voice_id, ready.cache_key) is None
        assert await world.store.find_repeated_voice(asked) is None
        assert await world.store.claim_webhooks(limit=10) == []
        assert await world.claim() is None
        assert await world.store.delete_voice(voice.voice_id, account_id=ann.account_id) is None
        kept = await world.add_voice(ann)
        assert await world.store.find_deleted([kept.voice_id, voice.voice_id]) == {voice.voice_id}

    async def test_interrupted_deletion_of_many_rows_is_finished(self, world: World) -> None:
        store, ann = world.store, await world.caller()
        assert isinstance(store, SqlStore)
        voice, asked = world.new_voice(ann, home_id=new_id()), request(ann, route="voices")
        await store.add_voice(voice, idempotency=asked)
        done = await world.add_claimed_job(caller=ann, voice=voice)
        await store.finish(done.job_id, 1, audio(f"jobs/{done.job_id}.wav"))
        waiting = [world.new_job(ann, voice) for _ in range(voices.BATCH + 1)]
        await asyncio.gather(*[store.submit(job, limits=MANY) for job in waiting])
        job_ids = [done.job_id, *(job.job_id for job in waiting)]
        actor, now = Actor("ann"), world.clock.now()
        delete_first = partial(voices.delete_voice, account_id=ann.account_id, actor=actor, now=now)
        assert await store.database.free(delete_first, voice.voice_id)  # the server crashes after this

        assert await store.get_job(done.job_id) is not None
        assert await store.get_voice(voice.voice_id, account_id=ann.account_id) is None
        assert await store.find_voices(voice.name, account_id=ann.account_id) == []
        assert await store.list_voices(account_id=ann.account_id, limit=None, after=None) == []
        assert await store.find_repeated_voice(asked) is None
        assert await store.delete_voice(voice.voice_id, account_id=ann.account_id) is None
        with pytest.raises(VoiceNotFoundError):
            await world.add_job(ann, voice)
        again = await world.add_voice(ann, home_id=voice.home_id)
        unpurged = await store.list_unpurged()

        assert set(unpurged[voice.voice_id]) == {f"jobs/{job_id}.wav" for job_id in job_ids}
        assert await store.list_jobs(account_id=ann.account_id, status=None, limit=None, after=None) == []
        assert await store.get_cached(voice.voice_id, done.cache_key) is None
        assert await world.characters_used() == done.char_count
        assert await store.list_voices(account_id=ann.account_id, limit=None, after=None) == [again]
        await store.mark_purged(voice.voice_id)
        assert await store.list_unpurged() == {}

    async def test_two_deletions_of_many_rows_at_once_add_up(self, world: World) -> None:
        ann = await world.caller()
        voice = await world.add_voice(ann)
        waiting = [world.new_job(ann, voice) for _ in range(voices.BATCH + 1)]
        await asyncio.gather(*[world.store.submit(job, limits=MANY) for job in waiting])

        deletions = [world.store.delete_voice(voice.voice_id, account_id=ann.account_id) for _ in range(2)]
        one, two, unpurged = await asyncio.gather(*deletions, world.store.list_unpurged())

        (found,) = [paths for paths in (one, two) if paths is not None]
        assert len(found) == voices.BATCH + 1
        assert unpurged in ({}, {voice.voice_id: found})
        assert await world.characters_used() == 0

    async def test_deletion_refunds_pending_jobs_only(self, world: World) -> None:
        ann = await world.caller()
        voice, other = await world.add_voice(ann), await world.add_voice(ann)
        done = await world.add_claimed_job(caller=ann, voice=voice, char_count=100)
        await world.store.finish(done.job_id, 1, audio())
        await world.add_job(ann, voice, char_count=30)
        await world.add_job(ann, voice, char_count=7)
        await world.add_job(ann, other, char_count=5)

        await world.store.delete_voice(voice.voice_id, account_id=ann.account_id)

        assert await world.characters_used() == 105

    async def test_deletion_returns_the_audio_of_every_attempt(self, world: World) -> None:
        voice = await world.add_voice()
        job = await world.add_claimed_job(voice=voice)
        await world.store.retry(job.job_id, 1, error="worker_lost", max_attempts=3)
        await world.claim()

        paths = await world.store.delete_voice(voice.voice_id, account_id=voice.account_id)

        assert paths == [f"jobs/{job.job_id}-2.wav", f"jobs/{job.job_id}.wav"]

    async def test_result_for_a_deleted_voice_is_gone(self, world: World) -> None:
        voice = await world.add_voice()
        job = await world.add_claimed_job(voice=voice)
        await world.store.delete_voice(voice.voice_id, account_id=voice.account_id)

        assert await world.store.finish(job.job_id, 1, audio()) is FinishStatus.GONE
        assert not await world.store.heartbeat(job.job_id, 1, lease_s=15)
        assert await world.store.retry(job.job_id, 1, error="worker_lost", max_attempts=3) is None

    async def test_deleted_voice_is_unpurged_until_marked(self, world: World) -> None:
        voice = await world.add_voice()
        paths = await world.store.delete_voice(voice.voice_id, account_id=voice.account_id)

        assert await world.store.list_unpurged() == {voice.voice_id: paths}
        await world.store.mark_purged(voice.voice_id)
        assert await world.store.list_unpurged() == {}

    async def test_paths_are_known_while_a_row_refers_to_them(self, world: World) -> None:
        voice = await world.add_voice()
        job = await world.add_claimed_job(voice=voice)
        await world.store.retry(job.job_id, 1, error="worker_lost", max_attempts=3)
        await world.claim()
        await world.store.finish(job.job_id, 2, audio(f"jobs/{job.job_id}-2.wav"))
        named = {
            voice.ref_audio_key,
            f"jobs/{job.job_id}-2.wav",
            cache_path(voice.voice_id, job.cache_key),
            prompt_path(voice.voice_id, "ab12"),
        }
        orphans = {
            f"jobs/{job.job_id}.wav",
            "jobs/00000000-0000-0000-0000-000000000000.wav",
            cache_path(voice.voice_id, "e" * 64),
            "voices/00000000-0000-0000-0000-000000000000/ref.wav",
            prompt_path("00000000-0000-0000-0000-000000000000", "ab12"),
            f"voices/{voice.voice_id}/ref.wav.part",
            "stray",
        }

        assert await world.store.find_known_paths(sorted(named | orphans)) == named
        assert {path for each in named for path in await world.store.find_known_paths([each])} == named
        await world.store.delete_voice(voice.voice_id, account_id=voice.account_id)
        assert await world.store.find_known_paths(sorted(named)) == set()
        assert await world.store.find_known_paths([]) == set()

    async def test_a_thousand_paths_are_looked_up_at_once(self, world: World) -> None:
        ann = await world.caller()
        voices = [await world.add_voice(ann) for _ in range(3)]
        paths = [voice.ref_audio_key for voice in voices] + [f"voices/{number}/ref.wav" for number in range(1500)]

        assert await world.store.find_known_paths(paths) == set(paths[:3])
