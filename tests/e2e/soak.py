"""Sends tens of thousands of requests of every kind to one server, and samples its memory, descriptors and files.

    python -m tests.e2e.soak --requests 50000

prints a Markdown table, and fails if a figure grows after the first fifth, or if a response has a 5xx status.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx
import psutil

from tests.e2e.invariants import check_invariants, query_one, worker_processes
from tests.e2e.served import RECORDING, Served, register, serving, submit_text, wait_for_job, wait_until

CLIENTS = 16
STEPS = 20
WARM_UP_STEPS = STEPS // 5
"""Caches and thread pools grow in the first steps. All later samples must be level."""
PENDING = "SELECT count(*) FROM jobs WHERE status = 'pending'"
HITS = [f"Requested again and again: {number}." for number in range(40)]
SETTINGS = {
    "AFTERWORDS_RATE_LIMIT": "0",
    "AFTERWORDS_MAX_PENDING_JOBS": "100000",
    "AFTERWORDS_MAX_PENDING_JOBS_PER_ACCOUNT": "100000",
    "AFTERWORDS_SWEEP_INTERVAL_S": "10",
    "AFTERWORDS_SWEEP_GRACE_S": "30",
}
MAY_GROW_BY = {"memory, MB": 12.0, "descriptors": 4, "threads": 2, "temporary files": 0, "worker processes": 0}
"""From the median of the first three samples after the warm-up to that of the last three. A leak of 300 bytes per
request adds 12 MB in 40,000 requests."""


@dataclass
class Report:
    """The statuses of all responses, and the figures of the idle server after each step."""

    answers: Counter[int] = field(default_factory=Counter)
    samples: list[dict[str, float]] = field(default_factory=list)

    def growth(self, name: str) -> float:
        level = [sample[name] for sample in self.samples[WARM_UP_STEPS:]]
        return median(level[-3:]) - median(level[:3])

    @property
    def is_clean(self) -> bool:
        is_level = all(self.growth(name) <= limit for name, limit in MAY_GROW_BY.items())
        return is_level and not any(status >= 500 for status in self.answers)

    def table(self) -> Iterator[str]:
        """Yield the lines of Markdown tables."""
        names = ["requests", "requests/s", *MAY_GROW_BY]
        yield f"| {' | '.join(names)} |"
        yield "|---" * len(names) + "|"
        for number, sample in enumerate(self.samples):
            if number % 2:
                yield f"| {' | '.join(f'{sample[name]:,.0f}' for name in names)} |"
        yield f"| **growth** | | {' | '.join(f'{self.growth(name):+.1f}' for name in MAY_GROW_BY)} |"
        yield f"| may grow by | | {' | '.join(f'{limit:g}' for limit in MAY_GROW_BY.values())} |"
        yield ""
        counts = ", ".join(f"{count:,} × {status}" for status, count in sorted(self.answers.items()))
        yield f"Answers: {counts}."


class Soak:
    """A run on a new server."""

    def __init__(self, folder: Path, *, n_requests: int, seed: int) -> None:
        self.report = Report()
        self._folder = folder
        self._n_requests = n_requests
        self._random = random.Random(seed)
        self._jobs: list[str] = []
        self._n_texts = 0
        self._voice_id = ""

    def run(self) -> Report:
        """Send requests in steps. After each, wait until no job is pending, and sample the process."""
        temporary = self._folder / "tmp"
        temporary.mkdir()
        with serving(self._folder / "home", {**SETTINGS, "TMPDIR": str(temporary)}) as served:
            with served.client() as client:
                self._voice_id = register(client)
                self._jobs = [submit_text(client, self._voice_id, text) for text in HITS]
                for job_id in self._jobs:
                    wait_for_job(client, job_id)
            for step in range(STEPS):
                began = time.monotonic()
                asyncio.run(self._step(served, self._n_requests // STEPS))
                took_s = time.monotonic() - began
                wait_until(lambda: not query_one(served, PENDING), deadline_s=120, what="the end of all jobs")
                sample = self._sample(served, temporary)
                sample["requests"] = (step + 1) * (self._n_requests // STEPS)
                sample["requests/s"] = self._n_requests / STEPS / took_s
                self.report.samples.append(sample)
            check_invariants(served, is_deleted_counted=True)
        return self.report

    def _sample(self, served: Served, temporary: Path) -> dict[str, float]:
        assert served.process is not None
        process = psutil.Process(served.process.pid)
        wait_until(lambda: worker_processes(served), what="a worker process")  # the process is replaced now and then
        return {
            "memory, MB": process.memory_info().rss / 1e6,
            "descriptors": process.num_fds(),
            "threads": process.num_threads(),
            "temporary files": sum(path.is_file() for path in temporary.rglob("*")),
            "worker processes": len(worker_processes(served)),
        }

    async def _step(self, served: Served, n_requests: int) -> None:
        numbers = iter(range(n_requests))

        async def send() -> None:
            async with httpx.AsyncClient(base_url=served.url, trust_env=False, timeout=60) as client:
                client.headers["Authorization"] = f"Bearer {served.key}"
                for _ in numbers:
                    request, _ = self._random.choices(KINDS, [share for _, share in KINDS])[0]
                    answer = await request(self, client)
                    self.report.answers[answer.status_code] += 1

        await asyncio.gather(*[send() for _ in range(CLIENTS)])

    # -- requests --------------------------------------------------------------------------------------------

    async def hit(self, client: httpx.AsyncClient) -> httpx.Response:
        ask = {"voice_id": self._voice_id, "text": self._random.choice(HITS)}
        return await client.post("/v1/synthesize", json=ask)

    async def submit(self, client: httpx.AsyncClient) -> httpx.Response:
        self._n_texts += 1
        answer = await client.post("/v1/synthesize", json={"voice_id": self._voice_id, "text": f"Text {self._n_texts}"})
        self._jobs[self._n_texts % len(self._jobs)] = answer.json()["job_id"]
        return answer

    async def wait(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.get(f"/v1/jobs/{self._random.choice(self._jobs)}", params={"wait": 1})

    async def poll(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.get(f"/v1/jobs/{self._random.choice(self._jobs)}")

    async def audio(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.get(f"/v1/jobs/{self._random.choice(self._jobs)}/audio")

    async def voices(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.get("/v1/voices")

    async def usage(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.get("/v1/usage")

    async def create_and_delete(self, client: httpx.AsyncClient) -> httpx.Response:
        """Upload a voice, use it, and delete it."""
        audio = {"ref_audio": ("me.wav", RECORDING, "audio/wav")}
        made = await client.post("/v1/voices", data={"name": "me"}, files=audio)
        voice_id = made.json()["voice_id"]
        await client.post("/v1/synthesize", json={"voice_id": voice_id, "text": "Soon gone."})
        return await client.delete(f"/v1/voices/{voice_id}")

    async def disconnect(self, client: httpx.AsyncClient) -> httpx.Response:
        """Read the start of a stream, and disconnect."""
        self._n_texts += 1
        ask = {"voice_id": self._voice_id, "text": f"fault-slow, {self._n_texts}, and on", "stream": True}
        async with client.stream("POST", "/v1/synthesize", json=ask) as answer:
            async for _ in answer.aiter_raw():
                break
        return answer

    async def without_key(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.get("/v1/voices", headers={"Authorization": "Bearer aw_unknown"})

    async def missing_job(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.get("/v1/jobs/00000000-0000-4000-8000-000000000000")

    async def invalid_json(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(
            "/v1/synthesize", content=b'{"text": NaN', headers={"Content-Type": "application/json"}
        )

    async def invalid_text(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/synthesize", json={"voice_id": self._voice_id, "text": "\0"})

    async def invalid_wav(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/voices", data={"name": "me"}, files={"ref_audio": b"x" * 100_000})


KINDS: list[tuple[Callable[[Soak, httpx.AsyncClient], Awaitable[httpx.Response]], int]] = [
    (Soak.hit, 300),
    (Soak.poll, 250),
    (Soak.submit, 100),
    (Soak.wait, 30),
    (Soak.audio, 60),
    (Soak.voices, 70),
    (Soak.usage, 40),
    (Soak.create_and_delete, 5),
    (Soak.disconnect, 5),
    (Soak.without_key, 40),
    (Soak.missing_job, 40),
    (Soak.invalid_json, 20),
    (Soak.invalid_text, 20),
    (Soak.invalid_wav, 20),
]
"""The requests, and how many of a thousand are of each kind."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="determines the requests")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="afterwords-soak-") as folder:
        report = Soak(Path(folder), n_requests=args.requests, seed=args.seed).run()
    sys.stdout.writelines(f"{line}\n" for line in report.table())
    sys.exit(not report.is_clean)


if __name__ == "__main__":
    main()
