"""Tests of the storage quota: stored bytes are exact, and no account exceeds its quota."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from afterwords.errors import QuotaExceededError
from afterwords.server.records import AttemptResult, Caller, FinishStatus, Quota, StoredJob, VoiceChanges
from afterwords.server.settings import Plan
from afterwords.server.store import SqlStore
from afterwords.server.store.usage import characters_exceeded, period_of
from tests.contracts.store_world import MANY, START, ManualClock, World, digest
from tests.error_codes import has_code
from tests.server.store.second_process import NAME

pytestmark = pytest.mark.anyio

REFERENCE_BYTES = round(12.5 * 24_000) * 2
AUDIO_BYTES = 100_000
QUOTA_BYTES = 3 * REFERENCE_BYTES


@pytest.fixture
async def world(folder: Path, clock: ManualClock) -> AsyncIterator[World]:
    store = SqlStore(f"sqlite:///{NAME}", clock=clock, folder=folder, storage_quota_bytes=QUOTA_BYTES)
    await store.open()
    yield World(store, clock)
    await store.close()


async def finish(world: World, job: StoredJob, size_bytes: int = AUDIO_BYTES) -> FinishStatus:
    path = f"jobs/{job.job_id}.wav"
    return await world.store.finish(job.job_id, 1, AttemptResult(path, digest(path).hex(), size_bytes, 5))


def counted(folder: Path) -> dict[str, int]:
    with closing(sqlite3.connect(folder / NAME)) as database:
        return dict(database.execute("SELECT account_id, stored_bytes FROM accounts"))


async def stored(world: World, folder: Path, caller: Caller) -> int:
    """Return the stored bytes of an account, which must be the sum of its rows."""
    [account] = [found for found in await world.store.list_accounts() if found.account_id == caller.account_id]
    assert counted(folder)[caller.account_id] == account.storage_bytes
    return account.storage_bytes


async def test_stored_bytes_follow_every_change(world: World, folder: Path) -> None:
    ann, bob = await world.caller("ann"), await world.caller("bob")
    other = await world.add_voice(bob)
    voice = await world.add_voice(ann)
    assert await stored(world, folder, ann) == REFERENCE_BYTES
    first = await world.add_claimed_job(
        caller=ann, voice=voice, cache_key=digest("same").hex(), flight_key=digest("1").hex()
    )
    second = await world.add_claimed_job(
        caller=ann, voice=voice, cache_key=digest("same").hex(), flight_key=digest("2").hex()
    )
    assert [await finish(world, first), await finish(world, second, 7)] == [FinishStatus.DONE, FinishStatus.DONE]
    assert await stored(world, folder, ann) == REFERENCE_BYTES + AUDIO_BYTES + 7 + 7  # the cache has the second
    await world.store.mark_audio_lost(second.job_id)
    await stored(world, folder, ann)
    entry = await world.store.get_cached(voice.voice_id, digest("same").hex())
    assert entry
    await world.store.delete_cached(entry)
    await stored(world, folder, ann)
    third = await world.add_claimed_job(caller=ann, voice=voice)
    await finish(world, third)
    await world.store.update_voice(voice.voice_id, VoiceChanges(ref_text="another"), account_id=ann.account_id)
    await stored(world, folder, ann)
    fourth = await world.add_claimed_job(caller=ann, voice=voice)
    await finish(world, fourth)
    assert await stored(world, folder, ann) > REFERENCE_BYTES
    await world.store.delete_voice(voice.voice_id, account_id=ann.account_id)
    assert await stored(world, folder, ann) == 0
    assert await stored(world, folder, bob) == REFERENCE_BYTES
    assert other.account_id == bob.account_id


async def test_concurrent_uploads_stop_at_the_quota(world: World, folder: Path) -> None:
    ann = await world.caller("ann")
    made = await asyncio.gather(*[world.add_voice(ann) for _ in range(10)], return_exceptions=True)
    voices = [voice for voice in made if not isinstance(voice, BaseException)]
    refused = [error for error in made if isinstance(error, QuotaExceededError)]
    assert (len(voices), len(refused)) == (3, 7)
    assert await stored(world, folder, ann) == QUOTA_BYTES
    with pytest.raises(QuotaExceededError, match="may store", check=has_code("storage_quota_exceeded")):
        await world.store.submit(world.new_job(ann, voices[0]), limits=MANY)
    await world.add_voice(await world.caller("bob"))

    await world.store.delete_voice(voices[1].voice_id, account_id=ann.account_id)
    await world.store.submit(world.new_job(ann, voices[0]), limits=MANY)
    await world.add_voice(ann)


async def test_audio_over_the_quota_changes_nothing(world: World, folder: Path) -> None:
    ann = await world.caller("ann")
    job = await world.add_claimed_job(caller=ann, webhook_url="https://example.org/")
    with pytest.raises(QuotaExceededError, check=has_code("storage_quota_exceeded")):
        await finish(world, job, QUOTA_BYTES)
    assert await world.reload(job) == job
    assert await world.store.claim_webhooks(limit=9) == []
    assert await stored(world, folder, ann) == REFERENCE_BYTES
    assert await world.store.finish(job.job_id, 1, AttemptResult(error="storage_quota_exceeded")) is FinishStatus.DONE


async def test_migrations_keep_and_count_existing_rows(world: World, folder: Path, clock: ManualClock) -> None:
    ann = await world.caller("ann")
    job = await world.add_claimed_job(caller=ann)
    await finish(world, job)
    before = await stored(world, folder, ann)
    await world.store.close()
    with closing(sqlite3.connect(folder / NAME)) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        database.executescript(
            """
            ALTER TABLE accounts DROP COLUMN stored_bytes;
            ALTER TABLE accounts ADD COLUMN turn BIGINT NOT NULL DEFAULT 0;
            CREATE INDEX ix_accounts_turn ON accounts (turn);
            DROP TABLE turns;
            DROP TABLE servers;
            DROP TABLE worker_tokens;
            DROP TABLE audit;
            DROP TABLE consents;
            DROP TABLE customers;
            ALTER TABLE jobs DROP COLUMN traceparent;
            ALTER TABLE jobs DROP COLUMN timestamps;
            ALTER TABLE jobs DROP COLUMN timing;
            ALTER TABLE jobs DROP COLUMN sample_rate;
            ALTER TABLE jobs DROP COLUMN verify;
            ALTER TABLE jobs DROP COLUMN verification;
            ALTER TABLE jobs DROP COLUMN reading;
            ALTER TABLE jobs DROP COLUMN keeps_timing;
            DROP INDEX ix_voices_account_id_name;
            DROP TABLE preparations;
            ALTER TABLE server DROP COLUMN reconciled_at;
            ALTER TABLE accounts DROP COLUMN plan;
            ALTER TABLE accounts DROP COLUMN period_start;
            ALTER TABLE accounts DROP COLUMN period_end;
            ALTER TABLE accounts DROP COLUMN suspended_at;
            ALTER TABLE accounts DROP COLUMN closed_at;
            DROP TABLE checkouts;
            DROP TABLE stripe_events;
            DROP TABLE meter_batches;
            DROP TABLE aliases;
            CREATE TABLE old_usage (
                spending_id VARCHAR(36) NOT NULL,
                period VARCHAR(7) NOT NULL,
                account_id VARCHAR(36) NOT NULL,
                characters BIGINT NOT NULL,
                CONSTRAINT pk_usage PRIMARY KEY (spending_id, period)
            );
            INSERT INTO old_usage SELECT spending_id, period, account_id, characters FROM usage;
            DROP TABLE usage;
            ALTER TABLE old_usage RENAME TO usage;
            CREATE INDEX ix_usage_account_id_period ON usage (account_id, period);
            """
        )
        database.execute("UPDATE alembic_version SET version_num = '0005'")
        database.commit()

    again = SqlStore(f"sqlite:///{NAME}", clock=clock, folder=folder)
    await again.open()
    assert counted(folder) == {ann.account_id: before}
    with closing(sqlite3.connect(folder / NAME)) as database:
        [usage] = database.execute("SELECT period, day, characters FROM usage")
    assert usage == ("2026-01", "2026-01-01", job.char_count)
    assert (await again.get_usage(ann)).characters == job.char_count
    await again.close()
    await world.store.open()


@pytest.mark.parametrize(("sold", "names_larger"), [(200, True), (100, False), (None, True)])
def test_refusal_names_a_larger_plan_if_one_is_sold(sold: int | None, names_larger: bool) -> None:
    error = characters_exceeded(
        Quota(120, 100),
        50,
        plan_name="small",
        is_known=True,
        period=period_of(None, None, now=START),
        plans={"sold": Plan(characters=sold, price_id="price_1"), "internal": Plan(characters=10**9)},
        account_url="https://voice.example.com/v1/account",
        now=START,
    )
    assert "the period ends on 2026-02-01" in str(error)
    assert ("a larger plan is at" in str(error)) is names_larger
