"""Tests of `afterwords db`: copies between SQLite and Postgres, checks, and backups of Postgres."""

from __future__ import annotations

import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path

import pytest

from afterwords.errors import FileError, ServerSetupError
from afterwords.models import new_id
from afterwords.server import load_settings
from afterwords.server.backup import back_up, restore
from afterwords.server.clock import SystemClock
from afterwords.server.databases import check, copy, migrate
from afterwords.server.records import StoredConsent
from afterwords.server.store import SqlStore
from afterwords.server.store.migrate import HEAD
from tests.cli.program import run
from tests.contracts.store_world import MANY, ManualClock, World, audio, digest, request
from tests.error_codes import has_code
from tests.postgres import PASSWORD, PostgresServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    """Return the URL of an empty Postgres database."""
    return postgres.url(postgres.create_database())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.db"


def world_at(url: str) -> World:
    return World(SqlStore(url, clock=ManualClock(), folder=Path()), ManualClock())


async def fill(world: World) -> None:
    """Add rows to every table that a client can fill."""
    await world.store.open()
    ann, bob = await world.caller("ann", character_limit=1000), await world.caller("bob")
    voice, other = await world.add_voice(ann, ref_text="Grüße, 東京 🌅"), await world.add_voice(bob)
    for number in range(3):
        job = await world.add_claimed_job(caller=ann, voice=voice, webhook_url="https://example.org/")
        await world.store.finish(job.job_id, 1, audio(f"jobs/{number}.wav"))
    await world.store.submit(world.new_job(bob, other), limits=MANY, idempotency=request(bob))
    consent = StoredConsent(new_id(), ann.account_id, "Ann", "en", 64 * "0", world.clock.now())
    await world.store.add_consent(consent, b"\0\xff RIFF" * 1000)
    gone = await world.add_voice(bob)
    await world.store.delete_voice(gone.voice_id, account_id=bob.account_id)
    await world.store.add_mark("0" * 32)
    await world.store.find_strays(["jobs/unknown.wav"], grace_s=60)
    await world.store.close()


def rows_of(file: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(file)) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            name: sorted(database.execute(f"SELECT * FROM {name}").fetchall(), key=repr)
            for name in names
            if name not in ("servers", "sqlite_sequence")
        }


async def test_copy_to_postgres_and_back_has_equal_rows(url: str, file: Path, tmp_path: Path) -> None:
    await fill(world_at(f"sqlite:///{file}"))
    back = tmp_path / "back.db"

    there = await copy(f"sqlite:///{file}", url)
    assert there == await copy(url, f"sqlite:///{back}")

    assert rows_of(back) == rows_of(file)
    assert (there["voices"], there["jobs"], there["keys"], there["tombstones"]) == (2, 4, 2, 1)
    for place in (url, f"sqlite:///{back}"):  # a copy goes on: sequences, counters and secret are those of the source
        world = world_at(place)
        await world.store.open()
        ann = await world.caller("ann")
        newest = await world.add_job(ann, (await world.store.find_voices("me", account_id=ann.account_id))[0])
        listed = await world.store.list_jobs(account_id=ann.account_id, status=None, limit=None, after=None)
        assert listed[0].job_id == newest.job_id
        assert len(listed) == 4
        [account] = [one for one in await world.store.list_accounts() if one.account_id == ann.account_id]
        await world.add_voice(ann, ref_duration_s=0.0)
        assert account.storage_bytes > 0
        await world.store.close()


async def test_copy_holds_few_recordings_at_once(file: Path, tmp_path: Path) -> None:
    world = world_at(f"sqlite:///{file}")
    await world.store.open()
    recording = bytes(500_000)
    for owner in range(3):
        account_id = (await world.caller(f"{owner}")).account_id
        for _ in range(20):
            consent = StoredConsent(new_id(), account_id, "me", "en", 64 * "0", world.clock.now())
            await world.store.add_consent(consent, recording)
    await world.store.close()
    tracemalloc.start()
    try:
        counts = await copy(f"sqlite:///{file}", f"sqlite:///{tmp_path / 'copy.db'}")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert counts["consents"] == 60
    assert peak_bytes < 20 * len(recording)


async def test_copy_refuses_what_has_rows_or_is_in_use(url: str, file: Path, tmp_path: Path) -> None:
    source = f"sqlite:///{file}"
    with pytest.raises(FileError):
        await copy(source, url)
    await fill(world_at(source))
    before = rows_of(file)
    await fill(world_at(url))
    with pytest.raises(ServerSetupError, check=has_code("server_not_empty")):
        await copy(source, url)
    with pytest.raises(ServerSetupError, check=has_code("server_not_empty")):
        await copy(url, source)
    assert rows_of(file) == before

    for place in (source, url):
        running = SqlStore(place, clock=SystemClock(), folder=tmp_path)
        await running.open()
        await running.announce()
        with pytest.raises(ServerSetupError, check=has_code("server_running")):
            await copy(place, f"sqlite:///{tmp_path / 'new.db'}")
        await running.close()


async def test_copy_refuses_another_schema(url: str, file: Path, postgres: PostgresServer) -> None:
    world = world_at(url)
    await world.store.open()
    await world.store.close()
    for version, code in (("0001", "older_database"), ("9999", "newer_database")):
        postgres.execute(f"UPDATE alembic_version SET version_num = '{version}'", url.rpartition("/")[2])
        with pytest.raises(ServerSetupError, check=has_code(code)):
            await copy(url, f"sqlite:///{file}")
    assert not file.exists()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_check_changes_nothing_and_migrate_reports(kind: str, tmp_path: Path, url: str) -> None:
    settings = load_settings(home=tmp_path, database_url=url if kind == "postgres" else None)
    if kind == "postgres":
        assert (await check(settings)).version is None
    else:
        with pytest.raises(FileError):
            await check(settings)
        assert not settings.folder.exists()

    assert (await migrate(settings)).version is None
    assert (await migrate(settings)).version == HEAD

    state = await check(settings)
    assert state.is_current
    assert state.problems == ()
    assert state.counts is not None
    assert set(state.counts.values()) == {0}


async def test_check_finds_rows_without_what_they_refer_to(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path)
    await fill(World(SqlStore("sqlite:///afterwords.db", clock=ManualClock(), folder=settings.folder), ManualClock()))
    with closing(sqlite3.connect(settings.folder / "afterwords.db")) as database, database:
        database.execute("DELETE FROM voices")

    assert any("voices" in problem for problem in (await check(settings)).problems)


async def test_backup_of_postgres_is_restored_into_either(url: str, postgres: PostgresServer, tmp_path: Path) -> None:
    shared = {"storage_url": str(tmp_path / "storage")}
    here = load_settings(home=tmp_path / "here", database_url=url, **shared)
    world = world_at(url)
    await world.store.open()
    ann = await world.caller("ann")
    await world.add_job(ann, await world.add_voice(ann))
    await world.store.close()

    saved = await back_up(here, tmp_path / "server.tar")
    other = postgres.url(postgres.create_database())
    for place in (other, f"sqlite:///{tmp_path / 'restored.db'}"):
        there = load_settings(home=tmp_path / "there", database_url=place, storage_url=str(tmp_path / "new"))
        done = await restore(there, tmp_path / "server.tar", replace=True)
        assert (done.n_voices, saved.n_voices) == (1, 1)
        restored = world_at(place)
        await restored.store.open()
        assert await restored.store.find_caller(digest("ann")) == ann
        assert len(await restored.store.list_voices(account_id=ann.account_id, limit=None, after=None)) == 1
        await restored.store.close()
    with pytest.raises(ServerSetupError, check=has_code("server_not_empty")):
        await restore(load_settings(home=tmp_path, database_url=other, **shared), tmp_path / "server.tar")


def test_commands_say_what_they_did(url: str, tmp_path: Path) -> None:
    environment = {"AFTERWORDS_DATABASE_URL": url}
    needed = run("db", "check", env=environment)
    assert (needed.code, needed.out) == (1, "schema none\n")
    assert "afterwords db migrate" in needed.err
    assert f"Created the schema {HEAD}." in run("db", "migrate", env=environment).err
    checked = run("db", "check", env=environment)
    assert (checked.code, checked.out.splitlines()[0]) == (0, f"schema {HEAD}")
    copied = run("db", "copy", url, f"sqlite:///{tmp_path / 'copy.db'}")
    assert copied.code == 0
    assert "Copied 0 rows" in copied.err
    assert PASSWORD not in needed.err + checked.err + copied.err
    run("db", "copy", "nonsense", url).expect_error(5, "invalid_option")
