"""Submits jobs while workers and the server are killed at random, then checks the invariants.

    python -m tests.e2e.chaos --jobs 500 --kills 60

prints a Markdown table, and fails if anything was lost, charged twice, or left over. The test suite runs a short one.
`chaos_cluster.py` does the same to Postgres, two servers and remote workers.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import httpx
import psutil

from afterwords.server import failpoints
from tests.e2e.invariants import (
    check_invariants,
    find_corrupt,
    find_orphans,
    find_wrong_charges,
    is_alive,
    is_speech_of,
    query,
    query_one,
    read_blob,
    wait_until_gone,
    worker_processes,
)
from tests.e2e.served import RECORDING, Served, register, wait_until

CLIENTS = 4
ANSWERED_WITHIN_S = 1200.0
DIES_WITHIN_S = 1.0
"""How long the server may take to reach its failpoint."""
CATCHES_UP_WITHIN_S = 10.0
TIMEOUT_S = 30.0
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
    seed: int
    kills: dict[str, int]
    faults: dict[str, int]
    """Other than kills."""
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
        yield from (f"| kills {kind} | {number} |" for kind, number in self.kills.items())
        yield from (f"| {kind} | {number} |" for kind, number in self.faults.items())
        yield f"| most attempts of a job | {self.most_attempts} |"
        yield f"| **jobs lost** | {self.n_lost} |"
        yield f"| **jobs made twice for one request** | {self.n_twice} |"
        yield f"| **accounts charged wrongly** | {self.n_wrongly_charged} |"
        yield f"| **audio missing, altered, or of another text** | {self.n_corrupt} |"
        yield f"| blobs without a row before the sweep | {self.n_orphans_before} |"
        yield f"| **blobs without a row after the sweep** | {self.n_orphans} |"
        yield f"| **processes left over** | {self.n_processes} |"
        yield f"| seconds | {self.duration_s:.0f} |"
        yield f"| seed | {self.seed} |"


class ChaosRun(ABC):
    """A run on new servers. Subclasses start them and kill them."""

    kills: ClassVar[tuple[str, ...]]
    faults: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, n_jobs: int, n_kills: int, seed: int) -> None:
        self.report = Report(n_jobs, seed, dict.fromkeys(self.kills, 0), dict.fromkeys(self.faults, 0))
        self.servers: list[Served] = []
        self.random = random.Random(seed)
        self.seen: set[psutil.Process] = set()
        self._n_kills = n_kills
        self._jobs: dict[str, str] = {}  # text by job
        self._other = ""  # a key whose voices are created and deleted

    @abstractmethod
    def running(self) -> AbstractContextManager[object]:
        """Set `servers`, and run them; the last one is used for queries."""

    @abstractmethod
    def kill(self) -> None:
        """Kill a process at a random time, start again what was killed before, and count it."""

    @abstractmethod
    def end_kills(self) -> None:
        """Start everything again, so that nothing dies any more."""

    @abstractmethod
    def start_sweeping(self) -> None:
        """Start a server again with the settings SWEEPING."""

    def run(self) -> Report:
        """Submit jobs, kill processes, wait for all jobs, and count."""
        began = time.monotonic()
        with self.running():
            self._other = self.servers[0].new_key()
            with self.servers[0].client() as client:
                voice_id = register(client)
            self._submit_and_kill(voice_id)
            self._count()
        with suppress(AssertionError):
            wait_until_gone(*self.seen)
        self.report.n_processes = sum(map(is_alive, self.seen))
        self.report.duration_s = time.monotonic() - began
        return self.report

    # -- requests --------------------------------------------------------------------------------------------

    def _submit_and_kill(self, voice_id: str) -> None:
        texts = [self._text(number) for number in range(self.report.n_jobs)]
        shares = [texts[number :: self._n_kills] for number in range(self._n_kills)]
        self._urls = cycle(self.servers)
        with ThreadPoolExecutor(CLIENTS) as pool:
            requests: list[Future[None]] = []
            for number, share in enumerate(shares):
                self._catch_up(4 * len(share))
                requests += [pool.submit(self._submit, voice_id, text) for text in share]
                if number % 2 == 0:
                    requests.append(pool.submit(self._create_and_delete))
                self.kill()
            while sum(self.report.kills.values()) < self._n_kills:  # some kills found no process
                self.kill()
            self.end_kills()
            for future in requests:
                future.result()
        wait_until(lambda: not query_one(self.servers[-1], PENDING), deadline_s=600, what="the end of all jobs")

    def _catch_up(self, n_pending: int) -> None:
        """Give the servers a moment to start new jobs, and not only retry old ones."""
        served, end = self.servers[-1], time.monotonic() + CATCHES_UP_WITHIN_S
        while served.is_running and time.monotonic() < end and query_one(served, PENDING) > n_pending:
            threading.Event().wait(0.05)

    def _text(self, number: int) -> str:
        """Return a unique text, long or short, spoken slowly or at once."""
        words = "and so on " * self.random.randrange(1, 6)
        return f"{self.random.choice(['fault-slow', 'quickly'])}, {number}: {words}"

    def _submit(self, voice_id: str, text: str) -> None:
        ask = {"voice_id": voice_id, "text": text}
        headers = {"Authorization": f"Bearer {self.servers[0].key}", "Idempotency-Key": str(uuid4())}
        answer = self._retry(lambda client, url: client.post(f"{url}/v1/synthesize", json=ask, headers=headers))
        assert answer.status_code == 202, answer.text
        self._jobs[answer.json()["job_id"]] = text

    def _create_and_delete(self) -> None:
        """Register and delete a voice."""
        headers = {"Authorization": f"Bearer {self._other}", "Idempotency-Key": str(uuid4())}
        audio = {"ref_audio": ("me.wav", RECORDING, "audio/wav")}
        made = self._retry(
            lambda client, url: client.post(f"{url}/v1/voices", data={"name": "me"}, files=audio, headers=headers)
        )
        voice = f"/v1/voices/{made.json()['voice_id']}"
        gone = self._retry(lambda client, url: client.delete(f"{url}{voice}", headers=headers))
        assert gone.status_code in (204, 404), gone.text

    def _retry(self, send: Callable[[httpx.Client, str], httpx.Response]) -> httpx.Response:
        """Repeat a request until a server answers."""
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False, verify=False) as client:

            def look() -> httpx.Response | None:
                try:
                    answer = send(client, next(self._urls).url)
                except httpx.TransportError:
                    return None
                return None if answer.status_code == 503 else answer

            return wait_until(look, deadline_s=ANSWERED_WITHIN_S, what="an answer")

    def pause(self, shortest_s: float, longest_s: float) -> None:
        threading.Event().wait(self.random.uniform(shortest_s, longest_s))

    # -- results ---------------------------------------------------------------------------------------------

    def _count(self) -> None:
        served, report = self.servers[-1], self.report
        ready = dict(query(served, "SELECT job_id, audio_key FROM jobs WHERE status = 'ready'"))
        report.n_lost = report.n_jobs - len(ready.keys() & self._jobs.keys())
        report.n_twice = query_one(served, "SELECT count(*) FROM jobs") - len(self._jobs)
        report.n_wrongly_charged = len(find_wrong_charges(served))
        report.most_attempts = query_one(served, "SELECT max(attempt) FROM jobs")
        report.n_orphans_before = len(find_orphans(served))
        corrupt = find_corrupt(served)
        report.n_corrupt = len(corrupt) + sum(
            not is_speech_of(read_blob(served, path) or b"", self._jobs[job_id])
            for job_id, path in ready.items()
            if path not in corrupt
        )
        self.start_sweeping()
        check_invariants(served)
        report.n_orphans = len(find_orphans(served))


class Chaos(ChaosRun):
    """One server, with SQLite and a folder."""

    kills = (WORKER, SERVER, AT_FAILPOINT)

    def __init__(self, home: Path, *, n_jobs: int, n_kills: int, seed: int) -> None:
        super().__init__(n_jobs=n_jobs, n_kills=n_kills, seed=seed)
        self._served = Served(home, SETTINGS)
        self._has_failpoint = False

    @contextmanager
    def running(self) -> Iterator[None]:
        self.servers = [self._served.start().ready()]
        try:
            yield
        finally:
            if self._served.is_running:
                self._served.kill()

    def kill(self) -> None:
        """Kill a process at a random time. A server with a failpoint may kill itself."""
        self.pause(0.02, 0.6)
        if self.random.random() < 2 / 5:
            self._kill_worker()
        elif self._has_failpoint and self._dies_at_failpoint():
            self.report.kills[AT_FAILPOINT] += 1
            self._start_again()
        else:
            self._end_server()
            self._start_again()

    def end_kills(self) -> None:
        if self._has_failpoint:
            self._end_server()
            self._served.start()

    def start_sweeping(self) -> None:
        self._served.kill()
        self._served.start(**SWEEPING)

    def _kill_worker(self) -> None:
        wait_until(lambda: worker_processes(self._served) or not self._served.is_running, what="a process to kill")
        for process in worker_processes(self._served):  # none if the server has just died at its failpoint
            self.seen.add(process)
            with suppress(psutil.NoSuchProcess):
                process.kill()
                self.report.kills[WORKER] += 1

    def _end_server(self) -> None:
        if self._served.is_running:
            self.seen.update(worker_processes(self._served))
        self._served.kill()
        self.report.kills[SERVER] += 1

    def _start_again(self) -> None:
        failpoint = random_failpoint(self.random)
        self._has_failpoint = not failpoint.startswith(":")
        self._served.start(AFTERWORDS_FAILPOINT=failpoint)

    def _dies_at_failpoint(self) -> bool:
        """Return whether the server dies in time."""
        end = time.monotonic() + DIES_WITHIN_S
        while self._served.is_running and time.monotonic() < end:
            self.seen.update(worker_processes(self._served))
            threading.Event().wait(0.02)
        if self._served.is_running:
            return False
        self._served.died()
        return True


def random_failpoint(chance: random.Random) -> str:
    """Return a value of AFTERWORDS_FAILPOINT. One that begins with a colon has no effect."""
    return f"{chance.choice([*failpoints.PLACES, ''])}:{chance.randrange(1, 4)}"


def main(run: Callable[..., ChaosRun], *, doc: str | None) -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument(
        "--seed", type=int, default=random.randrange(2**32), help="determines which process is killed, and when"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="afterwords-chaos-") as folder:
        report = run(Path(folder) / "home", n_jobs=args.jobs, n_kills=args.kills, seed=args.seed).run()
    sys.stdout.writelines(f"{line}\n" for line in report.table())
    sys.exit(not report.is_clean)


if __name__ == "__main__":
    main(Chaos, doc=__doc__)
