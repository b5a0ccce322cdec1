"""A second process on a database, which runs one task in a folder: `python -m … TASK FOLDER`.

It prints a line when it is ready or has completed a step, and waits for a line of input before the next step.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from afterwords.errors import DatabaseUnavailableError, StorageFullError
from afterwords.server.clock import SystemClock
from afterwords.server.store import SqlStore
from tests.contracts.store_world import MANY, ManualClock, World

T = TypeVar("T")
ROOT: Final = Path(__file__).parents[3]
NAME: Final = "afterwords.db"


class SecondProcess:
    """The process, from the view of a test."""

    def __init__(self, *args: str | Path, before: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*before, sys.executable, "-m", "tests.server.store.second_process", *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def line(self) -> str:
        """Return the next line of its output, or an empty one after its end."""
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def go_on(self) -> None:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> str:
        """Wait for its end. Return the rest of its output."""
        out, _ = self._process.communicate(timeout=60)
        return out.strip()


@contextmanager
def second_process(*args: str | Path, before: Sequence[str] = ()) -> Iterator[SecondProcess]:
    """Start the process, and kill it at the end."""
    process = SecondProcess(*args, before=before)
    try:
        yield process
    finally:
        process.kill()
        process.end()


def store_in(folder: Path) -> SqlStore:
    return SqlStore(f"sqlite:///{NAME}", clock=SystemClock(), folder=folder)


def _print(words: object) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def _hold(folder: Path, *, is_exclusive: bool = False) -> None:
    """Lock the database for writes, or exclusively."""
    connection = sqlite3.connect(folder / NAME, isolation_level=None)
    if is_exclusive:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE server SET checked_at = NULL")
    _print("held")
    sys.stdin.readline()
    connection.execute("ROLLBACK")
    connection.close()
    _print("released")


def _read(folder: Path) -> None:
    """Hold a read transaction, so that the log can't be truncated."""
    connection = sqlite3.connect(folder / NAME, isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM voices").fetchone()
    _print("reading")
    sys.stdin.readline()
    connection.close()
    _print("done")


async def _retry(work: Callable[[], Awaitable[T]]) -> T:
    """Repeat work that a busy machine did not complete in time."""
    while True:
        try:
            return await work()
        except DatabaseUnavailableError:
            continue


async def _open(folder: Path) -> None:
    """Open the database after a line of input. Print whether it is new."""
    store = store_in(folder)
    _print("ready")
    sys.stdin.readline()
    is_new = await store.open()
    await _retry(store.check)
    _print(f"{is_new} {(await store.secret()).hex()}")
    await store.close()


async def _claim(folder: Path) -> None:
    """Claim all jobs, and print them."""
    store = store_in(folder)
    await store.open()
    _print("ready")
    sys.stdin.readline()
    found = []
    while claim := await _retry(partial(store.claim, backends=["tone"], lease_s=600, worker=str(os.getpid()))):
        found.append(claim.job.job_id)
    await store.close()
    _print(" ".join(found))


async def _submit(folder: Path) -> None:
    """Submit jobs forever, and print each accepted one."""
    store = store_in(folder)
    await store.open()
    world = World(store, ManualClock())
    ann = await world.caller()
    voice = await world.add_voice(ann)

    async def one() -> None:
        while True:
            job = world.new_job(ann, voice)
            await _retry(partial(store.submit, job, limits=MANY))
            _print(job.job_id)

    await asyncio.gather(*[one() for _ in range(8)])


async def _fill(folder: Path, limit: Callable[[], None], relief: Callable[[], None]) -> None:
    """Submit jobs until the disk is full, then check what must still work. Print each step."""
    store = store_in(folder)
    await store.open()
    world = World(store, ManualClock())
    ann = await world.caller()
    small, another, large = [await world.add_voice(ann) for _ in range(3)]
    limit()

    async def attempt(name: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await _retry(work)
            _print(f"{name}: done")
        except StorageFullError:
            _print(f"{name}: full")

    n_accepted = 0
    try:
        while True:
            job = world.new_job(ann, large, text="x" * 5000)
            await _retry(partial(store.submit, job, limits=MANY))
            n_accepted += 1
    except StorageFullError:
        _print("submit: full")
    jobs = await store.list_jobs(account_id=ann.account_id, status=None, limit=None, after=None)
    _print(f"read: {len(jobs) == n_accepted > 0}")
    await attempt("delete", partial(store.delete_voice, small.voice_id, account_id=ann.account_id))
    await attempt("purged", partial(store.mark_purged, small.voice_id))
    relief()
    await attempt("delete", partial(store.delete_voice, another.voice_id, account_id=ann.account_id))
    await attempt("purged", partial(store.mark_purged, another.voice_id))
    await attempt("submit", partial(store.submit, world.new_job(ann, large), limits=MANY))
    await store.close()
    with sqlite3.connect(folder / NAME) as connection:
        _print(connection.execute("PRAGMA integrity_check").fetchone()[0])


async def _fill_file(folder: Path) -> None:
    """Limit the size of files."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    await _fill(
        folder,
        limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, hard)),
        relief=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard)),
    )


async def _fill_disk(folder: Path) -> None:
    """Fill the disk with a blob."""
    blob = folder / "blob"

    def limit() -> None:
        with blob.open("wb", buffering=0) as file:
            room = os.statvfs(folder)
            file.write(bytes((room.f_bavail - 40) * room.f_bsize))

    await _fill(folder, limit=limit, relief=blob.unlink)


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    match what:
        case "hold":
            _hold(folder)
        case "hold-all":
            _hold(folder, is_exclusive=True)
        case "read":
            _read(folder)
        case "open":
            asyncio.run(_open(folder))
        case "claim":
            asyncio.run(_claim(folder))
        case "submit":
            asyncio.run(_submit(folder))
        case "fill-file":
            asyncio.run(_fill_file(folder))
        case "fill-disk":
            asyncio.run(_fill_disk(folder))


if __name__ == "__main__":
    main()
