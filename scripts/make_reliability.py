"""Run the long tests and write their tables into docs/reliability.md: `make soak`. It takes about fifteen minutes."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
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
    lines = [
        f"{datetime.now(UTC).date()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}.",
        *("", f"### Chaos: {JOBS} jobs, {KILLS} kills or more", "", *chaos.table()),
        *("", f"### Soak: {REQUESTS:,} requests", "", *soak.table()),
    ]
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text("\n".join([f"{before}{BEGIN}", "", *lines, "", f"{END}{after}"]), "utf-8")
    sys.exit(not (chaos.is_clean and soak.is_clean))


if __name__ == "__main__":
    main()
