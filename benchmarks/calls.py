"""Compare jobs of services that are called, over loopback, with jobs of the server's own worker process."""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

from benchmarks.workers import LIMITS, REQUESTS, WARM_UP, speak
from tests.clouds import standin
from tests.e2e.workers import open_world


def medians(folder: Path) -> list[float]:
    """Return the medians of jobs of the server, of an app with the dispatch form, and of RunPod's handler, in ms.

    They alternate, so that all see the same load.
    """
    environment = dict(os.environ)
    with (
        standin.running("hosted", folder / "app", environment) as app,
        standin.running("runpod", folder / "handler", environment) as endpoint,
        open_world(folder / "local", **LIMITS, AFTERWORDS_WORKERS="1") as local,
        open_world(
            folder / "trigger",
            **LIMITS,
            AFTERWORDS_DISPATCHER="modal",
            AFTERWORDS_MODAL_TRIGGER_URL=f"{app.url}/trigger",
        ) as trigger,
        open_world(
            folder / "runpod",
            **LIMITS,
            AFTERWORDS_DISPATCHER="runpod",
            AFTERWORDS_RUNPOD_URL=f"{endpoint.url}/v2/voices",
            AFTERWORDS_RUNPOD_API_KEY=standin.KEY,
        ) as runpod,
    ):
        rounds = [
            [speak(world, "Hello there.") for world in (local, trigger, runpod)] for _ in range(WARM_UP + REQUESTS)
        ]
    return [statistics.median(side) for side in zip(*rounds[WARM_UP:], strict=True)]


def table() -> list[str]:
    with tempfile.TemporaryDirectory() as name:
        local, trigger, runpod = medians(Path(name))
    form = f"{local:.1f} / {trigger:.1f} ms: +{trigger - local:.1f} ms"
    container = f"{local:.1f} / {runpod:.1f} ms: +{runpod - local:.1f} ms"
    return [
        "| called services, engine `tone` | measured | target |",
        "|---|---|---|",
        f"| submit → ready, p50, local / app with the dispatch form | {form} | ≤ +20 ms |",
        f"| submit → ready, p50, local / container of afterwords | {container} | |",
    ]


if __name__ == "__main__":
    print(*table(), sep="\n")
