"""Compare the server with a bare FastAPI route that returns the same bytes, in one run on one machine.

Both are real processes with the same uvicorn, event loop and parser, and get the same requests; the bare route reads
nothing of them and logs nothing. Rounds alternate, and medians are printed.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from afterwords.audio.wav import check_reference_wav
from afterwords.errors import AfterwordsError
from benchmarks.load import UNLIMITED, Load, load, request
from tests.e2e.served import register, serving, submit_text, wait_for_job

ROUNDS = 9
REQUESTS = 2_000
BACKLOG = 1_000  # pending jobs at the end of a round: the default limit of a server
TEXT = "The harbour was quiet when they arrived."
STATIC = """
import sys, uvicorn
from fastapi import FastAPI, Response
app = FastAPI()
AUDIO = open(sys.argv[1], "rb").read()
@app.post("/v1/synthesize")
async def audio(): return Response(AUDIO, media_type="audio/wav")
@app.post("/v1/submit", status_code=202)
async def submit(): return {"job_id": "00000000-0000-4000-8000-000000000000", "status": "pending"}
@app.get("/v1/jobs/{job_id}")
async def poll(): return {"job_id": "00000000-0000-4000-8000-000000000000", "status": "ready", "audio_url": None}
print("ready", flush=True)
uvicorn.run(app, port=int(sys.argv[2]), log_level="error", access_log=False)
"""


@contextmanager
def static(audio: Path) -> Iterator[str]:
    """Run the peer: a process that returns the same bytes from memory."""
    port = _free_port()
    process = subprocess.Popen([sys.executable, "-c", STATIC, str(audio), str(port)], stdout=subprocess.PIPE)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(200):
            try:
                httpx.get(f"{url}/v1/jobs/0")
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait()


def compare(ours: Callable[[], Load], theirs: Callable[[], Load]) -> tuple[Load, Load, float]:
    """Return the median rounds of both and the median of the ratios of their requests per second."""
    pairs = [(ours(), theirs()) for _ in range(ROUNDS + 1)][1:]  # the first round warms both up
    ratio = statistics.median(mine.requests_per_s / peer.requests_per_s for mine, peer in pairs)
    middle = sorted(pairs, key=lambda pair: pair[0].requests_per_s / pair[1].requests_per_s)[len(pairs) // 2]
    return *middle, ratio


def row(name: str, mine: Load, peer: Load, ratio: float, target: str) -> str:
    return (
        f"| {name} | {mine.requests_per_s:,.0f}/s | {peer.requests_per_s:,.0f}/s | {ratio:.2f} "
        f"| {mine.percentile(0.99):.1f} ms ({mine.percentile(0.99) / peer.percentile(0.99):.1f} ×) | {target} |"
    )


def against_static(folder: Path) -> list[str]:
    """Measure cache hits, durable submits and polls."""
    with serving(folder / "speaking", UNLIMITED) as served, served.client() as client:
        voice_id = register(client)
        job_id = submit_text(client, voice_id, TEXT)
        wait_for_job(client, job_id)
        body = json.dumps({"voice_id": voice_id, "text": TEXT}).encode()
        audio = folder / "audio.wav"
        audio.write_bytes(client.post("/v1/synthesize", content=body, headers=_JSON).content)
        hit = request(f"{served.url}/v1/synthesize", "POST", body=body, key=served.key)
        poll = request(f"{served.url}/v1/jobs/{job_id}", key=served.key)
        with static(audio) as peer:
            same = request(f"{peer}/v1/synthesize", "POST", body=body, key=served.key)
            same_json = request(f"{peer}/v1/jobs/{job_id}", key=served.key)
            hits = compare(
                lambda: load(served.url, lambda _: hit, n=REQUESTS, expect=200),
                lambda: load(peer, lambda _: same, n=REQUESTS, expect=200),
            )
            polls = compare(
                lambda: load(served.url, lambda _: poll, n=REQUESTS, expect=200),
                lambda: load(peer, lambda _: same_json, n=REQUESTS, expect=200),
            )
    submits = _measure_submits(folder, audio)
    size = f"{audio.stat().st_size / 1000:.0f} kB"
    return [
        "| what | ours | static | ratio | p99 (of static's) | target |",
        "|---|---|---|---|---|---|",
        row(f"cache hit, {size} of audio", *hits, "≥ 0.50 (aim 0.70), p99 ≤ 3 ×"),
        row("durable submit", *submits, "≥ 0.30, p99 ≤ 150 ms"),
        row("poll", *polls, "≥ 0.50"),
    ]


def _measure_submits(folder: Path, audio: Path) -> tuple[Load, Load, float]:
    """Measure submits, durable through a power cut; no worker runs, and each round has its own voice."""
    serial = itertools.count()
    with serving(folder / "accepting", {**UNLIMITED, "AFTERWORDS_WORKERS": "0"}) as served, served.client() as client:

        def submit_round() -> Load:
            voice_id = register(client)

            def submit(_: int) -> bytes:
                body = json.dumps({"voice_id": voice_id, "text": f"{TEXT} {next(serial)}"}).encode()
                return request(f"{served.url}/v1/synthesize", "POST", body=body, key=served.key)

            done = load(served.url, submit, n=BACKLOG, expect=202)
            assert client.delete(f"/v1/voices/{voice_id}").status_code == 204
            return done

        with static(audio) as peer:
            body = json.dumps({"voice_id": "0" * 36, "text": TEXT}).encode()
            same = request(f"{peer}/v1/submit", "POST", body=body, key=served.key)
            return compare(submit_round, lambda: load(peer, lambda _: same, n=REQUESTS, expect=202))


def latency(folder: Path) -> list[str]:
    """Measure the time from submit to ready with an engine that takes no time, one job after the other."""
    durations_ms: list[float] = []
    with serving(folder / "latency", UNLIMITED) as served, served.client() as client:
        voice_id = register(client)
        for number in range(220):
            started = time.perf_counter()
            job_id = submit_text(client, voice_id, f"Job number {number}.")
            while client.get(f"/v1/jobs/{job_id}", params={"wait": 10}).json()["status"] == "pending":
                pass
            durations_ms.append(1000 * (time.perf_counter() - started))
    durations_ms = sorted(durations_ms[20:])
    return [
        "| submit → ready, engine `tone` | measured | target |",
        "|---|---|---|",
        f"| p50 | {statistics.median(durations_ms):.1f} ms | ≤ 50 ms |",
        f"| p99 | {durations_ms[int(0.99 * len(durations_ms))]:.1f} ms | ≤ 250 ms |",
    ]


def memory(folder: Path) -> list[str]:
    """Measure the resident memory of the idle server process, which runs no engine, after a voice and a job."""
    with serving(folder / "idle") as served, served.client() as client:
        wait_for_job(client, submit_text(client, register(client), TEXT))
        assert served.process is not None
        resident = psutil.Process(served.process.pid).memory_info().rss / 2**20
    return [f"| server process, idle | {resident:.0f} MB | ≤ 150 MB |"]


def validation() -> list[str]:
    """Measure the slowest validation of an invalid WAV file, beyond 5 ms per megabyte."""
    from tests.audio.test_wav import BAD

    worst = 0.0
    for _, make in BAD.values():
        data = make()
        started = time.perf_counter()
        with suppress(AfterwordsError):
            check_reference_wav(data)
        worst = max(worst, 1000 * (time.perf_counter() - started) - 5 * len(data) / 1e6)
    return [f"| worst of the bad WAV files, less 5 ms/MB | {worst:.1f} ms | ≤ 50 ms |"]


def table() -> list[str]:
    """Return the figures as Markdown."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rest = ["| what | measured | target |", "|---|---|---|"]
        return [*against_static(folder), "", *latency(folder), "", *rest, *memory(folder), *validation()]


_JSON: dict[str, Any] = {"Content-Type": "application/json"}


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    print(os.cpu_count(), "cores")
    print(*table(), sep="\n")
