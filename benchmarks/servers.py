"""Compare two API servers on one Postgres with one of them.

Clients, servers and Postgres share the machine, so that its cores limit the requests per second. How far servers scale
shows in the CPU time that a request takes in each process: it limits a server on a machine of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil

from benchmarks.load import UNLIMITED, request, send_all
from tests.e2e.served import Served, register, serving
from tests.postgres import running_postgres

ROUNDS = 7
REQUESTS = 400
CLIENTS = 16

_serial = itertools.count()


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """Return the CPU time that processes have used."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def submit_to(served: Served, accounts: Sequence[tuple[str, str]]) -> Callable[[int], bytes]:
    """Return what makes requests of all accounts in turn."""

    def make(number: int) -> bytes:
        key, voice_id = accounts[number % len(accounts)]
        body = json.dumps({"voice_id": voice_id, "text": f"The harbour was quiet. {next(_serial)}"}).encode()
        return request(f"{served.url}/v1/synthesize", "POST", body=body, key=key)

    return make


async def send(servers: Sequence[Served], accounts: Sequence[tuple[str, str]]) -> float:
    """Share the requests of a round among servers; return the requests per second of all."""
    started = time.perf_counter()
    share = len(accounts) // len(servers)
    groups = [accounts[place * share : (place + 1) * share] for place in range(len(servers))]
    loads = (
        send_all(served.url, submit_to(served, group), n=REQUESTS // len(servers), expect=202, clients=share)
        for served, group in zip(servers, groups, strict=True)
    )
    await asyncio.gather(*loads)
    return REQUESTS / (time.perf_counter() - started)


def table() -> list[str]:
    """Return the figures as Markdown."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        postgres = stack.enter_context(running_postgres())
        shared = {
            **UNLIMITED,
            "AFTERWORDS_WORKERS": "0",
            "AFTERWORDS_DATABASE_URL": postgres.url(postgres.create_database()),
            "AFTERWORDS_STORAGE_URL": str(Path(name) / "storage"),
        }
        servers = [stack.enter_context(serving(Path(name) / str(number), shared)) for number in range(2)]
        accounts = []
        for _ in range(CLIENTS):
            key = servers[0].new_key()
            with servers[0].client(key) as client:
                accounts.append((key, register(client)))
        found: dict[int, list[tuple[float, float, float]]] = {1: [], 2: []}
        for number, n_servers in itertools.product(range(ROUNDS + 1), found):
            used = servers[:n_servers]
            ours = [psutil.Process(served.process.pid) for served in used if served.process]
            theirs = [each for each in psutil.Process().children(recursive=True) if each.name() == "postgres"]
            before = cpu_s(ours), cpu_s(theirs)
            per_s = asyncio.run(send(used, accounts))
            mine_ms, postgres_ms = 1000 * (cpu_s(ours) - before[0]), 1000 * (cpu_s(theirs) - before[1])
            if number:  # the first round warms up
                found[n_servers].append((per_s, mine_ms / REQUESTS, postgres_ms / REQUESTS))
    one, two = ([statistics.median(column) for column in zip(*rounds, strict=True)] for rounds in found.values())
    return [
        "| submits on one Postgres | one server | two servers | ratio | target |",
        "|---|---|---|---|---|",
        f"| all on one machine | {one[0]:.0f}/s | {two[0]:.0f}/s | {two[0] / one[0]:.2f} | |",
        f"| CPU per request, servers | {one[1]:.2f} ms | {two[1]:.2f} ms | {two[1] / one[1]:.2f} | |",
        f"| CPU per request, Postgres | {one[2]:.2f} ms | {two[2]:.2f} ms | {two[2] / one[2]:.2f} | |",
        f"| requests that the CPU of the servers allows | {1000 / one[1]:.0f}/s | {2000 / two[1]:.0f}/s "
        f"| {2 * one[1] / two[1]:.2f} | ≥ 1.7 |",
    ]


if __name__ == "__main__":
    print(*table(), sep="\n")
