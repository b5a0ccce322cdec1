"""What a server counts for `GET /metrics`.

Everything is counted on the event loop, without locks. Values of labels are routes, methods, status codes, backends and
error codes, of which there are few, and never anything that a client chose.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from afterwords.errors import error_from_code

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily

REQUEST_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SPEECH_BUCKETS_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
REAL_TIME_BUCKETS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0)
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OF_WORKERS: Final = frozenset(
    {
        "worker_lost",
        "model_unavailable",
        "out_of_memory",
        "loading_timed_out",
        "preparing_timed_out",
        "speaking_timed_out",
    }
)
"""Codes of failed attempts that no exception has."""

Labels = tuple[str, ...]


class Counter:
    """A sum for each combination of labels."""

    def __init__(self, name: str, description: str, *labels: str) -> None:
        self.name, self.description, self.labels = name, description, labels
        self.sums: defaultdict[Labels, float] = defaultdict(float)
        if not labels:
            self.sums[()] = 0.0

    def add(self, *values: str, amount: float = 1) -> None:
        self.sums[values] += amount

    def family(self) -> CounterMetricFamily:
        """Return the metric as it is now."""
        from prometheus_client.metrics_core import CounterMetricFamily

        family = CounterMetricFamily(self.name, self.description, labels=self.labels)
        for values, total in self.sums.items():
            family.add_metric(values, total)
        return family


class Histogram:
    """A distribution for each combination of labels.

    Args:
        buckets: Upper bounds, ascending; one without a bound is added.
    """

    def __init__(self, name: str, description: str, *labels: str, buckets: tuple[float, ...]) -> None:
        self.name, self.description, self.labels, self.buckets = name, description, labels, buckets
        self.rows: dict[Labels, list[float]] = {}  # the number of values in each bucket, and their sum

    def observe(self, value: float, *values: str) -> None:
        row = self.rows.get(values)
        if row is None:
            row = self.rows[values] = [0.0] * (len(self.buckets) + 2)
        row[bisect_left(self.buckets, value)] += 1
        row[-1] += value

    def family(self) -> HistogramMetricFamily:
        """Return the metric as it is now."""
        from prometheus_client.metrics_core import HistogramMetricFamily

        family = HistogramMetricFamily(self.name, self.description, labels=self.labels)
        names = [str(bound) for bound in self.buckets] + ["+Inf"]
        for values, (*counts, total) in self.rows.items():
            buckets, so_far = [], 0.0
            for name, count in zip(names, counts, strict=True):
                so_far += count
                buckets.append((name, so_far))
            family.add_metric(values, buckets, total)
        return family


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._all: list[Counter | Histogram] = []
        self.requests = self._counter("http_requests", "Requests.", "route", "method", "status")
        self.request_seconds = self._histogram(
            "http_request_duration_seconds",
            "Time to answer a request, including waits and streams.",
            "route",
            "method",
            buckets=REQUEST_BUCKETS_S,
        )
        self.cache_hits = self._counter("cache_hits", "Synthesis requests answered from the cache.", "backend")
        self.cache_misses = self._counter("cache_misses", "Synthesis requests that became a job.", "backend")
        self.attempts = self._counter("attempts", "Attempts at jobs that workers began.", "backend", "worker")
        self.retries = self._counter("attempt_retries", "Attempts that failed, but may succeed if repeated.", "code")
        self.releases = self._counter(
            "attempt_releases",
            "Attempts that went back to the queue: a worker stops, or a job interrupts a preparation.",
        )
        self.expired = self._counter("leases_expired", "Leases that expired because a worker was lost.", "outcome")
        self.jobs_ended = self._counter(
            "jobs_ended",
            "Final jobs, with the error code of failed ones. Jobs cancelled with their key have no backend.",
            "backend",
            "status",
            "code",
        )
        self.audio_lost = self._counter("audio_lost", "Finished audio that was missing or altered when it was read.")
        self.synthesis_seconds = self._counter(
            "synthesis_seconds", "Time that workers needed to synthesize.", "backend", "worker"
        )
        self.audio_seconds = self._counter("audio_seconds", "Duration of the finished audio.", "backend", "worker")
        self.real_time_factor = self._histogram(
            "real_time_factor",
            "Time to synthesize a job, divided by the duration of its audio.",
            "backend",
            "worker",
            buckets=REAL_TIME_BUCKETS,
        )
        self.queue_wait = self._histogram(
            "queue_wait_seconds", "Time from a request to its first attempt.", "backend", buckets=SPEECH_BUCKETS_S
        )
        self.first_audio = self._histogram(
            "time_to_first_audio_seconds",
            "Time from a request to its first audio.",
            "backend",
            buckets=SPEECH_BUCKETS_S,
        )
        self.webhooks = self._counter("webhook_deliveries", "Tries to deliver a webhook.", "outcome")
        self.housekeeping_failures = self._counter("housekeeping_failures", "Failures of background work.", "work")
        self.payment_alerts = self._counter("payment_alerts", "Disputes and fraud warnings of Stripe.", "type")
        self.meters_lost = self._counter(
            "meter_characters_lost", "Characters that could not be reported to Stripe, and were given up."
        )
        self.swept = self._counter("swept_files", "Files without a row that the sweep removed.")

    def __iter__(self) -> Iterator[Counter | Histogram]:
        return iter(self._all)

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        method = known_method(method)
        self.requests.add(route, method, str(status))
        self.request_seconds.observe(seconds, route, method)

    def end_job(self, backend: str, status: str, error: str | None = None) -> None:
        self.jobs_ended.add(backend, status, _known(error) if error else "")

    def retry(self, error: str) -> None:
        self.retries.add(_known(error))

    def observe_first_audio(self, backend: str, submitted_at: datetime) -> None:
        waited_s = (datetime.now(UTC) - submitted_at).total_seconds()
        self.first_audio.observe(max(0.0, waited_s), backend)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        self._all.append(counter := Counter(f"afterwords_{name}", description, *labels))
        return counter

    def _histogram(self, name: str, description: str, *labels: str, buckets: tuple[float, ...]) -> Histogram:
        self._all.append(histogram := Histogram(f"afterwords_{name}", description, *labels, buckets=buckets))
        return histogram


def known_method(method: str) -> str:
    """Return an HTTP method, or "other" for one that a client made up."""
    return method if method in METHODS else "other"


def _known(code: str) -> str:
    """Return an error code, or "other" for one that a remote worker made up."""
    kind = type(error_from_code(code))
    return code if code in (*OF_WORKERS, kind.code, *kind.codes) else "other"
