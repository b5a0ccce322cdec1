"""Measure the time from a request to its first audio on each API, and from a disconnect to the end of its job.

The engine `tone` makes its first audio at once, so that what is measured is the time of the server: authentication, the
durable submit, the claim, the pipe from the worker process, encoding. Requests of the APIs alternate, each on a
connection that stays open.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from afterwords.backends.tone import ToneEngine
from afterwords.models import SpeechTask
from benchmarks.load import UNLIMITED
from tests.e2e.served import register, serving, wait_for_job, wait_until_prepared

ROUNDS = 60
WARM_UP = 5
TEXT = "The harbour was quiet when they arrived, and the boats were gone."
SLOW = "fault-slow " + "and so on, " * 100
_serial = itertools.count()

DOORS: dict[str, tuple[str, dict[str, Any]]] = {
    "native, wav": ("/v1/synthesize", {"voice_id": "me", "stream": True}),
    "OpenAI, pcm": ("/v1/audio/speech", {"voice": "me", "model": "tts-1", "response_format": "pcm"}),
    "OpenAI, mp3": ("/v1/audio/speech", {"voice": "me", "model": "tts-1"}),
    "OpenAI, opus": ("/v1/audio/speech", {"voice": "me", "model": "tts-1", "response_format": "opus"}),
    "OpenAI, events": ("/v1/audio/speech", {"voice": "me", "model": "tts-1", "stream_format": "sse"}),
}


def body_of(fields: dict[str, Any], text: str) -> dict[str, Any]:
    """Return a request whose audio is not cached."""
    return {**fields, "text" if "voice_id" in fields else "input": f"{text} {next(_serial)}"}


def time_first_audio(client: httpx.Client, door: str) -> float:
    """Return the milliseconds to the first audio, which is in the first chunk. Waits for the end of the job."""
    path, fields = DOORS[door]
    started = time.perf_counter()
    with client.stream("POST", path, json=body_of(fields, TEXT)) as answer:
        assert answer.status_code == 200, answer.read()
        chunks: Iterator[bytes] = answer.iter_raw()
        next(chunks)
        elapsed_ms = 1000 * (time.perf_counter() - started)
        for _ in chunks:
            pass
    wait_for_job(client, answer.headers["x-job-id"])
    return elapsed_ms


def time_cancel(client: httpx.Client, door: str) -> float:
    """Return the milliseconds from the disconnect after the first audio until the job is cancelled."""
    path, fields = DOORS[door]
    with (
        httpx.Client(base_url=client.base_url, headers=client.headers, timeout=60, trust_env=False) as leaving,
        leaving.stream("POST", path, json=body_of(fields, SLOW)) as answer,
    ):
        chunks = answer.iter_raw()
        next(chunks)
        job_id = answer.headers["x-job-id"]
    closed = time.perf_counter()
    while (status := client.get(f"/v1/jobs/{job_id}").json()["status"]) == "pending":
        pass
    assert status == "cancelled", status
    return 1000 * (time.perf_counter() - closed)


def time_engine() -> float:
    """Return the milliseconds of the engine alone to its first audio."""
    task = SpeechTask(text=f"{TEXT} {next(_serial)}", lang="en", backend="tone", voice_id="me", prompt=b"")
    started = time.perf_counter()
    next(ToneEngine().synthesize(task))
    return 1000 * (time.perf_counter() - started)


def row(name: str, durations_ms: list[float], engine_ms: float, target: str) -> str:
    ordered = sorted(durations_ms)
    p50, p95 = statistics.median(ordered) - engine_ms, ordered[int(0.95 * len(ordered))] - engine_ms
    return f"| {name} | {p50:.1f} ms | {p95:.1f} ms | {target} |"


def table() -> list[str]:
    """Return the figures as Markdown."""
    first: dict[str, list[float]] = {door: [] for door in DOORS}
    ends: dict[str, list[float]] = {door: [] for door in ("native, wav", "OpenAI, mp3", "OpenAI, events")}
    engine_ms = statistics.median(time_engine() for _ in range(ROUNDS))
    with tempfile.TemporaryDirectory() as name:
        settings = {**UNLIMITED, "AFTERWORDS_TESTING": "1"}
        with serving(Path(name) / "home", settings) as served, served.client() as client:
            wait_until_prepared(client, register(client))
            for _, door in itertools.product(range(ROUNDS + WARM_UP), DOORS):
                first[door].append(time_first_audio(client, door))
            for _, door in itertools.product(range(ROUNDS // 3), ends):
                ends[door].append(time_cancel(client, door))
    return [
        "| request → first audio, over the engine's own | p50 | p95 | target, p50 |",
        "|---|---|---|---|",
        *(row(door, durations[WARM_UP:], engine_ms, "≤ 15 ms") for door, durations in first.items()),
        "",
        "| disconnect → job cancelled | p50 | p95 | target |",
        "|---|---|---|---|",
        *(row(door, durations, 0, "≤ 100 ms") for door, durations in ends.items()),
    ]


if __name__ == "__main__":
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(*table(), sep="\n")
