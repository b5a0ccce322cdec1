"""Submits jobs to two servers while they, remote workers and Postgres are killed at random, then checks the invariants.

    python -m tests.e2e.chaos_cluster --jobs 500 --kills 60

prints a Markdown table, and fails if anything was lost, charged twice, or left over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg

from tests.e2e.chaos import AT_FAILPOINT, SETTINGS, SWEEPING, ChaosRun, main, random_failpoint
from tests.e2e.cluster import Cluster

SERVER = "of a server"
REMOTE_WORKER, ENGINE = "of a remote worker", "of a worker process, of a server or a remote worker"
POSTGRES, SESSION = "of Postgres, all processes", "of a process of Postgres, which ends all its sessions"
FROZEN = "times that Postgres froze, for up to 4 s"
TERMINATED, LOST_ANSWER = "times that all sessions were terminated", "commits whose answer was lost"
WEIGHTS = {SERVER: 5, REMOTE_WORKER: 4, ENGINE: 3, POSTGRES: 3, SESSION: 1, FROZEN: 1, TERMINATED: 1, LOST_ANSWER: 4}
LONGEST_OUTAGE_S = 1.5
LONGEST_FREEZE_S = 4.0
CUT_WITHIN_S = 0.5


class ClusterChaos(ChaosRun):
    """Postgres with fsync, a bucket, two servers and two remote workers."""

    kills = (SERVER, AT_FAILPOINT, REMOTE_WORKER, ENGINE, POSTGRES, SESSION)
    faults = (FROZEN, TERMINATED, LOST_ANSWER)

    def __init__(self, folder: Path, *, n_jobs: int, n_kills: int, seed: int) -> None:
        super().__init__(n_jobs=n_jobs, n_kills=n_kills, seed=seed)
        self._cluster = Cluster(folder, {**SETTINGS, "AFTERWORDS_LEASE_S": "2"})
        self.seen = self._cluster.seen

    @contextmanager
    def running(self) -> Iterator[None]:
        with self._cluster as cluster:
            self.servers = cluster.servers
            yield

    def kill(self) -> None:
        """Break one or two things at a random time, wait a little, and start again what was killed."""
        self.pause(0.02, 0.6)
        n_faults = self.random.choice([1, 1, 2])
        chosen = self.random.choices([*WEIGHTS], weights=[*WEIGHTS.values()], k=n_faults)
        for kind in dict.fromkeys(chosen):
            counts = self.report.kills if kind in self.report.kills else self.report.faults
            counts[kind] += self._break(kind)
        self.pause(0, LONGEST_OUTAGE_S)
        self._restart(lambda: {"AFTERWORDS_FAILPOINT": random_failpoint(self.random)})

    def _break(self, kind: str) -> int:
        """Return how often it was done; none if the process is dead already."""
        cluster, which = self._cluster, self.random.randrange(2)
        if kind == SERVER:
            return cluster.kill_server(which)
        if kind == REMOTE_WORKER:
            return cluster.kill_worker(which)
        if kind == ENGINE:
            return self._kill_engine()
        if not cluster.postgres.is_running:
            return 0
        if kind == POSTGRES:
            cluster.postgres.kill()
            return 1
        if kind == SESSION:
            return cluster.postgres.kill_session(self.random.randrange(100))
        if kind == FROZEN:
            cluster.postgres.freeze()
            self.pause(0, LONGEST_FREEZE_S)
            cluster.postgres.thaw()
            return 1
        if kind == TERMINATED:
            return self._terminate_sessions()
        return self._cut_answer()

    def _kill_engine(self) -> int:
        if processes := self._cluster.engines():
            with suppress(psutil.NoSuchProcess):
                self.random.choice(processes).kill()
                return 1
        return 0

    def _terminate_sessions(self) -> int:
        with suppress(psycopg.OperationalError):  # it recovers from a kill of a session
            self._cluster.postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'afterwords'"
            )
            return 1
        return 0

    def _cut_answer(self) -> int:
        pooler = self._cluster.pooler
        n_before, end = pooler.n_cut, time.monotonic() + CUT_WITHIN_S
        pooler.cut_answer_to(b"COMMIT")
        while pooler.n_cut == n_before and time.monotonic() < end:
            self.pause(0.01, 0.01)
        return pooler.n_cut - n_before

    def _restart(self, environment: Callable[[], dict[str, str]]) -> None:
        self.report.kills[AT_FAILPOINT] += self._cluster.restart(environment)

    def end_kills(self) -> None:
        for number in range(len(self.servers)):
            self.report.kills[SERVER] += self._cluster.kill_server(number)
        self._restart(dict)

    def start_sweeping(self) -> None:
        self._cluster.stop_workers()
        for number in range(len(self.servers)):
            self._cluster.kill_server(number)
        self._cluster.direct.start(**SWEEPING)


if __name__ == "__main__":
    main(ClusterChaos, doc=__doc__)
