"""Tests of several servers on one Postgres database."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import psycopg
import pytest
from sqlalchemy import Connection, event

from afterwords.errors import AfterwordsError, DatabaseUnavailableError
from afterwords.models import JobStatus
from afterwords.server.ports import Store
from afterwords.server.records import AttemptResult, Caller, ReapResult, StoredJob, StoredVoice, VoiceChanges
from afterwords.server.store import SqlStore, leases
from tests.contracts.store_world import MANY, ManualClock, World, audio, digest, request
from tests.postgres import Pooler, PostgresServer

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("long_deadlines")]
DEADLINE_S = 60
_DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
_OTHERS = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND backend_type = 'client backend'
"""


@pytest.fixture
async def second(shared_url: str, store: Store, clock: ManualClock, tmp_path: Path) -> AsyncIterator[World]:
    """Return a second server."""
    another = SqlStore(shared_url, clock=clock, folder=tmp_path)
    await another.open()
    yield World(another, clock)
    await another.close()


async def test_servers_share_one_clock(shared_url: str, tmp_path: Path) -> None:
    class WrongClock(ManualClock):
        def synchronize(self, monotonic: float) -> None:
            self.monotonic_s = monotonic

    clocks = [WrongClock(monotonic_s=0), WrongClock(monotonic_s=9e9)]
    for clock in clocks:
        store = SqlStore(shared_url, clock=clock, folder=tmp_path)
        await store.open()
        await store.close()

    assert 0 <= clocks[1].monotonic_s - clocks[0].monotonic_s < DEADLINE_S


async def test_server_whose_clock_lags_expires_no_lease(world: World, shared_url: str, tmp_path: Path) -> None:
    job = await world.add_claimed_job()
    slow = ManualClock(monotonic_s=world.clock.monotonic() - 10)
    store = SqlStore(shared_url, clock=slow, folder=tmp_path)
    await store.open()
    reaped = await store.reap(max_attempts=3)
    await store.close()

    assert not reaped.requeued
    assert (await world.reload(job)).attempt == 1
    assert await world.store.heartbeat(job.job_id, 1, lease_s=15)


async def test_locked_job_whose_lease_expired_is_not_failed(
    world: World, store: SqlStore, clock: ManualClock, shared_url: str
) -> None:
    """A writer may unlock it after the reaper has skipped it, and before the reaper fails others."""
    job = await world.add_claimed_job()
    clock.advance(60)
    with psycopg.connect(shared_url) as writer:
        writer.execute("SELECT 1 FROM jobs FOR KEY SHARE")

        def reap(connection: Connection) -> ReapResult:
            event.listen(connection, "after_cursor_execute", lambda *_: writer.commit())
            return leases.reap(connection, max_attempts=3, now=clock.now(), monotonic=clock.monotonic())

        reaped = await store.database.write(reap)

    assert reaped == ReapResult()
    assert (await world.reload(job)).status is JobStatus.PENDING
    assert (await store.reap(max_attempts=3)).requeued == (job.job_id,)


async def test_clock_of_a_server_follows_the_database(shared_url: str, tmp_path: Path) -> None:
    """A suspended machine, for example, does not count the time."""

    class SlowClock(ManualClock):
        def synchronize(self, monotonic: float) -> None:
            self.monotonic_s = monotonic

    clock = SlowClock()
    store = SqlStore(shared_url, clock=clock, folder=tmp_path)
    await store.open()
    right = clock.monotonic_s
    clock.monotonic_s -= 3600
    await store.reap(max_attempts=3)
    await store.close()

    assert 0 <= clock.monotonic_s - right < DEADLINE_S


async def test_servers_are_counted_until_they_leave_or_die(world: World, second: World, clock: ManualClock) -> None:
    assert await world.store.announce() == 1
    assert await second.store.announce() == 2
    for _ in range(5):
        clock.advance(6)
        await world.store.reap(max_attempts=3)  # the second server is dead: it renews nothing
    assert await second.store.announce() == 2
    await second.store.close()
    assert await world.store.announce() == 1 + 1  # the row of the first announcement is still renewed


async def test_repeated_request_to_another_server_is_the_same_job(world: World, second: World) -> None:
    ann = await world.caller()
    voice = await world.add_voice(ann)
    servers = [world, second] * 10
    made = await asyncio.gather(
        *[server.store.submit(server.new_job(ann, voice), limits=MANY, idempotency=request(ann)) for server in servers]
    )

    assert len({submitted.job.job_id for submitted in made}) == 1
    assert sum(submitted.is_new for submitted in made) == 1


async def test_same_text_at_two_servers_is_one_job(world: World, second: World) -> None:
    ann = await world.caller()
    voice = await world.add_voice(ann)
    same = {"flight_key": digest("same").hex()}
    made = await asyncio.gather(
        *[server.store.submit(server.new_job(ann, voice, **same), limits=MANY) for server in [world, second] * 10]
    )

    assert len({submitted.job.job_id for submitted in made}) == 1
    assert await second.characters_used() == made[0].job.char_count


async def test_limit_of_a_key_is_exact_across_servers(world: World, second: World) -> None:
    ann = await world.caller(character_limit=260)
    voice = await world.add_voice(ann)
    many = [server.store.submit(server.new_job(ann, voice), limits=MANY) for server in [world, second] * 20]
    ends = await asyncio.gather(*many, return_exceptions=True)

    assert sum(not isinstance(end, BaseException) for end in ends) == 10
    assert await world.characters_used() == 260


async def test_job_failing_while_its_voice_is_deleted_is_refunded_once(
    world: World, second: World, shared_url: str
) -> None:
    ann = await world.caller()
    voice = await world.add_voice(ann)
    kept = await world.add_job(ann)
    await world.add_job(ann, voice)
    claim = await world.store.claim(backends=["tone"], lease_s=15, worker="w1", skip_voices=[kept.voice_id])
    assert claim is not None
    with psycopg.connect(shared_url, autocommit=True) as rows:
        rows.execute("BEGIN")
        rows.execute("SELECT 1 FROM usage FOR UPDATE")
        failing = asyncio.create_task(world.store.retry(claim.job.job_id, 1, error="worker_lost", max_attempts=1))
        await _wait_for_locks(rows, 1)
        deleting = asyncio.create_task(second.store.delete_voice(voice.voice_id, account_id=ann.account_id))
        await _wait_for_locks(rows, 2)
        rows.execute("COMMIT")
    await asyncio.gather(failing, deleting)

    assert await world.characters_used() == kept.char_count


async def test_claim_of_webhooks_waits_for_no_lock(world: World, shared_url: str) -> None:
    """A voice that is deleted locks its webhooks in another order."""
    ann = await world.caller()
    voice = await world.add_voice(ann)
    for _ in range(2):
        job = await world.add_job(ann, voice, webhook_url="https://example.org/")
        await world.store.cancel(job.job_id, account_id=ann.account_id)
    with psycopg.connect(shared_url) as deleting:
        deleting.execute("SELECT 1 FROM webhooks WHERE job_id = %s FOR UPDATE", [job.job_id])
        claimed = await world.store.claim_webhooks(limit=9)
        assert [call.job.job_id for call in claimed if call.job.job_id == job.job_id] == []
        assert len(claimed) == 1
        deleting.rollback()
    assert [call.job.job_id for call in await world.store.claim_webhooks(limit=9)] == [job.job_id]


async def _wait_for_locks(rows: psycopg.Connection[tuple[int]], n_waiting: int) -> None:
    """Wait until other transactions wait for locks."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(DEADLINE_S):
        while rows.execute(waiting).fetchone() != (n_waiting,):
            await asyncio.sleep(0.02)


async def test_servers_never_claim_the_same_job(world: World, second: World) -> None:
    ann = await world.caller()
    voice = await world.add_voice(ann)
    made = {(await world.add_job(ann, voice)).job_id for _ in range(40)}
    claims = await asyncio.gather(*[server.claim() for server in [world, second] * 30])

    claimed = [claim.job.job_id for claim in claims if claim]
    assert sorted(claimed) == sorted(made)


async def test_server_is_woken_by_a_job_and_by_its_end(world: World, second: World) -> None:
    waiting, final = asyncio.Event(), asyncio.Queue[str]()
    second.store.subscribe(on_waiting=waiting.set, on_final=final.put_nowait)
    ann = await world.caller()
    voice = await world.add_voice(ann)
    async with asyncio.timeout(DEADLINE_S):
        while not waiting.is_set():  # the first messages may be sent before the second server listens
            await world.add_job(ann, voice)
            await asyncio.sleep(0.05)
        claim = await second.claim()
        assert claim is not None
        assert final.empty()
        await second.store.finish(claim.job.job_id, 1, audio())
        await world.add_job(ann, voice)
        other = await world.claim()
        assert other is not None
        await world.store.finish(other.job.job_id, 1, audio("jobs/two.wav"))
        assert await final.get() == other.job.job_id, "a server receives no message of its own"


async def test_refused_message_does_not_end_the_sending(
    world: World, second: World, caplog: pytest.LogCaptureFixture
) -> None:
    received = asyncio.Queue[str]()
    second.store.subscribe(on_waiting=lambda: None, on_final=received.put_nowait)
    sender = cast(SqlStore, world.store).database
    sender.notify(9000 * "x")  # Postgres refuses more than 8,000 bytes
    async with asyncio.timeout(DEADLINE_S):
        while received.empty():
            sender.notify("a job")
            await asyncio.sleep(0.05)
    assert await received.get() == "a job"
    assert "other servers are not notified" in caplog.text


async def test_server_listens_again_after_its_connection_broke(world: World, second: World, shared_url: str) -> None:
    waiting = asyncio.Event()
    second.store.subscribe(on_waiting=waiting.set, on_final=lambda _: None)
    ann = await world.caller()
    voice = await world.add_voice(ann)
    for _ in range(2):
        waiting.clear()
        async with asyncio.timeout(DEADLINE_S):
            while not waiting.is_set():
                await world.add_job(ann, voice)
                await asyncio.sleep(0.05)
        with psycopg.connect(shared_url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")


async def test_server_behind_a_pooler_does_not_listen(
    postgres: PostgresServer, shared_url: str, world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pooler = Pooler(postgres)
    store = SqlStore(pooler.url(shared_url.rpartition("/")[2]), clock=world.clock, folder=tmp_path)
    await store.open()
    with caplog.at_level("INFO", "afterwords.server"):
        store.subscribe(on_waiting=lambda: None, on_final=lambda _: None)
        async with asyncio.timeout(DEADLINE_S):
            while "a pooler is in front of Postgres" not in caplog.text:
                await asyncio.sleep(0.02)
    await store.close()
    pooler.close()


async def test_random_writes_never_deadlock_and_add_up(url: str, clock: ManualClock, tmp_path: Path) -> None:
    """Every kind of write at once, on two servers and few rows; then usage and stored bytes equal their rows."""
    chance = random.Random(7)
    world, second = (World(SqlStore(url, clock=clock, folder=tmp_path), clock) for _ in range(2))
    await world.store.open()
    await second.store.open()
    callers = [await world.caller(name) for name in ("ann", "bob", "eve")]
    voices = [await world.add_voice(caller) for caller in callers for _ in range(2)]
    made_jobs: list[StoredJob] = []
    seen: set[JobStatus] = set()

    async def submit(server: World, caller: Caller, voice: StoredVoice) -> None:
        flight = {"flight_key": digest(str(chance.randrange(20))).hex(), "webhook_url": "https://example.org/"}
        job = server.new_job(caller, voice, cache_key=digest(str(chance.randrange(4))).hex(), **flight)
        made = await server.store.submit(job, limits=MANY, idempotency=request(caller, key=str(chance.random())))
        made_jobs.append(made.job)

    async def work(server: World) -> None:
        if claim := await server.claim():
            path = f"jobs/{claim.job.job_id}.wav"
            result = audio(path) if chance.random() < 0.7 else AttemptResult(error="synthesis_failed")
            await server.store.heartbeat(claim.job.job_id, claim.job.attempt, lease_s=15)
            await server.store.finish(claim.job.job_id, claim.job.attempt, result)

    async def one(server: World) -> None:
        number = chance.randrange(len(voices))
        voice = voices[number]
        caller = next(caller for caller in callers if caller.account_id == voice.account_id)
        kind = chance.randrange(12)
        if kind < 4:
            await submit(server, caller, voice)
        elif kind < 8:
            await work(server)
        elif kind == 8 and made_jobs:
            job = made_jobs[-1]
            if cancelled := await server.store.cancel(job.job_id, account_id=job.account_id):
                seen.add(cancelled.status)
        elif kind == 9:
            await server.store.update_voice(
                voice.voice_id, VoiceChanges(ref_text=str(chance.random())), account_id=caller.account_id
            )
        elif kind == 10:
            await server.store.delete_voice(voice.voice_id, account_id=caller.account_id)
            voices[number] = await server.add_voice(caller)
        else:
            await server.store.claim_webhooks(limit=9)
            await server.store.mark_keys_used([caller.key_id for caller in callers])
            if made_jobs:
                await server.store.mark_audio_lost(chance.choice(made_jobs).job_id)

    async def many(server: World) -> None:
        for _ in range(40):
            try:
                await one(server)
            except DatabaseUnavailableError:
                raise
            except AfterwordsError:
                pass  # a voice was deleted meanwhile

    await asyncio.gather(*[many(server) for server in [world, second] * 4])
    world.clock.advance(60)
    await asyncio.gather(*[server.store.reap(max_attempts=1) for server in [world, second] * 2])

    final = [await world.store.get_job(job.job_id) for job in made_jobs]
    seen |= {job.status for job in final if job}
    assert {JobStatus.READY, JobStatus.FAILED, JobStatus.CANCELLED} <= seen
    kept = "SELECT coalesce(sum(char_count), 0) FROM jobs WHERE account_id = %s AND status IN ('pending', 'ready')"
    stored = "SELECT stored_bytes FROM accounts WHERE account_id = %s"
    with psycopg.connect(url, autocommit=True) as rows:
        for account in await world.store.list_accounts():
            assert rows.execute(stored, [account.account_id]).fetchone() == (account.storage_bytes,)
            assert (account.characters,) >= (rows.execute(kept, [account.account_id]).fetchone() or ())
        await world.store.close()
        await second.store.close()
        async with asyncio.timeout(DEADLINE_S):  # connections report their deadlocks when they end
            while rows.execute(_OTHERS).fetchone() != (0,):
                await asyncio.sleep(0.02)
        assert rows.execute(_DEADLOCKS).fetchone() == (0,)
