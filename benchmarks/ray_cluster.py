"""Compare a Ray cluster of one node with the worker processes of a server, all on one machine."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from tests.e2e.served import register, serving
from tests.server.dispatch.ray_cluster import DEADLINE_S, RayCluster

WARM_UP = 10
REQUESTS = 100
LIMITS = {"AFTERWORDS_RATE_LIMIT": "0"}

_seeds = itertools.count()


def speak(client: httpx.Client, voice_id: str) -> float:
    """Return the milliseconds from the request of an uncached text to its audio."""
    body = {"voice_id": voice_id, "text": "Hello there.", "seed": next(_seeds)}
    started = time.perf_counter()
    answer = client.post("/v1/synthesize", json=body, headers={"Prefer": "wait=60"})
    assert answer.status_code == 200, answer.text
    return 1000 * (time.perf_counter() - started)


def stream(client: httpx.Client, voice_id: str) -> float:
    """Return the milliseconds from the request of an uncached text to its first audio."""
    body = {"voice_id": voice_id, "text": "Hello there, and welcome.", "seed": next(_seeds), "stream": True}
    started = time.perf_counter()
    with client.stream("POST", "/v1/synthesize", json=body) as answer:
        chunks = answer.iter_raw()
        received = b""
        while len(received) <= 44:  # the header of the WAV file
            received += next(chunks)
        first_ms = 1000 * (time.perf_counter() - started)
        for _ in chunks:
            pass
    return first_ms


def measure(folder: Path) -> dict[str, tuple[float, float]]:
    """Return the medians of local jobs and of jobs in the cluster, in ms. They alternate, so that both see the same
    load."""
    with RayCluster(folder / "node") as cluster:
        deploy = ("cluster", "deploy", "--backend", "tone", "--address", cluster.address)
        command = [sys.executable, "-m", "afterwords", *deploy]
        subprocess.run(command, env=cluster.environment, timeout=DEADLINE_S, check=True, stdout=sys.stderr)
        ray = {**LIMITS, "AFTERWORDS_DISPATCHER": "ray", "AFTERWORDS_RAY_ADDRESS": cluster.address}
        with (
            serving(folder / "local", LIMITS) as near,
            serving(folder / "ray", ray) as far,
            near.client() as local,
            far.client() as remote,
        ):
            voices = register(local), register(remote)
            found = {}
            for name, request in {"submit → ready": speak, "submit → first audio": stream}.items():
                pairs = [(request(local, voices[0]), request(remote, voices[1])) for _ in range(WARM_UP + REQUESTS)]
                mine, theirs = (statistics.median(side) for side in zip(*pairs[WARM_UP:], strict=True))
                found[name] = mine, theirs
            return found


def table() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    return [
        "| Ray cluster of one node, engine `tone` | measured | target |",
        "|---|---|---|",
        *(
            f"| {name}, p50, local / Ray | {local:.1f} / {remote:.1f} ms: {remote - local:+.1f} ms | ≤ +30 ms |"
            for name, (local, remote) in found.items()
        ),
    ]


if __name__ == "__main__":
    print(*table(), sep="\n")
