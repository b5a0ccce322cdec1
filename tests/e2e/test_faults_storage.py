"""Tests of faults of database, storage and disk: the server answers in time, loses nothing, and recovers."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from afterwords.server.cache_key import cache_key, cache_path
from tests.e2e.invariants import (
    SWEEPING,
    blob_folder,
    check_invariants,
    count_attempts,
    database,
    find_orphans,
    is_speech_of,
    list_blobs,
)
from tests.e2e.served import (
    READER,
    Served,
    register,
    serving,
    submit_text,
    wait_for_job,
    wait_until,
    wait_until_prepared,
)

ANSWER_S = 2.0
SLOW = "fault-slow, so that it is still running when the fault comes"
UPLOAD: dict[str, Any] = {
    "data": {"name": "me"},
    "files": {"ref_audio": ("me.wav", READER.read_bytes(), "audio/wav")},
}
LONG = "This is far too long for the room that is left. " * 20


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("storage") / "home", SWEEPING) as running:
        yield running
        check_invariants(running, is_deleted_counted=True)


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client(served.new_key()) as client:
        yield client
    wait_until(lambda: httpx.get(f"{served.url}/readyz", verify=False).status_code == 200, what="recovery")


@pytest.fixture
def voice_id(client: httpx.Client) -> str:
    return register(client)


def assert_refused(client: httpx.Client, method: str, url: str, *, status: int, code: str, **request: Any) -> None:
    """Check that a request fails in time, with an error of the API."""
    began = time.monotonic()
    answer = client.request(method, url, **request)
    assert time.monotonic() - began < ANSWER_S + 3, "the deadline and the overhead of a busy machine"
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    if status == 503:
        assert int(answer.headers["retry-after"]) >= 1


def assert_alive_but_not_ready(served: Served, part: str, code: str) -> None:
    assert httpx.get(f"{served.url}/healthz").status_code == 200
    ready = httpx.get(f"{served.url}/readyz")
    assert (ready.status_code, ready.json()[part]) == (503, code)


@contextmanager
def moved_away(path: Path) -> Iterator[None]:
    """Move a file or folder away, and back at the end."""
    away = path.with_name(f"{path.name}.away")
    path.rename(away)
    try:
        yield
    finally:
        away.rename(path)


class TestDatabase:
    @contextmanager
    def locked(self, served: Served) -> Iterator[None]:
        """Lock the database like another process."""
        with closing(sqlite3.connect(database(served), isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")

    def test_locked_database_rejects_writes_and_loses_nothing(
        self, served: Served, client: httpx.Client, voice_id: str
    ) -> None:
        ready = submit_text(client, voice_id, "Ready before it.")
        wait_for_job(client, ready)
        running = submit_text(client, voice_id, SLOW)
        wait_until(lambda: count_attempts(served, running), what="the first attempt")
        with self.locked(served):
            began = time.monotonic()
            while time.monotonic() - began < 5:
                ask = {"voice_id": voice_id, "text": "Requested under the lock."}
                assert_refused(client, "POST", "/v1/synthesize", json=ask, status=503, code="database_unavailable")
                assert_alive_but_not_ready(served, "database", "database_unavailable")
                assert client.get(f"/v1/jobs/{ready}").json()["status"] == "ready"
                assert client.get(f"/v1/jobs/{ready}/audio").status_code == 200
        assert wait_for_job(client, running)["status"] == "ready"
        assert len(client.get("/v1/jobs").json()) == 2
        assert wait_for_job(client, submit_text(client, voice_id, "Requested after it."))["status"] == "ready"

    def test_upload_to_a_locked_database_leaves_no_recording(self, served: Served, client: httpx.Client) -> None:
        with self.locked(served):
            assert_refused(client, "POST", "/v1/voices", **UPLOAD, status=503, code="database_unavailable")
            assert find_orphans(served) == set()
        assert client.get("/v1/voices").json() == []

    def test_missing_database_rejects_all_and_loses_nothing(
        self, served: Served, client: httpx.Client, voice_id: str
    ) -> None:
        running = submit_text(client, voice_id, SLOW)
        wait_until(lambda: count_attempts(served, running), what="the first attempt")
        with moved_away(database(served)):
            assert_refused(client, "GET", "/v1/voices", status=503, code="database_unavailable")
            assert_refused(client, "POST", "/v1/voices", **UPLOAD, status=503, code="database_unavailable")
            assert_alive_but_not_ready(served, "database", "database_unavailable")
            assert not database(served).exists(), "an empty one must not replace it"
        wait_until(lambda: client.get("/v1/voices").status_code == 200, what="recovery")
        assert wait_for_job(client, running)["status"] == "ready"


class TestBlobs:
    def test_missing_blob_folder_loses_nothing(self, served: Served, client: httpx.Client, voice_id: str) -> None:
        ready = submit_text(client, voice_id, "Ready before they went.")
        wait_for_job(client, ready)
        running = submit_text(client, voice_id, SLOW)
        wait_until(lambda: count_attempts(served, running), what="the first attempt")
        with moved_away(blob_folder(served)):
            again, new = (
                {"voice_id": voice_id, "text": text} for text in ("Ready before they went.", "Something new.")
            )
            for ask in (again, new):
                assert_refused(client, "POST", "/v1/synthesize", json=ask, status=503, code="storage_unavailable")
            assert_refused(client, "GET", f"/v1/jobs/{ready}/audio", status=503, code="storage_unavailable")
            assert_refused(client, "POST", "/v1/voices", **UPLOAD, status=503, code="storage_unavailable")
            assert_alive_but_not_ready(served, "storage", "storage_unavailable")
            assert client.get(f"/v1/jobs/{ready}").json()["status"] == "ready"
            assert not blob_folder(served).exists(), "an empty one must not replace it"
        assert is_speech_of(client.get(f"/v1/jobs/{ready}/audio").content, "Ready before they went.")
        assert client.post("/v1/synthesize", json=again).headers["x-cache"] == "HIT"
        assert wait_for_job(client, running)["status"] == "ready"
        assert count_attempts(served, running) == 1

    def test_unreadable_cache_is_a_miss(self, served: Served, client: httpx.Client, voice_id: str) -> None:
        wait_for_job(client, submit_text(client, voice_id, "Kept, and out of reach."))
        make_unreadable(cached_file(served, voice_id, "Kept, and out of reach."))
        job_id = submit_text(client, voice_id, "Kept, and out of reach.")
        assert wait_for_job(client, job_id)["status"] == "ready"
        hit = client.post("/v1/synthesize", json={"voice_id": voice_id, "text": "Kept, and out of reach."})
        assert hit.headers["x-cache"] == "HIT"
        assert is_speech_of(hit.content, "Kept, and out of reach.")

    @pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
    def test_damaged_cache_entry_is_synthesized_again(
        self, served: Served, client: httpx.Client, voice_id: str, damage: str
    ) -> None:
        text = f"A cache entry, {damage}."
        wait_for_job(client, submit_text(client, voice_id, text))
        damage_file(cached_file(served, voice_id, text), damage)
        assert wait_for_job(client, submit_text(client, voice_id, text))["status"] == "ready"
        assert is_speech_of(client.post("/v1/synthesize", json={"voice_id": voice_id, "text": text}).content, text)

    @pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
    def test_damaged_audio_is_not_served_and_refunded(
        self, served: Served, client: httpx.Client, voice_id: str, damage: str
    ) -> None:
        job_id = submit_text(client, voice_id, f"Audio, {damage}.")
        wait_for_job(client, job_id)
        damage_file(blob_folder(served) / "jobs" / f"{job_id}.wav", damage)
        url = f"/v1/jobs/{job_id}/audio"
        assert_refused(client, "GET", url, status=500, code="audio_lost")
        assert client.get(f"/v1/jobs/{job_id}").json()["error"] == "audio_lost"
        assert_refused(client, "GET", url, status=404, code="job_not_ready")
        assert client.get("/v1/usage").json()["characters"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the files of a running process")
class TestFullDisk:
    """A limit on the size of files acts like a full disk, since the server writes whole files."""

    @contextmanager
    def limit_file_size(self, served: Served, n_bytes: int) -> Iterator[None]:
        assert served.process is not None
        process = psutil.Process(served.process.pid)
        process.rlimit(psutil.RLIMIT_FSIZE, (n_bytes, psutil.RLIM_INFINITY))
        try:
            yield
        finally:
            process.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))

    def test_upload_to_a_full_disk_leaves_nothing(self, served: Served, client: httpx.Client, voice_id: str) -> None:
        wait_until_prepared(client, voice_id)
        with self.limit_file_size(served, READER.stat().st_size // 2):
            before = list_blobs(served)
            assert_refused(client, "POST", "/v1/voices", **UPLOAD, status=507, code="storage_full")
            assert list_blobs(served) <= before
            assert [voice["voice_id"] for voice in client.get("/v1/voices").json()] == [voice_id]
            assert client.delete(f"/v1/voices/{voice_id}").status_code == 204
        assert client.post("/v1/voices", **UPLOAD).status_code == 201

    def test_audio_waits_for_disk_space(self, served: Served, client: httpx.Client, voice_id: str) -> None:
        ready = submit_text(client, voice_id, "There was room for this.")
        wait_for_job(client, ready)
        with self.limit_file_size(served, READER.stat().st_size // 2):
            job_id = submit_text(client, voice_id, LONG)
            wait_until(lambda: count_attempts(served, job_id), what="the first attempt")
            assert client.get(f"/v1/jobs/{job_id}", params={"wait": 1}).json()["status"] == "pending"
            assert not [path for path in list_blobs(served) if job_id in path and not path.endswith(".part")]
            assert client.get(f"/v1/jobs/{ready}/audio").status_code == 200
        assert wait_for_job(client, job_id)["status"] == "ready"
        assert is_speech_of(client.get(f"/v1/jobs/{job_id}/audio").content, LONG)

    def test_job_is_rejected_while_the_database_disk_is_full(
        self, served: Served, client: httpx.Client, voice_id: str
    ) -> None:
        ready = submit_text(client, voice_id, "There was room for this row.")
        wait_for_job(client, ready)
        with self.limit_file_size(served, database(served).stat().st_size + (1 << 16)):
            fill_database(client, voice_id)
            assert client.get(f"/v1/jobs/{ready}").json()["status"] == "ready"
            assert client.get(f"/v1/jobs/{ready}/audio").status_code == 200
        assert wait_for_job(client, submit_text(client, voice_id, "Room again."))["status"] == "ready"
        assert {wait_for_job(client, job["job_id"])["status"] for job in client.get("/v1/jobs").json()} == {"ready"}


OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")


def can_mount(folder: Path) -> bool:
    try:
        done = subprocess.run([*OWN_MOUNTS, "mount", "-t", "tmpfs", "x", folder], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def test_full_disk_allows_reads_and_deletions(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    if not can_mount(home):
        pytest.skip("this system allows no private mounts")
    mounted = ("sh", "-c", 'mount -t tmpfs -o size=16m x "$0" && exec "$@"', home)
    served = Served(home, before=[*OWN_MOUNTS, *mounted])
    try:
        served.start().ready()
        assert served.process is not None
        served.home = Path(f"/proc/{served.process.pid}/root{home}")  # the path in the namespace of the process
        with served.client() as client:
            kept, deleted = register(client), register(client)
            ready = submit_text(client, kept, "There was room for this.")
            wait_for_job(client, ready)
            fill_disk(served.home / "filler")
            fill_database(client, kept)
            assert_refused(client, "POST", "/v1/voices", **UPLOAD, status=507, code="storage_full")
            assert_alive_but_not_ready(served, "storage", "storage_full")
            assert is_speech_of(client.get(f"/v1/jobs/{ready}/audio").content, "There was room for this.")
            assert client.delete(f"/v1/voices/{deleted}").status_code == 204
            (served.home / "filler").unlink()
            assert wait_for_job(client, submit_text(client, kept, "Room again."))["status"] == "ready"
            assert {wait_for_job(client, job["job_id"])["status"] for job in client.get("/v1/jobs").json()} == {"ready"}
        shutil.copytree(served.home, tmp_path / "copy")  # SQLite does not follow a link into /proc
        check_invariants(Served(tmp_path / "copy"))
    finally:
        if served.is_running:
            served.kill()


def fill_disk(filler: Path) -> None:
    """Write a file that leaves only a few pages on its disk."""
    with filler.open("wb", buffering=0) as file:
        room = os.statvfs(filler)
        file.write(bytes((room.f_bavail - 10) * room.f_bsize))


def fill_database(client: httpx.Client, voice_id: str) -> None:
    """Submit jobs until the disk is full."""
    for number in range(1000):
        answer = client.post("/v1/synthesize", json={"voice_id": voice_id, "text": f"{number} {'x' * 4990}"})
        if answer.status_code != 202:
            break
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")


def cached_file(served: Served, voice_id: str, text: str) -> Path:
    return blob_folder(served) / cache_path(voice_id, cache_key(text, lang="en", backend="tone"))


def make_unreadable(file: Path) -> None:
    """Replace a file by a link to itself, which even root can't open."""
    file.unlink()
    file.symlink_to(file)


def damage_file(file: Path, damage: str) -> None:
    data = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(data[: len(data) // 2] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
