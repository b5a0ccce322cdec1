"""Invariants of a server after any fault, checked from outside: its rows, blobs and processes.

The rows are in SQLite or Postgres, the blobs in a folder or a bucket.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import psutil

from afterwords.audio.wav import pcm16, read_wav
from afterwords.backends.tone import ToneEngine
from afterwords.models import SpeechTask
from afterwords.server.cache_key import cache_path
from afterwords.server.services.ownership import MARK_PATH
from afterwords.server.store.schema import metadata
from tests.e2e.served import Served, wait_until
from tests.s3 import S3

SWEPT_WITHIN_S = 60.0
SWEEPING = {"AFTERWORDS_SWEEP_INTERVAL_S": "0.3", "AFTERWORDS_SWEEP_GRACE_S": "2"}
"""A sweep that tests can wait for. A write takes far less than the grace."""


def query(served: Served, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a statement."""
    if url := served.settings.get("AFTERWORDS_DATABASE_URL"):
        import psycopg

        with psycopg.connect(url, autocommit=True, connect_timeout=10) as session:
            return session.execute(statement.replace("?", "%s").encode(), values).fetchall()
    with closing(sqlite3.connect(f"file:{database(served)}?mode=ro", uri=True, timeout=60)) as connection:
        return connection.execute(statement, values).fetchall()


def query_one(served: Served, statement: str, *values: Any) -> Any:
    """Return the single value of a statement."""
    [(value,)] = query(served, statement, *values)
    return value


def count_attempts(served: Served, job_id: str) -> int:
    """Return how often a job was claimed."""
    return int(query_one(served, "SELECT attempt FROM jobs WHERE job_id = ?", job_id))


def database(served: Served) -> Path:
    return served.home / "server" / "afterwords.db"


def blob_folder(served: Served) -> Path:
    return served.home / "server" / "blobs"


def list_blobs(served: Served) -> set[str]:
    """Return the paths of all blobs, including unfinished ones, without the mark of the storage."""
    if bucket := _bucket(served):
        found = bucket[0].list(bucket[1])
    else:
        root = blob_folder(served)
        files = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
        found = {path.relative_to(root).as_posix() for path in files}
    return {path for path in found if not path.rpartition("/")[2].startswith(MARK_PATH)}


def read_blob(served: Served, path: str) -> bytes | None:
    """Return a blob, or None if it is missing."""
    if bucket := _bucket(served):
        return bucket[0].read(bucket[1], path)
    file = blob_folder(served) / path
    return file.read_bytes() if file.is_file() else None


def _bucket(served: Served) -> tuple[S3, str] | None:
    url = served.settings.get("AFTERWORDS_STORAGE_URL", "")
    return (_s3(parse_qs(urlsplit(url).query)["endpoint"][0]), url) if url.startswith("s3:") else None


@cache
def _s3(endpoint: str) -> S3:
    return S3(endpoint)


def find_orphans(served: Served) -> set[str]:
    """Return blobs that no row refers to. Blobs are listed before rows, so a write in progress counts as one."""
    found = list_blobs(served)
    known = {path for (path,) in query(served, "SELECT ref_audio_key FROM voices")}
    known |= {path for (path,) in query(served, "SELECT audio_key FROM jobs")}
    known |= {cache_path(*row) for row in query(served, "SELECT voice_id, cache_key FROM cache")}
    voices = {f"voices/{voice_id}" for (voice_id,) in query(served, "SELECT voice_id FROM voices")}
    return {
        path
        for path in found - known
        if path.endswith(".part") or "/prompts/" not in path or path.partition("/prompts/")[0] not in voices
    }


def find_corrupt(served: Served) -> list[str]:
    """Return the paths in rows whose blob is missing or has another digest."""
    statement = (
        "SELECT audio_key, audio_sha256 FROM jobs WHERE status = 'ready' "
        "UNION SELECT ref_audio_key, ref_sha256 FROM voices"
    )
    blobs = ((path, digest, read_blob(served, path)) for path, digest in query(served, statement))
    return [path for path, digest, data in blobs if data is None or sha256(data).hexdigest() != digest]


def find_damage(served: Served) -> list[Any]:
    """Return what is wrong with the files of the database, and rows that refer to missing rows."""
    if "AFTERWORDS_DATABASE_URL" not in served.settings:
        damage = [text for (text,) in query(served, "PRAGMA integrity_check") if text != "ok"]
        return damage + query(served, "PRAGMA foreign_key_check")
    for table in metadata.sorted_tables:  # reads every value; Postgres compares the checksum of each page
        query(served, f"SELECT sum(length(CAST(each AS text))) FROM {table.name} AS each")
    dangling = (
        "SELECT count(*) FROM {} AS child WHERE {} IS NOT NULL AND NOT EXISTS "
        "(SELECT 1 FROM {} AS parent WHERE parent.{} = child.{})"
    )
    keys = [(table.name, key.parent.name, key.column) for table in metadata.sorted_tables for key in table.foreign_keys]
    return [
        (table, name)
        for table, name, parent in keys
        if query_one(served, dangling.format(table, name, parent.table.name, parent.name, name))
    ]


def find_wrong_charges(served: Served, *, is_deleted_counted: bool = False) -> list[tuple[Any, ...]]:
    """Return keys whose usage differs from the cost of their ready jobs: (spending_id, usage, cost)."""
    wrong = "<" if is_deleted_counted else "!="
    return query(
        served,
        "SELECT spending_id, characters, cost FROM usage LEFT JOIN (SELECT spending_id, period, "
        "sum(CASE WHEN status IN ('ready', 'pending') THEN char_count ELSE 0 END) AS cost "
        "FROM jobs GROUP BY spending_id, period) AS costs "
        f"USING (spending_id, period) WHERE characters {wrong} coalesce(cost, 0)",
    )


def check_invariants(served: Served, *, is_deleted_counted: bool = False) -> None:
    """Check all invariants on an idle server with the settings SWEEPING.

    Args:
        is_deleted_counted: Some ready jobs were deleted with their voice. They remain charged, but have no row.
    """
    assert query(served, "SELECT job_id FROM jobs WHERE status = 'pending'") == []
    assert query(served, "SELECT job_id FROM jobs WHERE status != 'pending' AND text IS NOT NULL") == []
    assert find_wrong_charges(served, is_deleted_counted=is_deleted_counted) == []
    assert find_corrupt(served) == []
    assert find_damage(served) == []
    wait_until(lambda: not find_orphans(served), deadline_s=SWEPT_WITHIN_S, what="removal of all orphans")
    wait_until(
        lambda: not query(served, "SELECT voice_id FROM tombstones WHERE purged_at IS NULL"),
        deadline_s=SWEPT_WITHIN_S,
        what="the end of all deletions",
    )


# -- processes ------------------------------------------------------------------------------------------------


def worker_processes(served: Served) -> list[psutil.Process]:
    """Return the worker processes of a server, or none if it is dead."""
    assert served.process is not None
    try:
        return [child for child in psutil.Process(served.process.pid).children() if _is_worker(child)]
    except psutil.NoSuchProcess:
        return []


def worker_process(served: Served) -> psutil.Process:
    """Wait for the worker process of a server."""
    return wait_until(lambda: worker_processes(served), what="a worker process")[0]


def wait_until_gone(*processes: psutil.Process) -> None:
    """Wait until processes have ended."""
    wait_until(lambda: not any(is_alive(process) for process in processes), what="the end of the processes")


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "afterwords.server.dispatch.worker_main" in process.cmdline()
    except psutil.Error:
        return False


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs. A zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


# -- audio ----------------------------------------------------------------------------------------------------


def is_speech_of(wav: bytes, text: str) -> bool:
    """Return whether audio is exactly what the tone engine makes of a text."""
    task = SpeechTask(text=text, lang="en", backend="tone", voice_id="any", prompt=b"")
    spoken = np.concatenate([chunk.samples for chunk in ToneEngine().synthesize(task)])
    return pcm16(read_wav(wav)[0]) == pcm16(spoken)
