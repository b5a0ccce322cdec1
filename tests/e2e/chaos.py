"""Jobs are asked for while speaking processes and the server are killed at random; then what is left is counted.

    python -m tests.e2e.chaos --jobs 500 --kills 60

prints a table in Markdown and fails if anything was lost, charged twice, or left over. The suite runs a short one.
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
    attempts_of,
    blob_folder,
    corrupt,
    gone,
    invariants,
    is_alive,
    is_speech_of,
    one,
    orphans,
    rows,
    speakers,
    wrongly_charged,
)
from tests.e2e.served import READER, Served, register, until

ASKING = 4  # clients at once
ANSWERED_WITHIN_S = 180.0
DIES_WITHIN_S = 1.0
"""How long it is waited for a server to reach the place where it was told to die."""
CATCHES_UP_WITHIN_S = 2.0
PENDING = "SELECT count(*) FROM jobs WHERE status = 'pending'"
SETTINGS = {
    "AFTERWORDS_LEASE_S": "1",
    "AFTERWORDS_REAP_INTERVAL_S": "0.2",
    "AFTERWORDS_RATE_LIMIT": "0",
    "AFTERWORDS_MAX_PENDING_JOBS": "100000",
    "AFTERWORDS_MAX_PENDING_JOBS_PER_ACCOUNT": "100000",
    "AFTERWORDS_MAX_ATTEMPTS": "1000",  # else some would rightly fail after the third kill
}
SWEEPING = {"AFTERWORDS_SWEEP_INTERVAL_S": "0.3", "AFTERWORDS_SWEEP_GRACE_S": "0"}
SPEAKER, SERVER, AT_A_PLACE = "of a speaking process", "of the server", "of the server, at a named place"


@dataclass
class Report:
    """What came of it."""

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
        """In Markdown."""
        yield from ("| what | number |", "|---|---|")
        yield f"| jobs accepted | {self.n_jobs} |"
        yield from (f"| kills {kind} | {self.kills[kind]} |" for kind in (SPEAKER, SERVER, AT_A_PLACE))
        yield f"| most attempts that a job took | {self.most_attempts} |"
        yield f"| **jobs lost** | {self.n_lost} |"
        yield f"| **jobs made twice for one request** | {self.n_twice} |"
        yield f"| **accounts charged wrongly** | {self.n_wrongly_charged} |"
        yield f"| **audio missing, altered, or of another text** | {self.n_corrupt} |"
        yield f"| blobs without a row before the sweep | {self.n_orphans_before} |"
        yield f"| **blobs without a row after the sweep** | {self.n_orphans} |"
        yield f"| **processes left over** | {self.n_processes} |"
        yield f"| seconds | {self.duration_s:.0f} |"


class Chaos:
    """One run, on a server of its own."""

    def __init__(self, home: Path, *, n_jobs: int, n_kills: int, seed: int) -> None:
        self.report = Report(n_jobs)
        self._served = Served(home, SETTINGS)
        self._random = random.Random(seed)
        self._n_kills = n_kills
        self._jobs: dict[str, str] = {}  # text by job
        self._seen: set[psutil.Process] = set()
        self._other = ""  # a key whose voices come and go
        self._is_told = False  # where to die

    def run(self) -> Report:
        """Ask, kill, wait, count."""
        began = time.monotonic()
        try:
            self._served.start().ready()
            self._other = self._served.new_key()
            with self._served.client() as client:
                voice_id = register(client)
            self._ask_and_kill(voice_id)
            self._count()
        finally:
            if self._served.is_running:
                self._served.kill()
        with suppress(AssertionError):
            gone(*self._seen)
        self.report.n_processes = sum(map(is_alive, self._seen))
        self.report.duration_s = time.monotonic() - began
        return self.report

    # -- asking ----------------------------------------------------------------------------------------------

    def _ask_and_kill(self, voice_id: str) -> None:
        texts = [self._text(number) for number in range(self.report.n_jobs)]
        shares = [texts[number :: self._n_kills] for number in range(self._n_kills)]
        with ThreadPoolExecutor(ASKING) as pool:
            asked: list[Future[None]] = []
            for number, share in enumerate(shares):
                self._catch_up(4 * len(share))
                asked += [pool.submit(self._ask_for, voice_id, text) for text in share]
                if number % 2 == 0:
                    asked.append(pool.submit(self._come_and_go))
                self._kill()
            while sum(self.report.kills.values()) < self._n_kills:  # some have found nobody
                self._kill()
            self._start_for_good()
            for future in asked:
                future.result()
        until(lambda: not one(self._served, PENDING), deadline_s=600, what="the end of all jobs")

    def _catch_up(self, n_pending: int) -> None:
        """Give the server a moment to get on, so that new jobs are begun, and not only old ones tried again."""
        end = time.monotonic() + CATCHES_UP_WITHIN_S
        while self._served.is_running and time.monotonic() < end and one(self._served, PENDING) > n_pending:
            threading.Event().wait(0.05)

    def _text(self, number: int) -> str:
        """A text of its own, long or short, spoken slowly or at once."""
        words = "and so on " * self._random.randrange(1, 6)
        return f"{self._random.choice(['fault-slow', 'quickly'])}, {number}: {words}"

    def _ask_for(self, voice_id: str, text: str) -> None:
        ask = {"voice_id": voice_id, "text": text}
        headers = {"Authorization": f"Bearer {self._served.key}", "Idempotency-Key": str(uuid4())}
        answer = self._answered(lambda url: httpx.post(f"{url}/v1/synthesize", json=ask, headers=headers))
        assert answer.status_code == 202, answer.text
        self._jobs[answer.json()["job_id"]] = text

    def _come_and_go(self) -> None:
        """Register a voice and delete it again."""
        headers = {"Authorization": f"Bearer {self._other}", "Idempotency-Key": str(uuid4())}
        audio = {"ref_audio": ("me.wav", READER.read_bytes(), "audio/wav")}
        made = self._answered(
            lambda url: httpx.post(f"{url}/v1/voices", data={"name": "me"}, files=audio, headers=headers)
        )
        voice = f"/v1/voices/{made.json()['voice_id']}"
        gone = self._answered(lambda url: httpx.delete(f"{url}{voice}", headers=headers))
        assert gone.status_code in (204, 404), gone.text

    def _answered(self, ask: Callable[[str], httpx.Response]) -> httpx.Response:
        """Ask, as a patient client would, until there is an answer."""

        def look() -> httpx.Response | None:
            try:
                answer = ask(self._served.url)
            except httpx.TransportError:
                return None
            return None if answer.status_code == 503 else answer

        return until(look, deadline_s=ANSWERED_WITHIN_S, what="an answer")

    # -- killing ---------------------------------------------------------------------------------------------

    def _kill(self) -> None:
        """Kill somebody at a moment that nobody chose; a server that was told where to die may do it itself."""
        threading.Event().wait(self._random.uniform(0.02, 0.6))
        if self._random.random() < 2 / 5:
            self._kill_speaker()
        elif self._is_told and self._dies():
            self.report.kills[AT_A_PLACE] += 1
            self._start_again()
        else:
            self._end_server()
            self._start_again()

    def _kill_speaker(self) -> None:
        until(lambda: speakers(self._served) or not self._served.is_running, what="somebody to kill")
        for process in speakers(self._served):  # none, where the server has just died at the place it was told
            self._seen.add(process)
            with suppress(psutil.NoSuchProcess):
                process.kill()
                self.report.kills[SPEAKER] += 1

    def _end_server(self) -> None:
        if self._served.is_running:
            self._seen.update(speakers(self._served))
        self._served.kill()
        self.report.kills[SERVER] += 1

    def _start_again(self) -> None:
        place = self._random.choice([*failpoints.PLACES, ""])
        self._is_told = bool(place)
        self._served.start(AFTERWORDS_FAILPOINT=f"{place}:{self._random.randrange(1, 4)}")

    def _start_for_good(self) -> None:
        if self._is_told:
            self._end_server()
            self._served.start()

    def _dies(self) -> bool:
        """Whether the server dies within the time that it is given for it."""
        end = time.monotonic() + DIES_WITHIN_S
        while self._served.is_running and time.monotonic() < end:
            self._seen.update(speakers(self._served))
            threading.Event().wait(0.02)
        if self._served.is_running:
            return False
        self._served.died()
        return True

    # -- counting --------------------------------------------------------------------------------------------

    def _count(self) -> None:
        served, report = self._served, self.report
        ready = dict(rows(served, "SELECT job_id, audio_key FROM jobs WHERE status = 'ready'"))
        report.n_lost = report.n_jobs - len(ready.keys() & self._jobs.keys())
        report.n_twice = one(served, "SELECT count(*) FROM jobs") - len(self._jobs)
        report.n_wrongly_charged = len(wrongly_charged(served))
        report.most_attempts = max(attempts_of(served, job_id) for job_id in self._jobs)
        report.n_orphans_before = len(orphans(served))
        report.n_corrupt = len(corrupt(served)) + sum(
            not is_speech_of((blob_folder(served) / path).read_bytes(), self._jobs[job_id])
            for job_id, path in ready.items()
        )
        served.kill()
        served.start(**SWEEPING)
        invariants(served)
        report.n_orphans = len(orphans(served))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="decides whom to kill, and when")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="afterwords-chaos-") as folder:
        report = Chaos(Path(folder) / "home", n_jobs=asked.jobs, n_kills=asked.kills, seed=asked.seed).run()
    sys.stdout.writelines(f"{line}\n" for line in report.table())
    sys.exit(not report.is_clean)


if __name__ == "__main__":
    main()
