"""A load generator: sixteen keep-alive connections that send the next request after each response.

It uses asyncio streams, since a full HTTP client would be slower than the server that it measures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

CLIENTS = 16

UNLIMITED = {
    "AFTERWORDS_RATE_LIMIT": "0",
    "AFTERWORDS_MAX_PENDING_JOBS": "10000000",
    "AFTERWORDS_MAX_PENDING_JOBS_PER_ACCOUNT": "10000000",
}
"""Settings of a server without limits."""


@dataclass(frozen=True)
class Load:
    """Throughput and latencies of a round of requests."""

    requests_per_s: float
    latencies_ms: list[float]

    def percentile(self, share: float) -> float:
        """Return the latency that this share of the requests did not exceed, in milliseconds."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def request(url: str, method: str = "GET", *, body: bytes = b"", key: str = "") -> bytes:
    """Return the bytes of a request."""
    parts = urlsplit(url)
    lines = [f"{method} {parts.path}{'?' + parts.query if parts.query else ''} HTTP/1.1", f"Host: {parts.netloc}"]
    if key:
        lines.append(f"Authorization: Bearer {key}")
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def load(url: str, make: Callable[[int], bytes], *, n: int, expect: int, clients: int = CLIENTS) -> Load:
    """Send the requests `make(0)` to `make(n - 1)`; each response must have the status `expect`."""
    return asyncio.run(send_all(url, make, n=n, expect=expect, clients=clients))


async def send_all(
    url: str, make: Callable[[int], bytes], *, n: int, expect: int | None, clients: int, pause_s: float = 0
) -> Load:
    """Send requests as `load` does.

    Args:
        expect: None allows any status.
        pause_s: Time from one request of a client to its next one, if the response comes sooner.
    """
    parts = urlsplit(url)
    numbers = iter(range(n))
    latencies: list[float] = []
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(_client(str(parts.hostname), parts.port or 80, numbers, make, expect, pause_s, latencies))
    return Load(n / (time.perf_counter() - started), latencies)


async def _client(
    host: str,
    port: int,
    numbers: Iterator[int],
    make: Callable[[int], bytes],
    expect: int | None,
    pause_s: float,
    latencies: list[float],
) -> None:
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 22)
    status_line = f"HTTP/1.1 {expect or ''}".encode()
    for number in numbers:
        started = time.perf_counter()
        writer.write(make(number))
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        body = await reader.readexactly(length)
        latencies.append(1000 * (time.perf_counter() - started))
        if not head.startswith(status_line):
            raise AssertionError(f"{head.splitlines()[0]!r}: {body[:300]!r}")
        if b"connection: close" in head.lower():
            writer.close()
            reader, writer = await asyncio.open_connection(host, port, limit=1 << 22)
        if pause_s:
            await asyncio.sleep(started + pause_s - time.perf_counter())
    writer.close()
