"""Tests of `afterwords backup` of a running server, and of `restore` into another folder."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cli.program import Result, list_files, run
from tests.e2e.invariants import SWEEPING, check_invariants, list_blobs
from tests.e2e.served import READER, Served, register, serving, submit_text, wait_for_job

TONE = {"AFTERWORDS_BACKENDS": "tone"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("backup") / "home", SWEEPING) as running:
        yield running


@pytest.fixture(scope="module")
def ready(served: Served) -> tuple[str, str, bytes]:
    """Return a voice, one of its jobs, and the audio."""
    with served.client() as client:
        voice_id = register(client)
        job_id = submit_text(client, voice_id, "Kept in the backup.")
        wait_for_job(client, job_id)
        return voice_id, job_id, client.get(f"/v1/jobs/{job_id}/audio").content


@pytest.fixture(scope="module")
def backup(served: Served, ready: tuple[str, str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a backup, made while jobs run."""
    file = tmp_path_factory.mktemp("kept") / "server.tar"
    with served.client() as client:
        begun = [submit_text(client, ready[0], f"Spoken meanwhile, {number}.") for number in range(5)]
        done = run_at(served.home, "backup", file)
        assert (done.code, done.out) == (0, f"{file}\n"), done.err
        assert {wait_for_job(client, job_id)["status"] for job_id in begun} == {"ready"}
    assert file.stat().st_mode & 0o777 == 0o600
    assert list_files(file.parent) == ["server.tar"]
    return file


def run_at(home: Path, *args: str | Path) -> Result:
    return run(*args, env={**TONE, "AFTERWORDS_HOME": str(home)})


def test_restored_server_has_everything(
    served: Served, ready: tuple[str, str, bytes], backup: Path, tmp_path: Path
) -> None:
    voice_id, job_id, audio = ready
    other = Served(tmp_path / "other", SWEEPING)

    done = run_at(other.home, "restore", backup)

    assert done.code == 0, done.err
    try:
        other.start().ready()
        assert other.key == "", "the backup has keys"
        with other.client(served.key) as client:
            assert [voice["voice_id"] for voice in client.get("/v1/voices").json()] == [voice_id]
            assert client.get(f"/v1/jobs/{job_id}/audio").content == audio
            jobs = client.get("/v1/jobs", params={"limit": 100}).json()
            assert len(jobs) == 6
            assert {wait_for_job(client, job["job_id"])["status"] for job in jobs} == {"ready"}
            assert wait_for_job(client, submit_text(client, voice_id, "Spoken after."))["status"] == "ready"
        assert httpx.get(f"{other.url}/readyz").json()["sweep"] == "ok"
        check_invariants(other)
        run_at(other.home, "restore", backup, "--replace").expect_error(2, "server_running")
        with other.client(served.key) as client:
            assert client.delete(f"/v1/voices/{voice_id}").status_code == 204
        other.stop()
        assert "1 keys" in run_at(other.home, "restore", backup).expect_error(2, "server_not_empty")
        assert not [path for path in list_blobs(other) if path.endswith("ref.wav")]
        assert run_at(other.home, "restore", backup, "--replace").code == 0
        other.start().ready()
        with other.client(served.key) as client:
            assert client.get(f"/v1/jobs/{job_id}/audio").content == audio
        check_invariants(other)
    finally:
        if other.is_running:
            other.kill()


@pytest.mark.parametrize("damage", ["cut", "flipped", "not a backup", "database without its audio"])
def test_damaged_backup_is_rejected_and_changes_nothing(backup: Path, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "damaged.tar"
    data = bytearray(backup.read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    elif damage == "flipped":
        data[len(data) // 3] ^= 1
    elif damage == "not a backup":
        data[:] = READER.read_bytes()
    file.write_bytes(data)
    if damage == "database without its audio":
        with tarfile.open(backup) as whole, tarfile.open(file, "w") as part:
            for member in whole:
                if not member.name.startswith("blobs/jobs/"):
                    part.addfile(member, whole.extractfile(member))
    home = tmp_path / "new"

    run_at(home, "restore", file).expect_error(5, "invalid_backup")

    assert [name for name in list_files(home) if "server1" not in name] == []


def test_failed_restore_changes_nothing(backup: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert run_at(home, "keys", "create", "--label", "mine").code == 0
    blobs = home / "server" / "blobs"
    blobs.mkdir()
    (blobs / "voices").touch()  # a folder can't be created here
    before = run_at(home, "keys", "list", "--json").out

    run_at(home, "restore", backup, "--replace").expect_error(8, "storage_unavailable")

    assert run_at(home, "keys", "list", "--json").out == before
    assert list_files(blobs) == ["voices"]


def test_backup_lists_lost_audio(served: Served, ready: tuple[str, str, bytes], tmp_path: Path) -> None:
    home = tmp_path / "home"
    source = tmp_path / "whole.tar"
    assert run_at(served.home, "backup", source).code == 0
    assert run_at(home, "restore", source).code == 0
    shutil.rmtree(home / "server" / "blobs" / "jobs")

    done = run_at(home, "backup", tmp_path / "lost.tar")

    assert done.code == 1
    assert f"jobs/{ready[1]}.wav" in done.err
    assert run_at(tmp_path / "again", "restore", tmp_path / "lost.tar").code == 0


def test_backup_without_a_server_creates_no_file(tmp_path: Path) -> None:
    file = tmp_path / "server.tar"
    run_at(tmp_path / "nowhere", "backup", file).expect_error(5, "unreadable_file")
    assert not file.exists()
