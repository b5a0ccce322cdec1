"""Tests of blobs in a folder: privacy, crashes, full disks, links."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import tempfile
import tracemalloc
from datetime import UTC
from errno import EDQUOT, EFBIG, EIO, ENOSPC
from hashlib import sha256
from pathlib import Path

import pytest

from afterwords import disk
from afterwords.errors import StorageFullError, StorageUnavailableError
from afterwords.server.blobs import open_blobs
from afterwords.server.ports import Blobs
from tests.contracts.blobs_contract import BlobsContract, everything
from tests.contracts.ownership_contract import OwnershipContract

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "storage"


@pytest.fixture
def blobs(root: Path) -> Blobs:
    return open_blobs(str(root))


def run_process(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process in which `blobs` is the folder given first."""
    header = (
        "import asyncio, os, resource, signal, sys\n"
        "from afterwords.errors import AfterwordsError\n"
        "from afterwords.server.blobs import open_blobs\n"
        "blobs = open_blobs(sys.argv[1])\n"
    )
    command = [sys.executable, "-W", "error", "-c", header + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


class TestFolder(BlobsContract, OwnershipContract):
    pass


# -- permissions and folders ---------------------------------------------------------------------------------


async def test_files_and_folders_are_private(blobs: Blobs, root: Path) -> None:
    await blobs.put("voices/a/cache/b.wav", b"x")
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [root, *root.rglob("*")]}
    assert len(modes) == 5
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


async def test_deleting_leaves_no_empty_folder(blobs: Blobs, root: Path) -> None:
    await blobs.put("jobs/1.wav", b"x")
    await blobs.put("voices/a/cache/b.wav", b"x")
    await blobs.put("voices/b/ref.wav", b"x")
    await blobs.delete("jobs/1.wav")
    await blobs.delete_all("voices/a/")
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*")) == [
        "voices",
        "voices/b",
        "voices/b/ref.wav",
    ]
    await blobs.delete_all("voices/b")
    assert list(root.iterdir()) == []


async def test_delete_all_removes_files_that_are_not_listed(blobs: Blobs, root: Path) -> None:
    await blobs.put("voices/a/ref.wav", b"x")
    (root / "voices/a/Thumbs.db").touch()
    (root / "voices/a/LOST").mkdir()
    await blobs.delete_all("voices/a/")
    assert list(root.iterdir()) == []


async def test_listing_skips_files_that_are_not_blobs(blobs: Blobs, root: Path) -> None:
    (root / "lost+found").mkdir()
    (root / "lost+found" / "1.wav").touch()
    (root / ".DS_Store").touch()
    assert await everything(blobs) == {}


async def test_listing_of_a_large_folder_uses_little_memory(blobs: Blobs, root: Path) -> None:
    (root / "jobs").mkdir()
    for number in range(10_000):
        (root / "jobs" / f"{number:036}.wav").touch()
    peaks_bytes = []
    for _ in range(2):  # the interpreter's table of names may grow by megabytes, but only once
        tracemalloc.start()
        try:
            n_listed = sum([len(batch) async for batch in blobs.listing()])
            peaks_bytes.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert n_listed == 10_000
    assert min(peaks_bytes) < 600_000, "the names alone would be more"


async def test_durable_write_syncs_the_file_and_every_new_folder(
    blobs: Blobs, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:  # no test can cut the power: this checks the calls of fsync
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()).removeprefix(str(root)))
        fsync(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("this system has no /proc/self/fd")
    monkeypatch.setattr(os, "fsync", record)
    await blobs.put("voices/a/ref.wav", b"x")
    assert synced[:2] == ["", "/voices"]
    assert synced[2].startswith("/voices/a/ref.wav.")
    assert synced[3:] == ["/voices/a"]
    synced.clear()
    await blobs.put("voices/a/cache.wav", b"x", is_durable=False)
    assert synced == []


# -- crashes and damage --------------------------------------------------------------------------------------


async def test_killed_write_is_listed_and_can_be_deleted(blobs: Blobs, root: Path) -> None:
    done = run_process(
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(blobs.put('ref.wav', b'a voice'))",
        root,
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = await everything(blobs)
    assert left.startswith("ref.wav.")
    assert left.endswith(".part")
    assert await blobs.get("ref.wav") is None
    await blobs.delete(left)
    assert list(root.rglob("*")) == []


@pytest.mark.parametrize("size", [10_000, 3_000_000])
async def test_digest_detects_flipped_bytes_and_cut_files(blobs: Blobs, root: Path, size: int) -> None:
    data = bytes(size)
    digest = sha256(data).hexdigest()
    await blobs.put("jobs/1.wav", data)
    file = root / "jobs/1.wav"
    file.write_bytes(data[:-1] + b"\1")
    assert await blobs.get("jobs/1.wav", sha256=digest) is None
    file.write_bytes(data[:-1])
    assert await blobs.get("jobs/1.wav", sha256=digest) is None
    file.write_bytes(data)
    assert await blobs.get("jobs/1.wav", sha256=digest) == data


# -- full disks and missing folders --------------------------------------------------------------------------


async def test_full_disk_error_has_no_path_and_leaves_no_file(blobs: Blobs, root: Path) -> None:
    await blobs.put("jobs/1.wav", b"before")
    done = run_process(
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: asyncio.run(blobs.put('jobs/1.wav', bytes(2000)))\n"
        "except AfterwordsError as error: print(error.code, error.http_status, error.message)\n"
        "asyncio.run(blobs.put('jobs/2.wav', bytes(900)))\n"
        "asyncio.run(blobs.delete('jobs/2.wav'))\n",
        root,
    )
    assert done.stdout == "storage_full 507 The disk that holds the storage is full.\n", done.stderr
    assert await blobs.get("jobs/1.wav") == b"before"
    assert list(await everything(blobs)) == ["jobs/1.wav"]


async def test_check_detects_a_full_disk(root: Path) -> None:
    done = run_process(
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try: asyncio.run(blobs.check())\n"
        "except AfterwordsError as error: print(error.code, os.listdir(sys.argv[1]))\n",
        root,
    )
    assert done.stdout == "storage_full []\n", done.stderr


def test_read_only_folder_can_be_read() -> None:
    """Root ignores permissions, so the process drops them."""
    with tempfile.TemporaryDirectory() as folder:  # a folder that other users may enter
        done = run_process(
            "asyncio.run(blobs.put('jobs/1.wav', b'x'))\n"
            "for path in (os.path.join(sys.argv[1], 'jobs'), sys.argv[1]):\n"
            "    os.chmod(path, 0o500)\n"
            "    if os.geteuid() == 0: os.chown(path, 65534, 65534)\n"
            "if os.geteuid() == 0:\n"
            "    os.chown(os.path.join(sys.argv[1], 'jobs/1.wav'), 65534, 65534)\n"
            "    os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "print(asyncio.run(blobs.get('jobs/1.wav')), asyncio.run(blobs.exists('jobs/2.wav')))\n"
            "async def steps():\n"
            "    for step in (blobs.put('jobs/1.wav', b'y'), blobs.put('new/1.wav', b'y'),\n"
            "                 blobs.delete('jobs/1.wav'), blobs.delete_all('jobs/'), blobs.check()):\n"
            "        try: await step\n"
            "        except AfterwordsError as error: print(error.code, end=' ')\n"
            "asyncio.run(steps())\n"
            "os.chmod(os.path.join(sys.argv[1], 'jobs/1.wav'), 0)\n"
            "try: asyncio.run(blobs.get('jobs/1.wav'))\n"
            "except AfterwordsError as error: print(error.code)\n",
            folder,
        )
        assert done.stdout == "b'x' False\n" + "storage_unavailable " * 5 + "storage_unavailable\n", done.stderr


async def test_missing_folder_is_unavailable(blobs: Blobs, root: Path) -> None:
    await blobs.put("jobs/1.wav", b"x")
    root.rename(root.with_name("away"))
    for step in (
        blobs.get("jobs/1.wav"),
        blobs.exists("jobs/1.wav"),
        blobs.put("jobs/1.wav", b"x"),
        blobs.put("1.wav", b"x"),
        blobs.delete("jobs/1.wav"),
        blobs.delete_all("jobs/"),
        everything(blobs),
        blobs.check(),
    ):
        with pytest.raises(StorageUnavailableError) as refused:
            await step
        assert str(root) not in str(refused.value)
    assert not root.exists()
    root.with_name("away").rename(root)
    assert await blobs.get("jobs/1.wav") == b"x"


async def test_file_in_place_of_the_folder_is_unavailable(blobs: Blobs, root: Path) -> None:
    root.rmdir()
    root.touch()
    for step in (blobs.get("jobs/1.wav"), blobs.put("1.wav", b"x"), everything(blobs)):
        with pytest.raises(StorageUnavailableError):
            await step


def test_folder_that_can_not_be_created_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("file", "file/storage"):
        with pytest.raises(StorageUnavailableError):
            open_blobs(str(tmp_path / folder))


@pytest.mark.parametrize(
    ("code", "error"),
    [(ENOSPC, StorageFullError), (EDQUOT, StorageFullError), (EFBIG, StorageFullError), (EIO, StorageUnavailableError)],
)
async def test_system_errors_map_to_full_or_unavailable(
    blobs: Blobs, root: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception]
) -> None:
    def fail(_: int) -> None:  # no test can exceed a quota, or break a disk
        raise OSError(code, "refused", str(root))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(error) as refused:
        await blobs.put("jobs/1.wav", b"x")
    assert str(root) not in str(refused.value)
    assert await everything(blobs) == {}


# -- links ---------------------------------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path, blobs: Blobs, root: Path) -> Path:
    """Return a folder outside of the storage, and a link to it in the storage."""
    folder = tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    (folder / "mine.wav").write_bytes(b"mine")
    (root / "voices").mkdir()
    (root / "voices/link").symlink_to(folder)
    return folder


@pytest.mark.parametrize("path", ["voices/link/a.wav", "voices/link/deep/a.wav", "voices/link/new/a.wav"])
async def test_write_through_a_link_that_leads_out_is_rejected(blobs: Blobs, outside: Path, path: str) -> None:
    before = sorted(outside.rglob("*"))
    for step in (blobs.put(path, b"x"), blobs.delete(path), blobs.delete_all(path)):
        with pytest.raises(ValueError, match="leads out"):
            await step
    assert sorted(outside.rglob("*")) == before


async def test_deleting_a_folder_keeps_the_targets_of_its_links(blobs: Blobs, outside: Path, root: Path) -> None:
    await blobs.put("voices/a/ref.wav", b"x")
    (root / "voices/a/out").symlink_to(outside)
    (root / "voices/a/out.wav").symlink_to(outside / "mine.wav")
    await blobs.delete_all("voices/a/")
    await blobs.delete_all("voices/link/")
    assert list(root.iterdir()) == []
    assert (outside / "mine.wav").read_bytes() == b"mine"


async def test_write_to_a_link_replaces_the_link(blobs: Blobs, outside: Path, root: Path) -> None:
    (root / "ref.wav").symlink_to(outside / "mine.wav")
    await blobs.put("ref.wav", b"x")
    assert (outside / "mine.wav").read_bytes() == b"mine"
    assert await blobs.get("ref.wav") == b"x"


async def test_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "volume")
    blobs = open_blobs(str(tmp_path / "link"))
    await blobs.put("jobs/1.wav", b"x")
    assert (tmp_path / "volume/jobs/1.wav").read_bytes() == b"x"


async def test_special_files_are_missing_or_unavailable(root: Path) -> None:
    blobs = open_blobs(str(root))
    await blobs.put("voices/a/kept.wav", b"kept")
    os.mkfifo(root / "voices/a/fifo.wav")
    (root / "voices/a/device.wav").symlink_to("/dev/zero")
    (root / "voices/a/folder.wav").mkdir()

    with pytest.raises(StorageUnavailableError):
        await asyncio.wait_for(asyncio.to_thread(asyncio.run, blobs.get("voices/a/fifo.wav")), 30)
    with pytest.raises(StorageUnavailableError):
        await blobs.get("voices/a/device.wav")
    assert await blobs.get("voices/a/folder.wav") is None
    assert await blobs.get("voices/a/kept.wav") == b"kept"
    await blobs.delete_all("voices/a/")
    assert not (root / "voices/a").exists()


async def test_file_with_any_modification_time_is_listed(root: Path) -> None:
    blobs = open_blobs(str(root))
    await blobs.put("voices/a/old.wav", b"old")
    for at_s in (-1e9, 2**33):  # before 1970, and after what a 32-bit time can hold
        os.utime(root / "voices/a/old.wav", (at_s, at_s))
        assert [blob.path async for batch in blobs.listing() for blob in batch] == ["voices/a/old.wav"]
    for at_s in (-1e12, 2**62):  # outside of what every file system can hold
        status = os.stat_result((0o100600, 0, 0, 1, 0, 0, 3, at_s, at_s, at_s))
        assert disk.modified_at(status).tzinfo is UTC
