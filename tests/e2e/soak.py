"""Tens of thousands of requests of every kind against one server, whose memory, descriptors and files are watched.

    python -m tests.e2e.soak --requests 50000

prints a table in Markdown, and fails if one of them grows after the first fifth, or anything answers with a 5xx.
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

from tests.e2e.invariants import invariants, one, speakers
from tests.e2e.served import READER, Served, final, register, serving, speak, until

CLIENTS = 16
STEPS = 20
WARM_UP_STEPS = STEPS // 5
"""Caches fill and thread pools grow in the first steps; what comes after must stay level."""
PENDING = "SELECT count(*) FROM jobs WHERE status = 'pending'"
HITS = [f"Spoken once, and asked for again and again: {number}." for number in range(40)]
SETTINGS = {
    "AFTERWORDS_RATE_LIMIT": "0",
    "AFTERWORDS_MAX_PENDING_JOBS": "100000",
    "AFTERWORDS_MAX_PENDING_JOBS_PER_ACCOUNT": "100000",
    "AFTERWORDS_SWEEP_INTERVAL_S": "10",
    "AFTERWORDS_SWEEP_GRACE_S": "30",
}
MAY_GROW_BY = {"memory, MB": 12.0, "descriptors": 4, "threads": 2, "temporary files": 0, "speaking processes": 0}
"""From the median of the first three samples after the warm-up to that of the last three. A leak of 300 bytes a request
would take 12 MB of 40,000."""


@dataclass
class Report:
    """What was asked, what was answered, and what the server held after each step, at rest."""

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
        """In Markdown."""
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
    """One run, on a server of its own."""

    def __init__(self, folder: Path, *, n_requests: int, seed: int) -> None:
        self.report = Report()
        self._folder = folder
        self._n_requests = n_requests
        self._random = random.Random(seed)
        self._jobs: list[str] = []
        self._n_texts = 0
        self._voice_id = ""

    def run(self) -> Report:
        """Ask in steps; after each, wait until nothing is pending and look at the process."""
        temporary = self._folder / "tmp"
        temporary.mkdir()
        with serving(self._folder / "home", {**SETTINGS, "TMPDIR": str(temporary)}) as served:
            with served.client() as client:
                self._voice_id = register(client)
                self._jobs = [speak(client, self._voice_id, text) for text in HITS]
                for job_id in self._jobs:
                    final(client, job_id)
            for step in range(STEPS):
                began = time.monotonic()
                asyncio.run(self._step(served, self._n_requests // STEPS))
                took_s = time.monotonic() - began
                until(lambda: not one(served, PENDING), deadline_s=120, what="the end of all jobs")
                sample = self._sample(served, temporary)
                sample["requests"] = (step + 1) * (self._n_requests // STEPS)
                sample["requests/s"] = self._n_requests / STEPS / took_s
                self.report.samples.append(sample)
            invariants(served, is_deleted_counted=True)
        return self.report

    def _sample(self, served: Served, temporary: Path) -> dict[str, float]:
        assert served.process is not None
        process = psutil.Process(served.process.pid)
        until(lambda: speakers(served), what="a speaking process")  # it is replaced now and then
        return {
            "memory, MB": process.memory_info().rss / 1e6,
            "descriptors": process.num_fds(),
            "threads": process.num_threads(),
            "temporary files": sum(path.is_file() for path in temporary.rglob("*")),
            "speaking processes": len(speakers(served)),
        }

    async def _step(self, served: Served, n_requests: int) -> None:
        numbers = iter(range(n_requests))

        async def ask() -> None:
            async with httpx.AsyncClient(base_url=served.url, trust_env=False, timeout=60) as client:
                client.headers["Authorization"] = f"Bearer {served.key}"
                for _ in numbers:
                    what, _ = self._random.choices(KINDS, [share for _, share in KINDS])[0]
                    answer = await what(self, client)
                    self.report.answers[answer.status_code] += 1

        await asyncio.gather(*[ask() for _ in range(CLIENTS)])

    # -- what is asked ---------------------------------------------------------------------------------------

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

    async def come_and_go(self, client: httpx.AsyncClient) -> httpx.Response:
        """Upload a voice, speak with it, and delete it."""
        audio = {"ref_audio": ("me.wav", READER.read_bytes(), "audio/wav")}
        made = await client.post("/v1/voices", data={"name": "me"}, files=audio)
        voice_id = made.json()["voice_id"]
        await client.post("/v1/synthesize", json={"voice_id": voice_id, "text": "Soon gone."})
        return await client.delete(f"/v1/voices/{voice_id}")

    async def leave(self, client: httpx.AsyncClient) -> httpx.Response:
        """Listen to the beginning of a stream, and leave."""
        self._n_texts += 1
        ask = {"voice_id": self._voice_id, "text": f"fault-slow, {self._n_texts}, and on", "stream": True}
        async with client.stream("POST", "/v1/synthesize", json=ask) as answer:
            async for _ in answer.aiter_raw():
                break
        return answer

    async def without_key(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.get("/v1/voices", headers={"Authorization": "Bearer aw_nobody"})

    async def not_there(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.get("/v1/jobs/00000000-0000-4000-8000-000000000000")

    async def no_json(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.post(
            "/v1/synthesize", content=b'{"text": NaN', headers={"Content-Type": "application/json"}
        )

    async def no_text(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/synthesize", json={"voice_id": self._voice_id, "text": "\0"})

    async def no_wav(self, client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/v1/voices", data={"name": "me"}, files={"ref_audio": b"x" * 100_000})


KINDS: list[tuple[Callable[[Soak, httpx.AsyncClient], Awaitable[httpx.Response]], int]] = [
    (Soak.hit, 300),
    (Soak.poll, 250),
    (Soak.submit, 100),
    (Soak.wait, 30),
    (Soak.audio, 60),
    (Soak.voices, 70),
    (Soak.usage, 40),
    (Soak.come_and_go, 5),
    (Soak.leave, 5),
    (Soak.without_key, 40),
    (Soak.not_there, 40),
    (Soak.no_json, 20),
    (Soak.no_text, 20),
    (Soak.no_wav, 20),
]
"""What is asked, and how often in a thousand."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="decides what is asked")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="afterwords-soak-") as folder:
        report = Soak(Path(folder), n_requests=asked.requests, seed=asked.seed).run()
    sys.stdout.writelines(f"{line}\n" for line in report.table())
    sys.exit(not report.is_clean)


if __name__ == "__main__":
    main()
