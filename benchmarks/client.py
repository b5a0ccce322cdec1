"""Overhead of the SDK over plain httpx, many concurrent calls, and the time that `say --remote` adds.

All measurements use one real server on this machine. Those of the SDK and of httpx alternate; medians are printed.
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

import afterwords as aw
from tests.e2e.served import READER, serving

ROUNDS = 9
CALLS = 200
TEXT = "The harbour was quiet when they arrived."
UNLIMITED = {"AFTERWORDS_RATE_LIMIT": "0"}


def seconds_each(call: Callable[[], object]) -> float:
    """Return the mean time of a call in a round."""
    started = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - started) / CALLS


def measure_cached(url: str, key: str, voice_id: str) -> tuple[float, float, float]:
    """Return the times of a cached call by the SDK and by httpx, in seconds, and the median of their ratios."""
    body = {"voice_id": voice_id, "text": TEXT}
    headers = {"Authorization": f"Bearer {key}"}
    with aw.Client(url, api_key=key) as client, httpx.Client(base_url=url, headers=headers) as bare:
        client.say(TEXT, voice=voice_id)

        def request() -> bytes:
            response = bare.post("/v1/synthesize", json=body)
            response.raise_for_status()
            return response.content

        pairs = [
            (seconds_each(lambda: client.say(TEXT, voice=voice_id)), seconds_each(request)) for _ in range(ROUNDS + 1)
        ][1:]
    ours, theirs = zip(*pairs, strict=True)
    return statistics.median(ours), statistics.median(theirs), statistics.median(a / b for a, b in pairs)


async def measure_concurrent(url: str, key: str, voice_id: str) -> tuple[int, list[float]]:
    """Make rounds of 200 concurrent calls; return how many failed, and the memory in MB after each round."""
    failed = 0
    memory = []
    process = psutil.Process()
    async with aw.AsyncClient(url, api_key=key) as client:
        for _ in range(ROUNDS + 3):
            calls = [client.say(TEXT, voice=voice_id) for _ in range(CALLS)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            failed += sum(isinstance(result, BaseException) for result in results)
            del calls, results
            gc.collect()
            memory.append(process.memory_info().rss / 1e6)
    return failed, memory[3:]


def measure_command(url: str, key: str, folder: Path) -> tuple[float, float]:
    """Return the median times of `say --remote` for a cached text, and of the server's part of it, in seconds."""
    env = {**os.environ, "AFTERWORDS_BASE_URL": url, "AFTERWORDS_API_KEY": key, "AFTERWORDS_HOME": str(folder)}
    command = [sys.executable, "-m", "afterwords", "say", TEXT, "--voice", "me", "--remote", "-o", "hello.wav"]
    whole = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        subprocess.run(command, env=env, cwd=folder, check=True, capture_output=True)
        whole.append(time.perf_counter() - began)
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}) as bare:
        voice_id = bare.get("/v1/voices").json()[0]["voice_id"]
        served = [seconds_each(lambda: bare.post("/v1/synthesize", json={"voice_id": voice_id, "text": TEXT}))]
    return statistics.median(whole[1:]), statistics.median(served)


def table() -> list[str]:
    """Return the figures as Markdown."""
    lines = ["| what | measured | to reach |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as name, serving(Path(name) / "home", UNLIMITED) as served:
        with aw.Client(served.url, api_key=served.key) as client:
            voice_id = client.voices.create(READER, name="me").voice_id
        ours, theirs, ratio = measure_cached(served.url, served.key, voice_id)
        lines.append(
            f"| `client.say`, cached text / the same with bare httpx | {ours * 1e3:.2f} / {theirs * 1e3:.2f} ms = "
            f"{ratio:.2f} | ≤ 1.3 |"
        )
        failed, memory = asyncio.run(measure_concurrent(served.url, served.key, voice_id))
        lines.append(f"| {CALLS} concurrent calls of one `AsyncClient`, {ROUNDS + 3} rounds: failed | {failed} | 0 |")
        lines.append(f"| memory, first and last round after three | {memory[0]:.0f}, {memory[-1]:.0f} MB | flat |")
        whole, part = measure_command(served.url, served.key, Path(name))
        lines.append(
            f"| `say --remote -o`, less the server's {part * 1e3:.0f} ms | {(whole - part) * 1e3:.0f} ms | ≤ 500 ms |"
        )
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
