"""What the SDK costs beside bare httpx, how it stands many calls at once, and what `say --remote` adds to the server.

One real server on this machine speaks for all; the two ways to ask it alternate, and medians are printed.
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
    """Mean time of a call over a round."""
    started = time.perf_counter()
    for _ in range(CALLS):
        call()
    return (time.perf_counter() - started) / CALLS


def cached(url: str, key: str, voice_id: str) -> tuple[float, float, float]:
    """A call of the SDK and of bare httpx for the same cached text, in seconds, and the median of their ratios."""
    body = {"voice_id": voice_id, "text": TEXT}
    headers = {"Authorization": f"Bearer {key}"}
    with aw.Client(url, api_key=key) as client, httpx.Client(base_url=url, headers=headers) as bare:
        client.say(TEXT, voice=voice_id)

        def ask() -> bytes:
            answer = bare.post("/v1/synthesize", json=body)
            answer.raise_for_status()
            return answer.content

        pairs = [
            (seconds_each(lambda: client.say(TEXT, voice=voice_id)), seconds_each(ask)) for _ in range(ROUNDS + 1)
        ][1:]
    ours, theirs = zip(*pairs, strict=True)
    return statistics.median(ours), statistics.median(theirs), statistics.median(a / b for a, b in pairs)


async def at_once(url: str, key: str, voice_id: str) -> tuple[int, list[float]]:
    """Rounds of 200 calls at once; how many failed, and the process's memory in MB after each round."""
    failed = 0
    memory = []
    process = psutil.Process()
    async with aw.AsyncClient(url, api_key=key) as client:
        for _ in range(ROUNDS + 3):
            calls = [client.say(TEXT, voice=voice_id) for _ in range(CALLS)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            failed += sum(isinstance(answer, BaseException) for answer in answers)
            del calls, answers
            gc.collect()
            memory.append(process.memory_info().rss / 1e6)
    return failed, memory[3:]


def started(url: str, key: str, folder: Path) -> tuple[float, float]:
    """What `say --remote` of a cached text takes, and the server's part of it, in seconds: medians."""
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
    """The figures as Markdown."""
    lines = ["| what | measured | to reach |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as name, serving(Path(name) / "home", UNLIMITED) as served:
        with aw.Client(served.url, api_key=served.key) as client:
            voice_id = client.voices.create(READER, name="me").voice_id
        ours, theirs, ratio = cached(served.url, served.key, voice_id)
        lines.append(
            f"| `client.say`, cached text / the same by bare httpx | {ours * 1e3:.2f} / {theirs * 1e3:.2f} ms = "
            f"{ratio:.2f} | ≤ 1.3 |"
        )
        failed, memory = asyncio.run(at_once(served.url, served.key, voice_id))
        lines.append(f"| {CALLS} calls at once on one `AsyncClient`, {ROUNDS + 3} rounds: failed | {failed} | 0 |")
        lines.append(f"| memory, first and last round after three | {memory[0]:.0f}, {memory[-1]:.0f} MB | flat |")
        whole, part = started(served.url, served.key, Path(name))
        lines.append(
            f"| `say --remote -o`, less the server's {part * 1e3:.0f} ms | {(whole - part) * 1e3:.0f} ms | ≤ 500 ms |"
        )
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
