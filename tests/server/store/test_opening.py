"""Tests of opening a database: one process migrates the schema, once."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine

from afterwords.errors import ServerSetupError
from afterwords.server import load_settings
from afterwords.server.app_state import open_storage, open_store
from afterwords.server.store.migrate import HEAD, MIGRATIONS
from afterwords.server.store.schema import metadata
from tests.contracts.store_world import digest
from tests.error_codes import has_code
from tests.server.store.second_process import NAME, second_process, store_in


@pytest.mark.anyio
async def test_database_is_new_only_once(folder: Path) -> None:
    store = store_in(folder)

    assert await store.open()
    secret = await store.secret()
    await store.close()
    assert not await store.open()
    assert await store.secret() == secret
    await store.close()


def test_four_processes_create_one_database(folder: Path) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(second_process("open", folder)) for _ in range(4)]
        assert {process.line() for process in processes} == {"ready"}
        for process in processes:
            process.go_on()
        said = [process.end().split() for process in processes]

    assert sorted(is_new for is_new, _ in said) == ["False"] * 3 + ["True"]
    assert len({secret for _, secret in said}) == 1


@pytest.mark.anyio
async def test_schema_equals_the_result_of_the_migrations(folder: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    store = store_in(folder)
    await store.open()
    await store.close()
    with create_engine(f"sqlite:///{folder / NAME}").connect() as new:
        wanted = ddl(new.connection.dbapi_connection)
    with create_engine("sqlite://").connect() as migrated:
        migrate(migrated, "head")
        assert compare_metadata(MigrationContext.configure(migrated), metadata) == []
        found = ddl(migrated.connection.dbapi_connection)

    assert found == wanted
    assert {f"stored_bytes_{number}" for number in range(1, 9)} <= found.keys()


def migrate(connection: Connection, version: str) -> None:
    """Run the migrations up to a version."""
    script = ScriptDirectory(str(MIGRATIONS))
    environment = EnvironmentContext(Config(), script)
    environment.configure(connection=connection, fn=lambda now, _: script._upgrade_revs(version, now))
    environment.run_migrations()


def ddl(connection: object) -> dict[str, frozenset[str]]:
    """Return the parts of the CREATE statement of each table and index. Their order may differ."""
    assert isinstance(connection, sqlite3.Connection)
    rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
    return {  # a migration that rebuilds a table puts its name in quotes
        name: frozenset(part.strip(" \t)") for part in re.split("[\n,]", sql.replace('"', ""))) - {""}
        for name, sql in rows
    }


def test_head_is_the_last_migration() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == HEAD


@pytest.mark.anyio
async def test_database_of_a_newer_version_is_rejected_unchanged(folder: Path) -> None:
    store = store_in(folder)
    await store.open()
    await store.close()
    with closing(sqlite3.connect(folder / NAME)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(ServerSetupError, match=f"9999.*{HEAD}", check=has_code("newer_database")):
        await store.open()

    with closing(sqlite3.connect(folder / NAME)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]


@pytest.mark.anyio
async def test_database_of_the_first_schema_keeps_its_rows(folder: Path) -> None:
    folder.mkdir(parents=True)
    with create_engine(f"sqlite:///{folder / NAME}").begin() as connection:
        migrate(connection, "0001")
        connection.exec_driver_sql("INSERT INTO server (secret) VALUES (?)", (bytes(32),))
        connection.exec_driver_sql("INSERT INTO accounts (account_id, created_at) VALUES ('a', '2026-01-01 00:00:00')")
        connection.exec_driver_sql(
            "INSERT INTO keys (key_id, account_id, sha256, scopes, spending_id, created_at) "
            "VALUES ('k', 'a', ?, '', 'k', '2026-01-01 00:00:00')",
            (digest("old"),),
        )
        connection.exec_driver_sql(
            "INSERT INTO tombstones (voice_id, deleted_at, audio_paths) "
            "VALUES ('v', '2026-01-01 00:00:00', '[\"jobs/a.wav\"]')"
        )
    store = store_in(folder)

    assert not await store.open()

    caller = await store.find_caller(digest("old"))
    assert caller is not None
    assert caller.key_id == "k"
    assert await store.list_unpurged() == {"v": ["jobs/a.wav"]}
    await store.check()
    await store.delete_expired()
    await store.close()


@pytest.mark.anyio
async def test_interrupted_first_open_is_repeated(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / NAME).touch(0o600)
    store = store_in(folder)

    assert await store.open()
    await store.check()
    await store.close()


@pytest.mark.anyio
async def test_up_to_date_database_opens_without_alembic(folder: Path) -> None:
    store = store_in(folder)
    await store.open()
    await store.close()
    code = (
        "import asyncio, pathlib, sys; from tests.server.store.second_process import store_in\n"
        "store = store_in(pathlib.Path(sys.argv[1])); assert not asyncio.run(store.open())\n"
        "print('alembic' in sys.modules)"
    )

    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, cwd=root, check=True)

    assert done.stdout.strip() == "False"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "name", ["a b", "100%41", "a?mode=memory&b#c", "ü 声", "a'b\"", "line\nbreak", "a:/b", "x@y", "\udcff"]
)
async def test_data_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    settings = load_settings(home=tmp_path / name)
    for is_new in (True, False):
        store = open_store(settings)
        assert await store.open() is is_new
        await store.check()
        await store.close()
        await open_storage(settings).check()
    assert (tmp_path / name / "server" / "afterwords.db").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name != name.split("/", maxsplit=1)[0]]
