"""Tests of opening a Postgres database: migrations under a lock, and the reasons of refusals."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from afterwords.errors import AfterwordsError, DatabaseUnavailableError, ServerSetupError
from afterwords.server.clock import SystemClock
from afterwords.server.store import SqlStore
from afterwords.server.store.migrate import HEAD
from afterwords.server.store.schema import metadata
from tests.error_codes import has_code
from tests.postgres import PASSWORD, USER, PostgresServer

pytestmark = pytest.mark.anyio


def store_at(url: str) -> SqlStore:
    return SqlStore(url, clock=SystemClock(), folder=Path())


async def refusal(url: str) -> AfterwordsError:
    store = store_at(url)
    async with asyncio.timeout(60):
        with pytest.raises(AfterwordsError) as refused:
            await store.open()
        await store.close()
    assert PASSWORD not in str(refused.value)
    assert "\n" not in str(refused.value)
    return refused.value


async def test_ten_servers_create_one_database(url: str) -> None:
    stores = [store_at(url) for _ in range(10)]

    async def open_one(store: SqlStore) -> bool:
        while True:
            try:
                return await store.open()
            except DatabaseUnavailableError:  # a busy machine
                continue

    is_new = await asyncio.gather(*map(open_one, stores))

    assert sorted(is_new) == [False] * 9 + [True]
    assert len({await store.secret() for store in stores}) == 1
    for store in stores:
        await store.check()
        await store.close()


async def test_schema_equals_the_result_of_the_migrations(url: str) -> None:
    store = store_at(url)
    await store.open()
    await store.close()

    engine = create_engine(url.replace("postgresql", "postgresql+psycopg"))
    with engine.connect() as migrated:
        assert compare_metadata(MigrationContext.configure(migrated), metadata) == []
    engine.dispose()


async def test_wrong_password_or_name_is_refused_with_the_reason(postgres: PostgresServer, url: str) -> None:
    wrong = await refusal(postgres.url("postgres", password="hunter2"))
    assert isinstance(wrong, ServerSetupError)
    assert wrong.exit_code == 2
    assert "password authentication failed" in str(wrong)
    assert "AFTERWORDS_DATABASE_URL" in wrong.hint
    assert "hunter2" not in f"{wrong} {wrong.hint}"

    missing = await refusal(postgres.url("nowhere"))
    assert isinstance(missing, ServerSetupError)
    assert '"nowhere" does not exist' in str(missing)

    option = await refusal(f"{url}?sslmod=require")
    assert isinstance(option, ServerSetupError)
    assert "sslmod" in str(option)


async def test_server_that_does_not_listen_is_unavailable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        error = await refusal(f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/x")

    assert isinstance(error, DatabaseUnavailableError)
    assert error.exit_code == 8
    assert f"127.0.0.1:{port} does not answer" in str(error)
    assert "Connection refused" in str(error)


async def test_server_that_never_answers_is_unavailable() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        error = await refusal(f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{silent.getsockname()[1]}/x")

    assert isinstance(error, DatabaseUnavailableError)
    assert "does not answer" in str(error)


async def test_database_of_a_newer_version_is_refused(postgres: PostgresServer, url: str) -> None:
    store = store_at(url)
    await store.open()
    await store.close()
    postgres.execute("UPDATE alembic_version SET version_num = '9999'", url.rpartition("/")[2])

    with pytest.raises(ServerSetupError, match=f"9999.*{HEAD}", check=has_code("newer_database")):
        await store.open()


async def test_database_in_another_encoding_is_refused(postgres: PostgresServer) -> None:
    postgres.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")

    assert "UTF8" in str(await refusal(postgres.url("latin")))
