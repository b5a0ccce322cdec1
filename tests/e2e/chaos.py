"""Submits jobs while workers and the server are killed at random, then checks the invariants.

    python -m tests.e2e.chaos --jobs 500 --kills 60

prints a Markdown table, and fails if anything was lost, charged twice, or left over. The test suite runs a short one.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import httpx
import psutil

from afterwords.server import failpoints
from tests.e2e.invariants import (
    blob_folder,
    check_invariants,
    count_attempts,
    find_corrupt,
    find_orphans,
    find_wrong_charges,
    is_alive,
    is_speech_of,
    query,
    query_one,
    wait_until_gone,
    worker_processes,
)
from tests.e2e.served import RECORDING, Served, register, wait_until

CLIENTS = 4
ANSWERED_WITHIN_S = 600.0
DIES_WITHIN_S = 1.0
"""How long the server may take to reach its failpoint."""
CATCHES_UP_WITHIN_S = 2.0
PENDING = "SELECT count(*) FROM jobs WHERE status = 'pending'"
SETTINGS = {
    "AFTERWORDS_LEASE_S": "1",
    "AFTERWORDS_REAP_INTERVAL_S": "0.2",
    "AFTERWORDS_RATE_LIMIT": "0",
    "AFTERWORDS_MAX_PENDING_JOBS": "100000",
    "AFTERWORDS_MAX_PENDING_JOBS_PER_ACCOUNT": "100000",
    "AFTERWORDS_MAX_ATTEMPTS": "1000",  # otherwise jobs would fail after the third kill
}
SWEEPING = {"AFTERWORDS_SWEEP_INTERVAL_S": "0.3", "AFTERWORDS_SWEEP_GRACE_S": "0"}
WORKER, SERVER, AT_FAILPOINT = "of a worker process", "of the server", "of the server, at a failpoint"


@dataclass
class Report:
    """The results of a run."""

    n_jobs: int
    kills: Counter[str] = field(default_factory=Counter)
    n_lost: int = 0
    n_twice: int = 0
    n_wrongly_charged: int = 0
    n_corrupt: int = 0
    n_orphans_before: int = 0
    n_orphans: int = 0
    n_processes: int = 0
    most_attempts: int = 0
    duration_s: float = 0.0

    @property
    def is_clean(self) -> bool:
        faults = (self.n_lost, self.n_twice, self.n_wrongly_charged, self.n_corrupt, self.n_orphans, self.n_processes)
        return not any(faults)

    def table(self) -> Iterator[str]:
        """Yield the lines of a Markdown table."""
        yield from ("| what | number |", "|---|---|")
        yield f"| jobs accepted | {self.n_jobs} |"
        yield from (f"| kills {kind} | {self.kills[kind]} |" for kind in (WORKER, SERVER, AT_FAILPOINT))
        yield f"| most attempts of a job | {self.most_attempts} |"
        yield f"| **jobs lost** | {self.n_lost} |"
        yield f"| **jobs made twice for one request** | {self.n_twice} |"
        yield f"| **accounts charged wrongly** | {self.n_wrongly_charged} |"
        yield f"| **audio missing, altered, or of another text** | {self.n_corrupt} |"
        yield f"| blobs without a row before the sweep | {self.n_orphans_before} |"
        yield f"| **blobs without a row after the sweep** | {self.n_orphans} |"
        yield f"| **processes left over** | {self.n_processes} |"
        yield f"| seconds | {self.duration_s:.0f} |"


class Chaos:
    """A run on a new server."""

    def __init__(self, home: Path, *, n_jobs: int, n_kills: int, seed: int) -> None:
        self.report = Report(n_jobs)
        self._served = Served(home, SETTINGS)
        self._random = random.Random(seed)
        self._n_kills = n_kills
        self._jobs: dict[str, str] = {}  # text by job
        self._seen: set[psutil.Process] = set()
        self._other = ""  # a key whose voices are created and deleted
        self._has_failpoint = False

    def run(self) -> Report:
        """Submit jobs, kill processes, wait for all jobs, and count."""
        began = time.monotonic()
        try:
            self._served.start().ready()
            self._other = self._served.new_key()
            with self._served.client() as client:
                voice_id = register(client)
            self._submit_and_kill(voice_id)
            self._count()
        finally:
            if self._served.is_running:
                self._served.kill()
        with suppress(AssertionError):
            wait_until_gone(*self._seen)
        self.report.n_processes = sum(map(is_alive, self._seen))
        self.report.duration_s = time.monotonic() - began
        return self.report

    # -- requests --------------------------------------------------------------------------------------------

    def _submit_and_kill(self, voice_id: str) -> None:
        texts = [self._text(number) for number in range(self.report.n_jobs)]
        shares = [texts[number :: self._n_kills] for number in range(self._n_kills)]
        with ThreadPoolExecutor(CLIENTS) as pool:
            requests: list[Future[None]] = []
            for number, share in enumerate(shares):
                self._catch_up(4 * len(share))
                requests += [pool.submit(self._submit, voice_id, text) for text in share]
                if number % 2 == 0:
                    requests.append(pool.submit(self._create_and_delete))
                self._kill()
            while sum(self.report.kills.values()) < self._n_kills:  # some kills found no process
                self._kill()
            self._start_without_failpoint()
            for future in requests:
                future.result()
        wait_until(lambda: not query_one(self._served, PENDING), deadline_s=600, what="the end of all jobs")

    def _catch_up(self, n_pending: int) -> None:
        """Give the server a moment to start new jobs, and not only retry old ones."""
        end = time.monotonic() + CATCHES_UP_WITHIN_S
        while self._served.is_running and time.monotonic() < end and query_one(self._served, PENDING) > n_pending:
            threading.Event().wait(0.05)

    def _text(self, number: int) -> str:
        """Return a unique text, long or short, spoken slowly or at once."""
        words = "and so on " * self._random.randrange(1, 6)
        return f"{self._random.choice(['fault-slow', 'quickly'])}, {number}: {words}"

    def _submit(self, voice_id: str, text: str) -> None:
        ask = {"voice_id": voice_id, "text": text}
        headers = {"Authorization": f"Bearer {self._served.key}", "Idempotency-Key": str(uuid4())}
        answer = self._retry(lambda url: httpx.post(f"{url}/v1/synthesize", json=ask, headers=headers, verify=False))
        assert answer.status_code == 202, answer.text
        self._jobs[answer.json()["job_id"]] = text

    def _create_and_delete(self) -> None:
        """Register and delete a voice."""
        headers = {"Authorization": f"Bearer {self._other}", "Idempotency-Key": str(uuid4())}
        audio = {"ref_audio": ("me.wav", RECORDING, "audio/wav")}
        made = self._retry(
            lambda url: httpx.post(f"{url}/v1/voices", data={"name": "me"}, files=audio, headers=headers, verify=False)
        )
        voice = f"/v1/voices/{made.json()['voice_id']}"
        gone = self._retry(lambda url: httpx.delete(f"{url}{voice}", headers=headers, verify=False))
        assert gone.status_code in (204, 404), gone.text

    def _retry(self, send: Callable[[str], httpx.Response]) -> httpx.Response:
        """Repeat a request until the server answers."""

        def look() -> httpx.Response | None:
            try:
                answer = send(self._served.url)
            except httpx.TransportError:
                return None
            return None if answer.status_code == 503 else answer

        return wait_until(look, deadline_s=ANSWERED_WITHIN_S, what="an answer")

    # -- killing ---------------------------------------------------------------------------------------------

    def _kill(self) -> None:
        """Kill a process at a random time. A server with a failpoint may kill itself."""
        threading.Event().wait(self._random.uniform(0.02, 0.6))
        if self._random.random() < 2 / 5:
            self._kill_worker()
        elif self._has_failpoint and self._dies_at_failpoint():
            self.report.kills[AT_FAILPOINT] += 1
            self._start_again()
        else:
            self._end_server()
            self._start_again()

    def _kill_worker(self) -> None:
        wait_until(lambda: worker_processes(self._served) or not self._served.is_running, what="a process to kill")
        for process in worker_processes(self._served):  # none if the server has just died at its failpoint
            self._seen.add(process)
            with suppress(psutil.NoSuchProcess):
                process.kill()
                self.report.kills[WORKER] += 1

    def _end_server(self) -> None:
        if self._served.is_running:
            self._seen.update(worker_processes(self._served))
        self._served.kill()
        self.report.kills[SERVER] += 1

    def _start_again(self) -> None:
        place = self._random.choice([*failpoints.PLACES, ""])
        self._has_failpoint = bool(place)
        self._served.start(AFTERWORDS_FAILPOINT=f"{place}:{self._random.randrange(1, 4)}")

    def _start_without_failpoint(self) -> None:
        if self._has_failpoint:
            self._end_server()
            self._served.start()

    def _dies_at_failpoint(self) -> bool:
        """Return whether the server dies in time."""
        end = time.monotonic() + DIES_WITHIN_S
        while self._served.is_running and time.monotonic() < end:
            self._seen.update(worker_processes(self._served))
            threading.Event().wait(0.02)
        if self._served.is_running:
            return False
        self._served.died()
        return True

    # -- results ---------------------------------------------------------------------------------------------

    def _count(self) -> None:
        served, report = self._served, self.report
        ready = dict(query(served, "SELECT job_id, audio_key FROM jobs WHERE status = 'ready'"))
        report.n_lost = report.n_jobs - len(ready.keys() & self._jobs.keys())
        report.n_twice = query_one(served, "SELECT count(*) FROM jobs") - len(self._jobs)
        report.n_wrongly_charged = len(find_wrong_charges(served))
        report.most_attempts = max(count_attempts(served, job_id) for job_id in self._jobs)
        report.n_orphans_before = len(find_orphans(served))
        report.n_corrupt = len(find_corrupt(served)) + sum(
            not is_speech_of((blob_folder(served) / path).read_bytes(), self._jobs[job_id])
            for job_id, path in ready.items()
        )
        served.kill()
        served.start(**SWEEPING)
        check_invariants(served)
        report.n_orphans = len(find_orphans(served))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument(
        "--seed", type=int, default=random.randrange(2**32), help="determines which process is killed, and when"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="afterwords-chaos-") as folder:
        report = Chaos(Path(folder) / "home", n_jobs=args.jobs, n_kills=args.kills, seed=args.seed).run()
    sys.stdout.writelines(f"{line}\n" for line in report.table())
    sys.exit(not report.is_clean)


if __name__ == "__main__":
    main()
