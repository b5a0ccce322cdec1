"""Compare remote workers with the worker processes of a server, and four workers with one; all on one machine."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.workers import World, open_world

WARM_UP = 20
REQUESTS = 300
JOBS = 48
ONE_AT_A_TIME = "from afterwords.backends.tone import ToneEngine\nToneEngine.max_concurrent = 1\n"
TENTH = "fault-slow"  # two pauses of 50 ms
LIMITS = {"AFTERWORDS_RATE_LIMIT": "0", "AFTERWORDS_LEASE_S": "15"}

_seeds = itertools.count()


def speak(world: World, text: str) -> float:
    """Return the milliseconds from the request of an uncached text to its audio."""
    body = {"voice_id": world.voice_id, "text": text, "seed": next(_seeds)}
    started = time.perf_counter()
    answer = world.client.post("/v1/synthesize", json=body, headers={"Prefer": "wait=60"})
    assert answer.status_code == 200, answer.text
    return 1000 * (time.perf_counter() - started)


def overhead(folder: Path) -> tuple[float, float]:
    """Return the medians of local and remote jobs, in ms. They alternate, so that both see the same load."""
    with (
        open_world(folder / "local", **LIMITS, AFTERWORDS_WORKERS="1") as local,
        open_world(folder / "remote", **LIMITS) as remote,
    ):
        remote.start_worker(AFTERWORDS_LOG_LEVEL="info")
        pairs = [(speak(local, "Hello there."), speak(remote, "Hello there.")) for _ in range(WARM_UP + REQUESTS)]
    mine, theirs = (statistics.median(side) for side in zip(*pairs[WARM_UP:], strict=True))
    return mine, theirs


def throughput(folder: Path, n_workers: int) -> float:
    """Return the jobs per second of workers that run one job of 100 ms at a time."""
    (folder / "engine").mkdir(parents=True)
    (folder / "engine" / "sitecustomize.py").write_text(ONE_AT_A_TIME, "utf-8")
    with open_world(folder, **LIMITS) as world:
        for _ in range(n_workers):
            world.start_worker(PYTHONPATH=str(folder / "engine"), AFTERWORDS_LOG_LEVEL="info").wait_for_log("is ready")
        speak(world, "The voice is prepared.")
        started = time.perf_counter()
        answers = [
            world.client.post("/v1/synthesize", json={"voice_id": world.voice_id, "text": TENTH, "seed": next(_seeds)})
            for _ in range(JOBS)
        ]
        for answer in answers:
            assert world.wait_for(answer.json()["job_id"]) == "ready"
        return JOBS / (time.perf_counter() - started)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def table() -> list[str]:
    with _folder() as folder:
        local, remote = overhead(folder)
        one, four = (throughput(folder / str(number), number) for number in (1, 4))
    delay = f"{local:.1f} / {remote:.1f} ms: +{remote - local:.1f} ms"
    return [
        "| remote workers, engine `tone` | measured | target |",
        "|---|---|---|",
        f"| submit → ready, p50, local / remote | {delay} | ≤ +15 ms |",
        f"| jobs of 100 ms, four workers / one | {four:.1f} / {one:.1f} per s: {four / one:.2f} | ≥ 3.5 |",
    ]


if __name__ == "__main__":
    print(*table(), sep="\n")
