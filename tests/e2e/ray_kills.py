"""Submits jobs to a server whose engines run in a Ray cluster of two nodes, while a replica and a node are killed.

    python -m tests.e2e.ray_kills

prints a Markdown table, and fails if anything was lost or charged twice. It is part of `make soak`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.e2e.invariants import find_corrupt, find_damage, find_wrong_charges, is_speech_of, query, query_one
from tests.e2e.served import Served, register, serving, wait_until
from tests.server.dispatch.ray_cluster import DEADLINE_S, RayCluster

CLIENTS = 4
ATTEMPTS = 5
SPEAKING = "SELECT count(*) FROM jobs WHERE status = 'pending' AND worker IS NOT NULL"
N_SPEAKING = 8


@dataclass
class Report:
    """The results of a run."""

    n_jobs: int
    n_lost: int
    n_wrongly_charged: int
    n_corrupt: int
    n_retried: int
    attempts_max: int

    @property
    def is_clean(self) -> bool:
        return not (self.n_lost or self.n_wrongly_charged or self.n_corrupt)

    def table(self) -> Iterator[str]:
        yield from ("| what | number |", "|---|---|")
        yield f"| jobs accepted | {self.n_jobs} |"
        yield "| replicas killed | 1 |"
        yield "| nodes killed, with all their processes | 1 |"
        yield f"| jobs that took more than one attempt | {self.n_retried} |"
        yield f"| most attempts that a job took | {self.attempts_max} |"
        yield f"| **jobs lost** | {self.n_lost} |"
        yield f"| **accounts charged wrongly** | {self.n_wrongly_charged} |"
        yield f"| **audio missing, altered, or of another text** | {self.n_corrupt} |"


class RayKills:
    """One run: a cluster, a server, and clients."""

    def __init__(self, folder: Path, *, n_jobs: int) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._n_jobs = n_jobs

    def run(self) -> Report:
        with RayCluster(self._folder / "node") as cluster:
            node = cluster.add_node()
            deploy = ("cluster", "deploy", "--backend", "tone", "--min", "2", "--address", cluster.address)
            environment = {**cluster.environment, "AFTERWORDS_HOME": str(self._folder / "node")}
            subprocess.run(
                [sys.executable, "-m", "afterwords", *deploy], env=environment, timeout=DEADLINE_S, check=True
            )
            settings = {
                "AFTERWORDS_DISPATCHER": "ray",
                "AFTERWORDS_RAY_ADDRESS": cluster.address,
                "AFTERWORDS_MAX_ATTEMPTS": str(ATTEMPTS),
                "AFTERWORDS_RATE_LIMIT": "0",
                "AFTERWORDS_MAX_PENDING_JOBS_PER_ACCOUNT": str(self._n_jobs),
            }
            with serving(self._folder / "home", settings) as served, served.client() as client:
                voice_id = register(client)
                half = self._n_jobs // 2
                with ThreadPoolExecutor(1) as pool:
                    submitted = pool.submit(self._submit, served, voice_id, range(half))
                    self._wait_until_speaking(served)
                    replica = next(each for each in cluster.replicas() if each not in node.children(recursive=True))
                    replica.kill()
                    texts = submitted.result()
                    cluster.wait_for_replicas(2, without=[replica])
                    submitted = pool.submit(self._submit, served, voice_id, range(half, self._n_jobs))
                    self._wait_until_speaking(served)
                    cluster.kill_node(node)
                    texts |= submitted.result()
                cluster.add_node()
                wait_until(
                    lambda: _n_final(served) == self._n_jobs, deadline_s=4 * DEADLINE_S, what="the end of all jobs"
                )
                return self._report(served, client, texts)

    def _submit(self, served: Served, voice_id: str, numbers: range) -> dict[str, str]:
        """Submit jobs, and return their texts."""

        def submit(number: int) -> tuple[str, str]:
            text = f"fault-slow text number {number}, which takes more than a second to speak{', and goes on' * 10}"
            with served.client() as client:
                answer = client.post("/v1/synthesize", json={"voice_id": voice_id, "text": text})
            assert answer.status_code == 202, answer.text
            return str(answer.json()["job_id"]), text

        with ThreadPoolExecutor(CLIENTS) as pool:
            return dict(pool.map(submit, numbers))

    def _wait_until_speaking(self, served: Served) -> None:
        wait_until(lambda: query_one(served, SPEAKING) >= N_SPEAKING, deadline_s=DEADLINE_S, what="speech")

    def _report(self, served: Served, client: httpx.Client, texts: dict[str, str]) -> Report:
        rows = query(served, "SELECT job_id, status, attempt - returned FROM jobs")
        lost = [job_id for job_id in texts if (job_id, "ready") not in {(row[0], row[1]) for row in rows}]
        wrong = [
            job_id
            for job_id, text in texts.items()
            if job_id not in lost and not is_speech_of(client.get(f"/v1/jobs/{job_id}/audio").content, text)
        ]
        attempts = [int(row[2]) for row in rows]
        return Report(
            n_jobs=len(texts),
            n_lost=len(lost),
            n_wrongly_charged=len(find_wrong_charges(served)),
            n_corrupt=len(wrong) + len(find_corrupt(served)) + len(find_damage(served)),
            n_retried=sum(number > 1 for number in attempts),
            attempts_max=max(attempts),
        )


def _n_final(served: Served) -> int:
    return int(query_one(served, "SELECT count(*) FROM jobs WHERE status != 'pending'"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="afterwords-ray-kills-") as name:
        report = RayKills(Path(name) / "run", n_jobs=200).run()
    sys.stdout.writelines(f"{line}\n" for line in report.table())
    sys.exit(not report.is_clean)
