"""What must be true of a server after whatever befell it, seen from outside: its rows, its blobs, its processes."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from afterwords.audio.wav import pcm16, read_wav
from afterwords.backends.tone import ToneEngine
from afterwords.models import SpeechTask
from afterwords.server.cache_key import cache_path
from afterwords.server.services.ownership import MARK_PATH
from tests.e2e.served import Served, until

SWEPT_WITHIN_S = 15.0
SWEEPING = {"AFTERWORDS_SWEEP_INTERVAL_S": "0.3", "AFTERWORDS_SWEEP_GRACE_S": "2"}
"""A sweeper that is seen at work. Blobs are on their way for far less than the grace."""


def rows(served: Served, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """What a statement finds in the database."""
    with closing(sqlite3.connect(f"file:{database(served)}?mode=ro", uri=True, timeout=10)) as connection:
        return connection.execute(statement, values).fetchall()


def one(served: Served, statement: str, *values: Any) -> Any:
    """The only value that a statement finds."""
    [(value,)] = rows(served, statement, *values)
    return value


def attempts_of(served: Served, job_id: str) -> int:
    """How often a job was claimed."""
    return int(one(served, "SELECT attempt FROM jobs WHERE job_id = ?", job_id))


def database(served: Served) -> Path:
    return served.home / "server" / "afterwords.db"


def blob_folder(served: Served) -> Path:
    return served.home / "server" / "blobs"


def blobs(served: Served) -> set[str]:
    """The paths of all blobs, unfinished ones among them, without the mark; what vanishes meanwhile is left out."""
    root = blob_folder(served)
    files = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    return {path.relative_to(root).as_posix() for path in files if not path.name.startswith(MARK_PATH)}


def orphans(served: Served) -> set[str]:
    """Blobs that no row names. Whoever looks before the rows sees what is on its way as an orphan."""
    found = blobs(served)
    known = {path for (path,) in rows(served, "SELECT ref_audio_key FROM voices")}
    known |= {path for (path,) in rows(served, "SELECT audio_key FROM jobs")}
    known |= {cache_path(*row) for row in rows(served, "SELECT voice_id, cache_key FROM cache")}
    voices = {f"voices/{voice_id}" for (voice_id,) in rows(served, "SELECT voice_id FROM voices")}
    return {
        path
        for path in found - known
        if path.endswith(".part") or "/prompts/" not in path or path.partition("/prompts/")[0] not in voices
    }


def corrupt(served: Served) -> list[str]:
    """Paths that rows name with a digest, whose blob is missing or another."""
    statement = (
        "SELECT audio_key, audio_sha256 FROM jobs WHERE status = 'ready' "
        "UNION SELECT ref_audio_key, ref_sha256 FROM voices"
    )
    return [path for path, digest in rows(served, statement) if _digest(blob_folder(served) / path) != digest]


def wrongly_charged(served: Served, *, is_deleted_counted: bool = False) -> list[tuple[Any, ...]]:
    """Accounts of which more or less is counted than their ready jobs cost: (spending_id, counted, cost)."""
    wrong = "<" if is_deleted_counted else "!="
    return rows(
        served,
        "SELECT spending_id, characters, cost FROM usage LEFT JOIN (SELECT spending_id, period, "
        "sum(char_count * (status IN ('ready', 'pending'))) AS cost FROM jobs GROUP BY spending_id, period) "
        f"USING (spending_id, period) WHERE characters {wrong} ifnull(cost, 0)",
    )


def invariants(served: Served, *, is_deleted_counted: bool = False) -> None:
    """Check them all on a running server that sweeps (SWEEPING) and has nothing to do any more.

    Args:
        is_deleted_counted: some jobs were deleted with their voice when they were ready: what they cost stays
            counted, and can't be told from the rows.
    """
    assert rows(served, "SELECT job_id FROM jobs WHERE status = 'pending'") == []
    assert rows(served, "SELECT job_id FROM jobs WHERE status != 'pending' AND text IS NOT NULL") == []
    assert wrongly_charged(served, is_deleted_counted=is_deleted_counted) == []
    assert corrupt(served) == []
    assert one(served, "PRAGMA integrity_check") == "ok"
    assert rows(served, "PRAGMA foreign_key_check") == []
    until(lambda: not orphans(served), deadline_s=SWEPT_WITHIN_S, what="the end of all orphans")
    until(
        lambda: not rows(served, "SELECT voice_id FROM tombstones WHERE purged_at IS NULL"),
        deadline_s=SWEPT_WITHIN_S,
        what="the end of all deletions",
    )


# -- processes ------------------------------------------------------------------------------------------------


def speakers(served: Served) -> list[psutil.Process]:
    """The speaking processes of a server; none where it is dead."""
    assert served.process is not None
    try:
        return [child for child in psutil.Process(served.process.pid).children() if _is_speaker(child)]
    except psutil.NoSuchProcess:
        return []


def speaker(served: Served) -> psutil.Process:
    """The speaking process of a server that has one, once it is there."""
    return until(lambda: speakers(served), what="a speaking process")[0]


def gone(*processes: psutil.Process) -> None:
    """Wait until processes are no more."""
    until(lambda: not any(is_alive(process) for process in processes), what="the end of the processes")


def _is_speaker(process: psutil.Process) -> bool:
    try:
        return "afterwords.server.dispatch.worker_main" in process.cmdline()
    except psutil.Error:
        return False


def is_alive(process: psutil.Process) -> bool:
    """Whether it does anything; one that nobody has waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


# -- sound ----------------------------------------------------------------------------------------------------


def is_speech_of(wav: bytes, text: str) -> bool:
    """Whether audio is what the tone engine makes of a text, to the last sample."""
    task = SpeechTask(text=text, lang="en", backend="tone", voice_id="any", prompt=b"")
    spoken = np.concatenate([chunk.samples for chunk in ToneEngine().synthesize(task)])
    return pcm16(read_wav(wav)[0]) == pcm16(spoken)


def _digest(file: Path) -> str | None:
    return sha256(file.read_bytes()).hexdigest() if file.is_file() else None
