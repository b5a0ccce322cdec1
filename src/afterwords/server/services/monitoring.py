"""The state of a server for its operators: metrics for Prometheus, with the queue as the database has it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from afterwords import __version__
from afterwords.errors import AfterwordsError
from afterwords.server.concurrency import in_thread
from afterwords.server.metrics import Metrics
from afterwords.server.ports import Clock, Dispatcher, Store
from afterwords.server.records import QueueState

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

QUEUE_TTL_S: Final = 1.0
"""How long the state of the queue is cached."""


@dataclass(slots=True)
class Monitoring:
    """Reads the state of a server.

    Attributes:
        folder: A folder on the disk whose free space is shown.
        count_workers: Returns the worker processes of this server, and the remote workers that it knows.
    """

    store: Store
    clock: Clock
    dispatcher: Dispatcher
    metrics: Metrics
    folder: Path
    count_workers: Callable[[], Mapping[str, int]]
    _queue: tuple[float, Sequence[QueueState]] | None = field(default=None, init=False)

    async def read_queue(self) -> Sequence[QueueState]:
        """Return the pending jobs of each backend, at most a second old.

        Raises:
            DatabaseUnavailableError: The database does not answer.
        """
        now = self.clock.monotonic()
        if self._queue is None or not 0 <= now - self._queue[0] < QUEUE_TTL_S:
            self._queue = now, await self.store.read_queue()
        return self._queue[1]

    async def render_metrics(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        try:
            queue: Sequence[QueueState] | None = await self.read_queue()
        except AfterwordsError:  # shown as afterwords_database_up 0
            queue = None
        families = [*self._gauges(queue), *(metric.family() for metric in self.metrics)]
        return await in_thread(_render, families)

    def _gauges(self, queue: Sequence[QueueState] | None) -> Iterator[Metric]:
        from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily

        def gauge(name: str, description: str, value: float) -> Metric:
            return GaugeMetricFamily(f"afterwords_{name}", description, value=value)

        python = ".".join(str(part) for part in sys.version_info[:3])
        yield InfoMetricFamily("afterwords", "The version.", value={"version": __version__, "python": python})
        yield gauge("ready", "Whether a job would start at once.", self.dispatcher.is_ready)
        yield gauge("database_up", "Whether the database answers.", queue is not None)
        yield gauge(
            "disk_free_bytes", "Free space on the disk of the data folder.", shutil.disk_usage(self.folder).free
        )
        workers = GaugeMetricFamily("afterwords_workers", "Workers of this server.", labels=("worker",))
        for kind, count in self.count_workers().items():
            workers.add_metric((kind,), count)
        yield workers
        if queue is None:
            return
        jobs = GaugeMetricFamily(
            "afterwords_queue_jobs",
            "Pending jobs of all servers of the database; those that run have a lease.",
            labels=("backend", "state"),
        )
        oldest = GaugeMetricFamily(
            "afterwords_queue_oldest_seconds",
            "Age of the oldest pending job of all servers of the database.",
            labels=("backend",),
        )
        now, states = self.clock.now(), {state.backend: state for state in queue}
        for backend in sorted({*states, *self.dispatcher.backends}):
            state = states.get(backend) or QueueState(backend, 0, 0, now)
            jobs.add_metric((backend, "waiting"), state.waiting)
            jobs.add_metric((backend, "running"), state.running)
            oldest.add_metric((backend,), max(0.0, (now - state.oldest_at).total_seconds()))
        yield jobs
        yield oldest


def _render(families: Sequence[Metric]) -> bytes:
    from prometheus_client import GCCollector, ProcessCollector, generate_latest
    from prometheus_client.registry import Collector, CollectorRegistry

    class Snapshot(Collector):
        def collect(self) -> Sequence[Metric]:
            return families

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Snapshot())
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    return generate_latest(registry)
