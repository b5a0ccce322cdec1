"""Write what the long runs print into docs/reliability.md; `make soak` calls it. They take about fifteen minutes."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tests.e2e.chaos import Chaos
from tests.e2e.soak import Soak

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- begin: make soak -->", "<!-- end: make soak -->"
JOBS, KILLS, REQUESTS = 500, 60, 50_000


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="afterwords-soak-") as folder:
        chaos = Chaos(Path(folder) / "chaos", n_jobs=JOBS, n_kills=KILLS, seed=JOBS).run()
        print(*chaos.table(), "", sep="\n", flush=True)
        soak = Soak(Path(folder), n_requests=REQUESTS, seed=REQUESTS).run()
        print(*soak.table(), sep="\n", flush=True)
    PAGE.write_text(_filled(PAGE.read_text("utf-8"), [*_page(chaos.table(), soak.table())]), "utf-8")
    sys.exit(not (chaos.is_clean and soak.is_clean))


def _page(chaos: Iterator[str], soak: Iterator[str]) -> Iterator[str]:
    today = datetime.now(UTC).date()
    yield f"{today}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}."
    yield from ("", f"### Chaos: {JOBS} jobs, {KILLS} kills or more", "", *chaos)
    yield from ("", f"### Soak: {REQUESTS:,} requests", "", *soak)


def _filled(page: str, lines: list[str]) -> str:
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([f"{before}{BEGIN}", "", *lines, "", f"{END}{after}"])


if __name__ == "__main__":
    main()
