"""What every store promises of voices, what is cached of them, and of their end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from afterwords.errors import ConflictError, VoiceNotFoundError
from afterwords.models import Provenance
from afterwords.server.cache_key import cache_path, prompt_path
from afterwords.server.records import CacheEntry, FinishStatus, VoiceChanges
from tests.contracts.store_world import MANY, World, audio, digest, request
from tests.error_codes import has_code


class VoiceClaims:
    """Voices: an account's own, and gone with all that is theirs."""

    async def test_voice_comes_back_as_it_was_kept(self, world: World) -> None:
        seal = Provenance(
            original_sha256=digest("original").hex(),
            window_start_s=1.5,
            software="afterwords 0.3",
            sealed_at=world.clock.now(),
            seal=digest("seal").hex(),
        )
        ann = await world.caller()
        kept = await world.voice(ann, family="us", provenance=seal, ref_text="Grüße, 東京 🌅")
        bare = await world.voice(ann, ref_text=None, consent=None, metadata={})

        assert await world.store.get_voice(kept.voice_id, account_id=ann.account_id) == kept
        assert await world.store.get_voice(bare.voice_id, account_id=ann.account_id) == bare

    async def test_voice_of_another_account_is_as_if_it_were_not_there(self, world: World) -> None:
        voice = await world.voice()
        bob = await world.caller("bob")

        assert await world.store.get_voice(voice.voice_id, account_id=bob.account_id) is None
        assert await world.store.list_voices(account_id=bob.account_id, limit=None, after=None) == []
        assert await world.store.list_voices(account_id=bob.account_id, limit=None, after=voice.voice_id) == []
        changed = await world.store.update_voice(voice.voice_id, VoiceChanges(name="x"), account_id=bob.account_id)
        assert changed is None
        assert await world.store.delete_voice(voice.voice_id, account_id=bob.account_id) is None
        with pytest.raises(VoiceNotFoundError):
            await world.job(bob, voice)

    async def test_voices_are_found_by_exact_name_in_their_account(self, world: World) -> None:
        ann, bob = await world.caller(), await world.caller("bob")
        kept = [await world.voice(ann, name="me") for _ in range(3)]
        await world.voice(ann, name="Me")
        await world.voice(bob, name="me again")

        assert await world.store.find_voices("me", account_id=ann.account_id) == kept[:2]
        assert await world.store.find_voices("me", account_id=bob.account_id) == []

    async def test_voice_of_the_home_is_kept_once_and_never_under_an_id_that_is_taken(self, world: World) -> None:
        ann = await world.caller()
        other = await world.voice(await world.caller("bob"))
        home_id = other.voice_id

        kept = await world.store.add_voice(replace(other, account_id=ann.account_id, home_id=home_id))
        again = await world.store.add_voice(replace(other, account_id=ann.account_id, home_id=home_id, name="again"))

        assert kept == again
        assert (kept.home_id, kept.voice_id != home_id) == (home_id, True)
        await world.store.delete_voice(kept.voice_id, account_id=ann.account_id)
        fresh = await world.store.add_voice(replace(kept, voice_id=kept.voice_id))
        assert fresh.voice_id != kept.voice_id

    async def test_voices_of_one_millisecond_are_paged_in_the_order_they_came(self, world: World) -> None:
        ann = await world.caller()
        kept = [await world.voice(ann, name=f"{number}") for number in range(7)]

        everything = await world.store.list_voices(account_id=ann.account_id, limit=None, after=None)
        first = await world.store.list_voices(account_id=ann.account_id, limit=3, after=None)
        second = await world.store.list_voices(account_id=ann.account_id, limit=3, after=first[-1].voice_id)

        assert everything == kept
        assert first + second == kept[:6]
        assert await world.store.list_voices(account_id=ann.account_id, limit=3, after="no such voice") == []

    async def test_repeated_upload_gets_the_voice_of_the_first(self, world: World) -> None:
        ann = await world.caller()
        asked = request(ann, route="voices")
        assert await world.store.find_repeated_voice(asked) is None
        first = await world.store.add_voice(world.voice_of(ann), idempotency=asked)
        second = await world.store.add_voice(world.voice_of(ann), idempotency=asked)

        assert second == first == await world.store.find_repeated_voice(asked)
        assert await world.store.list_voices(account_id=ann.account_id, limit=None, after=None) == [first]

    async def test_idempotency_key_with_another_upload_is_a_conflict(self, world: World) -> None:
        ann = await world.caller()
        kept = await world.store.add_voice(world.voice_of(ann), idempotency=request(ann))
        other = request(ann, body="other")

        with pytest.raises(ConflictError, check=has_code("idempotency_conflict")):
            await world.store.add_voice(world.voice_of(ann), idempotency=other)
        with pytest.raises(ConflictError, check=has_code("idempotency_conflict")):
            await world.store.find_repeated_voice(other)
        assert await world.store.list_voices(account_id=ann.account_id, limit=None, after=None) == [kept]

    async def test_idempotency_keys_of_accounts_and_routes_are_apart(self, world: World) -> None:
        ann, bob = await world.caller("ann"), await world.caller("bob")
        first = await world.store.add_voice(world.voice_of(ann), idempotency=request(ann, route="voices"))
        second = await world.store.add_voice(world.voice_of(ann), idempotency=request(ann, route="import"))
        third = await world.store.add_voice(world.voice_of(bob), idempotency=request(bob, route="voices"))

        assert len({first.voice_id, second.voice_id, third.voice_id}) == 3

    async def test_change_touches_only_what_it_names(self, world: World) -> None:
        voice = await world.voice()

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
    async def test_another_transcript_or_language_drops_what_was_cached(
        self, world: World, changes: VoiceChanges, is_kept: bool
    ) -> None:
        voice = await world.voice()
        job = await world.claimed(voice=voice)
        await world.store.finish(job.job_id, 1, audio())

        await world.store.update_voice(voice.voice_id, changes, account_id=voice.account_id)

        assert (await world.store.get_cached(voice.voice_id, job.cache_key) is not None) == is_kept

    async def test_what_was_begun_with_the_old_transcript_is_neither_cached_nor_shared(self, world: World) -> None:
        ann = await world.caller()
        voice = await world.voice(ann)
        old = await world.claimed(caller=ann, voice=voice, flight_key="f" * 64, cache_key="c" * 64)
        await world.store.update_voice(voice.voice_id, VoiceChanges(ref_text="new"), account_id=ann.account_id)

        again = world.job_of(ann, voice, flight_key="f" * 64, cache_key="c" * 64)
        new = await world.store.submit(again, limits=MANY)
        assert await world.store.finish(old.job_id, 1, audio()) is FinishStatus.DONE

        assert new.is_new
        assert await world.store.get_cached(voice.voice_id, "c" * 64) is None

    async def test_dropped_cache_entry_is_gone_unless_another_took_its_place(self, world: World) -> None:
        voice = await world.voice()
        entries: list[CacheEntry] = []
        for content in ("first", "second"):
            job = await world.claimed(voice=voice, cache_key="c" * 64)
            await world.store.finish(job.job_id, 1, audio(f"jobs/{job.job_id}.wav", content=content))
            entry = await world.store.get_cached(voice.voice_id, "c" * 64)
            assert entry is not None
            entries.append(entry)

        await world.store.delete_cached(entries[0])
        assert await world.store.get_cached(voice.voice_id, "c" * 64) == entries[1]
        assert entries[1] == CacheEntry(voice.voice_id, "c" * 64, digest("second").hex(), 4800, 120)
        await world.store.delete_cached(entries[1])
        assert await world.store.get_cached(voice.voice_id, "c" * 64) is None

    async def test_deleted_voice_takes_everything_with_it(self, world: World) -> None:
        ann = await world.caller()
        asked = request(ann, route="voices")
        voice = await world.store.add_voice(world.voice_of(ann), idempotency=asked)
        ready = await world.claimed(caller=ann, voice=voice, webhook_url="https://example.org/")
        await world.store.finish(ready.job_id, 1, audio(f"jobs/{ready.job_id}.wav"))
        waits = await world.job(ann, voice)

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

    async def test_deletion_gives_back_what_waited_and_keeps_what_was_spoken(self, world: World) -> None:
        ann = await world.caller()
        voice, other = await world.voice(ann), await world.voice(ann)
        done = await world.claimed(caller=ann, voice=voice, char_count=100)
        await world.store.finish(done.job_id, 1, audio())
        await world.job(ann, voice, char_count=30)
        await world.job(ann, voice, char_count=7)
        await world.job(ann, other, char_count=5)

        await world.store.delete_voice(voice.voice_id, account_id=ann.account_id)

        assert await world.spent() == 105

    async def test_deletion_names_the_audio_of_every_attempt(self, world: World) -> None:
        voice = await world.voice()
        job = await world.claimed(voice=voice)
        await world.store.retry(job.job_id, 1, error="worker_lost", max_attempts=3)
        await world.claim()

        paths = await world.store.delete_voice(voice.voice_id, account_id=voice.account_id)

        assert paths == [f"jobs/{job.job_id}-2.wav", f"jobs/{job.job_id}.wav"]

    async def test_result_for_a_deleted_voice_is_gone(self, world: World) -> None:
        voice = await world.voice()
        job = await world.claimed(voice=voice)
        await world.store.delete_voice(voice.voice_id, account_id=voice.account_id)

        assert await world.store.finish(job.job_id, 1, audio()) is FinishStatus.GONE
        assert not await world.store.heartbeat(job.job_id, 1, lease_s=15)
        assert await world.store.retry(job.job_id, 1, error="worker_lost", max_attempts=3) is None

    async def test_deletion_is_due_until_everything_is_purged(self, world: World) -> None:
        voice = await world.voice()
        paths = await world.store.delete_voice(voice.voice_id, account_id=voice.account_id)

        assert await world.store.list_unpurged() == [(voice.voice_id, paths)]
        await world.store.mark_purged(voice.voice_id)
        assert await world.store.list_unpurged() == []

    async def test_paths_are_known_while_a_row_names_them(self, world: World) -> None:
        voice = await world.voice()
        job = await world.claimed(voice=voice)
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

    async def test_a_thousand_paths_are_judged_at_once(self, world: World) -> None:
        ann = await world.caller()
        voices = [await world.voice(ann) for _ in range(3)]
        paths = [voice.ref_audio_key for voice in voices] + [f"voices/{number}/ref.wav" for number in range(1500)]

        assert await world.store.find_known_paths(paths) == set(paths[:3])
