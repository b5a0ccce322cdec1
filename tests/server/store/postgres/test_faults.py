"""Tests of a Postgres that stops, freezes, locks or refuses: unavailable within 2 s, and recovered by itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, text

from afterwords.errors import DatabaseUnavailableError, StorageFullError
from afterwords.server.clock import SystemClock
from afterwords.server.ports import Store
from afterwords.server.store import SqlStore
from afterwords.server.store.postgres.database import PostgresDatabase
from afterwords.server.store.store import parse_url
from tests.contracts.store_world import MANY, TEXT, ManualClock, World, digest, request
from tests.postgres import Pooler, PostgresServer, running_postgres

pytestmark = pytest.mark.anyio
DEADLINE_S = 60


@pytest.fixture(scope="module")
def fragile() -> Iterator[PostgresServer]:
    """Run a server that the tests stop."""
    with running_postgres() as server:
        yield server


@pytest.fixture
async def own_store(fragile: PostgresServer, tmp_path: Path) -> AsyncIterator[Store]:
    store = SqlStore(fragile.url(fragile.create_database()), clock=SystemClock(), folder=tmp_path)
    await store.open()
    yield store
    await store.close()


@pytest.fixture
def own(own_store: Store) -> World:
    return World(own_store, ManualClock())


async def refusal(work: Awaitable[object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(DatabaseUnavailableError):
            await work


async def succeed(store: Store) -> None:
    """Wait until the store has recovered."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                return await store.check()
            except DatabaseUnavailableError:
                await asyncio.sleep(0.05)


async def test_stopped_server_is_unavailable_until_it_is_back(own: World, fragile: PostgresServer) -> None:
    ann = await own.caller()
    voice = await own.add_voice(ann)
    fragile.stop()
    for _ in range(2):
        await asyncio.gather(
            refusal(own.store.find_caller(digest("ann"))),
            refusal(own.store.list_keys(account_id=None)),
            refusal(own.add_job(ann, voice)),
            refusal(own.store.check()),
        )
    fragile.start()

    await succeed(own.store)
    await own.add_job(ann, voice)
    assert await own.characters_used() == len(TEXT)


async def test_restart_between_requests_is_not_noticed(own: World, fragile: PostgresServer) -> None:
    ann = await own.caller()
    voice = await own.add_voice(ann)
    await asyncio.gather(*[own.store.find_caller(digest("ann")) for _ in range(8)])  # fills the pool
    fragile.stop()
    fragile.start()

    assert await own.store.find_caller(digest("ann")) == ann
    await own.add_job(ann, voice)


async def test_write_to_a_frozen_server_never_runs(own: World, fragile: PostgresServer) -> None:
    ann = await own.caller()
    voice = await own.add_voice(ann)
    fragile.freeze()
    try:
        await asyncio.gather(
            *[refusal(own.store.submit(own.new_job(ann, voice), limits=MANY)) for _ in range(20)],
            refusal(own.store.find_caller(digest("ann"))),
            refusal(own.store.list_keys(account_id=None)),
        )
    finally:
        fragile.thaw()

    await succeed(own.store)
    kept = await own.add_job(ann, voice)
    assert await own.store.list_jobs(account_id=ann.account_id, status=None, limit=None, after=None) == [kept]


async def test_locked_account_does_not_delay_another(world: World, postgres: PostgresServer, shared_url: str) -> None:
    ann, bob = await world.caller("ann"), await world.caller("bob")
    hers, his = await world.add_voice(ann), await world.add_voice(bob)
    with psycopg.connect(shared_url) as other:
        other.execute("SELECT 1 FROM accounts WHERE account_id = %s FOR UPDATE", [ann.account_id])
        refused = asyncio.create_task(refusal(world.store.submit(world.new_job(ann, hers), limits=MANY)))
        await world.add_job(bob, his)
        await refused

    kept = await world.add_job(ann, hers)
    assert await world.store.list_jobs(account_id=ann.account_id, status=None, limit=None, after=None) == [kept]


async def test_answer_lost_during_commit_makes_no_second_job(
    postgres: PostgresServer, shared_url: str, world: World, tmp_path: Path
) -> None:
    pooler = Pooler(postgres)
    store = SqlStore(pooler.url(shared_url.rpartition("/")[2]), clock=world.clock, folder=tmp_path)
    await store.open()
    ann = await world.caller()
    voice = await world.add_voice(ann)
    asked = request(ann)

    pooler.cut_answer_to(b"COMMIT")
    await refusal(store.submit(world.new_job(ann, voice), limits=MANY, idempotency=asked))
    again = await store.submit(world.new_job(ann, voice), limits=MANY, idempotency=asked)

    assert not again.is_new
    assert await world.characters_used() == len(TEXT)
    await store.close()
    pooler.close()


async def test_store_works_behind_a_pooler(postgres: PostgresServer, shared_url: str, tmp_path: Path) -> None:
    pooler = Pooler(postgres)
    database = PostgresDatabase(parse_url(pooler.url(shared_url.rpartition("/")[2])))
    await database.open()

    def prepared(connection: Connection) -> list[object]:
        for _ in range(20):
            connection.execute(text("SELECT version_num FROM alembic_version")).all()
        return list(connection.execute(text("SELECT name FROM pg_prepared_statements")).scalars())

    assert await database.read(prepared) == []
    limits = await database.write(lambda connection: connection.execute(text("SHOW statement_timeout")).scalar())
    assert limits == "1500ms"
    await database.close()
    pooler.close()


@pytest.mark.parametrize(("state", "kind"), [("53100", StorageFullError), ("25006", DatabaseUnavailableError)])
async def test_full_disk_and_standby_have_errors_of_their_own(
    shared_url: str, world: World, state: str, kind: type[Exception]
) -> None:
    """The database raises them by itself; a trigger stands in for the disk and the standby."""
    ann = await world.caller()
    voice = await world.add_voice(ann)
    body = f"BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{state}'; END"
    with psycopg.connect(shared_url, autocommit=True) as other:
        other.execute(f"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $${body}$$".encode())
        other.execute("CREATE TRIGGER refuse BEFORE INSERT ON jobs FOR EACH ROW EXECUTE FUNCTION refuse()")
        try:
            with pytest.raises(kind):
                await world.store.submit(world.new_job(ann, voice), limits=MANY)
            assert await world.store.get_voice(voice.voice_id, account_id=ann.account_id) == voice
        finally:
            other.execute("DROP FUNCTION refuse CASCADE")

    await world.add_job(ann, voice)
    assert await world.characters_used() == len(TEXT)


@pytest.mark.usefixtures("long_deadlines")
async def test_deadlocked_write_is_repeated(shared_url: str, world: World) -> None:
    ann, bob = await world.caller("ann"), await world.caller("bob")
    database = PostgresDatabase(parse_url(shared_url))
    await database.open()
    met = threading.Barrier(2)

    def mark(connection: Connection, first: str, second: str, tries: list[int]) -> None:
        tries.append(1)
        for account_id in (first, second):
            statement = "UPDATE accounts SET stored_bytes = stored_bytes + 1 WHERE account_id = :id"
            connection.execute(text(statement), {"id": account_id})
            if account_id == first and len(tries) == 1:
                met.wait(DEADLINE_S)

    tries: tuple[list[int], list[int]] = [], []
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(
            database.write(mark, ann.account_id, bob.account_id, tries[0]),
            database.write(mark, bob.account_id, ann.account_id, tries[1]),
        )
    stored = await database.read(lambda rows: rows.execute(text("SELECT stored_bytes FROM accounts")).scalars().all())
    await database.close()

    assert list(stored) == [2, 2]
    assert len(tries[0]) + len(tries[1]) > 2


async def test_replaced_database_is_unavailable(own: World, own_store: Store, fragile: PostgresServer) -> None:
    [(name,)] = fragile.execute("SELECT datname FROM pg_database WHERE datname LIKE 'test_%' ORDER BY oid DESC LIMIT 1")
    await own.caller()
    fragile.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await refusal(own_store.check())

    fragile.execute(f"CREATE DATABASE {name}")
    other = SqlStore(fragile.url(str(name)), clock=SystemClock(), folder=Path())
    await other.open()

    await refusal(own_store.find_caller(digest("ann")))
    await refusal(own_store.check())
    await other.check()
    await other.close()
