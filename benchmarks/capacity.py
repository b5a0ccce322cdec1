"""Compute how many GPUs keep the first audio within a limit at a given load, and simulate it as a check.

Jobs arrive at random times, wait in one queue, and start on the GPU that runs the fewest. A GPU runs several jobs as a
batch: the larger the batch, the more audio per second in all, and the less for each job. See docs/scaling.md.
"""

from __future__ import annotations

import argparse
import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

import numpy as np

SECONDS_PER_DAY: Final = 86_400
AUDIO_S_PER_CHARACTER: Final = 0.068
"""English read aloud; `afterwords.text.EXPECTED_S_PER_CHARACTER`."""
LENGTH_VARIATION: Final = 0.8
"""Standard deviation of the length of a job, as a part of its mean, in the simulation."""


@dataclass(frozen=True, slots=True)
class Device:
    """What one device does at several batch sizes, interpolated between them.

    Attributes:
        rows: Batch sizes, ascending from 1; the last one is the largest batch.
        audio_s_per_s: Seconds of audio per second, of the whole batch.
        first_audio_s: Time from the start of a job to its first audio, in seconds.
    """

    rows: tuple[int, ...]
    audio_s_per_s: tuple[float, ...]
    first_audio_s: tuple[float, ...]

    @property
    def max_rows(self) -> int:
        return self.rows[-1]

    def throughput(self, rows: float) -> float:
        """Return the seconds of audio per second with a batch of `rows` jobs; below one, of the time it has a job."""
        if rows < 1:
            return rows * self.audio_s_per_s[0]
        return float(np.interp(rows, self.rows, self.audio_s_per_s))

    def latency(self, rows: float) -> float:
        """Return the seconds to the first audio of a job that makes a batch of `rows`."""
        return float(np.interp(rows, self.rows, self.first_audio_s))


DEVICES: Final = {
    "h200": Device((1, 4, 16, 64), (21.6, 51.9, 174.0, 421.0), (0.016, 0.020, 0.062, 0.139)),
    "cpu": Device((1,), (3.0,), (1.3,)),
}
"""From docs/benchmarks.md. h200: qwen3-1.7b. cpu: `lite` on two cores, whose first audio is a sentence of 4 s."""


@dataclass(frozen=True, slots=True)
class Load:
    """Jobs per second, and the mean seconds of audio of each."""

    jobs_per_s: float
    audio_s: float

    @classmethod
    def of_day(cls, characters: float, *, per_job: float, peak: float) -> Load:
        """Return the load in the busiest hour of a day, which has `peak` times the mean."""
        return cls(peak * characters / SECONDS_PER_DAY / per_job, per_job * AUDIO_S_PER_CHARACTER)


def first_audio(device: Device, n_devices: int, load: Load, quantile: float = 0.95) -> float:
    """Return a quantile of the time from submit to first audio in seconds; infinite if the load exceeds the devices.

    The number of jobs in the system is a birth-death chain. Of a job that waits, the wait is exponential with the rate
    that is left over: Kleinrock, Queueing Systems, volume 1, section 3.5 (M/M/m).
    """
    places = n_devices * device.max_rows
    capacity = n_devices * device.throughput(device.max_rows) / load.audio_s
    if load.jobs_per_s >= capacity:
        return math.inf
    weights = [1.0]  # of 0, 1, … jobs in the system; scaled on the way, as they overflow
    for jobs in range(1, places + 1):
        rate = n_devices * device.throughput(jobs / n_devices) / load.audio_s
        weights.append(weights[-1] * load.jobs_per_s / rate)
        if weights[-1] > 1e200:
            weights = [weight / 1e200 for weight in weights]
    waiting = weights.pop() / (1 - load.jobs_per_s / capacity)  # all places are taken: this and every longer queue
    total = sum(weights) + waiting
    latencies = [device.latency(math.floor(jobs / n_devices) + 1) for jobs in range(places)]

    def share_after(seconds: float) -> float:
        late = sum(w for w, latency in zip(weights, latencies, strict=True) if latency > seconds)
        queued = max(seconds - device.latency(device.max_rows), 0.0)
        return (late + waiting * math.exp(-(capacity - load.jobs_per_s) * queued)) / total

    low, high = 0.0, max(device.latency(device.max_rows), 0.001)
    while share_after(high) > 1 - quantile:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if share_after(middle) > 1 - quantile else (low, middle)
    return high


def simulate(
    device: Device, n_devices: int, load: Load, *, quantile: float = 0.95, n_jobs: int = 100_000, seed: int = 0
) -> float:
    """Return the same quantile, in seconds, of simulated jobs with log-normal lengths; the first tenth warms up."""
    random = Random(seed)
    spread = math.sqrt(math.log(1 + LENGTH_VARIATION**2))
    center = math.log(load.audio_s) - spread**2 / 2
    pool = [_Batch(device) for _ in range(n_devices)]
    queue: deque[tuple[float, float]] = deque()  # arrival, length in seconds of audio
    arrival = 0.0
    n_arrived = 0
    times: list[float] = []
    while len(times) < n_jobs:
        ending = min(pool, key=_Batch.next_end)
        if arrival <= ending.next_end() and n_arrived < n_jobs:
            now = arrival
            queue.append((now, random.lognormvariate(center, spread)))
            n_arrived += 1
            arrival += random.expovariate(load.jobs_per_s)
        else:
            now = ending.next_end()
            ending.finish_one()
        batch = min(pool, key=len)
        if queue and len(batch) < device.max_rows:
            arrived, length = queue.popleft()
            batch.add(now, length)
            times.append(now - arrived + device.latency(len(batch)))
    return float(np.quantile(times[n_jobs // 10 :], quantile))


class _Batch:
    """The jobs of one device, which share its throughput equally."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._now = 0.0
        self._made = 0.0  # seconds of audio that a job would have if it had run from the start
        self._ends: list[float] = []  # of the running jobs, in the units of _made

    def __len__(self) -> int:
        return len(self._ends)

    def next_end(self) -> float:
        if not self._ends:
            return math.inf
        return self._now + (self._ends[0] - self._made) * len(self) / self._device.throughput(len(self))

    def add(self, now: float, length: float) -> None:
        if self._ends:
            self._made += (now - self._now) * self._device.throughput(len(self)) / len(self)
        self._now = now
        heapq.heappush(self._ends, self._made + length)

    def finish_one(self) -> None:
        self._now = self.next_end()
        self._made = heapq.heappop(self._ends)


def devices_for(device: Device, load: Load, *, limit_s: float) -> int:
    """Return the fewest devices that give 95 % of the jobs their first audio within `limit_s` seconds.

    Raises:
        ValueError: A single job on an idle device takes longer.
    """
    if device.latency(1) > limit_s:
        raise ValueError(f"one job alone takes {device.latency(1):.3f} s to its first audio, the limit is {limit_s} s")
    n_devices = 1
    while first_audio(device, n_devices, load) > limit_s:
        n_devices += 1
    return n_devices


def table(device: Device, millions: Sequence[float], *, per_job: float, peak: float, limit_s: float) -> list[str]:
    """Return rows of Markdown: for each million characters a day, the devices, and both answers for their p95."""
    lines = [
        "| million characters a day | jobs/s | audio-s/s | devices | utilization | p95, model | p95, simulated |",
        "|---|---|---|---|---|---|---|",
    ]
    for million in millions:
        load = Load.of_day(million * 1e6, per_job=per_job, peak=peak)
        n_devices = devices_for(device, load, limit_s=limit_s)
        audio_s_per_s = load.jobs_per_s * load.audio_s
        utilization = audio_s_per_s / n_devices / device.throughput(device.max_rows)
        model, simulated = first_audio(device, n_devices, load), simulate(device, n_devices, load)
        lines.append(
            f"| {million:g} | {load.jobs_per_s:.2f} | {audio_s_per_s:.1f} | {n_devices} | {100 * utilization:.0f} % "
            f"| {1000 * model:.0f} ms | {1000 * simulated:.0f} ms |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("millions", nargs="*", type=float, default=[1, 10, 100, 300, 1000], metavar="MILLIONS")
    parser.add_argument("--device", choices=sorted(DEVICES), default="h200")
    parser.add_argument("--per-job", type=float, default=200.0, help="characters of a job (200)")
    parser.add_argument("--peak", type=float, default=4.0, help="load of the busiest hour, in means of the day (4)")
    parser.add_argument("--limit", type=float, default=0.2, help="95 % of the first audio within these seconds (0.2)")
    options = parser.parse_args()
    device = DEVICES[options.device]
    print(*table(device, options.millions, per_job=options.per_job, peak=options.peak, limit_s=options.limit), sep="\n")


if __name__ == "__main__":
    main()
