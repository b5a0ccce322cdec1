"""Measure how much an account that sends ten times what its limit allows delays the requests of another account."""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
from pathlib import Path

from benchmarks.load import Load, request, send_all
from tests.e2e.served import Served, register, serving

ROUNDS = 8
ROUND_S = 4
LIMIT_PER_S = 20
LIMITS = {"AFTERWORDS_RATE_LIMIT": str(60 * LIMIT_PER_S)}
N_NOISY_CLIENTS = 8

_serial = itertools.count()


class Tenant:
    """A key with an account and a voice of its own."""

    def __init__(self, served: Served) -> None:
        self._url = served.url
        self._key = served.new_key()
        with served.client(self._key) as client:
            self._voice_id = register(client)

    def submit(self, _: int) -> bytes:
        text = f"The harbour was quiet when they arrived. {next(_serial)}"
        body = json.dumps({"voice_id": self._voice_id, "text": text}).encode()
        return request(f"{self._url}/v1/synthesize", "POST", body=body, key=self._key)

    async def send(self, per_s: float, *, clients: int, expect: int | None) -> Load:
        """Submit for a round."""
        n, pause_s = round(per_s * ROUND_S), clients / per_s
        return await send_all(self._url, self.submit, n=n, expect=expect, clients=clients, pause_s=pause_s)


async def measure(served: Served) -> tuple[list[float], list[float], float]:
    """Return the latencies of an account alone and next to the noisy one, and how much of the noise was sent."""
    noisy, quiet = Tenant(served), Tenant(served)
    alone: list[float] = []
    disturbed: list[float] = []
    sent_per_s = 0.0
    for number in range(ROUNDS + 1):
        first = await quiet.send(LIMIT_PER_S / 4, clients=1, expect=202)
        second, noise = await asyncio.gather(
            quiet.send(LIMIT_PER_S / 4, clients=1, expect=202),
            noisy.send(10 * LIMIT_PER_S, clients=N_NOISY_CLIENTS, expect=None),
        )
        if number:  # the first round warms up
            alone += first.latencies_ms
            disturbed += second.latencies_ms
            sent_per_s += noise.requests_per_s / ROUNDS
    return alone, disturbed, sent_per_s


def table() -> list[str]:
    """Return the figures as Markdown."""
    with tempfile.TemporaryDirectory() as name, serving(Path(name) / "home", LIMITS) as served:
        alone, disturbed, sent_per_s = asyncio.run(measure(served))
    rows = []
    for title, share, target in (("p50", 0.5, ""), ("p99", 0.99, "≤ 2")):
        one, two = (sorted(found)[int(share * len(found))] for found in (alone, disturbed))
        rows.append(f"| {title} | {one:.1f} ms | {two:.1f} ms | {two / one:.2f} | {target} |")
    return [
        f"| submits of an account, limit {LIMIT_PER_S}/s | alone | next to one that sends {sent_per_s:.0f}/s "
        "| ratio | target |",
        "|---|---|---|---|---|",
        *rows,
    ]


if __name__ == "__main__":
    print(*table(), sep="\n")
