"""Print every benchmark as Markdown."""

from __future__ import annotations

import os
import platform

from benchmarks import (
    calls,
    client,
    first_audio,
    likeness,
    live,
    pocket,
    ray_cluster,
    server,
    servers,
    speed,
    startup,
    tenants,
    timestamps,
    verification,
    volume,
    workers,
)


def main() -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    tables = {
        "Start-up": startup,
        "Server": server,
        "First audio": first_audio,
        "Live text": live,
        "Accounts": tenants,
        "Large databases": volume,
        "Several servers": servers,
        "Remote workers": workers,
        "Called services": calls,
        "Ray clusters": ray_cluster,
        "Client": client,
        "lite: speed": speed,
        "lite: likeness": likeness,
        "lite: timestamps": timestamps,
        "pocket": pocket,
        "Verified speech": verification,
    }
    for title, module in tables.items():
        print(f"### {title}\n", *module.table(), "", sep="\n", flush=True)


if __name__ == "__main__":
    main()
