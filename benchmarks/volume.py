"""Compare a server whose database has many rows with one whose database has few, on SQLite and on Postgres.

Both servers run at the same time, and their rounds alternate. A writer that locks what every submit locks, again and
again, measures how long deletions make others wait.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select

from afterwords.models import JobStatus, SpeechFormat, new_id
from afterwords.server.cache_key import job_path, reference_path
from afterwords.server.clock import SystemClock
from afterwords.server.store import SqlStore
from afterwords.server.store.schema import idempotency, jobs, keys, voices
from benchmarks.load import UNLIMITED, load, request
from tests.e2e.served import Served, serving
from tests.postgres import running_postgres

N_JOBS = 200_000
N_VOICES = 10_000
N_FEW = 100
N_JOBS_OF_VOICE = 20_000
N_EXPIRED = 100_000
ROUNDS = 5
REQUESTS = 200
CLIENTS = 4
CHUNK = 500
LIMITS = {**UNLIMITED, "AFTERWORDS_WORKERS": "0"}

_serial = itertools.count()


# -- rows ----------------------------------------------------------------------------------------------------


def store_of(served: Served) -> SqlStore:
    """Return the store of a server; not connected."""
    folder = served.home / "server"
    url = served.settings.get("AFTERWORDS_DATABASE_URL", folder / "afterwords.db")
    return SqlStore(url, clock=SystemClock(), folder=folder)


def find_key(connection: Connection) -> tuple[str, str]:
    """Return account_id and key_id of the only key."""
    account_id, key_id = connection.execute(select(keys.c.account_id, keys.c.key_id)).one()
    return account_id, key_id


def fill(served: Served, *, n_voices: int, n_jobs: int) -> list[str]:
    """Add voices, and jobs that are ready, evenly; return the ids of the voices."""
    voice_ids = [new_id() for _ in range(n_voices)]
    with store_of(served).database.session(is_writing=True) as connection:
        account_id, key_id = find_key(connection)
        connection.execute(insert(voices).inline(), [_voice(voice_id, account_id) for voice_id in voice_ids])
        for start in range(0, n_jobs, CHUNK):
            numbers = range(start, min(start + CHUNK, n_jobs))
            rows = [_job(voice_ids[number % n_voices], account_id, key_id) for number in numbers]
            connection.execute(insert(jobs).inline(), rows)
    return voice_ids


def _voice(voice_id: str, account_id: str) -> dict[str, Any]:
    return {
        "voice_id": voice_id,
        "account_id": account_id,
        "name": f"voice {voice_id}",
        "backend": "tone",
        "lang": "en",
        "ref_audio_key": reference_path(voice_id),
        "ref_sha256": "0" * 64,
        "ref_duration_s": 5.5,
        "ref_sample_rate": 16_000,
        "created_at": datetime.now(UTC),
        "metadata": {},
    }


def _job(voice_id: str, account_id: str, key_id: str) -> dict[str, Any]:
    job_id, now = new_id(), datetime.now(UTC)
    key = sha256(job_id.encode()).hexdigest()
    return {
        "job_id": job_id,
        "account_id": account_id,
        "voice_id": voice_id,
        "key_id": key_id,
        "status": JobStatus.READY,
        "lang": "en",
        "backend": "tone",
        "cache_key": key,
        "flight_key": key,
        "speed": 1.0,
        "response_format": SpeechFormat.WAV,
        "char_count": 40,
        "spending_id": key_id,
        "period": "2026-01",
        "attempt": 1,
        "audio_key": job_path(job_id, 1),
        "audio_sha256": key,
        "audio_bytes": 100_000,
        "synth_ms": 100,
        "created_at": now,
        "completed_at": now,
    }


def add_expired(served: Served, n_rows: int) -> None:
    """Add idempotency rows that the next sweep deletes."""
    with store_of(served).database.session(is_writing=True) as connection:
        account_id, _ = find_key(connection)
        row = {"account_id": account_id, "route": "synthesize", "body_sha256": "0" * 64}
        old = datetime.now(UTC) - timedelta(days=2)
        rows = [{**row, "key": str(number), "created_at": old} for number in range(n_rows)]
        connection.execute(insert(idempotency).inline(), rows)


# -- requests ------------------------------------------------------------------------------------------------


def requests_of(served: Served) -> dict[str, tuple[Callable[[int], bytes], int]]:
    """Return the requests that are measured, with their status."""
    with served.client() as client:
        (voice,) = client.get("/v1/voices", params={"limit": 1}).json()
        (job,) = client.get("/v1/jobs", params={"limit": 1}).json()
    (served.home / "server" / "blobs" / "voices" / voice["voice_id"]).mkdir(parents=True, exist_ok=True)
    (served.home / "server" / "blobs" / reference_path(voice["voice_id"])).touch()

    def submit(field: str) -> Callable[[int], bytes]:
        def make(_: int) -> bytes:
            body = {"voice_id": voice[field], "text": f"The harbour was quiet when they arrived. {next(_serial)}"}
            return request(f"{served.url}/v1/synthesize", "POST", body=json.dumps(body).encode(), key=served.key)

        return make

    def get(path: str) -> Callable[[int], bytes]:
        made = request(f"{served.url}{path}", key=served.key)
        return lambda _: made

    return {
        "submit": (submit("voice_id"), 202),
        "submit, voice by name": (submit("name"), 202),
        "poll": (get(f"/v1/jobs/{job['job_id']}"), 200),
        "list 20 jobs": (get("/v1/jobs?limit=20"), 200),
        "list 20 voices": (get("/v1/voices?limit=20"), 200),
    }


def compare(full: Served, small: Served, database: str) -> list[str]:
    """Return a row per request: the p99 of both, and their ratio."""
    sides = [(served, requests_of(served)) for served in (full, small)]
    latencies: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in sides[0][1]}
    for number in range(ROUNDS + 1):
        for name, both in latencies.items():
            for (served, made), found in zip(sides, both, strict=True):
                make, expect = made[name]
                done = load(served.url, make, n=REQUESTS, expect=expect, clients=CLIENTS)
                if number:  # the first round warms both up
                    found.extend(done.latencies_ms)
    rows = []
    for name, both in latencies.items():
        mine, theirs = (sorted(found)[int(0.99 * len(found))] for found in both)
        rows.append(f"| {name}, {database} | {mine:.1f} ms | {theirs:.1f} ms | {mine / theirs:.2f} | ≤ 2 |")
    return rows


# -- locks ---------------------------------------------------------------------------------------------------


@contextmanager
def probing(served: Served) -> Iterator[list[float]]:
    """Lock what a submit locks, again and again, while the block runs; the list gets the waits in ms."""
    waits_ms: list[float] = []
    is_over = threading.Event()
    url = served.settings.get("AFTERWORDS_DATABASE_URL")

    def probe_all(execute: Callable[[str], Any], lock: str) -> None:
        while not is_over.wait(0.002):
            started = time.perf_counter()
            execute(lock)
            waits_ms.append(1000 * (time.perf_counter() - started))
            execute("ROLLBACK")

    def probe() -> None:
        if url is None:
            import sqlite3

            path = served.home / "server" / "afterwords.db"
            with closing(sqlite3.connect(path, isolation_level=None, timeout=60)) as lite:
                probe_all(lite.execute, "BEGIN IMMEDIATE")
        else:
            import psycopg

            with psycopg.connect(url, autocommit=True) as driver:
                probe_all(driver.execute, "BEGIN; SELECT 1 FROM accounts FOR NO KEY UPDATE")

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield waits_ms
    finally:
        is_over.set()
        thread.join()


def measure_locks(served: Served, database: str) -> list[str]:
    """Return a row per deletion: how long it took, and the longest wait of the probing writer."""
    (voice_id,) = fill(served, n_voices=1, n_jobs=N_JOBS_OF_VOICE)
    add_expired(served, N_EXPIRED)

    async def sweep() -> None:
        store = store_of(served)
        await store.open()
        await store.delete_expired()
        await store.close()

    def delete() -> None:
        with served.client() as client:
            assert client.delete(f"/v1/voices/{voice_id}").status_code == 204

    rows = []
    deletions: Sequence[tuple[str, Callable[[], Any]]] = (
        (f"sweep of {N_EXPIRED:,} expired rows", lambda: asyncio.run(sweep())),
        (f"deletion of a voice with {N_JOBS_OF_VOICE:,} jobs", delete),
    )
    for name, work in deletions:
        started = time.perf_counter()
        with probing(served) as waits_ms:
            work()
        took_s = time.perf_counter() - started
        rows.append(f"| {name}, {database} | {took_s:.1f} s | {max(waits_ms):.0f} ms | ≤ 100 ms |")
    return rows


def table() -> list[str]:
    """Return the figures as Markdown."""
    ratios: list[str] = []
    locks: list[str] = []
    with tempfile.TemporaryDirectory() as name, running_postgres() as postgres:
        for database in ("SQLite", "Postgres"):
            with ExitStack() as stack:
                servers = []
                for size in ("full", "small"):
                    settings = dict(LIMITS)
                    if database == "Postgres":
                        settings["AFTERWORDS_DATABASE_URL"] = postgres.url(postgres.create_database())
                    servers.append(stack.enter_context(serving(Path(name) / f"{database}-{size}", settings)))
                full, small = servers
                fill(full, n_voices=N_VOICES, n_jobs=N_JOBS)
                fill(small, n_voices=N_FEW, n_jobs=N_FEW)
                ratios += compare(full, small, database)
                locks += measure_locks(full, database)
    return [
        f"| p99 of | {N_JOBS:,} jobs, {N_VOICES:,} voices | {N_FEW} of each | ratio | target |",
        "|---|---|---|---|---|",
        *ratios,
        "",
        "| what | took | longest wait of another writer | target |",
        "|---|---|---|---|",
        *locks,
    ]


if __name__ == "__main__":
    print(*table(), sep="\n")
