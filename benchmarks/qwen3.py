"""How fast Qwen3-TTS is, at its published sizes with random weights: time, first sound, throughput and memory.

    python -m benchmarks.qwen3

Our engine runs with its scheduler and codec. It is compared with a plain eager loop, with faster-qwen3-tts if
installed, and with the time to read the weights and caches of a frame in bfloat16, at the bandwidth of a large copy in
the same run. A variant that can't run here, or not in time, is skipped, and the reason is printed.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from afterwords.backends.qwen3.config import read_config
from afterwords.backends.qwen3.request import STEPS_PER_READ, DecodeRequest, FinishReason
from afterwords.backends.qwen3.torch import ops as torch_ops
from afterwords.backends.qwen3.torch.batch import BatchState
from afterwords.backends.qwen3.torch.cuda_graphs import GraphRunner
from afterwords.backends.qwen3.torch.model import fastest_ops
from afterwords.backends.qwen3.torch.scheduler import POSITION_BUCKETS, Request, TorchScheduler
from afterwords.backends.qwen3.torch.talker import PrefillRow
from benchmarks import qwen3_faster
from benchmarks.qwen3_model import REFERENCE_FRAMES, SIZES, RandomModel, RandomWeights, write_published
from benchmarks.qwen3_plain import PlainTalker

FRAME_S: Final = 0.08
BATCHES: Final = (1, 4, 16, 64)
FRAMES: Final = 100
"""8 s of speech in every row; the talker can't end earlier."""
ROUNDS: Final = 3
BUDGET_S: Final = 420.0
"""Measurements that start later are skipped; each size has its share."""
COPY_BYTES: Final = {"cuda": 2**31, "cpu": 2**26}
HEADER: Final = (
    "| size | way | rows | operations | frame step | of the limit | frame, all in | first sound | × real time "
    "| audio-s/s | memory | codes kept |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True, slots=True)
class Way:
    """A variant to measure.

    Attributes:
        name: as printed.
        is_captured: as CUDA graphs.
        has_kernels: of Triton.
        precision: of the weights that `Talker.quantize` rounds.
    """

    name: str
    is_captured: bool = False
    has_kernels: bool = False
    precision: str = "bf16"

    def missing(self, device: torch.device) -> str | None:
        """Return why it can't run."""
        if self.is_captured and device.type != "cuda":
            return "it needs an NVIDIA GPU"
        if self.has_kernels and find_spec("triton") is None:
            return "triton is not installed"
        return None


WAYS: Final = (
    Way("graphs + Triton", is_captured=True, has_kernels=True),
    Way("graphs + Triton + fp8", is_captured=True, has_kernels=True, precision="fp8"),
    Way("graphs", is_captured=True),
    Way("eager"),
)
PLAIN: Final = "plain loop, no codec"
FASTER: Final = "faster-qwen3-tts, no codec"


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one measurement; None if not measured.

    Attributes:
        step_ms: talker and code predictor alone.
        frame_ms: in the loop, with the codec and what the host does.
        first_ms: from handing in to the first sound, the median of the rows.
        n_operations: that torch carries out in one frame; views are not counted, and each kernel is one.
        total_s: from handing in to the last sound of the last row.
        memory: most bytes on the device at once.
        kept: the share of likeliest codes that rounding left as they were.
    """

    n_rows: int
    step_ms: float
    n_operations: int | None = None
    frame_ms: float | None = None
    first_ms: float | None = None
    total_s: float | None = None
    memory: int | None = None
    kept: float | None = None

    def line(self, size: str, way: str, *, n_frames: int, limit_ms: float) -> str:
        speech_s = n_frames * FRAME_S
        cells = [
            size,
            way,
            str(self.n_rows),
            _cell("{:,}", self.n_operations),
            f"{self.step_ms:.2f} ms",
            f"{self.step_ms / limit_ms:.1f} ×",
            _cell("{:.2f} ms", self.frame_ms),
            _cell("{:.1f} ms", self.first_ms),
            _cell("{:.1f}", self.frame_ms and 1000 * FRAME_S / self.frame_ms),
            _cell("{:.1f}", self.total_s and self.n_rows * speech_s / self.total_s),
            _cell("{:.2f} GB", self.memory and self.memory / 1e9),
            _cell("{:.1%}", self.kept),
        ]
        return f"| {' | '.join(cells)} |"


# -- measurements ------------------------------------------------------------------------------------------------


def bandwidth(device: torch.device) -> float:
    """Measure the bandwidth of a large copy, reads and writes, in bytes per second."""
    source = torch.empty(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / min(_seconds(device, lambda: target.copy_(source)) for _ in range(10))


def ours(model: RandomModel, way: Way, n_rows: int, n_frames: int, *, kept: float | None = None) -> Row:
    """Measure the scheduler with a number of concurrent requests; `kept` as in Row."""
    device, n_positions = model.talker.device, _n_positions(model, n_frames)
    with _measured_memory(device) as memory:
        scheduler = TorchScheduler(model.talker, model.decoder, n_rows=n_rows, n_positions=n_positions)
        if not way.is_captured:
            scheduler._frames = model.talker.decode_frame  # type: ignore[assignment] # the scheduler captures if it can
        try:  # later rounds may capture new sizes, so the median is taken
            n_rounds = ROUNDS if way.is_captured else 1
            rounds = [_run_requests(scheduler, model, n_rows, n_frames) for _ in range(1 + n_rounds)][1:]
        finally:
            scheduler.close()
    firsts, lasts = sorted(rounds, key=lambda times: max(times[1]))[n_rounds // 2]
    rows = _prefilled_rows(model, n_rows, n_positions, n_frames)
    step = partial(GraphRunner(model.talker) if way.is_captured else model.talker.decode_frame, rows, with_top_p=False)
    n_operations = _operations(partial(model.talker.decode_frame, rows, with_top_p=False))
    return Row(
        n_rows,
        step_ms=_step_ms(device, step, n_frames),
        n_operations=None if way.has_kernels else n_operations,  # Triton kernels are not dispatched by torch
        frame_ms=1000 * (max(lasts) - max(firsts)) / (n_frames - 1),
        first_ms=1000 * statistics.median(firsts),
        total_s=max(lasts),
        memory=memory[0] if memory else None,
        kept=kept,
    )


def plain(folder: Path, device: torch.device, dtype: torch.dtype, n_rows: int, n_frames: int) -> Row:
    """Measure a plain eager loop, without codec."""
    with _measured_memory(device) as memory:
        config = read_config(folder)
        talker = PlainTalker(RandomWeights(device, dtype), config)
        columns = torch.randn(REFERENCE_FRAMES + 10, config.talker.stack.hidden, device=device, dtype=dtype)
        hidden, cache = talker.hear(columns, n_rows)

        def step() -> None:
            nonlocal hidden
            hidden = talker.frame(hidden, cache)

        step_ms = _step_ms(device, step, n_frames)
    return Row(n_rows, step_ms, n_operations=_operations(step), memory=memory[0] if memory else None)


def _run_requests(
    scheduler: TorchScheduler, model: RandomModel, n_rows: int, n_frames: int
) -> tuple[list[float], list[float]]:
    """Return the seconds to the first and last audio of each row, read by a thread each, as in a server."""
    sampling = replace(model.config.sampling, min_frames=n_frames)
    requests = [
        DecodeRequest(model.prompt, model.codec_state, n_frames, replace(sampling, seed=seed), is_streaming=True)
        for seed in range(n_rows)
    ]
    started = time.perf_counter()

    def read(request: Request) -> tuple[float, float]:
        times = [time.perf_counter() - started for _ in request.stream()]
        if request.finish_reason is not FinishReason.LENGTH:
            raise SystemExit(
                f"it ended after {request.n_decoded} of {n_frames} frames: {request.error or request.finish_reason}"
            )
        return times[0], times[-1]

    with ThreadPoolExecutor(n_rows) as pool:
        for request in requests:
            scheduler.submit(request)
        times = list(pool.map(read, requests))
    return [first for first, _ in times], [last for _, last in times]


def _prefilled_rows(model: RandomModel, n_rows: int, n_positions: int, n_frames: int) -> BatchState:
    """Return rows after the prefill of the prompt."""
    rows = model.talker.new_rows(n_rows, n_positions)
    sampling = replace(model.config.sampling, min_frames=n_frames)
    model.talker.prefill(rows, [PrefillRow(row, model.prompt, n_frames, sampling) for row in range(n_rows)])
    return rows


def _n_positions(model: RandomModel, n_frames: int) -> int:
    """Return the smallest bucket of positions that holds prompt and frames."""
    reach = len(model.prompt.columns) + n_frames + max(STEPS_PER_READ)
    return next(n for n in POSITION_BUCKETS if n >= reach)


def _step_ms(device: torch.device, step: Callable[[], None], n_frames: int) -> float:
    """Return the median time of a frame over some rounds."""

    def steps() -> None:
        for _ in range(max(1, n_frames // ROUNDS)):
            step()

    with torch.inference_mode():
        step()
        return 1000 * statistics.median(_seconds(device, steps) for _ in range(ROUNDS)) / max(1, n_frames // ROUNDS)


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def _measured_memory(device: torch.device) -> Iterator[list[int]]:
    """Append the peak memory of the GPU in bytes to the list."""
    most: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield most
    if device.type == "cuda":
        most.append(torch.cuda.max_memory_allocated())


class _Operations(TorchDispatchMode):
    n: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += not func.is_view
        return func(*args, **(kwargs or {}))


def _operations(step: Callable[[], None]) -> int:
    with torch.inference_mode(), _Operations() as operations:  # type: ignore[no-untyped-call]
        step()
    return int(operations.n)


# -- the table ---------------------------------------------------------------------------------------------------


def table(
    folders: dict[str, Path],
    device: torch.device,
    *,
    batches: Sequence[int] = BATCHES,
    n_frames: int = FRAMES,
    budget_s: float = BUDGET_S,
) -> Iterator[str]:
    """Yield the figures as lines of Markdown.

    Args:
        folders: the description of a checkpoint, by the name of its size.
        device: to measure on; a CPU does it in float32.
        batches: rows at once.
        n_frames: of every row.
        budget_s: what is not begun by then is left out.
    """
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    moved = bandwidth(device)
    setup = f"{_name(device)}, {str(dtype).removeprefix('torch.')}, torch {torch.__version__}"
    yield f"{setup}: a copy moves {moved / 1e9:,.0f} GB/s."
    yield f"Each row hears {REFERENCE_FRAMES} frames of a reference and speaks {n_frames}."
    yield ""
    yield HEADER
    left_out = {way.name: reason for way in WAYS if (reason := way.missing(device))}
    if reason := qwen3_faster.missing(device):
        left_out[FASTER] = reason
    started = time.perf_counter()
    for place, (size, folder) in enumerate(folders.items(), 1):
        ends = started + budget_s * place / len(folders)
        model = RandomModel(folder, device=torch.device("meta"), dtype=dtype, ops=torch_ops)
        n_positions = len(model.prompt.columns) + n_frames / 2
        limits = {n_rows: 1000 * model.bytes_per_frame(n_rows, n_positions) / moved for n_rows in batches}
        for name, n_rows, measure in _measures(folder, device, dtype, batches, n_frames):
            if time.perf_counter() > ends:
                left_out[f"{size} {name}, {n_rows} rows"] = "time ran out"
                continue
            try:
                yield measure().line(size, name, n_frames=n_frames, limit_ms=limits[n_rows])
            except (torch.OutOfMemoryError, qwen3_faster.FailedError) as error:
                left_out[f"{size} {name}, {n_rows} rows"] = f"{error}".split("\n")[0]
            _free(device)
        yield from (f"| {size} | limit | {n} | – | {limit:.2f} ms | 1.0 × |{' – |' * 6}" for n, limit in limits.items())
    yield ""
    yield from (f"Left out: {name}, since {reason.rstrip('.')}." for name, reason in left_out.items())


def _measures(
    folder: Path, device: torch.device, dtype: torch.dtype, batches: Sequence[int], n_frames: int
) -> Iterator[tuple[str, int, Callable[[], Row]]]:
    """Return the measurements with their names and rows, the most important first."""
    for way in WAYS:
        if way.missing(device):
            continue
        chosen = fastest_ops(device) if way.has_kernels else torch_ops
        model = RandomModel(folder, device=device, dtype=dtype, ops=chosen)
        kept = model.quantize(way.precision).codes if way.precision != "bf16" else None
        for n_rows in batches:
            yield f"ours, {way.name}", n_rows, partial(ours, model, way, n_rows, n_frames, kept=kept)
        del model
    if not qwen3_faster.missing(device) and 1 in batches:
        yield FASTER, 1, lambda: Row(1, qwen3_faster.step_ms(folder, device, dtype, n_frames))
    few = max(ROUNDS, n_frames // 4)
    for n_rows in batches:
        yield PLAIN, n_rows, partial(plain, folder, device, dtype, n_rows, few)


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def _cell(format: str, value: float | None) -> str:
    return "–" if value is None else format.format(value)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, nargs="+", default=SIZES)
    parser.add_argument("--config", type=Path, help="a checkpoint's folder, for other sizes; no weights are read")
    parser.add_argument("--rows", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--frames", type=int, default=FRAMES)
    asked = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as name:
        folders = {size: write_published(Path(name) / size, size) for size in asked.size}
        if asked.config:
            folders = {asked.config.name: asked.config}
        for line in table(folders, device, batches=asked.rows, n_frames=asked.frames):
            print(line, flush=True)


if __name__ == "__main__":
    main()
