"""Tests of `afterwords serve` on Postgres: two machines with one database and one storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.program import run
from tests.e2e.served import ADMIN_SECRET, Served, register, submit_text, wait_for_job
from tests.postgres import PASSWORD, PostgresServer, running_postgres


@pytest.fixture
def fragile() -> Iterator[PostgresServer]:
    """Run a Postgres that the test stops."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def machines(fragile: PostgresServer, tmp_path: Path) -> Iterator[tuple[Served, Served]]:
    """Return two servers that are not started: one accepts jobs, and one speaks."""
    shared = {
        "AFTERWORDS_DATABASE_URL": fragile.url(fragile.create_database()),
        "AFTERWORDS_STORAGE_URL": str(tmp_path / "storage"),
    }
    accepting = Served(tmp_path / "one", {**shared, "AFTERWORDS_WORKERS": "0"})
    speaking = Served(tmp_path / "two", shared)
    yield accepting, speaking
    for served in (accepting, speaking):
        if served.is_running:
            served.kill()


def test_job_of_one_machine_is_spoken_by_another(machines: tuple[Served, Served], fragile: PostgresServer) -> None:
    accepting, speaking = (served.start().ready() for served in machines)
    assert not speaking.key, "the database has its first key"
    with accepting.client() as client:
        voice_id = register(client)
        job_id = submit_text(client, voice_id, "Spoken elsewhere.")
        assert wait_for_job(client, job_id)["status"] == "ready"
        audio = client.get(f"/v1/jobs/{job_id}/audio")
        assert audio.content.startswith(b"RIFF")
        again = client.post("/v1/synthesize", json={"voice_id": voice_id, "text": "Spoken elsewhere."})
        assert again.headers["x-cache"] == "HIT"

        fragile.stop()
        refused = client.post("/v1/synthesize", json={"voice_id": voice_id, "text": "Not now."})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "database_unavailable"
        assert httpx.get(f"{accepting.url}/healthz").status_code == 200
        assert httpx.get(f"{speaking.url}/readyz").status_code == 503
        fragile.start()
        for served in (accepting, speaking):
            served.ready()
        assert wait_for_job(client, submit_text(client, voice_id, "And again."))["status"] == "ready"

        assert client.delete(f"/v1/voices/{voice_id}").status_code == 204
    assert "2 servers share this database" in speaking.log.read_text()
    assert PASSWORD not in accepting.log.read_text() + speaking.log.read_text()
    assert (accepting.stop(), speaking.stop()) == (0, 0)


def test_nul_is_refused(postgres: PostgresServer, tmp_path: Path) -> None:
    served = Served(tmp_path / "home", {"AFTERWORDS_DATABASE_URL": postgres.url(postgres.create_database())}).start()
    with served.client() as client, served.client(ADMIN_SECRET) as admin:
        answers = [client.get(path, params={"after": "a\0b"}) for path in ("/v1/jobs", "/v1/voices")]
        answers += [admin.post("/v1/keys", json={name: "a\0b"}) for name in ("label", "account_id", "for_key")]
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in answers] == [(422, "invalid_field")] * 5
    served.stop()


def test_database_that_can_not_be_used_is_one_line(postgres: PostgresServer) -> None:
    environment = {"AFTERWORDS_BACKENDS": "tone", "AFTERWORDS_WORKERS": "0"}
    wrong = {**environment, "AFTERWORDS_DATABASE_URL": postgres.url("postgres", password="hunter2")}
    refused = run("serve", "--port", "0", env=wrong)
    assert "password authentication failed" in refused.expect_error(2, "database_refused")
    assert "hunter2" not in refused.err

    away = {**environment, "AFTERWORDS_DATABASE_URL": "postgresql://me:hunter2@127.0.0.1:1/x"}
    unreachable = run("serve", "--port", "0", env=away)
    assert "127.0.0.1:1 does not answer" in unreachable.expect_error(8, "database_unavailable")
    assert "hunter2" not in unreachable.err
