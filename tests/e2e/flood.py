"""Sends many large uploads at once, and measures the memory and latency of the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import psutil

from afterwords.audio.wav import REFERENCE_MAX_BYTES
from tests.audio.test_wav import DATA, GOOD, chunk, fmt, riff
from tests.e2e.served import Served
from tests.e2e.wire import Answer, ask

MIB = 1 << 20
SAMPLE_INTERVAL_S = 0.01


@dataclass
class Memory:
    """Resident memory of a server before and at the peak, without its child processes."""

    idle_bytes: int
    peak_bytes: int

    @property
    def growth_bytes(self) -> int:
        return self.peak_bytes - self.idle_bytes


@contextmanager
def watched(served: Served, look: Callable[[], object] = lambda: None) -> Iterator[Memory]:
    """Sample the memory of a server, and call `look` at every sample."""
    assert served.process is not None
    process = psutil.Process(served.process.pid)
    memory = Memory(process.memory_info().rss, 0)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_INTERVAL_S):
            memory.peak_bytes = max(memory.peak_bytes, process.memory_info().rss)
            look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield memory
    finally:
        ended.set()
        thread.join()


@dataclass(frozen=True)
class Flood:
    """The status of every upload, the memory, and the latency of /healthz in seconds."""

    statuses: list[int]
    memory: Memory
    healthz_s: list[float]


def flood(served: Served, n_uploads: int) -> Flood:
    """Upload recordings of 20 MiB at once, and request /healthz in the meantime."""
    wav = riff(fmt(), chunk(b"JUNK", bytes(REFERENCE_MAX_BYTES - len(GOOD) - 8)), DATA)
    body = b"".join(
        [
            b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nme\r\n',
            b'--b\r\nContent-Disposition: form-data; name="ref_audio"; filename="x"\r\n\r\n',
            wav,
            b"\r\n--b--\r\n",
        ]
    )
    headers = [
        ("Authorization", f"Bearer {served.key}"),
        ("Content-Type", "multipart/form-data; boundary=b"),
        ("Content-Length", str(len(body))),
    ]

    def upload(_: int) -> Answer:
        return ask(served, "POST", "/v1/voices", headers, body, deadline_s=120)

    healthz_s: list[float] = []
    with (
        watched(served) as memory,
        ThreadPoolExecutor(n_uploads) as pool,
        httpx.Client(base_url=served.url, timeout=120, verify=False) as client,
    ):
        uploads = [pool.submit(upload, n) for n in range(n_uploads)]
        while not all(each.done() for each in uploads):
            began = time.perf_counter()
            client.get("/healthz").raise_for_status()
            healthz_s.append(time.perf_counter() - began)
        statuses = [each.result().status for each in uploads]
    return Flood(statuses, memory, healthz_s)
