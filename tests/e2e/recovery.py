"""Measures how soon a killed worker's job runs elsewhere, and how soon servers work after an outage of Postgres.

    python -m tests.e2e.recovery

prints a Markdown table, and fails if something took longer than it may.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from uuid import uuid4

import httpx

from tests.e2e.cluster import Cluster
from tests.e2e.invariants import count_attempts, query_one
from tests.e2e.served import Served, register, submit_text, wait_for_job, wait_until

LEASE_S = 5.0
OUTAGE_S = 30.0
N_KILLS, N_OUTAGES = 10, 3
SETTINGS = {"AFTERWORDS_LEASE_S": f"{LEASE_S:g}", "AFTERWORDS_RATE_LIMIT": "0"}
SLOW = "fault-slow, four characters every 50 ms, so that this lasts about two seconds: " + "and on " * 12
IS_HELD = "SELECT count(*) FROM jobs WHERE job_id = ? AND attempt > ? AND lease_expires IS NOT NULL"
HOLDER = "SELECT worker FROM jobs WHERE job_id = ?"


@dataclass
class Report:
    """Times in seconds."""

    redelivered: list[float] = field(default_factory=list)
    accepted: list[float] = field(default_factory=list)
    ready: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    @property
    def _rows(self) -> list[tuple[str, list[float], float]]:
        outage = f"outage of Postgres for {OUTAGE_S:g} s, {N_OUTAGES} times, on 2 servers"
        return [
            (f"SIGKILL of a remote worker, lease {LEASE_S:g} s: the next attempt", self.redelivered, LEASE_S + 1),
            (f"{outage}: a request is refused", self.refused, 2.0),
            ("… once Postgres answers again: the first accepted request", self.accepted, 2.0),
            ("… its job is ready, spoken by a remote worker", self.ready, 10.0),
        ]

    @property
    def is_clean(self) -> bool:
        return all(max(times) <= limit for _, times, limit in self._rows)

    def table(self) -> Iterator[str]:
        """Yield the lines of a Markdown table."""
        yield from ("| what | times | median, s | longest, s | at most, s |", "|---|---|---|---|---|")
        for what, times, limit in self._rows:
            yield f"| {what} | {len(times):,} | {median(times):.2f} | {max(times):.2f} | {limit:g} |"


class Recovery:
    """A run on a new cluster, whose servers have no worker processes of their own."""

    def __init__(self, folder: Path, *, seed: int) -> None:
        self.report = Report()
        self._random = random.Random(seed)
        self._cluster = Cluster(folder, SETTINGS, has_local_worker=False)

    def run(self) -> Report:
        with self._cluster as cluster, cluster.direct.client() as client:
            self._voice_id = register(client)
            wait_for_job(client, submit_text(client, self._voice_id, "The voice is prepared."))
            for number in range(N_KILLS):
                self._kill_worker(client, f"{SLOW} {number}")
            for _ in range(N_OUTAGES):
                self._stop_postgres()
        return self.report

    def _kill_worker(self, client: httpx.Client, text: str) -> None:
        """Kill the worker that speaks a text, and measure until another one has the job."""
        job_id = submit_text(client, self._voice_id, text)
        direct = self._cluster.direct
        wait_until(lambda: query_one(direct, IS_HELD, job_id, 0), what="the first attempt")
        threading.Event().wait(self._random.uniform(0, 1.5))
        holder, n_attempts = query_one(direct, HOLDER, job_id), count_attempts(direct, job_id)
        [number] = [n for n, each in enumerate(self._cluster.workers) if re.search(rf"-{each.process.pid}\b", holder)]
        self._cluster.kill_worker(number)
        killed_at = time.monotonic()
        wait_until(lambda: query_one(direct, IS_HELD, job_id, n_attempts), what="the next attempt")
        self.report.redelivered.append(time.monotonic() - killed_at)
        assert wait_for_job(client, job_id)["status"] == "ready"
        self._cluster.restart()
        self._cluster.workers[number].wait_for_log("connected to")

    def _stop_postgres(self) -> None:
        """Kill Postgres while requests arrive, and measure how soon the servers work once it is back."""
        postgres, is_back = self._cluster.postgres, threading.Event()
        with ThreadPoolExecutor(len(self._cluster.servers)) as pool:
            postgres.kill()
            killed_at = time.monotonic()
            clients = [pool.submit(self._send_until_accepted, served) for served in self._cluster.servers]
            is_back.wait(OUTAGE_S - (time.monotonic() - killed_at))
            postgres.start()
            back_at = time.monotonic()
            for client in clients:
                accepted_at, ready_at = client.result()
                self.report.accepted.append(max(0.0, accepted_at - back_at))
                self.report.ready.append(ready_at - back_at)

    def _send_until_accepted(self, served: Served) -> tuple[float, float]:
        """Return when a request was accepted, and when its job was ready."""
        with served.client() as client:
            while True:
                began = time.monotonic()
                ask = {"voice_id": self._voice_id, "text": f"Spoken after the outage, {uuid4()}."}
                answer = client.post("/v1/synthesize", json=ask)
                accepted_at = time.monotonic()
                if answer.status_code == 202:
                    break
                assert answer.status_code == 503, answer.text
                assert "retry-after" in answer.headers
                self.report.refused.append(accepted_at - began)
                threading.Event().wait(0.1)
            assert wait_for_job(client, answer.json()["job_id"])["status"] == "ready"
            return accepted_at, time.monotonic()


def main() -> None:
    seed = random.randrange(2**32)
    with tempfile.TemporaryDirectory(prefix="afterwords-recovery-") as folder:
        report = Recovery(Path(folder), seed=seed).run()
    sys.stdout.writelines(f"{line}\n" for line in report.table())
    sys.exit(not report.is_clean)


if __name__ == "__main__":
    main()
