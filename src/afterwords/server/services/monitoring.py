"""The state of a server for its operators: metrics for Prometheus, with the queue as the database has it."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from afterwords import __version__
from afterwords.errors import AfterwordsError
from afterwords.server.concurrency import in_thread
from afterwords.server.metrics import Metrics
from afterwords.server.ports import Clock, Dispatcher, Store
from afterwords.server.records import QueueState
from afterwords.server.services.ownership import Ownership
from afterwords.server.settings import Settings

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

QUEUE_TTL_S: Final = 1.0
"""How long the state of the queue is cached."""


@dataclass(slots=True)
class Monitoring:
    """Reads the state of a server.

    Attributes:
        count_remote_workers: Returns the number of connected remote workers.
    """

    store: Store
    clock: Clock
    dispatcher: Dispatcher
    metrics: Metrics
    ownership: Ownership
    settings: Settings
    count_remote_workers: Callable[[], int]
    _queue: tuple[float, Sequence[QueueState]] | None = field(default=None, init=False)
    _started: float = field(init=False)

    def __post_init__(self) -> None:
        self._started = self.clock.monotonic()

    async def read_queue(self) -> Sequence[QueueState]:
        """Return the pending jobs of each backend, at most a second old.

        Raises:
            DatabaseUnavailableError: The database does not answer.
        """
        now = self.clock.monotonic()
        if self._queue is None or not 0 <= now - self._queue[0] < QUEUE_TTL_S:
            self._queue = now, await self.store.read_queue()
        return self._queue[1]

    async def check(self) -> tuple[bool, dict[str, str]]:
        """Check database, storage, backend and sweep. Return whether the server is ready, and the state of each.

        A sweep that is off does not make it unready.
        """
        state = {"database": "ok", "storage": "ok", "backend": self.dispatcher.state}
        is_ready = self.dispatcher.is_ready
        for name, part in (("database", self.store), ("storage", self.ownership.blobs)):
            try:
                await part.check()
            except AfterwordsError as error:
                state[name], is_ready = error.code, False
        try:
            state["sweep"] = (await self.ownership.read()).sweep
        except AfterwordsError as error:
            state["sweep"] = error.code
        return is_ready, state

    async def read_status(self) -> dict[str, Any]:
        """Return the state of the server as JSON; what the database does not answer is None."""
        is_ready, state = await self.check()
        hits, misses = (sum(metric.sums.values()) for metric in (self.metrics.cache_hits, self.metrics.cache_misses))
        status: dict[str, Any] = {
            "status": "ready" if is_ready else "not ready",
            **state,
            "version": __version__,
            "uptime_s": round(self.clock.monotonic() - self._started),
            "backends": list(self.dispatcher.backends),
            "workers": self._count_workers(),
            "cache_hit_rate": round(hits / (hits + misses), 3) if hits + misses else None,
            "disk_free_bytes": shutil.disk_usage(self.settings.folder).free,
            "waiting_jobs": None,
            "running_jobs": None,
            "oldest_job_s": None,
            "servers": None,
        }
        with contextlib.suppress(AfterwordsError):  # shown as the state of the database
            queue = await self.read_queue()
            oldest_at = min((part.oldest_at for part in queue), default=None)
            status["waiting_jobs"] = sum(part.waiting for part in queue)
            status["running_jobs"] = sum(part.running for part in queue)
            if oldest_at is not None:
                status["oldest_job_s"] = round(max(0.0, (self.clock.now() - oldest_at).total_seconds()), 1)
            status["servers"] = await self.store.count_servers()
        return status

    async def render_metrics(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        try:
            queue: Sequence[QueueState] | None = await self.read_queue()
        except AfterwordsError:  # shown as afterwords_database_up 0
            queue = None
        families = [*self._gauges(queue), *(metric.family() for metric in self.metrics)]
        return await in_thread(_render, families)

    def _count_workers(self) -> dict[str, int]:
        return {"local": self.settings.workers, "remote": self.count_remote_workers()}

    def _gauges(self, queue: Sequence[QueueState] | None) -> Iterator[Metric]:
        from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily

        def gauge(name: str, description: str, value: float) -> Metric:
            return GaugeMetricFamily(f"afterwords_{name}", description, value=value)

        python = ".".join(str(part) for part in sys.version_info[:3])
        yield InfoMetricFamily("afterwords", "The version.", value={"version": __version__, "python": python})
        yield gauge("ready", "Whether a job would start at once.", self.dispatcher.is_ready)
        yield gauge("database_up", "Whether the database answers.", queue is not None)
        yield gauge(
            "disk_free_bytes",
            "Free space on the disk of the data folder.",
            shutil.disk_usage(self.settings.folder).free,
        )
        workers = GaugeMetricFamily("afterwords_workers", "Workers of this server.", labels=("worker",))
        for kind, count in self._count_workers().items():
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
