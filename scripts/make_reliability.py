"""Run the long tests and write their tables into docs/reliability.md: `make soak`. It takes about half an hour."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from tests.e2e.chaos import Chaos
from tests.e2e.chaos_cluster import ClusterChaos
from tests.e2e.ray_kills import RayKills
from tests.e2e.recovery import Recovery
from tests.e2e.soak import Soak

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- begin: make soak -->", "<!-- end: make soak -->"
JOBS, KILLS, RAY_JOBS, REQUESTS = 500, 60, 200, 50_000


class Report(Protocol):
    @property
    def is_clean(self) -> bool: ...

    def table(self) -> Iterator[str]: ...


class Run(Protocol):
    def run(self) -> Report: ...


def main() -> None:
    lines = [
        f"{datetime.now(UTC).date()}, {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f} "
        f"at the start, Python {platform.python_version()}.",
    ]
    are_clean = []
    with tempfile.TemporaryDirectory(prefix="afterwords-soak-") as name:
        folder = Path(name)
        runs: dict[str, Run] = {
            f"Chaos on SQLite: {JOBS} jobs, {KILLS} kills or more": Chaos(
                folder / "sqlite", n_jobs=JOBS, n_kills=KILLS, seed=JOBS
            ),
            f"Chaos on Postgres: {JOBS} jobs, {KILLS} kills or more": ClusterChaos(
                folder / "postgres", n_jobs=JOBS, n_kills=KILLS, seed=JOBS
            ),
            "Recovery": Recovery(folder / "recovery", seed=JOBS),
            f"Ray cluster: {RAY_JOBS} jobs": RayKills(folder / "ray", n_jobs=RAY_JOBS),
            f"Soak: {REQUESTS:,} requests": Soak(folder, n_requests=REQUESTS, seed=REQUESTS),
        }
        for title, run in runs.items():
            report = run.run()
            table = [f"### {title}", "", *report.table()]
            print(*table, "", sep="\n", flush=True)
            lines += ["", *table]
            are_clean.append(report.is_clean)
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text("\n".join([f"{before}{BEGIN}", "", *lines, "", f"{END}{after}"]), "utf-8")
    sys.exit(not all(are_clean))


if __name__ == "__main__":
    main()
